"""`rljob render`: the objects of a job as YAML."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from rljob.api import ConfigurationError, RLJob
from rljob.api.metadata import checked_namespace
from rljob.manifests import Cluster, Manifest, Owner, Settings, load_settings, render
from rljob.plan import plan


class _Dumper(yaml.SafeDumper):
    """No anchors, and text of several lines (`job.json`) as it is."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def rendered(job: RLJob, settings_file: Path | None, namespace: str | None) -> str:
    """All objects, in the order in which they are applied. They have no owner: that is the RLJob once it is in a cluster.

    The cluster is taken to have the device classes of the settings.

    Raises:
        ConfigurationError: the settings or the namespace cannot be used, or the job cannot run in a cluster as it is written.
    """
    settings = load_settings(settings_file) if settings_file else Settings()
    try:
        where = checked_namespace(namespace or "") or job.metadata.namespace or "default"
    except ValueError as error:
        raise ConfigurationError(f"--namespace: {error}") from None
    owner = Owner(job.metadata.name, where, uid=None)
    cluster = Cluster(device_classes=frozenset(devices.device_class for devices in settings.devices.values()))
    return as_yaml(render(job, plan(job), owner, settings, cluster))


def as_yaml(objects: Iterable[Manifest]) -> str:
    """Objects as people read them."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140, explicit_start=True)
