"""What the notebooks of `reproduce/` share: parameters checked at the door, results files, the closing table."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from pcdm_lib import records
from pcdm_lib.evaluate import Evaluation
from pcdm_lib.presets import Config

RESULTS_FORMAT = 1

# names that IPython puts into every notebook
_IPYTHON = {"In", "Out", "get_ipython", "exit", "quit", "open", "check_parameters"}

# Table 1 of the paper (CIFAR-10, bits per dimension, 2 million updates); its accounting is another one, see the README
PAPER_CIFAR10 = {"wavelet": 2.35, "vdm": 2.65}


def check_parameters(namespace: MutableMapping[str, Any], allowed: Mapping[str, type | tuple | None]) -> None:
    """Refuse what papermill only warns of: an unknown parameter, a value of the wrong type, a choice that does not exist.

    Args:
        namespace: `globals()` of the notebook, right after the parameters.
        allowed: for each parameter its type (int passes for float), or a tuple of the values that it may take; a type in a
            one-element list allows None too.
    """
    given = {k for k in namespace if not k.startswith("_") and k not in _IPYTHON}
    # the second time round, in the same kernel, the notebook's own names are there too
    unknown = [] if namespace.get("_parameters_checked") else sorted(given - {*allowed})
    missing = sorted({*allowed} - given)
    if unknown or missing:
        raise ValueError(f"unknown parameters {unknown}, missing {missing}: this notebook takes {', '.join(allowed)}")
    for name, rule in allowed.items():
        value = namespace[name]
        if isinstance(rule, tuple):
            if value not in rule:
                raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, rule))}")
            continue
        kind, optional = (rule[0], True) if isinstance(rule, list) else (rule, False)
        if optional and value is None:
            continue
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r} is a {type(value).__name__}, expected {kind.__name__}{' or None' if optional else ''}")
    namespace["_parameters_checked"] = True


def home() -> Path:
    """The checkout that holds this package, so that a notebook finds the same `runs/` and `data/` wherever its kernel was
    started; the current folder for an installed copy."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def data_root() -> Path:
    """$PCDM_DATA, else `data/` at home."""
    return Path(os.environ.get("PCDM_DATA") or home() / "data")


def compute_line(seconds: float, steps: int, machine: str) -> str:
    """The compute behind a figure, in one phrase."""
    return f"{steps} steps, {seconds / 60:.1f} min of training on {machine}"


def write_results(path: Path | str, *, config: Config, data_label: str, data_source: Mapping[str, Any], evaluation: Evaluation,
                  training: Mapping[str, Any], codecs: Mapping[str, tuple[float, float]], device: str, extra: Mapping[str, Any] | None = None
                  ) -> dict[str, Any]:
    """Write `results.json`: every figure with its data, error, seed, budget, versions, commit and machine; returns the record."""
    result = {
        "format": RESULTS_FORMAT, "config": config.to_dict(), "data": {"label": data_label, **data_source}, "training": dict(training),
        "evaluation": evaluation.to_dict(), "reference_codecs": {k: {"bpd": v[0], "se_images": v[1]} for k, v in codecs.items()},
        "provenance": records.provenance(device), **(extra or {}),
    }
    result = records.finite(result)
    records.write_json(path, result)
    return result


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as a Markdown table; floats with four digits after the point."""
    if not rows:
        raise ValueError("a table needs at least one row")
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [f"{row[k]:.4f}" if isinstance(row[k], float) else str(row[k]) for k in head]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
