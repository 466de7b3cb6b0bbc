"""Who runs next, who is taken in, when to come again."""

from hypothesis import given
from hypothesis import strategies as st

from rljob.sandbox.queue import LONGEST_WAIT, Admission, Pace, Place, Queue


def _drained(queue: Queue[str], now: float = 0.0) -> list[str]:
    found = []
    while (ticket := queue.pop(now)[0]) is not None:
        found.append(ticket)
    return found


def test_equal_requests_go_in_the_order_in_which_they_came() -> None:
    queue: Queue[str] = Queue()
    for order, ticket in enumerate("abc"):
        queue.push(ticket, Place(order))
    assert _drained(queue) == ["a", "b", "c"]


def test_higher_priority_goes_first() -> None:
    queue: Queue[str] = Queue()
    queue.push("low", Place(1, priority=-1))
    queue.push("normal", Place(2))
    queue.push("high", Place(3, priority=5))
    assert _drained(queue) == ["high", "normal", "low"]


def test_a_request_that_was_begun_is_finished_before_a_later_one_starts() -> None:
    queue: Queue[str] = Queue()
    queue.push("later", Place(2))
    queue.push("later and more urgent", Place(3, priority=5))
    queue.push("second run of the earlier", Place(1, begun=True))
    assert _drained(queue) == ["second run of the earlier", "later and more urgent", "later"]


def test_a_discarded_ticket_never_comes_up_and_does_not_count() -> None:
    queue: Queue[str] = Queue()
    queue.push("gone", Place(1))
    queue.push("stays", Place(2))
    queue.discard("gone")
    queue.discard("never there")
    assert len(queue) == 1
    assert _drained(queue) == ["stays"]
    assert len(queue) == 0


def test_what_is_past_its_deadline_is_handed_back_instead_of_run() -> None:
    queue: Queue[str] = Queue()
    queue.push("late", Place(1, deadline=4.0))
    queue.push("later", Place(2, deadline=4.5))
    queue.push("good", Place(3, deadline=5.0))
    assert queue.pop(now=5.0) == ("good", ["late", "later"])
    assert len(queue) == 0


def test_many_who_give_up_leave_nothing_behind() -> None:
    queue: Queue[int] = Queue()
    for ticket in range(10_000):
        queue.push(ticket, Place(ticket))
        queue.discard(ticket)
    assert len(queue._heap) < 100


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=60))
def test_the_queue_is_a_stable_sort_of_those_who_stayed(asked: list[tuple[int, bool]]) -> None:
    queue: Queue[int] = Queue()
    for order, (priority, _) in enumerate(asked):
        queue.push(order, Place(order, priority))
    for order, (_, stays) in enumerate(asked):
        if not stays:
            queue.discard(order)
    found = []
    while (ticket := queue.pop(0.0)[0]) is not None:
        found.append(ticket)
    assert found == sorted((o for o, (_, stays) in enumerate(asked) if stays), key=lambda o: -asked[o][0])


def test_admission_is_bounded_by_requests_and_by_bytes() -> None:
    admission = Admission(requests=3, size=100)
    assert admission.fits(3, 100)
    admission.enter(2, 60)
    assert admission.fits(1, 40)
    assert not admission.fits(2, 1)
    assert not admission.fits(1, 41)
    admission.leave(2, 60)
    assert admission.fits(3, 100)


def test_the_time_to_come_again_follows_the_measured_pace() -> None:
    pace = Pace()
    for _ in range(500):
        pace.observe(0.2)
    assert pace.retry_after(runs=100, slots=2) == 10
    for _ in range(500):
        pace.observe(0.002)
    assert pace.retry_after(runs=100, slots=2) == 1
    assert pace.retry_after(runs=10**9, slots=2) == LONGEST_WAIT
