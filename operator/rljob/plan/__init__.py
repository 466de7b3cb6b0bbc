"""`plan(job) -> Plan`: pods, containers, volumes and services of a job, and an estimate of what they take. Pure."""

from rljob.plan.build import plan
from rljob.plan.estimate import Estimate, Machine, estimate
from rljob.plan.fits import misfits
from rljob.plan.records import count_held_out, count_prompts, count_scorers, prompt_length, prompt_sets
from rljob.plan.shape import ModelShape, read_shape
from rljob.plan.types import Container, Plan, Pod

__all__ = [
    "Container", "Estimate", "Machine", "ModelShape", "Plan", "Pod", "count_held_out", "count_prompts", "count_scorers", "estimate",
    "misfits", "plan", "prompt_length", "prompt_sets", "read_shape",
]  # fmt: skip
