"""Which tests stay together when workers share the suite, and which are handed out first."""

import fcntl
from pathlib import Path

import pytest
from tests.workers import KUBERNETES, LONGEST, file_of, group_of, order, turn

API_SERVER = "tests/api/test_api_server.py::test_a[a::b]"
CLUSTER = "tests/e2e/test_cluster.py::test_b"
KILLS = "tests/e2e/test_kills.py::test_c"
LOAD = "tests/api/test_load.py::TestX::test_d"


def test_what_needs_a_kubernetes_stays_together_and_everything_else_by_file() -> None:
    assert group_of(API_SERVER) == group_of(CLUSTER)
    assert [group_of(each) for each in (KILLS, LOAD)] == ["tests/e2e/test_kills.py", "tests/api/test_load.py"]


def test_pods_go_first_then_servers_alone_and_whole_jobs_last() -> None:
    files = [file_of(each) for each in (LOAD, KILLS, CLUSTER, API_SERVER)]
    slow, images = (files[1], files[2]), files[2]
    assert sorted(files, key=lambda file: order(file, file in slow, file == images)) == [files[2], files[3], files[0], files[1]]


def test_of_whole_jobs_the_longest_go_first() -> None:
    files = ["tests/e2e/test_code.py", *reversed(LONGEST), "tests/e2e/test_worker_nodes.py"]
    assert set(sorted(files, key=lambda file: order(file, True, False))[: len(LONGEST)]) == set(LONGEST)


def test_the_files_of_the_lists_are_there() -> None:
    root = Path(__file__).parents[1]
    assert [file for file in sorted({*KUBERNETES, *LONGEST}) if not (root / file).is_file()] == []


def test_many_take_turns_together_and_who_is_alone_with_nobody(tmp_path: Path) -> None:
    name = tmp_path / "run"
    with turn(name, alone=False), turn(name, alone=False), pytest.raises(BlockingIOError), name.with_suffix(".room").open("w") as room:
        fcntl.flock(room, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with turn(name, alone=True), pytest.raises(BlockingIOError), name.with_suffix(".room").open("w") as room:
        fcntl.flock(room, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with turn(name, alone=True):
        pass
