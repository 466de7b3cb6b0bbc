"""Names on the checkpoint volume: node agents write, the master prunes, both must mean the same folder.

A checkpoint's top-level files are a complete Hugging Face folder (configuration, safetensors, tokenizer). Whatever else the trainer keeps
(optimizer state) lies in subfolders. A folder with its final name is complete; unfinished ones have another name.
"""

import re
from pathlib import Path

_NAME = re.compile(r"version-(\d{6,})")


def checkpoint_folder(root: Path, version: int) -> Path:
    """Folder of a version's checkpoint below the `checkpoints` volume."""
    return root / f"version-{version:06d}"


def checkpoint_versions(root: Path) -> tuple[int, ...]:
    """Versions that have a complete checkpoint, oldest first."""
    if not root.is_dir():
        return ()
    found = (_NAME.fullmatch(entry.name) for entry in root.iterdir() if entry.is_dir())
    return tuple(sorted(int(match[1]) for match in found if match))
