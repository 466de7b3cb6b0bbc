"""The environment a process of the job is started with; `rljob.plan` writes it, here it is read."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from rljob.api import ConfigurationError, RLJob
from rljob.api.platform import SandboxSpec


@dataclass(frozen=True)
class Environment:
    """Typed view of the `RLJOB_*` variables. A folder or address that the plan does not give this process raises when asked for."""

    variables: Mapping[str, str]

    @staticmethod
    def current() -> "Environment":
        return Environment(dict(os.environ))

    def _get(self, name: str) -> str:
        try:
            return self.variables[name]
        except KeyError:
            raise ConfigurationError(f"environment variable {name} is not set; a plan starts this process (see `rljob plan`)") from None

    @property
    def job(self) -> RLJob:
        """The job with every default filled in (`RLJOB_JOB` names its JSON file)."""
        return RLJob.model_validate(json.loads(Path(self._get("RLJOB_JOB")).read_text()))

    @property
    def sandbox_settings(self) -> SandboxSpec:
        """How the sandbox is to run (`RLJOB_SANDBOX`, JSON). It is told nothing else of the job."""
        text = self._get("RLJOB_SANDBOX")
        try:
            return SandboxSpec.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigurationError(f"environment variable RLJOB_SANDBOX: {where} is {first['input']!r}: {first['msg']}") from None

    @property
    def node(self) -> str:
        """Name of the pod, such as `worker-0`."""
        return self._get("RLJOB_NODE")

    def directory(self, name: str) -> Path:
        """Folder of a volume: `model` (Hugging Face folder of version 0), `data` (prepared prompts), `state` (the master's), `checkpoints`,
        `output` (metrics, report, final model), `shm` (shared memory of the pod), `sockets` (unix sockets of the pod), `cache`."""
        return Path(self._get(f"RLJOB_DIR_{name.upper()}"))

    @property
    def source(self) -> Path:
        """What relative paths of the job start from (`RLJOB_SOURCE_DIR`); the working directory for who is given no such folder."""
        return Path(self.variables.get("RLJOB_SOURCE_DIR", "."))

    def socket(self, name: str) -> Path:
        """Unix socket of a container of this pod: `megatron-shim`, `vllm-shim`, `trainer`."""
        return self.directory("sockets") / f"{name}.sock"

    def url(self, service: str) -> str:
        """Base address of a service: `master`, `reward`, `sandbox`."""
        return self._get(f"RLJOB_URL_{service.upper()}")

    @property
    def sandbox(self) -> str | None:
        """Base address of the code sandbox; None if the job has none."""
        return self.variables.get("RLJOB_URL_SANDBOX")

    def listen(self, port: str) -> tuple[str, int]:
        """Host and port to listen on: `master`, `reward`, `sandbox`, `engine`, `presence`."""
        host, _, number = self._get(f"RLJOB_LISTEN_{port.upper()}").rpartition(":")
        return host, int(number)

    @property
    def advertise_host(self) -> str:
        """Host under which others reach this pod."""
        return self._get("RLJOB_ADVERTISE_HOST")

    def advertised_url(self, port: int) -> str:
        """Base address under which others reach a port of this pod."""
        host = self.advertise_host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
