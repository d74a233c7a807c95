"""Pages of the API reference: the public names, and one page a package; written before a build."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

FRONT = """\
# API reference

`import pcdm_lib as pcdm` gives the {count} names of this page. The pages below have everything
else, package by package, in the order in which imports point.

```{{toctree}}
:maxdepth: 1

{pages}
```

{entries}
"""
GROUP = """\
## From {part}

```{{eval-rst}}
.. currentmodule:: pcdm_lib

{entries}
```

"""
# Imports point one way; packages that are not listed follow in alphabetical order.
ORDER = (
    *("maps", "data", "records", "diffusion", "models"),
    *("likelihood", "transport", "coding", "training"),
)


def write(folder: Path) -> None:
    """Write `index.md` and the pages of the packages into a folder, which is emptied first."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    library = import_module("pcdm_lib")
    parts = [p.name for p in pkgutil.iter_modules(library.__path__) if p.name != "__main__"]
    parts.sort(key=_place)
    for part in parts:
        (folder / f"{part}.rst").write_text(_package(f"pcdm_lib.{part}"), encoding="utf-8")
    names = list(library.__all__)
    front = FRONT.format(count=len(names), pages="\n".join(parts), entries=_public(names))
    (folder / "index.md").write_text(front, encoding="utf-8")


def _public(names: list[str]) -> str:
    """The public names under headings, the packages that hold them."""
    library = import_module("pcdm_lib")
    groups: dict[str, list[str]] = {}
    for name in names:
        thing = getattr(library, name)
        groups.setdefault(thing.__module__.split(".")[1], []).append(_entry(thing, name))
    text = ""
    for part in sorted(groups, key=_place):
        entries = "\n\n".join(groups[part])
        text += GROUP.format(part=part, entries=entries)
    return text


def _place(name: str) -> tuple[int, str]:
    return ORDER.index(name) if name in ORDER else len(ORDER), name


def _entry(thing: object, name: str) -> str:
    if inspect.isclass(thing):
        return f".. autoclass:: {name}\n   :members:\n   :inherited-members: Module, tuple"
    return f".. autofunction:: {name}" if callable(thing) else f".. autodata:: {name}"


def _package(name: str) -> str:
    """One page: the package's docstring, then each of its modules with its public members."""
    module = import_module(name)
    modules = [name]
    if hasattr(module, "__path__"):
        found = pkgutil.walk_packages(module.__path__, f"{name}.")
        modules += [m.name for m in found if not m.name.rpartition(".")[2].startswith("_")]
    lines = [name, "=" * len(name), ""]
    for item in modules:
        if item != name:
            lines += [item, "-" * len(item), ""]
        members = item != name or len(modules) == 1
        lines += [f".. automodule:: {item}", *(["   :members:"] if members else []), ""]
    return "\n".join(lines)
