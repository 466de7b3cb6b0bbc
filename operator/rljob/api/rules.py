"""CEL for what a schema cannot say: the same checks as the models' validators, and what may change of a job that exists.

A rule stands at the object that holds everything it speaks of. Its message is a template: `{self.maxTokens}` is replaced by the value, so
the API server says what `rljob validate` says. Rules that only hold between an old and a new object (they name `oldSelf`) are made from
`rljob.api.changes`, one for each largest part of the spec that is fixed as a whole.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rljob.api.changes import WHILE_SUSPENDED, may_change, partly_changeable

Schema = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """One entry of `x-kubernetes-validations`."""

    rule: str
    """CEL expression that has to be true."""
    message: str
    """What is wrong and what to do; `{expression}` stands for a value."""
    field: str = ""
    """Field below the rule's place that the refusal names; empty: the place itself."""

    def entry(self) -> Schema:
        """As it stands in the CustomResourceDefinition."""
        plain = re.sub(r"( =)?\s*\(?\{[^}]*\}\)?", "", self.message)
        out: Schema = {"rule": self.rule, "message": plain}
        if plain != self.message:
            out["messageExpression"] = formatted(self.message)
        return out | ({"fieldPath": f".{self.field}"} if self.field else {})


def formatted(template: str) -> str:
    """CEL that makes a text of whole numbers: `a {x} b` becomes `'a %d b'.format([x])`.

    Not `'a ' + string(x)`: the API server takes the length of `string(x)` for unbounded, and refuses the rule as too costly.
    """
    words = re.sub(r"\{[^}]*\}", "%d", template.replace("%", "%%")).replace("'", "\\'")
    return f"'{words}'.format([{', '.join(re.findall(r'{([^}]*)}', template))}])"


def _one_of(where: str, *names: str) -> Rule:
    members = ", ".join(f"has(self.{name})" for name in names)
    return Rule(f"[{members}].filter(x, x).size() == 1", f"{where} needs exactly one of {', '.join(names)}")


_NEED = "self.trainer.tensorParallel * self.trainer.pipelineParallel * self.trainer.contextParallel"
_EXPERTS = "self.trainer.pipelineParallel * self.trainer.expertParallel"
_WORLD = "self.trainer.nodes * self.accelerator.perNode"
_DATA = (_one_of("a data source", "path", "hub", "reasoningGym"),)
RULES: Mapping[str, tuple[Rule, ...]] = {
    "spec.model.source": (_one_of("spec.model.source", "path", "hub", "package", "url", "scratch"),),
    "spec.model.source.scratch": (
        Rule(
            "self.heads > 0 && self.kvHeads > 0 && self.hiddenSize % self.heads == 0 && self.heads % self.kvHeads == 0",
            "hiddenSize ({self.hiddenSize}) must be a multiple of heads ({self.heads}), and heads a multiple of kvHeads ({self.kvHeads})",
        ),
        Rule(
            "self.heads > 0 && self.hiddenSize / self.heads in [32, 64, 80, 96, 112, 128]",
            "hiddenSize ({self.hiddenSize}) / heads ({self.heads}) must be 32, 64, 80, 96, 112 or 128, which vLLM needs: "
            "set hiddenSize to 32 × heads",
        ),
    ),
    "spec.data.train": _DATA,
    "spec.evaluation.data": _DATA,
    "spec.warmStart.data": _DATA,
    "spec.files": (_one_of("spec.files", "claim", "configMap"),),
    "spec.rollout": (
        Rule(
            "!has(self.tokenBudget) || self.tokenBudget <= self.maxTokens",
            "tokenBudget ({self.tokenBudget}) is more than maxTokens ({self.maxTokens}); leave tokenBudget out or lower it",
        ),
    ),
    "spec.rollout.weights": (
        Rule(
            "self.protocol != 'rdma' || self.transport == 'mooncake'",
            "protocol is rdma, which only transport mooncake has; set transport to mooncake or protocol to tcp",
        ),
    ),
    "spec": (
        Rule(
            f"{_NEED} > 0 && ({_WORLD}) % ({_NEED}) == 0",
            "trainer.tensorParallel ({self.trainer.tensorParallel}) × pipelineParallel ({self.trainer.pipelineParallel}) × contextParallel "
            f"({{self.trainer.contextParallel}}) = {{{_NEED}}} must divide trainer.nodes × accelerator.perNode = {{{_WORLD}}}",
        ),
        Rule(
            f"{_EXPERTS} > 0 && ({_WORLD}) % ({_EXPERTS}) == 0",
            "trainer.pipelineParallel ({self.trainer.pipelineParallel}) × expertParallel ({self.trainer.expertParallel}) = "
            f"{{{_EXPERTS}}} must divide trainer.nodes × accelerator.perNode = {{{_WORLD}}}, since the ranks of a stage share out its "
            "experts; lower expertParallel, or raise accelerator.perNode",
        ),
        Rule(
            "self.trainer.virtualPipelineParallel == 1 || self.trainer.pipelineParallel > 1",
            "trainer.virtualPipelineParallel ({self.trainer.virtualPipelineParallel}) needs stages to interleave, but "
            "trainer.pipelineParallel is 1; set it to 2 or more, or virtualPipelineParallel to 1",
        ),
        Rule(
            "self.trainer.tensorParallel <= self.accelerator.perNode",
            "trainer.tensorParallel ({self.trainer.tensorParallel}) is more than accelerator.perNode ({self.accelerator.perNode}): a "
            "tensor parallel group stays within one node; lower it or raise perNode",
        ),
        Rule(
            "self.trainer.nodes == 1 || self.accelerator.perNode % self.trainer.tensorParallel == 0",
            "trainer.tensorParallel ({self.trainer.tensorParallel}) does not divide accelerator.perNode ({self.accelerator.perNode}): with "
            "trainer.nodes ({self.trainer.nodes}) a tensor parallel group would lie on two nodes; set perNode to a multiple of it",
        ),
        Rule(
            "self.rollout.tensorParallel <= self.accelerator.perNode",
            "rollout.tensorParallel ({self.rollout.tensorParallel}) is more than accelerator.perNode ({self.accelerator.perNode}); "
            "lower it or raise perNode",
        ),
        Rule(
            "!has(self.model.source.scratch) || has(self.warmStart) || has(self.rewardModel)",
            "model.source.scratch starts from random weights, which earn no reward: set spec.warmStart",
        ),
        Rule(
            "!has(self.warmStart) || !has(self.rewardModel)",
            "warmStart and rewardModel are both set, but demonstrations teach no reward model: leave one of them out",
        ),
        Rule(
            "has(self.rewardModel) || !has(self.model.maxLength) || self.rollout.maxTokens < self.model.maxLength",
            "rollout.maxTokens ({self.rollout.maxTokens}) leaves no room for a prompt in model.maxLength ({self.model.maxLength}); "
            "lower maxTokens or raise maxLength",
        ),
        Rule(
            "self.algorithm.stepsPerIteration <= self.algorithm.promptsPerIteration",
            "algorithm.stepsPerIteration ({self.algorithm.stepsPerIteration}) is more than promptsPerIteration "
            "({self.algorithm.promptsPerIteration}): a step needs at least one prompt; lower stepsPerIteration",
        ),
    ),
}
"""Field to the rules that hold for it: the same checks as the models' validators."""


def _fixed(name: str) -> str:
    return f"{name} cannot change while the job exists; set it back, or apply the job under another name"


def _unchanged(name: str, optional: bool) -> str:
    """CEL, at the parent: a field is what it was, or is absent as it was."""
    same = f"self.{name} == oldSelf.{name}"
    return f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {same})" if optional else same


def fixed_fields(schema: Schema, path: str = "") -> Iterator[tuple[str, Rule]]:
    """(Place, rule) of everything below a structural schema that may not change. Places and paths are written as below `spec`.

    The rule stands at the parent, because a rule at an optional field itself would not see that it was added or removed.
    """
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        if may_change(here):
            continue
        optional = name not in required and "default" not in field
        if here in WHILE_SUSPENDED:
            message = f"spec.{here} may only change while the job is suspended; set spec.suspend: true first"
            yield path, Rule(f"oldSelf.suspend || ({_unchanged(name, optional)})", message, name)
        elif not partly_changeable(here):
            yield path, Rule(_unchanged(name, optional), _fixed(f"spec.{here}"), name)
        else:
            if optional:
                yield path, Rule(f"has(self.{name}) == has(oldSelf.{name})", _fixed(f"spec.{here}"), name)
            yield from fixed_fields(field, here)


def add_rules(spec: Schema) -> None:
    """Write every rule into the structural schema of the spec, in place."""
    everything = [(path.removeprefix("spec").removeprefix("."), rule) for path, rules in RULES.items() for rule in rules]
    everything += list(fixed_fields(spec))
    for path, rule in everything:
        here = spec
        for name in path.split(".") if path else ():
            here = here["properties"][name]
        here.setdefault("x-kubernetes-validations", []).append(rule.entry())
