"""The namespace package stays open and nothing shadows the standard library."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_no_init_shadows_the_standard_library_or_closes_the_namespace() -> None:
    forbidden = ["operator", "runtime", "operator/rljob", "runtime/rljob", "tests/operator", "tests/runtime"]
    assert [d for d in forbidden if (ROOT / d / "__init__.py").exists()] == []


def test_operator_is_still_the_standard_library() -> None:
    import operator

    assert operator.add(1, 2) == 3
