"""Work queue, Lease, progress of masters: each in virtual time."""

import asyncio
import json
import random
import socket
from collections.abc import Iterable
from itertools import islice, pairwise
from typing import Any, cast

import kopf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.controller.twin import Fault, Twin
from tests.controller.world import report, rljob
from tests.master.virtual import clock, run

from rljob.api import ConfigurationError, InfrastructureError
from rljob.controller.cache import Cache
from rljob.controller.client import ApiError
from rljob.controller.connection import Connection
from rljob.controller.desired import Renderer
from rljob.controller.kinds import CHILDREN, Key, Ref
from rljob.controller.leader import Leader, LeaseLost, decide_lease
from rljob.controller.main import Operator, configure
from rljob.controller.metrics import Metrics
from rljob.controller.progress import KEPT, PER_SECOND, Poller, Target, by_api_server, shortened
from rljob.controller.progress import LONGEST_SECONDS as SLOWEST
from rljob.controller.resync import RESYNC_SECONDS, Resync
from rljob.controller.server import serve
from rljob.controller.watch import Stream
from rljob.controller.workqueue import LONGEST_DELAY, WorkQueue, delay
from rljob.manifests import Settings

A, B = Key("default", "a"), Key("default", "b")


@given(failures=st.integers(1, 10_000), luck=st.floats(0, 1))
def test_back_off_grows_within_bounds_and_never_to_nothing(failures: int, luck: float) -> None:
    wait = delay(failures, luck)
    assert 0.1 <= wait <= LONGEST_DELAY
    assert delay(failures, 0) <= wait <= delay(failures, 1)


@given(failures=st.integers(1, 10_000), least=st.floats(0.1, 1e6))
def test_whom_a_server_tells_the_same_time_do_not_come_back_together(failures: int, least: float) -> None:
    waits = [delay(failures, luck / 10, least) for luck in range(11)]
    assert waits[0] >= least
    assert all(later > earlier for earlier, later in pairwise(waits))


def working(story: Any, look: Any, seed: int = 0) -> None:
    async def tell() -> None:
        queue = WorkQueue(look, Metrics(), random.Random(seed))
        task = asyncio.create_task(queue.run(2))
        await story(queue)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(tell())


def test_a_job_named_often_is_looked_at_once_more_and_never_twice_at_a_time() -> None:
    looks: list[float] = []
    running: set[Key] = set()

    async def look(key: Key) -> None:
        assert key not in running
        running.add(key)
        looks.append(clock())
        await asyncio.sleep(1)
        running.discard(key)

    async def story(queue: WorkQueue) -> None:
        for _ in range(5):
            queue.add(A)
        await asyncio.sleep(0.5)
        for _ in range(5):
            queue.add(A)
        await asyncio.sleep(5)
        assert len(looks) == 2

    working(story, look)


def test_an_earlier_appointment_stands_and_a_failure_waits_longer_each_time() -> None:
    looks: list[float] = []

    async def look(key: Key) -> float | None:
        looks.append(asyncio.get_running_loop().time())
        if key == B:
            raise InfrastructureError("no")
        return None

    async def story(queue: WorkQueue) -> None:
        queue.add_after(A, 10)
        queue.add_after(A, 3)
        queue.add_after(A, 20)
        await asyncio.sleep(30)
        assert looks == [3]
        queue.add(B)
        await asyncio.sleep(3600)
        gaps = [later - earlier for earlier, later in pairwise(looks[1:])]
        assert gaps[0] < 1 < gaps[5] < gaps[8]
        assert max(gaps) <= LONGEST_DELAY

    working(story, look)


def test_retry_after_is_kept_and_not_by_all_at_the_same_moment() -> None:
    again: list[float] = []

    async def look(key: Key) -> None:
        looks.append(asyncio.get_running_loop().time())
        if len(looks) == 1:
            raise ApiError(429, "TooManyRequests", "slow down", 30.0)

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await asyncio.sleep(60)
        assert looks[0] == 0
        assert 30 <= looks[1] <= 45
        assert len(looks) == 2
        again.append(looks[1])

    for seed in range(5):
        looks: list[float] = []
        working(story, look, seed)
    assert len(set(again)) == 5


def test_streams_that_were_refused_together_do_not_come_back_together() -> None:
    async def tell() -> list[float]:
        twin, lists = Twin(), list[float]()

        def fault(verb: str, kind: str) -> Fault:
            if len(lists) == 10:
                return None
            lists.append(clock())
            return ApiError(429, "TooManyRequests", "slow down", 10.0)

        twin.fault = fault
        streams = [Stream(twin, Cache(), kind, None, lambda key: None, clock, random.Random(kind.kind)) for kind in CHILDREN[:5]]
        tasks = [asyncio.create_task(stream.run()) for stream in streams]
        await asyncio.sleep(60)
        for task in tasks:
            task.cancel()
        return lists

    lists = run(tell())
    assert lists[4] - lists[0] < 1
    assert lists[5] - lists[4] >= 10
    assert lists[9] - lists[5] > 1


def test_a_lease_is_taken_only_from_who_does_not_renew() -> None:
    held = {"spec": {"holderIdentity": "other", "leaseDurationSeconds": 15}}
    assert decide_lease(None, "me", 0) == "make"
    assert decide_lease(held, "me", 14) == "wait"
    assert decide_lease(held, "me", 16) == "take"
    assert decide_lease({"spec": {"holderIdentity": "me"}}, "me", 0) == "renew"
    assert decide_lease({"spec": {"holderIdentity": ""}}, "me", 0) == "take"


LEASE = Ref("Lease", "default", "l")


def leader(twin: Twin, name: str) -> Leader:
    return Leader(twin, LEASE, name, 15, clock, random.Random(name))


def test_two_operators_never_act_at_the_same_time_however_the_first_one_ends() -> None:
    async def story() -> None:
        twin = Twin()
        acting: list[tuple[str, str, float]] = []
        cut: set[str] = set()

        async def live(name: str) -> None:
            me = leader(twin, name)
            me.api = Cut(twin, name, cut)
            await me.acquire()
            acting.append((name, "starts", clock()))
            try:
                await me.keep()
            except LeaseLost:
                acting.append((name, "stops", clock()))

        tasks = [asyncio.create_task(live(name)) for name in "ab"]
        await asyncio.sleep(60)
        assert len(acting) == 1
        cut.add(acting[0][0])
        await asyncio.sleep(60)
        assert [what for _, what, _ in acting] == ["starts", "stops", "starts"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(story())


class Cut:
    """An API server that some cannot reach."""

    def __init__(self, twin: Twin, name: str, cut: set[str]) -> None:
        self._twin, self._name, self._cut = twin, name, cut

    def __getattr__(self, verb: str) -> Any:
        async def call(*arguments: Any) -> Any:
            if self._name in self._cut:
                await asyncio.sleep(1)
                raise ApiError(0, "Unreachable", "no route")
            return await getattr(self._twin, verb)(*arguments)

        return call


def test_a_clean_end_hands_over_at_once() -> None:
    async def story() -> None:
        twin = Twin()
        first, second = leader(twin, "a"), leader(twin, "b")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(10)
        assert not waiting.done()
        await first.release()
        async with asyncio.timeout(5):
            await waiting

    run(story())


def test_conflicts_and_errors_do_not_shake_a_holder() -> None:
    async def story() -> None:
        twin = Twin()
        luck = random.Random(0)
        faults: tuple[Fault, ...] = (ApiError(409, "Conflict", "older"), ApiError(500, "InternalError", "x"), "lost", *[None] * 9)
        me = leader(twin, "a")
        await me.acquire()
        twin.fault = lambda verb, kind: luck.choice(faults)
        keeping = asyncio.create_task(me.keep())
        await asyncio.sleep(40)
        twin.fault = lambda verb, kind: None
        await asyncio.sleep(60)
        assert not keeping.done()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    run(story())


def polling(story: Any, answers: Any) -> None:
    async def tell() -> None:
        told: list[Key] = []
        poller = Poller(answers, told.append, Metrics(), 5.0, random.Random(0))
        task = asyncio.create_task(poller.run())
        await story(poller, told)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(tell())


def test_small_talk_wakes_nobody_and_news_does() -> None:
    said: dict[str, Any] = {}

    async def answers(target: Target) -> dict[str, Any]:
        return {**report(said["iteration"]), "updated": clock(), "tokensPerSecond": clock()}

    async def story(poller: Poller, told: list[Key]) -> None:
        said["iteration"] = 1
        poller.follow(A, "u", "10.0.0.1", "a-master")
        await asyncio.sleep(20)
        assert told == [A]
        said["iteration"] = 2
        await asyncio.sleep(7)
        assert told == [A, A]
        poller.leave(A)
        await asyncio.sleep(20)
        assert poller.report(A, {"u"}) is None

    polling(story, answers)


@pytest.mark.parametrize("masters", [1, 1000])
def test_all_masters_together_are_asked_no_faster_than_bearable(masters: int) -> None:
    asked: list[float] = []

    async def answers(target: Target) -> dict[str, Any]:
        asked.append(clock())
        return report(1)

    async def story(poller: Poller, told: list[Key]) -> None:
        for index in range(masters):
            poller.follow(Key("default", f"j{index}"), "u", "10.0.0.1", "m")
        await asyncio.sleep(100)
        asked.clear()
        await asyncio.sleep(100)
        assert len(asked) <= 100 * min(PER_SECOND, masters / 5) * 1.15
        assert len(asked) >= 100 * min(PER_SECOND, masters / 5) * 0.8

    polling(story, answers)


def test_a_master_that_does_not_answer_is_asked_less_and_less() -> None:
    asked: list[float] = []

    async def answers(target: Target) -> dict[str, Any]:
        asked.append(clock())
        raise InfrastructureError("no")

    async def story(poller: Poller, told: list[Key]) -> None:
        poller.follow(A, "u", "10.0.0.1", "a-master")
        await asyncio.sleep(1000)
        assert 1000 / SLOWEST / 1.2 <= len(asked) <= 25
        assert not told

    polling(story, answers)


@pytest.mark.parametrize("families", [0, 5, 400, 20_000])
def test_a_report_of_any_length_fits_an_object_and_keeps_the_first_evaluation(families: int) -> None:
    said = {f"subject-{n:05}/level": 1 / 3 for n in range(families)}
    held_out = [{"iteration": 4 * n, "accuracy": 1 / 3, "count": 4096, "families": said} for n in range(300)]
    kept = shortened({"rewards": [1 / 3] * 1200, "heldOut": held_out})
    assert len(json.dumps(kept)) < 300_000
    assert (len(kept["rewards"]), kept["rewardsBefore"]) == (KEPT, 1000)
    assert [e["iteration"] for e in kept["heldOut"]] == [0, *(4 * n for n in range(101, 300))]
    told = [index for index, e in enumerate(kept["heldOut"]) if e["families"]]
    assert told == {0: [], 5: [*range(200)], 400: [0, *range(200 - len(told) + 1, 200)], 20_000: []}[families]
    assert len(told) > 1 or families in (0, 20_000)
    assert held_out[1]["families"] == said


def test_what_a_newer_master_says_is_taken_as_far_as_it_is_known() -> None:
    async def tell() -> None:
        twin, evaluation = Twin(), {"iteration": 0, "accuracy": 0.5, "spread": 0.1}
        said = report(3, heldOut=[evaluation], queue=3)
        twin.documents["/api/v1/namespaces/default/pods/a-master:8080/proxy/v1/status"] = said
        found = await by_api_server(twin)(Target(A, "u", "10.0.0.1", "a-master"))
        assert found["heldOut"] == [{"iteration": 0, "accuracy": 0.5, "families": {}, "count": 0}]
        assert "queue" not in found

    run(tell())


def test_specs_that_were_refused_are_read_anew_only_if_the_definition_says_something_new() -> None:
    cache, renderer = Cache(), Renderer(Settings(), "1")
    raw = rljob(moonshot=3)
    key = cache.put_job(raw | {"metadata": raw["metadata"] | {"uid": "u", "resourceVersion": "1", "generation": 1}})
    assert key is not None
    refused = renderer.desired(cache.jobs[key], running=False)
    assert refused.refusal is not None
    renderer.learn({})
    assert renderer.desired(cache.jobs[key], running=False) is refused
    renderer.learn({"properties": {"spec": {"properties": {"moonshot": {"default": 3}}}}})
    assert renderer.desired(cache.jobs[key], running=False).refusal is None


@pytest.mark.parametrize("namespaces", [[], ["a"], ["a", "b"], ["gone", "a", "b"]])
def test_what_a_stream_never_brings_is_found_in_every_namespace(namespaces: list[str]) -> None:
    async def tell() -> set[Key]:
        twin, told = Twin(forbidden={"gone"}), set[Key]()
        for namespace in ("a", "b"):
            job = rljob()
            job["metadata"]["namespace"] = namespace
            twin.add(job)
        task = asyncio.create_task(Resync(twin, Cache(), namespaces, told.add).run())
        await asyncio.sleep(3 * RESYNC_SECONDS)
        task.cancel()
        return told

    assert run(tell()) == {Key(namespace, "x") for namespace in namespaces or ["a", "b"] if namespace != "gone"}


def test_the_definition_is_asked_for_where_the_operator_has_a_right_to() -> None:
    def check(*namespaces: str, missing: bool = False) -> None:
        twin = Twin(forbidden={"gone"})
        if missing:
            twin.fault = lambda verb, kind: ApiError(404, "NotFound", "page not found")
        poller = Poller(by_api_server(twin), lambda key: None, Metrics())
        settings, connection = Settings(namespaces=[*namespaces]), Connection(kopf.ConnectionInfo(server="http://twin"))
        run(Operator(settings, connection, twin, Metrics(), poller, clock)._check_crd())

    check("gone", "a")
    check("a", "gone")
    with pytest.raises(ApiError, match="forbidden"):
        check("gone")
    with pytest.raises(ConfigurationError, match="no CustomResourceDefinition"):
        check("gone", "a", missing=True)


def test_the_stream_of_one_namespace_that_is_gone_is_tried_for_as_long_as_it_takes() -> None:
    settings = kopf.OperatorSettings()
    configure(settings, several=False)
    assert isinstance(settings.networking.error_backoffs, tuple), "else the process ends, and is started anew"
    configure(settings, several=True)
    for _ in range(2):
        seconds = list(islice(cast(Iterable[float], settings.networking.error_backoffs), 1000))
        assert (len(seconds), min(seconds), max(seconds)) == (1000, 1.0, 30.0)


def test_an_answer_that_cannot_be_read_concerns_its_own_master_alone() -> None:
    async def answers(target: Target) -> dict[str, Any]:
        if target.key == A:
            raise RecursionError("maximum recursion depth exceeded")
        return report(1)

    async def story(poller: Poller, told: list[Key]) -> None:
        other = Key("default", "other")
        poller.follow(A, "u", "10.0.0.1", "a-master")
        poller.follow(other, "v", "10.0.0.2", "other-master")
        await asyncio.sleep(20)
        assert told == [other]
        assert poller.report(other, {"v"}) is not None
        assert poller.report(other, {"a pod of another job"}) is None

    polling(story, answers)


def test_a_fault_in_looking_at_one_job_leaves_the_others_served() -> None:
    looks: list[Key] = []

    async def look(key: Key) -> None:
        looks.append(key)
        if key == A and looks.count(A) == 1:
            raise ValueError("a fault of ours")

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        queue.add(B)
        await asyncio.sleep(60)
        assert looks.count(A) == 2
        assert looks.count(B) == 1

    working(story, look)


@pytest.mark.parametrize("both", [True, False], ids=["as the machine is", "IPv4 alone"])
def test_probes_are_answered_at_every_address(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ["127.0.0.1", *(["::1"] if both and _has_ipv6() else [])]
    if not both:
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)

    async def ask(host: str, port: int) -> bytes:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    async def story() -> None:
        async with serve(0, Metrics(), lambda: "", lambda: "") as port:
            for host in hosts:
                assert b"200 OK" in await ask(host, port)

    asyncio.run(story())


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
