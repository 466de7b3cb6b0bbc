"""Everything that one rendering knows."""

from collections.abc import Mapping
from dataclasses import dataclass

from rljob.api import RLJob
from rljob.manifests.jobfile import File
from rljob.manifests.settings import Devices, Settings
from rljob.manifests.types import Owner, SharingChoice
from rljob.plan import Plan


@dataclass(frozen=True)
class Context:
    """Inputs of a rendering, and what was decided before it."""

    job: RLJob
    plan: Plan
    owner: Owner
    settings: Settings
    sharing: SharingChoice
    files: Mapping[str, File]
    """What each audience is told of the job."""
    devices: Devices | None
    """How devices are asked for; None on CPU."""

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.owner.name

    @property
    def several_workers(self) -> bool:
        """Worker pods look each other up by host name."""
        return sum(pod.role == "worker" for pod in self.plan.pods) > 1
