"""The RLJob: what a user writes, as closed pydantic models. Imports neither torch nor kubernetes."""

from rljob.api.errors import ConfigurationError, InfrastructureError, JobFailed, RLJobError
from rljob.api.job import GROUP, KIND, VERSION, RLJob, RLJobSpec

__all__ = ["GROUP", "KIND", "VERSION", "ConfigurationError", "InfrastructureError", "JobFailed", "RLJob", "RLJobError", "RLJobSpec"]
