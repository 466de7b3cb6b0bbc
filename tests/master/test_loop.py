"""The whole loop against twins: every run takes the same course, in virtual time."""

from pathlib import Path

from tests.master.twins import World, inputs, job
from tests.master.virtual import run


def test_a_job_runs_to_its_end(tmp_path: Path) -> None:
    world = World(tmp_path, job(), inputs())
    run(world.master())
    assert world.status()["phase"] == "Succeeded"
    assert [line["iteration"] for line in world.metrics()] == [1, 2, 3]
    assert (tmp_path / "output" / "model" / "model.safetensors").exists()
