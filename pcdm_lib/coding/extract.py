"""Where the images of a `.pcdm` file may be written: a stranger's file must not choose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def targets(names: Sequence[str], folder: Path, replace: bool = False) -> dict[str, Path]:
    """The PNG file in `folder` for every image's name.

    Args:
        names: as the `.pcdm` file has them.
        replace: whether files that exist may be replaced.
    Raises:
        ValueError: where a name leads out of the folder, a file exists already, or two names would
            become one file.
    """
    found = {}
    for name in names:
        path = Path(name if name.lower().endswith(".png") else f"{name}.png")
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in name
            or not (folder / path).resolve().is_relative_to(folder.resolve())
        ):
            raise ValueError(
                f"the name {name!r} leads out of {folder}: the file may be malicious; nothing was "
                f"written"
            )
        found[name] = folder / path
    taken = sorted(path for path in found.values() if path.exists())
    if taken and not replace:
        raise ValueError(
            f"{taken[0]} is there already ({len(taken)} such files): give another folder, or "
            f"--force"
        )
    if len({str(path).casefold() for path in found.values()}) < len(found):
        raise ValueError(
            "two names of this file would become the same PNG file (also where case does not "
            "count): take them one by one with --only"
        )
    return found
