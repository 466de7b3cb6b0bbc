"""Right, wrong or failed: who is to blame when a judgement does not come to an end. With twins for the workers, then with real ones."""

import asyncio
import faulthandler
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from rljob.api.verifiers import Options
from rljob.prepare.data_sources import stored
from rljob.reward.judge import Judge, standard_judge
from rljob.reward.pool import WorkerPool
from rljob.reward.registry import VERIFIERS, parse_options
from rljob.reward.verifier import CombinedVerifier, Judgement, Verifier
from rljob.wire.reward import ScoreItem

pytestmark = pytest.mark.asyncio

RIGHT, WRONG = {"outcome": "judged", "right": True, "reason": ""}, {"outcome": "judged", "right": False, "reason": "no"}
TIMEOUT = {"outcome": "timeout", "reason": "not judged within 1 s"}
RAISED = {"outcome": "raised", "reason": "ValueError: x"}
LOST = {"outcome": "lost", "reason": "the verifier's worker died"}
STARVED = {"outcome": "starved", "reason": "had 0.1 s of the processor in 6 s; the machine is too busy"}
UNREADY = {"outcome": "unready", "reason": "ValueError: reference"}


def _died(number: int) -> dict[str, Any]:
    return {"outcome": "died", "signal": number, "reason": f"signal {number}"}


def _item(answer: str = "\\boxed{1}", reference: Any = "1", verifier: str = "math", finished: bool = True, **options: Any) -> ScoreItem:
    return ScoreItem(id="a", verifier=verifier, options=options, prompt="", answer=answer, reference=reference, finished=finished)


@dataclass
class Script:
    """Workers that answer from a list and remember what they were asked."""

    answers: list[dict[str, Any]]
    asked: list[str] = field(default_factory=list)

    async def ask(self, item: ScoreItem, seconds: float) -> dict[str, Any]:
        self.asked.append(item.answer)
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("script", "verdict", "asked"),
    [
        ([RIGHT], "right", ["x"]),
        ([WRONG], "wrong", ["x"]),
        ([TIMEOUT, RIGHT], "wrong", ["x", "\\boxed{1}"]),
        ([TIMEOUT, TIMEOUT], "failed", ["x", "\\boxed{1}"]),
        ([RAISED, RIGHT], "wrong", ["x", "\\boxed{1}"]),
        ([RAISED, RAISED], "failed", ["x", "\\boxed{1}"]),
        ([TIMEOUT, WRONG], "failed", ["x", "\\boxed{1}"]),
        ([UNREADY], "failed", ["x"]),
        ([STARVED], "failed", ["x"]),
        ([LOST, RIGHT], "right", ["x", "x"]),
        ([LOST, LOST], "failed", ["x", "x"]),
        ([_died(0), _died(0), RIGHT], "wrong", ["x", "x", "\\boxed{1}"]),
        ([_died(signal.SIGKILL), _died(signal.SIGKILL)], "failed", ["x", "x"]),
        ([_died(signal.SIGTERM), _died(signal.SIGTERM)], "failed", ["x", "x"]),
        ([_died(signal.SIGSEGV), _died(signal.SIGSEGV), RIGHT], "wrong", ["x", "x", "\\boxed{1}"]),
    ],
)
async def test_an_answer_is_to_blame_only_if_the_reference_itself_can_be_judged(
    script: list[dict[str, Any]], verdict: str, asked: list[str]
) -> None:
    workers = Script(list(script))
    result = await standard_judge(workers, 1.0).score(_item(answer="x"))
    assert (result.verdict, workers.asked) == (verdict, asked)
    assert (result.reward is None) == (verdict == "failed")
    assert result.reason or verdict == "right"


async def test_what_can_be_decided_at_once_needs_no_worker() -> None:
    judge = standard_judge(Script([]), 1.0)
    for answer, verdict in (("\\boxed{\\frac{2}{2}}", "right"), ("\\boxed{2}", "wrong"), ("\\boxed{9^{9^{9^{9}}}}", "wrong")):
        assert (await judge.score(_item(answer=answer))).verdict == verdict


async def test_the_same_answer_is_judged_once_but_a_failure_is_tried_again() -> None:
    workers = Script([LOST, LOST, WRONG, RIGHT])
    judge = standard_judge(workers, 1.0)
    assert (await judge.score(_item(answer="x"))).verdict == "failed"
    both = await asyncio.gather(judge.score(_item(answer="x")), judge.score(_item(answer="x")))
    assert [r.verdict for r in (*both, await judge.score(_item(answer="x")))] == ["wrong"] * 3
    assert (await judge.score(_item(answer="x", reference="2"))).verdict == "right"
    assert workers.asked == ["x"] * 4


SERVED = {"endpoint": "http://judge.example/v1", "model": "m"}


@pytest.mark.parametrize(
    ("verifier", "options", "others"),
    [
        ("math", {}, [{"answer": "\\boxed{x+1}"}, {"reference": "x+2"}]),
        ("regex", {}, [{"options": {"ignore_case": True}}, {"options": {"match": "full"}}, {"reference": "x+2"}, {"answer": "x"}]),
        ("judge", SERVED, [{"options": SERVED | {"scale": 10}}, {"prompt": "q"}, {"reference": "x+2"}, {"answer": "x"}]),
        ("reward-model", SERVED, [{"options": SERVED | {"center": 1.0}}, {"prompt": "q"}, {"answer": "x"}]),
    ],
)
async def test_a_judgement_is_remembered_for_what_it_depends_on(
    verifier: str, options: dict[str, Any], others: list[dict[str, Any]]
) -> None:
    found = VERIFIERS[verifier]
    assert not isinstance(found, CombinedVerifier)
    first = _item("x+1", "x+1", verifier, **options)
    asked = [first.model_copy(update=more) for more in ({}, *others)]
    keys = [found.same(one, parse_options(found, one.options)) for one in asked]
    assert len({*keys, None}) == len(asked) + 1
    assert keys[0] == found.same(first.model_copy(), parse_options(found, options))


async def test_who_goes_away_takes_the_judgement_from_nobody() -> None:
    asked, free = asyncio.Event(), asyncio.Event()

    class Slow:
        async def ask(self, item: ScoreItem, seconds: float) -> dict[str, Any]:
            asked.set()
            await free.wait()
            return RIGHT

    judge = standard_judge(Slow(), 1.0)
    first, second = (asyncio.create_task(judge.score(_item(answer="x"))) for _ in range(2))
    await asked.wait()
    first.cancel()
    free.set()
    assert (await second).verdict == "right"


async def test_a_verifier_that_raises_is_a_failure_and_no_reward() -> None:
    def judge(item: ScoreItem, options: Options) -> Judgement:
        raise ZeroDivisionError("ours")

    result = await Judge(Script([]), 1.0, {"broken": Verifier("broken", Options, judge)}).score(_item(verifier="broken"))
    assert (result.verdict, result.reward) == ("failed", None)
    assert result.reason == "verifier broken raised ZeroDivisionError: ours"


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (_item(verifier="maths"), "no verifier 'maths'; did you mean 'math'?"),
        (_item(places="boxed"), "verifier math: option `places`: Extra inputs are not permitted (options are place)"),
        (_item(reference=None), "verifier math: `reference` must be a number or an expression, not None"),
    ],
)
async def test_a_record_that_cannot_be_judged_says_why(item: ScoreItem, reason: str) -> None:
    result = await standard_judge(Script([]), 1.0).score(item)
    assert (result.verdict, result.reason) == ("failed", reason)


async def test_a_cut_off_or_endless_answer_is_wrong_unseen() -> None:
    judge = standard_judge(Script([]), 1.0)
    assert (await judge.score(_item(finished=False))).reason == "the answer was cut off"
    endless = await judge.score(_item(answer="1" * 2_000_000))
    assert (endless.verdict, endless.reason) == ("wrong", "the answer is too long")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("\\boxed{0.5}", True),
        ("\\boxed{\\frac{1}{2}}", True),
        ("\\boxed{2/4}", True),
        ("so x = 1/2", True),
        ("\\boxed{1/2} or rather \\boxed{3}", False),
        ("\\boxed{0.51}", False),
        ("\\boxed{}", False),
        ("I do not know", False),
    ],
)
async def test_math_compares_values(pool: WorkerPool, answer: str, right: bool) -> None:
    result = await standard_judge(pool, 10.0).score(_item(answer=answer, reference="\\frac{1}{2}"))
    assert result.verdict == ("right" if right else "wrong")


THOUGHTS = "Let us think about it step by step. " * 70


@pytest.mark.parametrize(
    ("reference", "answer", "options", "right"),
    [
        ("x+1", "x+1", {}, True),
        ("x+1", "1 + x", {}, True),
        ("(1,2)", "(1,2)", {}, True),
        ("2\\sqrt{3}", "2\\sqrt{3}", {"place": "whole"}, True),
        ("even", "even", {}, True),
        ("even", "\\text{even}", {}, True),
        ("42", f"{THOUGHTS}The answer is $42$.", {}, True),
        ("42", f"{THOUGHTS}So $x$\n{THOUGHTS}and $41$.\n\nThe answer is $42$.", {}, True),
        ("42", f"The answer is $42$. {THOUGHTS}It is $41$.", {}, False),
        ("42", "41 or 42 or 43, " * 300, {}, False),
        ("42", "42 " * 3000 + "41", {}, False),
        ("x+1", "x+1 or x+2", {}, False),
        ("x+1", "x, x+1, x+2", {}, False),
        ("even", "It is even or odd", {}, False),
        ("even", f"{THOUGHTS}even", {}, False),
        ("2,3", "\\boxed{2} and \\boxed{3}", {}, False),
        ("42", f"\\boxed{{{THOUGHTS}42}}", {}, False),
    ],
)
async def test_a_result_needs_no_box_and_may_stand_at_the_end_of_a_long_answer(
    pool: WorkerPool, reference: str, answer: str, options: dict[str, Any], right: bool
) -> None:
    result = await standard_judge(pool, 10.0).score(_item(answer, reference, **options))
    assert result.verdict == ("right" if right else "wrong"), result.reason


def _generated(name: str) -> dict[str, Any]:
    return {"dataset": name, "parameters": {}, "entry": stored(reasoning_gym.create_dataset(name, size=1, seed=1)[0])}


@pytest.mark.parametrize(
    ("name", "answer", "options"),
    [
        ("boxnet", '{"Agent[0.5, 0.5]": "wait"}', {}),
        ("boxnet", "7", {}),
        ("boxnet", "\\boxed{7}", {"place": "boxed"}),
        ("prime_factorization", "I do not know.", {}),
        ("prime_factorization", "I do not know.", {"place": "whole"}),
        ("prime_factorization", "\\boxed{I do not know.}", {"place": "boxed"}),
        ("game_of_life", '{"a": 1}', {"place": "whole"}),
    ],
)
async def test_an_answer_that_a_generators_scorer_cannot_read_is_wrong(
    pool: WorkerPool, name: str, answer: str, options: dict[str, Any]
) -> None:
    result = await standard_judge(pool, 10.0).score(_item(answer, _generated(name), "reasoning-gym", **options))
    assert result.verdict == "wrong", result.reason


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        (0.000025, "\\boxed{0.000025}", True),
        (0.000025, "\\boxed{2.5\\times 10^{-5}}", True),
        (0.000025, "\\boxed{0.00025}", False),
        (1e16, "\\boxed{10000000000000000}", True),
        (1e16, "\\boxed{10^{16}}", True),
        (0.5, "\\boxed{\\frac{1}{2}}", True),
    ],
)
async def test_a_reference_that_is_a_small_or_large_number_is_written_out(
    reference: float, answer: str, right: bool, pool: WorkerPool
) -> None:
    """Python writes 2.5e-05 and 1e+16, which no answer is equal to."""
    result = await standard_judge(pool, 10.0).score(_item(answer=answer, reference=reference))
    assert result.verdict == ("right" if right else "wrong")


@pytest.mark.parametrize(
    "answer",
    [
        "\\boxed{9^{9^{9^{9}}}}",
        "\\boxed{10000000!}",
        "\\boxed{2^{10^{10}}}",
        "\\boxed{" + "{" * 1500 + "}" * 1500 + "}",
        "\\boxed{" + "\\frac{1}{" * 150 + "2" + "}" * 150 + "}",
        "\\boxed{\\sum_{i=1}^{10^9} \\frac{1}{i}}",
        "\\boxed{" + "9" * 1900 + "}",
        "(" * 1900,
        "$" * 1900,
        "1+" * 900 + "1",
        "\\boxed{" + "x" * 900_000 + "}",
    ],
    ids=range(11),
)
async def test_no_answer_hangs_the_service_and_the_next_one_is_judged(pool: WorkerPool, answer: str) -> None:
    judge = standard_judge(pool, 1.0)
    async with asyncio.timeout(30):
        assert (await judge.score(_item(answer=answer, reference="7"))).verdict == "wrong"
        assert (await judge.score(_item(answer="\\boxed{7}", reference="7"))).verdict == "right"


async def test_a_killed_worker_is_replaced_and_costs_no_answer(pool: WorkerPool) -> None:
    judge = standard_judge(pool, 10.0)
    await pool.start()
    process = pool.workers[0].process
    assert process is not None
    asked = asyncio.create_task(judge.score(_item(answer="\\boxed{\\int_0^1 \\sin(\\sin(x^x)) dx}")))
    os.kill(process.pid, signal.SIGKILL)
    assert (await asked).verdict == "wrong"
    assert pool.workers[0].process is not process


async def test_a_worker_that_cannot_live_is_a_failure(pool: WorkerPool) -> None:
    pool.workers[0].environment = {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}
    result = await standard_judge(pool, 1.0).score(_item("\\boxed{\\int_0^1 x dx}"))
    assert (result.verdict, result.reason) == ("failed", "verifier math: the verifier's worker died")


def _mischief(item: ScoreItem, options: Options) -> Judgement:
    """A verifier that an answer has taken over."""
    if item.answer == "poison":
        import builtins

        builtins.float = lambda *_: 1.0  # type: ignore[assignment, misc]
        return Judgement(False)
    if item.answer == "memory":
        return Judgement(bool(bytearray(8 << 30)))
    if item.answer == "exit":
        os._exit(0)
    if item.answer == "spin":
        while True:
            pass
    if item.answer == "sleep":
        time.sleep(600)
    if item.answer == "starve":
        os.kill(os.getpid(), signal.SIGSTOP)  # as a process that wants to run and is not let
    if item.answer == "crash":
        faulthandler.disable()  # pytest's, which would print a trace of a crash that is meant
        os.kill(os.getpid(), signal.SIGSEGV)
    return Judgement(float("0") == 1.0 or item.answer == "right")


@pytest.fixture
def mischief() -> Verifier:
    return Verifier("mischief", Options, _mischief, killable=True, probe=lambda item: "right")


@pytest.mark.parametrize(
    ("answer", "outcome"), [("poison", "judged"), ("memory", "raised"), ("exit", "died"), ("crash", "died"), ("right", "judged")]
)
async def test_a_judgement_runs_in_a_process_that_changes_nothing_for_the_next(mischief: Verifier, answer: str, outcome: str) -> None:
    from rljob.reward import worker

    VERIFIERS["mischief"] = mischief
    try:
        assert worker.handle(_item(answer=answer, verifier="mischief"), 5.0)["outcome"] == outcome
        after = worker.handle(_item(answer="plain", verifier="mischief"), 5.0)
    finally:
        del VERIFIERS["mischief"]
    assert after == {"outcome": "judged", "right": False, "reason": ""}


@pytest.mark.parametrize(("answer", "outcome"), [("spin", "timeout"), ("sleep", "timeout"), ("starve", "starved")])
async def test_the_limit_is_processor_time_and_a_busy_machine_is_not_the_answers_fault(
    mischief: Verifier, answer: str, outcome: str
) -> None:
    from rljob.reward import worker

    VERIFIERS["mischief"] = mischief
    try:
        assert worker.handle(_item(answer=answer, verifier="mischief"), 0.1)["outcome"] == outcome
    finally:
        del VERIFIERS["mischief"]


async def test_workers_inherit_nothing_secret() -> None:
    pool = WorkerPool(1, {"PATH": "/bin", "HF_TOKEN": "secret", "RLJOB_NODE": "reward-0"})
    assert set(pool.workers[0].environment) == {"PATH", "RLJOB_NODE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}


async def test_workers_end_with_the_service() -> None:
    pool = WorkerPool(2, dict(os.environ))
    await pool.start()
    pids = [w.process.pid for w in pool.workers if w.process is not None]
    await pool.stop()
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
