"""Tests for code problems, from generated inputs and reference submissions: `rljob data testcases` (docs/testcases.md)."""
