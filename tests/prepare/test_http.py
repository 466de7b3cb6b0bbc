"""Models at http addresses: archives of every kind, and what is wrong with an address or an archive."""

import io
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.prepare.servers import Quiet, serving
from tests.prepare.support import Place, spec

from rljob.api import ConfigurationError
from rljob.prepare.download import fetch_url
from rljob.prepare.files import NoSpace
from rljob.prepare.preparation import prepare

Saved = Callable[..., Path]
Server = tuple[str, Path]


def pack(model: Path, archive: Path) -> None:
    """Pack a model folder as the archive's name says."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for file in model.iterdir():
                zipped.write(file, f"inner/model/{file.name}")
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as packed:
            packed.add(model, "inner/model")


def at(address: str) -> dict[str, object]:
    return {"model": {"source": {"url": address}}, "warmStart": None}


def kept(place: Place) -> list[str]:
    """Files in the cache, locks aside."""
    return [path.name for path in place.folders.cache.rglob("*") if not path.is_dir() and path.suffix != ".lock"]


@pytest.mark.parametrize("name", ["model.zip", "model.tar", "model.tgz", "model.tar.gz"])
def test_an_archive_is_downloaded_once_and_unpacked(place: Place, saved_model: Saved, server: Server, name: str) -> None:
    address, served = server
    pack(saved_model(), served / name)
    place.prepare(**at(f"{address}/{name}"))
    (served / name).unlink()
    shutil.rmtree(place.folders.model)
    assert place.prepare(**at(f"{address}/{name}")).train == 5


@pytest.mark.parametrize("name", ["model.zip", "model.tar", "model.tar.gz"])
@pytest.mark.parametrize("damage", ["cut off", "altered", "a page"])
def test_a_broken_archive_is_refused_and_fetched_again(place: Place, saved_model: Saved, server: Server, name: str, damage: str) -> None:
    address, served = server
    archive = served / name
    pack(saved_model(), archive)
    whole = archive.read_bytes()
    middle = whole.rindex(b"ustar") if name == "model.tar" else len(whole) // 2  # only headers are protected in a plain tar archive
    altered = whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 64]) + whole[middle + 64 :]
    archive.write_bytes({"cut off": whole[: len(whole) // 2], "altered": altered, "a page": b"<html>Log in</html>" * 50}[damage])
    with pytest.raises(ConfigurationError, match=rf"{name} is not a readable archive \(.*\); check the address$|holds no config.json"):
        place.prepare(**at(f"{address}/{name}"))
    assert kept(place) == []
    archive.write_bytes(whole)
    assert place.prepare(**at(f"{address}/{name}")).train == 5


def climbing_tar(archive: Path) -> None:
    with tarfile.open(archive, "w") as packed:
        member = tarfile.TarInfo("../../outside")
        member.size = 1
        packed.addfile(member, io.BytesIO(b"x"))


def absolute_link_tar(archive: Path) -> None:
    with tarfile.open(archive, "w") as packed:
        member = tarfile.TarInfo("config.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(member)


def climbing_link_tar(archive: Path) -> None:
    with tarfile.open(archive, "w") as packed:
        member = tarfile.TarInfo("config.json")
        member.type, member.linkname = tarfile.SYMTYPE, "../../../outside"
        packed.addfile(member)


def climbing_zip(archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("../../outside", "x")


def absolute_zip(archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("/outside", "x")


@pytest.mark.parametrize("make", [climbing_tar, absolute_link_tar, climbing_link_tar, climbing_zip, absolute_zip], ids=lambda f: f.__name__)
def test_an_archive_that_reaches_out_of_its_folder_is_refused_whole(place: Place, server: Server, make: Callable[[Path], None]) -> None:
    address, served = server
    name = "bad.zip" if make in (climbing_zip, absolute_zip) else "bad.tar"
    make(served / name)
    with pytest.raises(ConfigurationError, match=rf"the archive {name} is refused: .*; pack a Hugging Face model folder by relative names"):
        place.prepare(**at(f"{address}/{name}"))
    assert kept(place) == []
    assert not list(place.folders.cache.parent.glob("outside"))


def test_an_archive_without_a_model_is_named_and_not_kept(place: Place, saved_model: Saved, server: Server) -> None:
    address, served = server
    (served / "folder").mkdir()
    pack(served / "folder", served / "empty.tar")
    with pytest.raises(ConfigurationError, match=r"the archive at .*empty.tar holds no config.json; pack a Hugging Face model folder"):
        place.prepare(**at(f"{address}/empty.tar"))
    pack(saved_model(), served / "empty.tar")
    assert place.prepare(**at(f"{address}/empty.tar")).train == 5


@pytest.mark.parametrize("method", [9, 12, 93], ids=["deflate64", "not bzip2", "zstandard"])
def test_a_zip_archive_whose_compression_cannot_be_read_is_refused_and_fetched_again(
    place: Place, saved_model: Saved, server: Server, method: int
) -> None:
    address, served = server
    pack(saved_model(), served / "model.zip")
    whole = (served / "model.zip").read_bytes()
    changed = bytearray(whole)
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        for found in re.finditer(mark, whole):
            changed[found.start() + offset] = method
    (served / "model.zip").write_bytes(changed)
    with pytest.raises(ConfigurationError, match=r"model.zip is not a readable archive \(.*\); check the address"):
        place.prepare(**at(f"{address}/model.zip"))
    (served / "model.zip").write_bytes(whole)
    assert place.prepare(**at(f"{address}/model.zip")).train == 5


def test_an_archive_whose_model_is_not_complete_is_fetched_again(place: Place, saved_model: Saved, server: Server) -> None:
    address, served = server
    folder = saved_model()
    template = (folder / "chat_template.jinja").read_bytes()
    (folder / "chat_template.jinja").unlink()
    pack(folder, served / "model.tar")
    with pytest.raises(ConfigurationError, match=r"no chat template"):
        place.prepare(**at(f"{address}/model.tar"))
    (folder / "chat_template.jinja").write_bytes(template)
    pack(folder, served / "model.tar")
    assert place.prepare(**at(f"{address}/model.tar")).train == 5


def test_a_model_that_only_does_not_fit_the_job_is_not_fetched_again(place: Place, saved_model: Saved, server: Server) -> None:
    address, served = server
    pack(saved_model(), served / "model.tar")
    with pytest.raises(ConfigurationError, match=r"spec.trainer.pipelineParallel is 2, but the model has 1 layers"):
        place.prepare(**at(f"{address}/model.tar"), trainer={"pipelineParallel": 2}, accelerator={"perNode": 2})
    (served / "model.tar").unlink()
    assert place.prepare(**at(f"{address}/model.tar")).train == 5


def test_an_archive_of_several_models_names_them(place: Place, saved_model: Saved, server: Server) -> None:
    address, served = server
    with tarfile.open(served / "models.tar", "w") as packed:
        for name in ("checkpoint-100", "checkpoint-200"):
            packed.add(saved_model(), name)
    with pytest.raises(ConfigurationError, match=r"holds several models \(checkpoint-100, checkpoint-200\); pack one of them"):
        place.prepare(**at(f"{address}/models.tar"))


def test_a_signature_in_an_address_is_never_shown(place: Place, server: Server) -> None:
    address = server[0].replace("//", "//user:SECRET@")
    with pytest.raises(ConfigurationError) as refused:
        place.prepare(**at(f"{address}/nothing.gguf?X-Amz-Signature=SECRET"))
    assert f"{server[0]}/nothing.gguf answers 404" in str(refused.value)
    assert "SECRET" not in str(refused.value) + "".join(place.said)


@pytest.mark.parametrize("address", ["http://[::1/model.gguf", "http:///model.gguf"])
def test_what_is_no_address_at_all_is_named(place: Place, address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"/model.gguf cannot be fetched \(.*\); check the address"):
        place.prepare(**at(address))


def test_a_page_instead_of_a_gguf_file_is_named_and_not_kept(place: Place, server: Server) -> None:
    address, served = server
    (served / "m.gguf").write_text("<html>Log in</html>")
    with pytest.raises(ConfigurationError, match=r"m.gguf answers is no GGUF file \(it begins with b'<htm'\); check the address"):
        place.prepare(**at(f"{address}/m.gguf"))
    assert kept(place) == []


def test_a_download_that_breaks_off_is_named_and_not_kept(place: Place) -> None:
    class Short(Quiet):
        def do_GET(self) -> None:
            self.answer(200, b"GGUF", Content_Length="1000")
            self.close_connection = True

    with serving(Short) as address, pytest.raises(ConfigurationError, match=r"m.gguf cannot be fetched \(.*\); check the address"):
        place.prepare(**at(f"{address}/m.gguf"))
    assert kept(place) == []


def test_two_jobs_that_want_one_address_fetch_it_once_and_both_get_all_of_it(place: Place, saved_model: Saved, tmp_path: Path) -> None:
    folder, asked, joined = saved_model(), [], threading.Event()
    pack(folder, tmp_path / "model.tar")
    whole, half = (tmp_path / "model.tar").read_bytes(), threading.Event()

    class Slow(Quiet):
        """The first download goes on only when the second job has come to it."""

        def do_GET(self) -> None:
            asked.append(self.path)
            if len(asked) > 1:
                joined.set()
                return self.answer(200, whole)
            self.answer(200, whole[: len(whole) // 2], Content_Length=str(len(whole)))
            half.set()
            assert joined.wait(30)
            self.wfile.write(whole[len(whole) // 2 :])
            return None

    def second(line: str) -> None:
        if "waiting for another job that is fetching or reading" in line:
            joined.set()

    with serving(Slow) as address, ThreadPoolExecutor(2) as jobs:
        wanted, other = spec(**at(f"{address}/model.tar")), replace(place.folders, model=tmp_path / "model2", data=tmp_path / "data2")
        first = jobs.submit(prepare, wanted, place.folders, place.said.append)
        assert half.wait(30)
        assert jobs.submit(prepare, wanted, other, second).result(60) == first.result(60)
    assert (other.model / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert len(asked) == 1


def test_a_download_that_does_not_fit_is_refused_before_it_begins_and_names_the_caches_disk(place: Place) -> None:
    class Huge(Quiet):
        def do_GET(self) -> None:
            self.answer(200, b"GGUF", Content_Length=str(1 << 60))
            self.close_connection = True

    with serving(Huge) as address, pytest.raises(NoSpace, match=r"m.gguf needs \d+ MiB in .*cache.* are free; free .* set XDG_CACHE_HOME"):
        place.prepare(**at(f"{address}/m.gguf"))
    assert kept(place) == []


def test_a_disk_that_a_download_fills_is_the_caches_and_is_left_as_it_was(tmp_path: Path, server: Server) -> None:
    (server[1] / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / ".m.gguf.partial").symlink_to("/dev/full")
    with pytest.raises(NoSpace, match=rf"^fetching {server[0]}/m.gguf: disk full at {tmp_path}; free some space or set XDG_CACHE_HOME"):
        fetch_url(f"{server[0]}/m.gguf", tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_an_address_that_answers_with_an_error_is_named(place: Place, server: Server) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.gguf answers 404; check the address"):
        place.prepare(**at(f"{server[0]}/nothing.gguf"))


def test_an_address_that_cannot_be_reached_says_what_to_set(place: Place) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be fetched .* set HTTPS_PROXY"):
        place.prepare(**at("http://127.0.0.1:9/model.gguf"))
