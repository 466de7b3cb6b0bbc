"""vLLM's `vllm.general_plugins` entry point: makes the arena known as a weight-transfer engine. Loaded by every vLLM process."""

import importlib
from typing import Any

from rljob.rollout.engine import BACKEND


def register() -> None:
    """Register the weight-transfer engine under its name; repeated: nothing."""
    factory: Any = importlib.import_module("vllm.distributed.weight_transfer.factory").WeightTransferEngineFactory
    if BACKEND not in factory._registry:  # the registry has no public look-up, and registering twice raises
        factory.register_engine(BACKEND, "rljob.rollout.weight_transfer", "ArenaEngine")
