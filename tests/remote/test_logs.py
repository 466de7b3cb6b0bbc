"""Logs of several containers as one."""

from collections.abc import Iterator, Mapping, Sequence

import pytest
from tests.remote.twins import PODS, MemoryCluster, container, pod

from rljob.api import ConfigurationError, InfrastructureError
from rljob.remote.logs import Source, Wanted, choose, followed, merged
from rljob.remote.observe import PodState, pod_state

FOUND = [pod_state(p) for p in PODS]


def names(which: str | None, container: str | None = None) -> list[str]:
    return [source.name for source in choose("sums", FOUND, Wanted(which, container))]


def test_logs_are_chosen_by_role_pod_container_or_all() -> None:
    assert (
        names("worker")
        == names("worker-0")
        == names("sums-worker-0")
        == ["worker-0/megatron", "worker-0/vllm", "worker-0/checkpoint-engine"]
    )
    assert names("worker-0/vllm") == names("worker-0", "vllm") == ["worker-0/vllm"]
    assert names(None, "vllm") == ["worker-0/vllm", "rollout-0/vllm"], "what has not started yet has no log"
    assert len(names(None)) == 7


@pytest.mark.parametrize(
    ("which", "container", "message"),
    [
        ("worker-1", None, "sums has no pod or role 'worker-1'; did you mean worker-0?"),
        ("x", None, "sums has no pod or role 'x'; there are: worker, master, rollout, reward, worker-0"),
        ("worker", "vlm", "sums has no container 'vlm' in worker-0; did you mean vllm?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_near_one(which: str, container: str | None, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose("sums", FOUND, Wanted(which, container))
    assert str(caught.value).startswith(message)


def test_what_was_written_is_merged_by_time() -> None:
    api = MemoryCluster(
        {},
        {
            "sums-master/master": ["2026-01-01T00:00:01.5Z one", "2026-01-01T00:00:03Z three"],
            "sums-reward/reward": ["2026-01-01T00:00:02Z two "],
        },
    )
    sources = [s for s in choose("sums", FOUND, Wanted()) if s.pod.role in ("master", "reward")]
    assert [(line.source, line.text) for line in merged(api, sources, Wanted())] == [
        ("master/master", "one"),
        ("reward/reward", "two "),
        ("master/master", "three"),
    ]


def test_a_progress_bar_is_a_line_for_each_of_its_states_all_of_one_time() -> None:
    api = MemoryCluster({}, {"sums-master/master": ["2026-01-01T00:00:01Z \rone\rtwo\r", "2026-01-01T00:00:02Z "]})
    found = [(line.at[-3:-1], line.text) for line in merged(api, choose("sums", FOUND, Wanted("master")), Wanted())]
    assert found == [("01", "one"), ("01", "two"), ("02", "")]


def test_following_reads_every_life_of_a_container_once_and_ends_with_the_job() -> None:
    first = pod_state(pod("master", "master", container("master")))
    again = pod_state(pod("master", "master", container("master", restarts=1)))
    api = MemoryCluster({}, {"sums-master/master": ["2026-01-01T00:00:01Z hello"]})
    looks: Iterator[tuple[Sequence[PodState], bool]] = iter(
        [((), True), ((first,), True), ((first,), True), ((again,), True), ((again,), False)]
    )

    def look() -> tuple[Sequence[Source], bool]:
        pods, going_on = next(looks)
        return choose("sums", pods, Wanted()) if pods else [], going_on

    assert [line.text for line in followed(api, look, Wanted(), look_every=0.05)] == ["hello", "hello"]


def test_following_ends_with_the_error_when_the_cluster_goes() -> None:
    class Gone(MemoryCluster):
        def lines(self, path: str, query: Mapping[str, str]) -> Iterator[str]:
            raise InfrastructureError("the cluster does not answer")

    def look() -> tuple[Sequence[Source], bool]:
        return choose("sums", FOUND, Wanted("master")), True

    with pytest.raises(InfrastructureError, match="does not answer"):
        list(followed(Gone({}), look, Wanted(), look_every=0.05))
