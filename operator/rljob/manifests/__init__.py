"""`render(...)`: a plan as Kubernetes objects. Pure: no connection to a cluster; the operator and `rljob render` share it."""

from rljob.manifests.render import render
from rljob.manifests.settings import Settings, load_settings
from rljob.manifests.sharing import choose_sharing
from rljob.manifests.types import Cluster, Manifest, Owner, SharingChoice

__all__ = ["Cluster", "Manifest", "Owner", "Settings", "SharingChoice", "choose_sharing", "load_settings", "render"]
