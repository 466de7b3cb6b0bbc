"""Prompt sets made better before training: `rljob data curate` (docs/curate.md)."""
