"""What protects the machine from a run, whether this machine offers it, and what to do if it does not."""

import os
from collections.abc import Mapping
from typing import Final, Literal

from rljob.api.errors import ConfigurationError
from rljob.sandbox.cgroups import Cgroups
from rljob.sandbox.inside import seccomp

NAMESPACES: Final = ("user", "pid", "mount", "net", "ipc", "uts")
"""Without these no slot is made."""
OF_EVERY_SLOT: Final = dict.fromkeys(("seccomp", "no_new_privs", "capabilities", "rlimits", "read_only_root", "tmpfs"), True)
"""A slot or a run that cannot set one of these up does not begin."""
_CGROUPS: Final = ("cgroup_memory", "cgroup_pids", "cgroup_cpu")
_IDS_PER_SLOT = 2
_FIRST_ID = 0x70000000
"""Far from the users of any machine."""
_REMEDY = (
    "on a node allow user namespaces (user.max_user_namespaces > 0, kernel.unprivileged_userns_clone = 1, "
    "kernel.apparmor_restrict_unprivileged_userns = 0); in a pod set hostUsers: false, procMount: Unmasked and a seccomp profile that "
    "allows clone, unshare, setns, mount, umount2, pivot_root and mount_setattr"
)


def check_machine() -> None:
    """ConfigurationError if our system call filter does not know this machine."""
    if not seccomp.supported():
        raise ConfigurationError(
            f"the sandbox's system call filter is made for {seccomp.ARCHITECTURE}, this machine is {os.uname().machine}"
        )


def refused(why: str) -> str:
    """One line for a person whose machine does not let us make a slot."""
    return f"this machine does not let the sandbox make a slot: {why}; {_REMEDY}"


def of_cgroups(made: Cgroups) -> dict[str, bool]:
    """Which controllers limit slots."""
    return {name: name.removeprefix("cgroup_") in made.parents for name in _CGROUPS}


def missing(on: Mapping[str, bool], minimum: Literal["full", "namespaces"], backend: Literal["namespaces", "crun"] = "namespaces") -> str:
    """One line for a person if less than the minimum is on, else nothing. Containers that root makes have no user namespace."""
    namespaces = [name for name in NAMESPACES if not (name == "user" and backend == "crun")]
    wanted = (*namespaces, *OF_EVERY_SLOT, *(_CGROUPS if minimum == "full" else ()))
    off = [name for name in wanted if not on.get(name)]
    if not off:
        return ""
    remedy = "mount cgroups writable for the service, or set the minimum to namespaces (memory is then watched, not counted)"
    return f"minimum {minimum} wants {', '.join(off)}, which this machine does not give: {remedy if off[0] in _CGROUPS else _REMEDY}"


def described(on: Mapping[str, bool]) -> str:
    """All of them in one line."""
    off = [name for name, value in on.items() if not value]
    return ", ".join(name for name, value in on.items() if value) + (f"; off: {', '.join(off)}" if off else "")


def host_ids(place: int, user: int, uid_map: str) -> tuple[int, int] | None:
    """Users of the machine for the runner and the runs of a slot: its own two if we are root; else None, and they are what we are.

    `user` is who we are, `uid_map` the text of /proc/self/uid_map. ConfigurationError if we are root and have no others to give: limits of
    processes do not hold for the machine's root.
    """
    if user != 0:
        return None
    extents = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    start, _, length = max(extents, key=lambda extent: extent[2])
    first = min(_FIRST_ID, start + length - _IDS_PER_SLOT * 4096) + _IDS_PER_SLOT * place
    if first <= start:
        raise ConfigurationError(f"the sandbox runs as root of {length} user ids and has none for its slots: run it as an ordinary user")
    return first, first + 1
