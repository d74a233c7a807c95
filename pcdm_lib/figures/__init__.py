"""The figures that notebooks share, in one style: one module a subject, functions named after what
they draw, each returning a figure.

    from pcdm_lib import figures

    figures.use_style()
    figures.show(figures.images.image_rows({"photographs": photos[:9]}, "Nine photographs"))

A module is loaded when it is first named, since some need packages that others do not.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from pcdm_lib.advice import need

need("matplotlib")  # says what to install where it is missing

from pcdm_lib.figures.style import show, use_style  # noqa: E402

MODULES = tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))
__all__ = ["show", "use_style"]


def __getattr__(name: str) -> ModuleType:
    if name in MODULES:
        return importlib.import_module(f"pcdm_lib.figures.{name}")
    raise AttributeError(f"module 'pcdm_lib.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *MODULES])
