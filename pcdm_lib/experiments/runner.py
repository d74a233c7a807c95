"""papermill with live progress: `papermill --engine pcdm NOTEBOOK OUT`, from Python.

The engine itself stands in _engine.py. papermill loads it by its entry point while papermill is
being imported, so papermill has to come first.
"""

from __future__ import annotations

import papermill  # noqa: F401  loads the engine by its entry point: before the next line

from pcdm_lib.experiments._engine import ENGINE, Engine, Line, bar_text, register

__all__ = ["ENGINE", "Engine", "Line", "bar_text", "register"]
