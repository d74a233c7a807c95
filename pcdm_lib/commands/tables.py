"""`pcdm tables`: every system and every table of the paper at one budget."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pcdm_lib.commands.options import (
    BUDGET,
    DATA,
    MODEL,
    MOST_MINUTES,
    OUTPUT,
    Device,
    DryRun,
    Quiet,
    Seed,
    examples,
    number,
    one_of,
    pairs,
    print_json,
)


@examples(
    "pcdm tables --minutes 5",
    "pcdm tables --minutes 5 --only wavelet,vdm --dry-run",
    "pcdm tables --minutes 10 --dataset cifar10 -p heldout_images 100",
)
def tables(
    minutes: Annotated[
        float,
        typer.Option(
            help="Minutes of training of each system.",
            rich_help_panel=BUDGET,
            **number(0, MOST_MINUTES, above=True, unit="minutes"),
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            help="Data of the CIFAR parts: auto, photos, cifar10, folder:PATH.",
            rich_help_panel=DATA,
        ),
    ] = "auto",
    preset: Annotated[
        str,
        typer.Option(
            help="Preset of all parts: small or tiny. A paper-* preset is for one data set.",
            rich_help_panel=MODEL,
            **one_of(("small", "tiny")),
        ),
    ] = "small",
    only: Annotated[
        str,
        typer.Option(
            help="Run only these parts, by name, separated by commas; the tables are always made. "
            "Default: all.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME VALUE",
            help="Another value of a notebook's parameter, such as -p heldout_images 100; "
            "NAME=VALUE works too; repeatable.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for notebooks and runs. Default: one under runs/tables.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> int:
    """Train every system at one budget and make every table; continues where it was stopped."""
    from pcdm_lib import outputs, records
    from pcdm_lib.experiments import checks, results_files, suite

    if device != "auto":  # each notebook finds its own
        records.check_device(device)
    choices: dict[str, Any] = {
        "dataset": dataset,
        "seed": seed,
        "preset": preset,
        "device": device,
        "only": [name for name in only.split(",") if name],
        "folder": out,
        "changes": {key: _literal(text) for key, text in pairs(parameter, "-p").items()},
    }
    folder, steps = suite.plan(minutes, **choices)
    outputs.check_folder(folder)
    checks.check_steps(steps)
    if dry_run:
        parts = [
            {
                "part": step.part.name,
                "notebook": f"reproduce/{step.part.notebook}.ipynb",
                "done": step.done,
                "parameters": step.parameters,
            }
            for step in steps
        ]
        print_json({"minutes": minutes, "output": folder, "parts": parts})
        return 0
    folder, failed = suite.run(minutes, progress=not quiet, **choices)
    results, problems = results_files.read_results(folder)
    for line in (*(results_files.summary_line(result) for result in results), *problems):
        print(line)
    print(f"tables: {folder / 'tables.ipynb'}")
    for name, error in failed.items():
        print(
            f"part {name} failed: {error}; mend it and give the same command again",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _literal(text: str) -> Any:
    """A number, True, False or None where the text is one, else the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return text if isinstance(value, tuple) else value  # "1,5,20" stays text, as in papermill
