"""Which checkpoints go."""

from collections.abc import Iterable

from rljob.api.platform import CheckpointSpec


def obsolete(versions: Iterable[int], committed: int, first_policy: int, spec: CheckpointSpec) -> tuple[int, ...]:
    """Versions to delete: all but the newest `keep` up to the committed one, every `keepEvery`-th iteration's, and what is newer.

    A version newer than the committed one belongs to a training task in progress. `first_policy` is the version that RL starts from, so a
    version's iteration is version - first_policy.
    """
    done = sorted(v for v in versions if v <= committed)
    newest = set(done[-spec.keep :])
    kept_for_good = {v for v in done if spec.keep_every and v > first_policy and (v - first_policy) % spec.keep_every == 0}
    return tuple(v for v in done if v != committed and v not in newest and v not in kept_for_good)
