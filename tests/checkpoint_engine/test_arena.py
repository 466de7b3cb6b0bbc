"""The arena: a safetensors file that is rewritten in place and never believed without proof."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file

from rljob.api import ConfigurationError, InfrastructureError
from rljob.checkpoint_engine.arena import (
    TensorFile,
    TensorSpec,
    WeightsRefused,
    converted_there,
    manifest_checksum,
    tensor_entries,
    verify_manifest,
)
from rljob.wire.pieces import SMALLEST
from rljob.wire.weights import Canary, Manifest, TensorEntry

SPECS = (
    TensorSpec("q", torch.float32, (4, 3)),
    TensorSpec("k", torch.float32, (2, 3)),
    TensorSpec("odd", torch.uint8, (5,)),
    TensorSpec("norm", torch.bfloat16, (3,)),
    TensorSpec("step", torch.int64, ()),
    TensorSpec("none", torch.float32, (0, 7)),
)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    return {s.name: torch.randint(0, 100, s.shape, generator=make).to(s.dtype) for s in SPECS}


def fill(path: Path, version: int, seed: int = 0) -> tuple[TensorFile, Manifest]:
    file = TensorFile.create(path, SPECS, {})
    sums = {name: file.write(name, value) for name, value in tensors(seed).items()}
    file.set_metadata({"version": str(version)})
    entries = tensor_entries(file, sums, "worker-0")
    canary = Canary(tokens=(1,), logprobs=(), tolerance=0.0)
    return file, Manifest(version=version, dtype="F32", tensors=entries, checksum=manifest_checksum(entries), canary=canary)


def test_any_safetensors_reader_opens_it_and_finds_the_same_tensors(tmp_path: Path) -> None:
    fill(tmp_path / "arena", 3)
    read = load_file(tmp_path / "arena")
    assert read.keys() == tensors(0).keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in tensors(0).items())


def test_files_of_others_open_too(tmp_path: Path) -> None:
    save_file(tensors(1), tmp_path / "other", metadata={"format": "pt"})
    with TensorFile.open(tmp_path / "other") as file:
        assert file.metadata == {"format": "pt"}
        assert all(torch.equal(file.view(name), value) for name, value in tensors(1).items())


def test_data_starts_on_a_page_and_neighbours_of_one_type_touch(tmp_path: Path) -> None:
    file, _ = fill(tmp_path / "arena", 1)
    assert file.data_start % 4096 == 0
    assert file.offset("k") == file.offset("q") + 4 * 3 * 4
    assert all(file.offset(s.name) % s.dtype.itemsize == 0 for s in SPECS)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("shape", [(6, 3), (6,)])
def test_rows_that_lie_in_groups_are_written_as_one_tensor(tmp_path: Path, shape: tuple[int, ...], on_disk: bool) -> None:
    """As query, key and value do in Megatron: three groups of two rows, each with a third row between that belongs to another tensor."""
    fused = torch.arange(9.0 * shape[-1]).view(9, *shape[1:]) if len(shape) > 1 else torch.arange(9.0)
    grouped = fused.view(3, 3, *shape[1:])[:, :2]
    assert not grouped.is_contiguous()
    file = TensorFile.create(tmp_path / "arena", [TensorSpec("q", torch.float32, shape)], {}, on_disk)
    sums = file.write("q", grouped)
    assert torch.equal(load_file(tmp_path / "arena")["q"], grouped.reshape(shape))
    assert sums == (file.checksum("q"),) == file.write("q", grouped.reshape(shape))
    with pytest.raises(ValueError, match=r"\[2, 2"):
        file.write("q", grouped[:2])


def test_a_new_version_is_written_in_place_and_open_readers_see_it(tmp_path: Path) -> None:
    fill(tmp_path / "arena", 1, seed=1)
    reader = TensorFile.open(tmp_path / "arena")
    view = reader.view("q")
    writer, _ = fill(tmp_path / "arena", 2, seed=2)
    assert writer.identity == reader.identity
    assert torch.equal(view, tensors(2)["q"])
    assert reader.metadata == {"version": "2"}


def test_another_layout_is_another_inode_and_leaves_old_readers_their_data(tmp_path: Path) -> None:
    fill(tmp_path / "arena", 1, seed=1)
    reader = TensorFile.open(tmp_path / "arena")
    other = TensorFile.create(tmp_path / "arena", SPECS[:2], {})
    assert other.identity != reader.identity
    assert torch.equal(reader.view("q"), tensors(1)["q"])
    assert [p.name for p in tmp_path.iterdir()] == ["arena"]


def test_views_outlive_the_file_object(tmp_path: Path) -> None:
    file, _ = fill(tmp_path / "arena", 1)
    view = file.view("q")
    file.close()
    file.close()
    assert torch.equal(view, tensors(0)["q"])


@pytest.mark.parametrize("on_disk", [False, True])
def test_checksums_are_xxh3_of_the_bytes_also_across_chunks(tmp_path: Path, on_disk: bool) -> None:
    value = torch.arange(700_000, dtype=torch.float32)
    file = TensorFile.create(tmp_path / "big", [TensorSpec("x", torch.float32, (700_000,))], {}, on_disk)
    whole, *parts = file.write("x", value)
    content = value.numpy().tobytes()
    assert whole == xxhash.xxh3_128_hexdigest(content) == file.checksum("x") == file.checksums()["x"]
    cuts = [] if on_disk else range(0, len(content), SMALLEST)
    assert parts == [xxhash.xxh3_128_hexdigest(content[at : at + SMALLEST]) for at in cuts]


def test_a_long_tensor_has_the_checksums_of_its_parts_however_it_is_written(tmp_path: Path) -> None:
    """Rows in groups of a size that no part is a multiple of, numbers that are converted, and what several ranks have written."""
    rows = torch.randint(0, 100, (9, 700, 333), dtype=torch.int16)
    file = TensorFile.create(tmp_path / "arena", [TensorSpec("q", torch.bfloat16, (9 * 350, 333)), TensorSpec("x", torch.uint8, (3,))], {})
    sums = file.write("q", rows[:, :350])
    content = rows[:, :350].to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()
    assert sums[1:] == tuple(xxhash.xxh3_128_hexdigest(content[at : at + SMALLEST]) for at in range(0, len(content), SMALLEST))
    assert len(sums) == 4
    (file.view("x"))[:] = torch.tensor([1, 2, 3])
    assert file.sums() == {"q": sums, "x": (file.checksum("x"),)}


def test_many_tensors_written_at_once_are_the_same(tmp_path: Path) -> None:
    one, manifest = fill(tmp_path / "one", 1)
    all_at_once = TensorFile.create(tmp_path / "all", SPECS, {})
    assert all_at_once.write_all(tensors(0)) == {entry.name: (entry.checksum,) for entry in manifest.tensors} == one.sums()
    assert all(torch.equal(all_at_once.view(name), value) for name, value in tensors(0).items())


def test_a_file_on_disk_is_written_without_its_mapping_and_is_the_same(tmp_path: Path) -> None:
    specs = [*SPECS, TensorSpec("big", torch.float32, (700_000,))]
    values = {**tensors(5), "big": torch.arange(700_000).double()}
    files = [TensorFile.create(tmp_path / name, specs, {"format": "pt"}, on_disk=on_disk) for name, on_disk in (("a", False), ("b", True))]
    sums = [file.write_all(values) for file in files]
    for file in files:
        file.sync()
    assert {name: whole for name, (whole, *_) in sums[0].items()} == {name: whole for name, (whole,) in sums[1].items()}
    assert (sums[0], sums[1]) == (files[0].sums(), files[1].sums())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_an_engine_holds_cannot_be_written_until_it_lets_go(tmp_path: Path) -> None:
    writer, _ = fill(tmp_path / "arena", 1)
    reader, another = TensorFile.open(tmp_path / "arena"), TensorFile.open(tmp_path / "arena")
    reader.hold()
    another.hold()
    reader.release()
    with pytest.raises(InfrastructureError, match="an engine serves from it"):
        writer.write("q", tensors(2)["q"])
    with pytest.raises(InfrastructureError, match="an engine serves from it"):
        TensorFile.create(tmp_path / "arena", SPECS, {})
    assert writer.metadata == {"version": "1"}
    another.close()
    writer.write("q", tensors(2)["q"])


def test_what_comes_from_an_accelerator_is_converted_there() -> None:
    afar, here = torch.empty(2, 3, device="meta"), torch.empty(2, 3)
    assert (converted_there(afar, torch.bfloat16).device.type, converted_there(afar, torch.bfloat16).dtype) == ("meta", torch.bfloat16)
    assert converted_there(here, torch.bfloat16) is here, "main memory is converted chunk by chunk"


def test_writing_converts_the_element_type_and_refuses_another_shape(tmp_path: Path) -> None:
    file, _ = fill(tmp_path / "arena", 1)
    file.write("norm", torch.tensor([1.0, 2.0, 3.00390625]))
    assert file.view("norm").tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"\[4\]"):
        file.write("norm", torch.zeros(4))


def test_too_little_space_says_how_much_is_needed_and_free(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs .* GiB, .* has .* GiB free: free space"):
        TensorFile.create(tmp_path / "huge", [TensorSpec("x", torch.float32, (1 << 44,))], {})
    assert list(tmp_path.iterdir()) == []


def test_too_small_shared_memory_names_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"/dev/shm has .* free: raise the size of the shared-memory volume"):
        TensorFile.create(Path("/dev/shm/rljob-test-huge"), [TensorSpec("x", torch.float32, (1 << 44,))], {})


def test_a_missing_folder_or_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot create"):
        TensorFile.create(tmp_path / "no" / "arena", SPECS, {})
    with pytest.raises(ConfigurationError, match="cannot open"):
        TensorFile.open(tmp_path / "no")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    fill(tmp_path / "arena", 1)
    whole = (tmp_path / "arena").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:keep])
    with pytest.raises(ConfigurationError, match="cut"):
        TensorFile.open(tmp_path / "cut")


def test_metadata_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    file, _ = fill(tmp_path / "arena", 1)
    with pytest.raises(ValueError, match="does not fit"):
        file.set_metadata({"x": "y" * 20_000})
    assert file.metadata == {"version": "1"}


def test_doubled_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="q"):
        TensorFile.create(tmp_path / "arena", [SPECS[0], SPECS[0]], {})


def test_a_true_manifest_is_accepted(tmp_path: Path) -> None:
    file, manifest = fill(tmp_path / "arena", 1)
    verify_manifest(manifest, file)


def test_the_identity_does_not_depend_on_the_order_but_on_every_tensor(tmp_path: Path) -> None:
    _, manifest = fill(tmp_path / "arena", 1)
    assert manifest_checksum(reversed(manifest.tensors)) == manifest.checksum
    assert manifest_checksum(manifest.tensors[1:]) != manifest.checksum


def resealed(manifest: Manifest, tensors: tuple[TensorEntry, ...]) -> Manifest:
    return manifest.model_copy(update={"tensors": tensors, "checksum": manifest_checksum(tensors)})


def changed(manifest: Manifest, **update: object) -> Manifest:
    return resealed(manifest, (manifest.tensors[0].model_copy(update=update), *manifest.tensors[1:]))


LIES: dict[str, tuple[Callable[[Manifest], Manifest], str]] = {
    "another version": (lambda m: m.model_copy(update={"version": 2}), "holds version 1, the manifest is of version 2"),
    "wrong total": (lambda m: m.model_copy(update={"checksum": "0" * 32}), "not that of its tensors"),
    "incomplete": (lambda m: resealed(m, m.tensors[1:]), "is not in the manifest"),
    "doubled": (lambda m: resealed(m, (*m.tensors, m.tensors[0])), "stands 2 times"),
    "unknown tensor": (lambda m: changed(m, name="unknown"), "unknown is missing"),
    "wrong type": (lambda m: changed(m, dtype="F64"), "not F64"),
    "wrong shape": (lambda m: changed(m, shape=(9,)), r"not I64 \[9\]"),
    "wrong bytes": (lambda m: changed(m, checksum="0" * 32), "checksum"),
    "no shards": (lambda m: changed(m, shards=()), "not covered"),
    "other parts": (lambda m: changed(m, parts=("0" * 32,)), "tensor step has 1 parts; 8 bytes in a version of 91 are cut in 1"),
    "moved": (lambda m: changed(m, shards=(m.tensors[1].shards[0].model_copy(update={"offset": 0}),)), "not covered"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_is_not_true_is_refused(tmp_path: Path, lie: str) -> None:
    tell, message = LIES[lie]
    file, manifest = fill(tmp_path / "arena", 1)
    with pytest.raises(WeightsRefused, match=message):
        verify_manifest(tell(manifest), file)


def test_a_half_written_arena_is_refused(tmp_path: Path) -> None:
    _, manifest = fill(tmp_path / "arena", 1)
    half = TensorFile.create(tmp_path / "arena", SPECS, {})
    with pytest.raises(WeightsRefused, match="half written"):
        verify_manifest(manifest, half)


def test_two_parts_of_a_tensor_that_changed_places_are_found(tmp_path: Path) -> None:
    """What a rank would do that took another's place."""
    file, manifest = fill(tmp_path / "arena", 1)
    tensor = file.view("q")
    tensor.copy_(tensor.roll(tensor.shape[0] // 2, 0))
    verify_manifest(manifest, file, contents=False)
    with pytest.raises(WeightsRefused, match="q: checksum"):
        verify_manifest(manifest, file)


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    file, manifest = fill(tmp_path / "arena", 1)
    file.view("q").view(torch.int32)[0, 0] ^= 1
    verify_manifest(manifest, file, contents=False)
    with pytest.raises(WeightsRefused, match="q: checksum"):
        verify_manifest(manifest, file)
