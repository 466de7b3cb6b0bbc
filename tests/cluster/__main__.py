"""`python -m tests.cluster build|up|load|registry|devices|down`: the cluster of the tests, for a person."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from tests.cluster import state
from tests.cluster.box import ClusterError
from tests.cluster.build import RUNC, BuildError, binary, build_all, cache_folder
from tests.cluster.cluster import CHECKOUT, LocalCluster, start

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _folders() -> Path:
    """Where the folders of clusters are that this command made; others are not its business."""
    return cache_folder() / "folders"


def _own() -> list[state.Record]:
    records = state.all_records()
    return [record for record in records if record.checkout == str(CHECKOUT) and Path(record.folder).parent == _folders()]


def _standing() -> list[state.Record]:
    """Clusters made by this command from this checkout that still run."""
    here = state.boot_id()
    return [record for record in _own() if record.boot == here and record.boxes and all(box.alive() for box in record.boxes.values())]


def _one() -> LocalCluster:
    standing = _standing()
    if not standing:
        raise ClusterError("no cluster of this checkout runs; `make cluster` starts one")
    return LocalCluster.adopt(standing[0])


def _explain(cluster: LocalCluster) -> None:
    _say(f"\nThis cluster runs until `make cluster-down`. Its logs are in {cluster.folder / 'log'}. In your shell:\n")
    print(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
    folders = (Path(sys.executable).parent, binary("kubectl").parent, binary("helm").parent)
    print(f"export PATH={':'.join(shlex.quote(str(folder)) for folder in folders)}:$PATH", flush=True)


@app.command()
def build() -> None:
    """Builds every program that is not built yet."""
    build_all(_say)
    build_all(_say, {RUNC.name})


@app.command()
def up(nodes: Annotated[int, typer.Option(min=0, max=8, help="0: only the control plane")] = 1) -> None:
    """Starts a cluster, unless one of this checkout runs already, and prints how to reach it."""
    standing = _standing()
    if standing:
        _explain(LocalCluster.adopt(standing[0]))
        return
    build()
    _folders().mkdir(parents=True, exist_ok=True)
    _explain(start(nodes, detached=True, parent=_folders()))


@app.command()
def load(archive: Path) -> None:
    """Gives every node the images of an OCI or Docker archive."""
    _one().load_image(archive)


@app.command()
def registry() -> None:
    """Starts a registry on the cluster's network and prints its HOST:PORT."""
    print(_one().registry())


@app.command()
def devices(count: int = 8) -> None:
    """Publishes fake devices on every node."""
    _one().devices(count)


@app.command()
def down() -> None:
    """Removes the cluster that was started from this checkout, and what crashed ones left."""
    state.reap()
    for record in _own():
        state.remove(record)
        _say(f"removed {record.name}")


def main() -> None:
    """Runs a command; errors in one line and exit status 1."""
    try:
        app()
    except (ClusterError, BuildError, subprocess.TimeoutExpired) as error:
        _say(f"error: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
