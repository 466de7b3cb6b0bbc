from pathlib import Path

from rljob.wire.checkpoints import checkpoint_folder, checkpoint_versions


def test_only_complete_checkpoints_are_listed_oldest_first(tmp_path: Path) -> None:
    for version in (10, 2):
        checkpoint_folder(tmp_path, version).mkdir()
    (tmp_path / "version-000011.tmp").mkdir()
    (tmp_path / "version-000012").write_text("a file")
    assert checkpoint_versions(tmp_path) == (2, 10)


def test_a_volume_that_does_not_exist_yet_has_none(tmp_path: Path) -> None:
    assert checkpoint_versions(tmp_path / "missing") == ()
