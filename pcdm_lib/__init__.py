"""Likelihood training of cascaded diffusion models via hierarchical volume-preserving maps (arXiv
2501.06999).

A public name is imported when it is first used, so `import pcdm_lib` takes milliseconds and the
shell's `--help` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcdm_lib.models.pretrained import load_pretrained

__version__ = "0.2.0"

_HOMES = {"load_pretrained": "models.pretrained"}  # the module of each public name

__all__ = ["load_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
