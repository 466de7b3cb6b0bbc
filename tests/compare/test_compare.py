"""From a file of labelled answers to a table and a page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.reward.scripted import Body, serving, shown, verdict
from typer.testing import CliRunner

from rljob.api import ConfigurationError
from rljob.api.comparison import Comparison, load_comparison
from rljob.cli.main import app
from rljob.compare.records import read

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compare.md").read_text()
JUDGE = {"endpoint": "http://x/v1", "model": "m"}
EXAMPLE = ROOT / "examples" / "compare"


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def labelled(answer: str, label: bool, prompt: str = "2 + 2?", reference: Any = "4") -> dict[str, Any]:
    return {"prompt": prompt, "answer": answer, "reference": reference, "label": label}


def run(folder: Path, verifiers: dict[str, Any], capfd: pytest.CaptureFixture[str], **more: Any) -> tuple[int, str, str]:
    """Exit status, and what was printed."""
    (folder / "compare.yaml").write_text(yaml.safe_dump({"data": "labelled.jsonl", "verifiers": verifiers} | more, sort_keys=False))
    result = CliRunner().invoke(app, ["reward", "compare", str(folder / "compare.yaml"), str(folder / "out.html")])
    said = capfd.readouterr()
    return result.exit_code, said.out, said.err


def test_verifiers_are_compared_by_what_people_say(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(body: Body) -> str:
        """Knows words, and believes what is said with <b>certainty</b>. Says nothing of what it does not understand."""
        text = shown(body, "answer")
        return "?" if "quattuor" in text else verdict(body, int("four" in text or "4" in text or "certain" in text))

    rows = [labelled("4", True), labelled("four", True), labelled("5", False), labelled("certain <b>", False), labelled("quattuor", True)]
    (tmp_path / "labelled.jsonl").write_text(lines(*rows))
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    with serving(judge) as model:
        options = {"endpoint": model.address, "model": "m", "key_variable": "SOME_KEY", "retries": 0}
        verifiers = {
            "rule": {"verifier": "exact"},
            "judge": {"verifier": "judge", "options": options, "price": {"prompt": 2, "completion": 10}},
        }
        status, out, err = run(tmp_path, verifiers, capfd)
    assert (status, err) == (0, "")
    table = {line.split()[0]: re.split(r"  +", line) for line in out.splitlines() if line and not line.startswith("rule, ")}
    assert [cell for cell in table["rule"][1:5]] == ["60.0 % (23.1-88.2)", "0.0 % (0 of 2)", "66.7 % (2 of 3)", "0"]
    assert [cell for cell in table["judge"][1:5]] == ["75.0 % (30.1-95.4)", "50.0 % (1 of 2)", "0.0 % (0 of 2)", "1"]
    assert table["judge"][-2:] == ["550", "0.0015"]
    assert set(model.keys) == {"Bearer sk-secret"}
    page, made = (tmp_path / "out.html").read_text(), json.loads((tmp_path / "out.json").read_text())
    assert "certain &lt;b&gt;" in page
    assert "certain <b>" not in page
    assert not re.search(r"(src|href)=|https?://", page.replace(model.address, ""))
    assert "sk-secret" not in page + json.dumps(made) + out
    assert [one["right"] for one in made["verifiers"]["judge"]["verdicts"]] == [True, True, False, True, None]
    (both,) = made["pairs"]
    assert (both["verifiers"], both["agreement"], both["only_first"], both["only_second"]) == (
        ["rule", "judge"],
        {"hits": 2, "of": 4},
        1,
        1,
    )


@pytest.mark.parametrize(
    ("data", "verifiers", "message"),
    [
        ("", {"a": {"verifier": "exact"}}, "labelled.jsonl holds no answers; write one JSON object"),
        ("{", {"a": {"verifier": "exact"}}, "labelled.jsonl:1: is no JSON"),
        (lines({"prompt": "a", "answer": "b"}), {"a": {"verifier": "exact"}}, "labelled.jsonl:1: label: Field required; fields are"),
        (lines(labelled("4", True), labelled("4", True, reference=None)), {"a": {"verifier": "math"}},
         "verifiers.a: cannot judge answer 2 of"),
        (lines(labelled("4", True)), {"a": {"verifier": "code"}}, "verifiers.a: programs run in the sandbox; set RLJOB_URL_SANDBOX"),
        (lines(labelled("4", True)), {"a": {"verifier": "judge", "options": JUDGE | {"key_variable": "NO"}}},
         "verifiers.a: option key_variable: NO holds no API key"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_before_anything_is_asked(
    data: str, verifiers: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labelled.jsonl").write_text(data)
    status, _, err = run(tmp_path, verifiers, capfd)
    assert status == 2
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: a\n", "verifiers"),
        ("data: a\nverifiers: {}\n", "verifiers"),
        ("data: a\nverifiers: {a: {verifier: maths}}\n", "verifiers.a.verifier: is 'maths'"),
        (
            "data: a\nverifiers: {a: {verifier: math, options: {plac: boxed}}}\n",
            "verifiers.a.options.plac: is no option of math; did you mean",
        ),
        ("data: a\nverifiers: {a: {verifier: exact}}\nconcurency: 3\n", "concurency"),
        ("{", "is not YAML"),
        ("3", "compare.yaml"),
        (
            "data: a\nverifiers:\n  a: {verifier: exact}\n  a: {verifier: math}\n",
            "line 4: verifiers.a: stands twice, first in line 3; remove one of the two",
        ),
        (
            "data: a\nverifiers: {a: {verifier: exact}}\ntimeout_seconds: 3\n",
            "line 3: timeout_seconds: is not a field; did you mean timeoutSeconds?",
        ),
    ],
)
def test_a_wrong_field_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        load_comparison(tmp_path / "compare.yaml")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"apiVersion": "rljob.dev/v1alpha1"},
            "line 1: apiVersion: is not a field; this file has data, verifiers, concurrency, timeoutSeconds",
        ),
        ({"timeoutSecond": 1}, "line 2: timeoutSecond: is not a field; did you mean timeoutSeconds?"),
        ({"verifiers": {"rule": {"verifier": "exact", "prize": {}}}}, "line 4: verifiers.rule.prize: is not a field; did you mean price?"),
        ({"prompt": 1}, "line 2: prompt: is not a field here; there is verifiers.price.prompt"),
    ],
)
def test_a_field_that_is_none_is_told_from_those_of_this_file(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({"data": "x", "verifiers": {"rule": {"verifier": "exact"}}} | more))
    with pytest.raises(ConfigurationError) as caught:
        load_comparison(tmp_path / "compare.yaml")
    assert str(caught.value) == f"{tmp_path}/compare.yaml: {message}"


def test_numbers_are_read_as_those_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text("data: a\nverifiers: {a: {verifier: numeric, options: {relative_tolerance: 1e-3}}}\n")
    assert load_comparison(tmp_path / "compare.yaml").verifiers["a"].options == {"relative_tolerance": 1e-3}


def test_that_the_page_cannot_be_written_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("")
    (tmp_path / "compare.yaml").write_text("data: out.json\nverifiers: {a: {verifier: exact}}\n")
    for out, message in (("out.html", "out.json is read, and would be replaced"), ("out.json/x.html", "File exists")):
        result = CliRunner().invoke(app, ["reward", "compare", str(tmp_path / "compare.yaml"), str(tmp_path / out)])
        assert isinstance(result.exception, ConfigurationError)
        assert message in str(result.exception)


def test_labelled_answers_may_hold_any_character_that_json_may(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a\u2028b", "answer": "c\x85d", "reference": "e", "label": True}, ensure_ascii=False)
    (tmp_path / "labelled.jsonl").write_text(f"\ufeff{line}\r\n\r\n{line}\n")
    assert [(labelled.prompt, labelled.answer) for labelled in read(tmp_path / "labelled.jsonl")] == [("a\u2028b", "c\x85d")] * 2


def test_the_page_needs_a_name_and_the_file_must_exist(tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text("data: a\nverifiers: {a: {verifier: exact}}\n")
    for arguments, message in (
        ([tmp_path / "compare.yaml", "out.txt"], "OUT: is out.txt"),
        ([tmp_path / "no", "o.html"], "does not exist"),
    ):
        result = CliRunner().invoke(app, ["reward", "compare", *map(str, arguments)])
        assert isinstance(result.exception, ConfigurationError)
        assert message in str(result.exception)


def test_the_example_comes_to_what_the_page_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown_before = re.findall(r"^(\w+) +(\d+\.\d % \(\S+\)) +(\S+ % \(\d+ of \d+\)) +(\S+ % \(\d+ of \d+\))", PAGE, re.MULTILINE)
    (tmp_path / "labelled.jsonl").write_text((EXAMPLE / "labelled.jsonl").read_text())
    spec = yaml.safe_load((EXAMPLE / "comparison.yaml").read_text())
    status, out, err = run(tmp_path, spec["verifiers"], capfd, timeoutSeconds=60.0)
    assert (status, err) == (0, "")
    assert len(shown_before) == 3
    for name, *cells in shown_before:
        (line,) = [line for line in out.splitlines() if re.match(rf"{name} +\d", line)]
        assert re.split(r"  +", line)[1:4] == cells


def test_what_the_page_shows_can_be_used() -> None:
    (comparison,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert set(Comparison.model_validate(yaml.safe_load(comparison)).verifiers) == {"rule", "trained", "own", "judge", "strict judge"}
    for command in re.findall(r"^rljob (.*)$", PAGE, re.MULTILINE):
        assert command.split()[:2] == ["reward", "compare"]
