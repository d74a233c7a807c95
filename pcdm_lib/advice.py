"""What errors advise: the nearest name that is known, and which extra holds a missing package."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

# The extra of pyproject.toml that brings each module the core does not need, by import name.
EXTRAS = {
    "constriction": "coding",
    "imagecodecs": "coding",
    "ot": "emd",
    "pywt": "emd",
    "sklearn": "ood",
    "skimage": "photos",
    "matplotlib": "notebooks",
    "papermill": "notebooks",
    "torch_fidelity": "fid",
}


class MissingExtra(ImportError):
    """A package is not installed that only some functions need; the message is the command."""

    def __init__(self, module: str):
        super().__init__(f'needs {module}: pip install "pcdm-lib[{EXTRAS[module]}]"', name=module)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C where the state was saved; the message says where, and how to go on.

    A notebook shows the message alone, and the cells below are not run.
    """

    def _render_traceback_(self, *_: Any) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [str(self)]


def need(module: str) -> ModuleType:
    """Import a module of an extra, such as `need("constriction")`.

    Args:
        module: import name; its first part is a key of EXTRAS.
    Raises:
        MissingExtra: where it is not installed; the message says what to install.
    """
    top = module.partition(".")[0]
    if top not in EXTRAS:
        raise ValueError(f"{module!r} belongs to no extra: there are {', '.join(EXTRAS)}")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(top) from error


class Later:
    """A module of an extra that is imported when it is first used.

    So the module that uses it can be imported without the extra:

        pywt = Later("pywt")
        pywt.Wavelet("haar")  # imports pywt, or raises MissingExtra
    """

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(need(self._module), name)


def brief(text: object, most: int = 120) -> str:
    """The beginning of a text in one line: a library's error may quote the whole file.

    Args:
        text: an error, or anything with a `str`.
        most: characters.

    Example:
        >>> brief(ValueError("no name:\\n" + 999 * "a"), 14)
        'no name: aa...'
    """
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`", did you mean 'small'?"`, or nothing where no known name is near.

    Example:
        >>> did_you_mean("smal", ["tiny", "small"])
        ", did you mean 'small'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""
