"""The trainer: Megatron-core between two rollouts. `python -m rljob.trainer` is one rank."""
