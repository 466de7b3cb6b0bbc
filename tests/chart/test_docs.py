"""What the pages about the operator name exists: commands and their options, fields, values, reasons, metrics, files."""

import itertools
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from charts.values import values_schema
from tests.chart.rendering import FOLDER, ROOT, Chart
from tests.manifests.jobs import objects, tiny

from rljob.api.errors import ConfigurationError
from rljob.api.explain import field_schema
from rljob.api.load import parse
from rljob.api.reference import reference
from rljob.cli.cluster import app as kubectl_app
from rljob.cli.main import app as rljob_app
from rljob.controller.conditions import TYPES
from rljob.controller.metrics import Metrics

DOCS = ROOT / "docs"
PAGES = [*(DOCS / f"{name}.md" for name in ("install", "quickstart", "day2", "gitops", "accelerators", "sandbox")), FOLDER / "README.md"]
TEXTS = {page.name if page.parent == DOCS else "chart": page.read_text() for page in PAGES}
CONTROLLER = ROOT / "operator" / "rljob" / "controller"

pages = pytest.mark.parametrize("page", TEXTS)


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[page], re.DOTALL)


def commands(page: str) -> Iterator[list[str]]:
    """Words of every command of a page, in blocks and in text."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)
    lines += [
        found for found in re.findall(r"`([^`\n]+)`", prose) if found.split()[0] in ("kubectl", "helm", "rljob", "make") and " " in found
    ]
    for line in lines:
        for part in re.split(r" \| | && ", line.strip()):
            # What a process substitution holds is a command of its own.
            inner = re.findall(r"<\((.*?)\)", part)
            for one in (re.sub(r"<\(.*?\)", "FILE", part), *inner):
                words = shlex.split(one)
                if words and words[0] not in ("for", "done"):
                    yield words


def of(page: str, program: str) -> list[list[str]]:
    """Arguments of each call of a program."""
    return [words[1:] for words in commands(page) if words[0] == program]


@pages
def test_programs_are_known(page: str) -> None:
    assert {words[0] for words in commands(page)} <= {"kubectl", "helm", "rljob", "make", "kind", "buildah"}


@pages
def test_links_lead_somewhere(page: str) -> None:
    base = FOLDER if page == "chart" else DOCS
    assert [to for to in re.findall(r"\]\(([\w./-]+)\)", TEXTS[page]) if not (base / to).exists()] == []


@pages
def test_files_in_commands_exist(page: str) -> None:
    named = {
        part for words in commands(page) for word in words for part in word.split("=") if re.match(r"(charts|docs|examples|crds)/", part)
    }
    assert [name for name in named if not (ROOT / name).exists()] == []


@pages
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert [words for words in of(page, "make") if words[0] not in targets] == []


def _options(app: typer.Typer, words: list[str]) -> set[str]:
    found = typer.main.get_group(app)
    for word in words:
        if not isinstance(found, typer.core.TyperGroup):
            break
        assert word in found.commands, f"{word}: there are {', '.join(found.commands)}"
        found = found.commands[word]  # type: ignore[assignment]
    return {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}


def _unknown(app: typer.Typer, words: list[str]) -> list[str]:
    known = _options(app, words)
    return [word for word in words[1:] if word.startswith("-") and word.partition("=")[0] not in known]


@pages
def test_rljob_commands_and_options_exist(page: str) -> None:
    for words in of(page, "rljob"):
        assert _unknown(rljob_app, words) == [], words
    for words in of(page, "kubectl"):
        if words[0] == "rljob" and words[1:]:
            assert _unknown(kubectl_app, words[1:]) == [], words


@pages
def test_kubectl_commands_and_options_exist(page: str, binaries: Callable[[str], Path]) -> None:
    program = str(binaries("kubectl"))
    for words in of(page, "kubectl"):
        plain = _without_globals(words)
        if plain[0] != "rljob":
            known = _kubectl_options(program, *plain[: 2 if plain[0] in ("create", "config", "rollout") else 1])
            given = [w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)]
            assert [w for w in given if w not in known] == [], words


def _without_globals(words: list[str]) -> list[str]:
    return words[2:] if words[0] in ("-n", "--namespace") else words


@cache
def _kubectl_options(kubectl: str, *command: str) -> frozenset[str]:
    texts = [
        subprocess.run([kubectl, *arguments], check=True, capture_output=True, text=True, timeout=120).stdout
        for arguments in ((*command, "--help"), ("options",))
    ]
    return frozenset(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", "\n".join(texts)))


@pages
def test_helm_commands_render(page: str, chart: Chart) -> None:
    for words in of(page, "helm"):
        if words[0] in ("install", "upgrade"):
            sets = [pair for flag, value in itertools.pairwise(words) if flag == "--set" for pair in (flag, value)]
            assert chart.run("template", "rljob", str(FOLDER), *sets)
        else:
            assert words[0] in ("uninstall", "rollback"), words


@pages
def test_fields_and_values_exist(page: str) -> None:
    prose = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)
    spec, schema = field_schema("spec")["properties"], values_schema()
    for name in re.findall(r"`([a-z]\w*(?:\.[a-zA-Z]\w*)+)`", prose):
        top = name.split(".")[0]
        if top in ("spec", "status"):
            _check_field(name)
        elif top in spec:
            _check_field(f"spec.{name}")
        elif top in schema["properties"]:
            _check_value(name)


def _check_field(path: str) -> None:
    # Below a role of `spec.templates` there is a pod template.
    here = re.sub(r"(spec\.templates\.\w+)\..*", r"\1", path)
    try:
        field_schema(here)
    except ConfigurationError as error:
        pytest.fail(f"{path}: {error}")


def _check_value(path: str) -> None:
    schema = values_schema()
    here = schema
    for name in path.split("."):
        if "additionalProperties" in here and "properties" not in here:
            here = here["additionalProperties"]
        else:
            assert name in here.get("properties", {}), f"{path}: the chart has no such value"
            here = here["properties"][name]
        here = schema["$defs"][here["$ref"].removeprefix("#/$defs/")] if "$ref" in here else here


@pages
def test_yaml_in_pages_is_yaml(page: str) -> None:
    for block in blocks(page, "yaml"):
        found = yaml.safe_load(block)
        assert {"apiVersion", "kind"} <= found.keys()
        if found["kind"] == "RLJob":
            assert parse(block)


def test_the_pod_that_fetches_a_model_may_run_wherever_jobs_may() -> None:
    (pod,) = [found for block in blocks("day2.md", "yaml") if (found := yaml.safe_load(block))["kind"] == "Pod"]
    (master,) = [m for m in objects(tiny()) if m["kind"] == "Pod" and m["metadata"]["name"] == "tiny-master"]
    assert pod["spec"]["securityContext"].items() <= master["spec"]["securityContext"].items()
    (container,) = pod["spec"]["containers"]
    needed = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == needed
    assert needed.items() <= master["spec"]["containers"][0]["securityContext"].items()


def test_the_crd_reference_is_up_to_date() -> None:
    assert (DOCS / "crd-reference.md").read_text() == reference(), "run `make docs`"


def test_every_condition_is_explained() -> None:
    assert [t for t in TYPES if not re.search(rf"^\| `{t}` \|", TEXTS["day2.md"], re.MULTILINE)] == []


def test_every_reason_that_the_operator_gives_is_explained_and_no_other() -> None:
    code = "\n".join(path.read_text() for path in CONTROLLER.glob("*.py"))
    given = set(re.findall(r'(?:Trouble|Said)\(\s*(?:\w+, )?"([A-Z]\w+)"', code))
    given |= set(re.findall(r'Verdict\(\s*"(?:failed|foreign|refused)", "([A-Z]\w+)"', code))
    given |= set(re.findall(r'"([A-Z]\w+)" if end\.code|else "([A-Z]\w+)"$', code)[0]) if "if end.code" in code else set()
    table = TEXTS["day2.md"].split("| reason |")[1].split("\n\n")[0]
    explained = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`([A-Z]\w+)`", row)}
    assert {name for name in given if name} - {"Running"} <= explained
    assert [name for name in explained if f'"{name}"' not in code] == []


def test_every_metric_that_is_named_exists() -> None:
    shown = {sample.name for family in Metrics().registry.collect() for sample in family.samples} | {
        family.name for family in Metrics().registry.collect()
    }
    shown |= {f"{name}_total" for name in shown}
    assert [name for name in re.findall(r"`(rljob_operator_\w+)`", TEXTS["day2.md"]) if name not in shown] == []
