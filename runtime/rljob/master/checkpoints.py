"""Files of the checkpoint volume and the final model."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from rljob.api import InfrastructureError
from rljob.wire.checkpoints import checkpoint_folder

OBSOLETE = ".obsolete"


def delete_checkpoints(root: Path, versions: Iterable[int]) -> BaseException | None:
    """Delete checkpoints, and what an interrupted deletion left. Each is renamed first: a half-deleted one never looks complete.

    Returns the first refusal of the file system, if there was one: the job can do without that space, and the next call tries again.
    """
    refused: list[BaseException] = []
    for version in versions:
        folder = checkpoint_folder(root, version)
        try:
            os.rename(folder, folder.with_name(folder.name + OBSOLETE))
        except OSError as error:
            refused.append(error)
    for folder in root.glob(f"*{OBSOLETE}"):
        shutil.rmtree(str(folder), onexc=lambda function, path, error: refused.append(error))
    return refused[0] if refused else None


def export_model(checkpoint: Path, target: Path) -> None:
    """Copy a checkpoint's Hugging Face files (its top-level files) to `target`, which appears whole or not at all.

    Hidden files stay behind: in a checkpoint of an earlier release one names the address that the model came from, secrets included.

    Raises:
        InfrastructureError: there is no such checkpoint.
    """
    if not checkpoint.is_dir():
        raise InfrastructureError(f"the last checkpoint {checkpoint} is missing, so the final model cannot be written")
    fresh, old = (target.with_name(f".{target.name}.{what}") for what in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    for file in sorted(checkpoint.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            shutil.copy2(file, fresh / file.name)
    if target.exists():
        os.rename(target, old)
    os.rename(fresh, target)
    shutil.rmtree(old, ignore_errors=True)
