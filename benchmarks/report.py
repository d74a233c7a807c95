"""The report: JSON for programs, Markdown for people, both whole or absent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.parts import Section
from pcdm_lib import records

FORMAT = 1


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    origin, settings = report["provenance"], report["settings"]
    versions = origin["versions"]
    lines = [
        "# Benchmarks",
        "",
        f"Machine: {origin['machine']}. Threads: {settings['threads']}. Device: "
        f"{origin['device']}. Commit: {origin['commit']}. Python "
        f"{versions['python']}, PyTorch {versions['torch']}.",
        "",
        f"Data: {settings['data']}. {settings['seconds']:g} s a measurement, {settings['clock']} "
        f"time, seed {settings['seed']}. Times "
        "are this machine's at that hour; ratios are medians over rounds in which the compared "
        "things took turns.",
        "",
    ]
    for section in report["parts"].values():
        head = list(section["rows"][0])
        lines += [
            f"## {section['title']}",
            "",
            section["note"],
            "",
            "| " + " | ".join(head) + " |",
            "|" + " --- |" * len(head),
        ]
        lines += [
            "| " + " | ".join(_cell(row[key]) for key in head) + " |" for row in section["rows"]
        ]
        lines += ["", f"*{section['seconds']:.0f} s.*", ""]
    return "\n".join(lines)


def write(
    path: Path, settings: Mapping[str, Any], device: str, parts: Mapping[str, tuple[Section, float]]
) -> str:
    """Write `path` (JSON) and the same name with `.md`; the Markdown."""
    report = records.finite(
        {
            "format": FORMAT,
            "settings": dict(settings),
            "provenance": records.provenance(device),
            "parts": {
                name: {**section._asdict(), "seconds": seconds}
                for name, (section, seconds) in parts.items()
            },
        }
    )
    text = markdown(report)
    records.write_json(path, report)
    records.write_bytes(path.with_suffix(".md"), text.encode())
    return text
