"""What is valid but probably not what was meant."""

from rljob.api.algorithm import OptimizerSpec
from rljob.api.job import RLJobSpec
from rljob.api.verifiers import reward_models


def inert(spec: RLJobSpec) -> list[str]:
    """Fields that are set but change nothing beside the others; each one line with field, value, why and remedy."""
    found = []
    algorithm = spec.algorithm
    if algorithm.tau > 0 and algorithm.steps_per_iteration == 1:
        found.append(
            f"spec.algorithm.tau is {algorithm.tau:g}, but has no effect with stepsPerIteration 1: the regulariser's gradient is 0 in an "
            "iteration's first step; raise spec.algorithm.stepsPerIteration or leave tau out"
        )
    if algorithm.sampling.strategy == "curriculum" and spec.data.train.reasoning_gym is not None and spec.reward_model is None:
        found.append(
            "spec.algorithm.sampling.strategy is curriculum, but prompts of spec.data.train.reasoningGym have no difficulty, without "
            "which the preparation refuses it; set it to uniform or prioritized"
        )
    found += [
        f"spec.reward.options: {', '.join(scorer.unread)} of reward-model has no effect with {scorer.place}; leave out one or the other"
        for scorer in reward_models(spec.reward.verifier, spec.reward.options)
        if scorer.unread
    ]
    devices, used = spec.accelerator.per_node, spec.rollout.tensor_parallel
    if spec.accelerator.type != "cpu" and spec.generates and used < devices:
        found.append(
            f"spec.rollout.tensorParallel ({used}) is less than spec.accelerator.perNode ({devices}): a pod has one engine, so "
            f"{devices - used} of the {devices} devices of a worker pod are idle while it generates; raise it if the model divides"
        )
    if spec.reward_model is not None:
        default = RLJobSpec.model_fields
        found += [
            f"spec.{name} is set, but has no effect with spec.rewardModel, which generates and judges nothing; leave it out"
            for name in ("algorithm", "rollout", "reward", "sandbox")
            if getattr(spec, name) != default[name].default
        ]
        rate = spec.trainer.optimizer.learning_rate
        if rate != OptimizerSpec().learning_rate:
            found.append(
                f"spec.trainer.optimizer.learningRate is {rate:g}, but a reward model is trained with spec.rewardModel.learningRate "
                f"({spec.reward_model.learning_rate:g}); set that one"
            )
    return found
