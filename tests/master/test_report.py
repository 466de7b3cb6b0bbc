"""The report page: escaped, self-contained, sensible axes."""

import re
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.master.twins import World, inputs, job
from tests.master.virtual import run

from rljob.api.status import HeldOutStatus
from rljob.master.decisions.evaluation import HeldOutAnswer
from rljob.master.decisions.samples import Pair
from rljob.master.page import content
from rljob.master.page.charts import Series, line_chart, nice_axis, stacked_bars

VOID = {"meta", "br"}


class Tags(HTMLParser):
    """Checks that every tag is closed, and collects the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def finished(root: Path) -> str:
    world = World(root, job(evaluation={"data": {"path": "h.jsonl"}, "every": 2}), inputs(heldout=4))
    run(world.master())
    return (root / "output" / "report.html").read_text()


def test_the_page_is_well_formed_and_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    page = finished(tmp_path)
    tags = Tags(page)
    assert tags.seen.count("svg") == 6
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert "prefers-color-scheme:dark" in page
    assert "script" not in tags.seen


def test_the_page_names_what_was_reached(tmp_path: Path) -> None:
    text = Tags(finished(tmp_path)).text
    for words in ("Succeeded", "3 of 3", "50.0% → 50.0%", "even", "reward-wait", "question 1000"):
        assert words in text


def test_what_a_model_writes_is_shown_and_never_obeyed() -> None:
    hostile = '<script>alert(1)</script><img src=x onerror="alert(2)"> & "quotes"\nnext line'
    answer = HeldOutAnswer("p", hostile, hostile, hostile, 9, True)
    body = content.samples([Pair(answer, answer)])
    tags = Tags(body)
    assert {"script", "img"} & set(tags.seen) == set()
    assert tags.text.count("alert(1)") == 4
    chart = content.held_out_chart([HeldOutStatus(iteration=0, accuracy=0.5, families={"<b>": 0.5, "x": 0.1})])
    assert "<b>" not in chart


def test_long_answers_are_cut_and_say_so() -> None:
    answer = HeldOutAnswer("p", "", "q", "x" * 5000, 9, True)
    assert "(3,800 more characters)" in content.samples([Pair(answer, answer)])


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_an_axis_covers_its_values_with_a_handful_of_round_steps(low: float, width: float) -> None:
    axis = nice_axis(low, low + width)
    tolerance = 1e-6 * max(1.0, abs(low), width)
    assert axis.low <= low + tolerance
    assert axis.high >= low + width - tolerance
    assert 2 <= len(axis.ticks) <= 9


def test_charts_without_data_say_so() -> None:
    assert "Nothing yet" in line_chart([Series("a", [], 0)])
    assert "Nothing yet" in stacked_bars([], [], [])


def test_every_second_of_an_iteration_is_in_its_bar() -> None:
    seconds = {"rollout": 3.0, "train": 2.0, "stop-engine": 0.2, "onload": 0.3, "other": 0.5, "total": 6.0}
    assert content.by_phase(seconds) == {"rollout": 3.0, "train": 2.0, "hand-over": 0.5, "other": 0.5}
