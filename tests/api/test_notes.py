"""What is valid but probably not what was meant is said."""

import pytest
from tests.api.jobs import full, minimal

from rljob.api import RLJobSpec
from rljob.api.notes import inert


@pytest.mark.parametrize(("tau", "steps", "said"), [(0.1, 1, True), (0.1, 2, False), (0.0, 1, False)])
def test_a_regulariser_that_has_nothing_to_do_is_said(tau: float, steps: int, said: bool) -> None:
    found = inert(RLJobSpec.model_validate(minimal() | {"algorithm": {"tau": tau, "stepsPerIteration": steps}}))
    assert [note.split(":")[0] for note in found] == ["spec.algorithm.tau is 0.1, but has no effect with stepsPerIteration 1"] * said
    assert all("raise spec.algorithm.stepsPerIteration or leave tau out" in note for note in found)


@pytest.mark.parametrize(
    ("train", "strategy", "said"),
    [
        ({"reasoningGym": {"dataset": "chain_sum"}}, "curriculum", True),
        ({"reasoningGym": {"dataset": "chain_sum"}}, "prioritized", False),
        ({"path": "train.jsonl"}, "curriculum", False),
    ],
)
def test_a_curriculum_of_prompts_without_difficulty_is_said(train: dict[str, object], strategy: str, said: bool) -> None:
    found = inert(RLJobSpec.model_validate(minimal() | {"data": {"train": train}, "algorithm": {"sampling": {"strategy": strategy}}}))
    words = "spec.algorithm.sampling.strategy is curriculum, but prompts of spec.data.train.reasoningGym have no difficulty"
    assert [note.startswith(words) for note in found] == [True] * said


@pytest.mark.parametrize(("kind", "devices", "used", "said"), [("nvidia", 8, 2, "6 of the 8"), ("nvidia", 2, 2, ""), ("cpu", 2, 1, "")])
def test_devices_that_no_engine_uses_are_said(kind: str, devices: int, used: int, said: str) -> None:
    sizes = {"accelerator": {"type": kind, "perNode": devices}, "rollout": {"tensorParallel": used}}
    found = inert(RLJobSpec.model_validate(minimal() | sizes))
    assert [f"so {said} devices of a worker pod are idle while it generates" in note for note in found] == [True] * (said != "")


def test_what_a_reward_models_training_does_not_read_is_said() -> None:
    ignored = {"rollout": {"replicas": 3}, "reward": {"verifier": "code"}, "algorithm": {"samplesPerPrompt": 4}}
    rate = {"trainer": {"optimizer": {"learningRate": 1e-4}}}
    found = inert(RLJobSpec.model_validate(minimal() | {"rewardModel": {}} | ignored | rate))
    assert [note.split(",")[0] for note in found[:3]] == [f"spec.{name} is set" for name in ("algorithm", "rollout", "reward")]
    assert found[3] == (
        "spec.trainer.optimizer.learningRate is 0.0001, but a reward model is trained with spec.rewardModel.learningRate (1e-05); "
        "set that one"
    )
    assert inert(RLJobSpec.model_validate(minimal() | ignored | rate)) == [], "a policy's training reads them"
    assert inert(RLJobSpec.model_validate(minimal() | {"rewardModel": {"learningRate": 1e-4}})) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folder": "a", "model": "b", "key_variable": "K", "attempts": 2}, ["model, key_variable, attempts"]),
        ({"endpoint": "http://a", "device": "cuda"}, ["device"]),
        ({"folder": "a", "device": "cuda"}, []),
        ({"endpoint": "http://a", "model": "b"}, []),
    ],
)
def test_options_of_a_reward_model_in_another_place_are_said(options: dict[str, object], said: list[str]) -> None:
    model = {"verifier": "reward-model", "options": options}
    weighted = {"verifier": "weighted", "options": {"terms": [model | {"weight": 1.0}]}}
    for reward in (model, weighted):
        found = inert(RLJobSpec.model_validate(minimal() | {"reward": reward}))
        place = "folder" if "folder" in options else "endpoint"
        end = f" of reward-model has no effect with {place}; leave out one or the other"
        assert found == [f"spec.reward.options: {names}{end}" for names in said]


def test_most_jobs_need_no_note() -> None:
    assert inert(RLJobSpec.model_validate(minimal())) == inert(RLJobSpec.model_validate(full())) == []
