"""The report page: escaped, self-contained, sensible axes."""

import re
from collections.abc import Sequence
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
from rljob.master.page.charts import BARS, MARKS, POINTS, Series, line_chart, nice_axis, stacked_bars, thinned
from rljob.master.page.layout import REFRESH

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


def test_a_line_of_thousands_of_points_keeps_its_ends_and_every_peak() -> None:
    points = [(float(x), 0.5) for x in range(1, 10_001)]
    points[0], points[3333], points[7777], points[-1] = (1.0, 0.4), (3334.0, 9.0), (7778.0, -9.0), (10_000.0, 0.6)
    kept = thinned(points)
    assert len(kept) <= POINTS + 2
    assert list(kept) == sorted(kept)
    assert {points[0], points[3333], points[7777], points[-1]} <= set(kept)
    assert thinned(points[:POINTS]) == points[:POINTS]


def test_dots_are_drawn_while_there_is_room() -> None:
    def dots(count: int) -> int:
        return line_chart([Series("a", [(float(x), 0.5) for x in range(count)], 0, marks=True)]).count("<circle")

    assert [dots(count) for count in (1, MARKS, MARKS + 1, 5000)] == [1, MARKS, 0, 0]


def test_every_family_has_a_colour_of_its_own() -> None:
    families = {f"subject {k:02}": 0.5 for k in range(14)}
    chart = content.held_out_chart([HeldOutStatus(iteration=i, accuracy=0.5, families=families) for i in (0, 4)])
    colors = re.findall(r'<i style="background:([^"]*)"></i>', chart)
    assert len(colors) == len(set(colors)) == 15


def test_a_line_without_dots_says_its_newest_value() -> None:
    chart = line_chart([Series("tokens", [(float(x), 9000.0 + x) for x in range(500)], 0, marks=True)])
    assert "<title>tokens, iteration 499: 9499</title>" in chart


def test_the_numbers_of_an_axis_are_written_out_and_none_lies_below_what_can_be() -> None:
    def axis(values: Sequence[float], low: float) -> list[str]:
        chart = line_chart([Series("a", list(enumerate(values)), 0)], low=low)
        return re.findall(r'text-anchor="end">([^<]*)<', chart)

    assert axis([9000.0, 14000.0], 0.0) == ["0", "5000", "10000", "15000"]
    assert axis([0.0, 0.0], 0.0) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_a_live_page_keeps_what_it_shows_while_something_else_answers(tmp_path: Path) -> None:
    assert "if(!r.ok)return" in REFRESH
    assert "if(m)document.querySelector('main').replaceWith(m)" in REFRESH


def test_bars_of_a_long_job_are_means_and_say_so() -> None:
    def chart(count: int) -> str:
        seconds = [{"rollout": 1.0 + i % 2, "train": 3.0, "total": 5.0} for i in range(count)]
        return content.time_chart([{"iteration": i + 1, "seconds": s} for i, s in enumerate(seconds)])

    assert chart(BARS).count("<rect") == 2 * BARS
    assert "mean" not in chart(BARS)
    long = chart(4 * BARS - 1)
    assert long.count("<rect") == 2 * BARS
    assert "rollout, mean of iterations 1 to 4: 1.50 s" in long
    assert f"rollout, mean of iterations {4 * BARS - 3} to {4 * BARS - 1}: 1.33 s" in long
    assert "Each bar is the mean of 4 iterations." in long


def test_the_page_of_ten_times_the_iterations_is_no_longer(tmp_path: Path) -> None:
    keys = ("reward", "success_rate", "response_length", "logprob_gap", "stopped", "cut", "repeated", "zero_advantage")

    def size(count: int) -> int:
        records = [{"iteration": i, **dict.fromkeys(keys, 1 / i), "seconds": {"rollout": 1.0, "train": 2.0}} for i in range(1, count + 1)]
        held_out = [HeldOutStatus(iteration=i, accuracy=0.5, families={"a": 1 / i}) for i in range(1, count + 1)]
        charts = (content.reward_chart, content.length_chart, content.gap_chart, content.ending_chart, content.time_chart)
        return len(content.held_out_chart(held_out)) + sum(len(chart(records)) for chart in charts)

    assert size(10_000) < 1.2 * size(1000) < 300_000
