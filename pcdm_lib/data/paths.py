"""What a path means that a user gives: the same in the shell, in notebooks and in benchmarks.

A relative path starts from the current folder. JupyterLab starts a notebook's kernel in the folder
of the notebook, which nobody chose: in `notebooks/` and `reproduce/` of a checkout a relative path
starts from the checkout, as it does in the shell commands of their first cells.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDERS = ("notebooks", "reproduce")  # of the checkout, with notebooks in them


def home() -> Path:
    """The checkout that holds this package; the current folder for an installed copy."""
    root = Path(__file__).resolve().parent.parent.parent
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def located(path: Path | str) -> Path:
    """A path as a user gives it, with `~` expanded.

    Args:
        path: relative or not.

    Returns:
        The same path; an absolute one where a notebook's kernel was started in a folder of the
        checkout.

    Example:
        >>> located("runs/a").as_posix()
        'runs/a'
    """
    path = Path(path).expanduser()
    if path.is_absolute() or not _in_kernel() or Path.cwd() not in _notebook_folders():
        return path
    return home() / path


def data_folder(root: str | Path | None = None) -> Path:
    """Where datasets lie: `root`, else the environment variable PCDM_DATA, else ./data."""
    return located(root or os.environ.get("PCDM_DATA") or "data")


def absolute(dataset: str) -> str:
    """The name of a data set with its path, where it has one, made absolute: it means the same in a
    process that runs elsewhere.

    Args:
        dataset: as `load_data` takes it.

    Returns:
        The name.

    Example:
        >>> absolute("photos"), absolute("folder:/a/b")
        ('photos', 'folder:/a/b')
    """
    kind, _, path = dataset.partition(":")
    return f"{kind}:{located(path).absolute()}" if path else dataset


def _notebook_folders() -> list[Path]:
    return [home() / name for name in FOLDERS]


def _in_kernel() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
