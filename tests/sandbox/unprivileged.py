"""`python -m tests.sandbox.unprivileged [crun]`: a pool of a service without any privilege, as in a pod that runs as an ordinary user.

Requests as JSON lines on stdin; on stdout first the protections, then a result for each.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Literal

from rljob.sandbox.inside import kernel
from rljob.sandbox.pool import Pool, PoolSettings
from rljob.wire.sandbox import RunRequest

USER = 47813
"""Nobody's."""


def drop_privileges() -> None:
    """Be an ordinary user who can read what this test is made of, wherever it lies. Nothing to do for who is one already."""
    if os.geteuid() != 0:
        return
    os.unshare(kernel.NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix), Path(__file__).parents[2]}
    closed = {path: outermost for path in needed if (outermost := _closed(path)) is not None}
    trees = {path: kernel.take_tree(str(path), kernel.MS_RDONLY) for path in closed}
    for folder in set(closed.values()):
        kernel.mount("open", str(folder), "tmpfs", 0, "mode=755")
    for path, tree in trees.items():
        path.mkdir(parents=True, exist_ok=True)
        kernel.put_tree(tree, str(path))
    os.setgroups(())
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    kernel.dumpable(True)  # as in a process that was started as this user


def _closed(path: Path) -> Path | None:
    """The outermost folder on the way to `path` that not everybody may enter."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


async def serve(backend: Literal["namespaces", "crun"]) -> None:
    """Answer one request after another."""
    pool = Pool(PoolSettings(slots=2, backend=backend))
    await pool.start()
    try:
        print(json.dumps(pool.protections()))
        for line in sys.stdin:
            print((await pool.run(RunRequest.model_validate_json(line))).model_dump_json())
    finally:
        await pool.stop()


if __name__ == "__main__":
    drop_privileges()
    asyncio.run(serve("crun" if sys.argv[1:] == ["crun"] else "namespaces"))
