"""What every image promises, tried in the image itself: it starts without root, network and a writable disk, it is small, it says
nothing of the machine that built it, and it can be built again bit for bit.

The first run builds the images (a quarter of an hour of two cores); afterwards only what has changed.
"""

import ast
import json
import os
import re
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from images.tools import finish
from tests.images.inside import Inside, mounted

from images import build

pytestmark = [pytest.mark.timeout(2700), pytest.mark.slow, pytest.mark.images(*build.LISTS)]
ROOT = Path(build.__file__).parents[1]
SLIM = ("operator", "master", "reward", "sandbox")
ENTRIES = [
    ("operator", "controller"),
    ("master", "master"),
    ("master", "checkpoint_engine"),
    ("reward", "reward"),
    ("trainer", "prepare"),
    ("trainer", "trainer"),
    ("trainer", "checkpoint_engine.shim"),
    ("rollout", "checkpoint_engine.shim"),
    ("trainer", "reward"),
    ("rollout", "checkpoint_engine"),
    ("combined", "trainer"),
    ("combined", "checkpoint_engine"),
    ("sandbox", "sandbox"),
]


@pytest.fixture(scope="session")
def images() -> dict[str, build.Built]:
    """All images of this source tree, built if they are not there yet."""
    done = subprocess.run(["sh", "scripts/images.sh", "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {
        i["name"]: build.Built(i["name"], i["tag"], dict(zip(i["layers"], i["sizes"], strict=True)), 0, i["changed"])
        for i in json.loads(done.stdout)
    }


@pytest.fixture(scope="session")
def inside(images: dict[str, build.Built]) -> Iterator[dict[str, Inside]]:
    """All images, mounted."""
    opened = {name: mounted(f"localhost/rljob/{name}:{image.tag}") for name, image in images.items()}
    entered: dict[str, Inside] = {}
    try:
        for name, context in opened.items():
            entered[name] = context.__enter__()
        yield entered
    finally:
        for name in entered:
            opened[name].__exit__(None, None, None)


@pytest.mark.parametrize(("image", "module"), ENTRIES)
def test_a_process_starts_and_says_what_it_misses(inside: dict[str, Inside], image: str, module: str) -> None:
    result = inside[image].run("python", "-m", f"rljob.{module}")
    assert result.status == 2, result.error
    assert "error: " in result.error.splitlines()[-1]
    assert "Traceback" not in result.error


@pytest.mark.parametrize("image", sorted(build.LISTS))
def test_nobody_is_root_and_nothing_can_be_written_or_reached(inside: dict[str, Inside], image: str) -> None:
    code = """
import os, socket
print(os.getuid(), os.getgid(), os.environ["HOME"])
open("/tmp/x", "w").close()
for act in (lambda: open("/opt/venv/x", "w"), lambda: os.mkdir("/x"), lambda: socket.create_connection(("192.0.2.1", 80), 1)):
    try:
        act()
    except OSError as error:
        print(error.strerror)
"""
    lines = inside[image].python(code).splitlines()
    assert lines == ["65532 65532 /tmp", "Read-only file system", "Read-only file system", "Network is unreachable"]
    assert inside[image].config["config"]["User"] == "65532:65532"


@pytest.mark.parametrize("image", SLIM)
def test_slim_images_hold_no_torch(inside: dict[str, Inside], image: str) -> None:
    assert (
        inside[image].python("import importlib.util as u; print([u.find_spec(m) for m in ('torch', 'vllm', 'megatron')])")
        == "[None, None, None]\n"
    )


@pytest.mark.parametrize("image", ["operator", "master", "reward"])
def test_slim_images_stay_under_350_megabytes(images: dict[str, build.Built], image: str) -> None:
    assert 50e6 < sum(images[image].layers.values()) < 350e6


def test_the_sandbox_holds_its_languages_and_little_more(images: dict[str, build.Built]) -> None:
    assert 50e6 < sum(images["sandbox"].layers.values()) < 600e6


def test_torch_lies_in_one_layer_that_all_share(images: dict[str, build.Built]) -> None:
    common = set.intersection(
        *({d for d, size in images[name].layers.items() if size > 10e6} for name in ("trainer", "rollout", "combined"))
    )
    assert sum(images["trainer"].layers[digest] for digest in common) > 1e9


def test_torch_runs_on_cpu_with_the_stand_ins(inside: dict[str, Inside]) -> None:
    code = """
import torch
from torch.profiler import profile
x = torch.randn(8, 8, requires_grad=True)
with profile():
    (x @ x).sum().backward()
torch.nn.functional.scaled_dot_product_attention(*[torch.randn(1, 2, 8, 16)] * 3).sum()
torch.save({"x": x}, "/tmp/x.pt")
print(torch.cuda.is_available(), torch.cuda.device_count(), torch.load("/tmp/x.pt")["x"].equal(x), torch.distributed.is_gloo_available())
"""
    assert inside["trainer"].python(code).splitlines()[-1] == "False 0 True True"


@pytest.mark.parametrize("image", ["rollout", "combined"])
def test_vllm_finds_its_cpu_platform(inside: dict[str, Inside], image: str) -> None:
    code = "import rljob.rollout.plugin, vllm._C; from vllm.platforms import current_platform as p; print(p.is_cpu())"
    assert inside[image].python(code).splitlines()[-1] == "True"


def test_rewards_are_computed_without_plots(inside: dict[str, Inside]) -> None:
    code = """
import math_verify, reasoning_gym, cellpylib
from reasoning_gym.factory import create_dataset
print(math_verify.verify(math_verify.parse("$1/2$"), math_verify.parse("$0.5$")))
entry = (data := create_dataset("game_of_life", size=1, seed=1))[0]
print(data.score_answer(entry["answer"], entry))
try:
    cellpylib.plot([[0]])
except ImportError as error:
    print(error)
"""
    lines = inside["reward"].python(code).splitlines()
    assert lines[:2] == ["True", "1.0"]
    assert lines[2].startswith("matplotlib.pyplot.get_cmap: images hold no matplotlib")


@pytest.mark.parametrize("image", sorted(build.LISTS))
def test_every_module_has_bytecode_that_is_never_checked(inside: dict[str, Inside], image: str) -> None:
    for folder in (inside[image].root / "opt/venv/lib").glob("python3.*/site-packages"):
        left = [path for path in finish.to_compile(folder) if parses(path)]
        assert [str(p.relative_to(folder)) for p in left] == []


def parses(path: Path) -> bool:
    try:
        ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return False
    return True


@pytest.mark.parametrize("image", sorted(build.LISTS))
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_nothing_of_the_machine_that_built_it_is_in_an_image(inside: dict[str, Inside], image: str) -> None:
    root, config = inside[image].root, json.dumps(inside[image].config)
    assert {entry.split("=")[0] for entry in inside[image].config["config"]["Env"]} == {
        *("PATH", "LANG", "HOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
    }
    settings = [value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_")) and "/" in value]
    places = [*(root / "etc").rglob("*"), *(root / "opt/rljob").rglob("*"), *(root / "run").rglob("*"), root / "opt/venv/pyvenv.cfg"]
    texts = [config, *(p.read_text(errors="replace") for p in places if p.is_file() and not p.is_symlink() and p.stat().st_size < 1e6)]
    for word in (str(Path.home() / ".cache"), "PRIVATE KEY-----", *settings):
        assert not [text[:80] for text in texts if word in text], word
    named = [config, *((root / place).read_text() for place in ("etc/hostname", "etc/hosts", "opt/venv/pyvenv.cfg"))]
    assert not [text[:80] for text in named if re.search(rf"\b{re.escape(socket.gethostname())}\b", text)]
    assert "://" not in config
    assert [p for p in (root / "run/secrets").glob("*") if p.stat().st_size] == []
    for empty in ("tmp", "root", "var/cache/uv", "var/lib/apt/lists"):
        assert not (root / empty).exists() or [p for p in (root / empty).iterdir() if p.name not in (".bashrc", ".profile")] == []


@pytest.mark.parametrize("image", ["operator", "master", "reward"])
def test_an_image_can_be_built_again_bit_for_bit(images: dict[str, build.Built], image: str) -> None:
    """Without any cache of layers. Done once for what the image is made of; another line of code in the project does not repeat it."""
    with build.snapshot() as root:
        code = (root / "operator", root / "runtime")
        files = [p for p in build.source_files(root, image, "cpu") if not any(p.is_relative_to(folder) for folder in code)]
        done = build.cache_folder() / f"same-{image}-{build.content_hash(root, files)}"
        if done.exists():
            assert done.read_text() == "same"
            return
        uv, _ = build.uv_context()
        arguments = build.build_arguments(root, build.parse([]))
        first, again = (f"{word}-{uuid.uuid4().hex[:8]}" for word in ("first", "again"))
        build.build_image(root, image, first, arguments, uv, without_cache=False)
        build.build_image(root, image, again, arguments, uv, without_cache=True)
    found = [build.layer_sizes(f"localhost/rljob/{image}:{tag}") for tag in (first, again)]
    build.run("buildah", "rmi", *(f"localhost/rljob/{image}:{tag}" for tag in (first, again)))
    assert found[0] == found[1]
    done.write_text("same")
