"""What the commands share: options that several of them take, and how a command line is read.

Nothing here imports torch, so that `--help` and completion are quick. The names of presets and
systems and the library's defaults are written here once more; tests/test_shell.py compares them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import typer.core

from pcdm_lib.advice import did_you_mean

_Function = TypeVar("_Function", bound=Callable[..., int])

PRESETS = (
    "tiny",
    "small",
    "edm",
    "paper-cifar10",
    "paper-imagenet32",
    "paper-imagenet64",
    "paper-imagenet128",
    "release-cifar10",
    "release-imagenet32",
    "release-imagenet64",
)
SYSTEMS = ("wavelet", "laplacian", "standard", "vdm", "direct")
DATA, MODEL, TRAINING, BUDGET, SCORING, CODING, OUTPUT, MACHINE, PROCESSES = (
    "Data",
    "Model",
    "Training",
    "Budget",
    "Scoring",
    "Coding",
    "Output",
    "Machine",
    "Several processes",
)


class Command(typer.core.TyperCommand):
    """A command whose options may take several words, as their metavar says.

    "RUN..." takes all words up to the next option (`--model A B`), "NAME VALUE" takes two
    (`-p heldout_images 100`). Typer knows one word an option: before it reads the words,
    `--model A B` becomes `--model A --model B`, and `-p NAME VALUE` becomes `-p NAME=VALUE`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several, pairs = set(), set()
        for param in self.params:
            metavar = getattr(param, "metavar", None) or ""
            names = {name for name in param.opts if name.startswith("-")}
            several |= names if metavar.endswith("...") else set()
            pairs |= names if metavar == "NAME VALUE" else set()
        return super().parse_args(ctx, spread(args, several, pairs))


def spread(words: Sequence[str], several: set[str], pairs: set[str]) -> list[str]:
    """The words of a command line with one word an option.

    Args:
        words: as the shell gives them.
        several: options that take all words up to the next option.
        pairs: options that take two words, a name and a value, or one word NAME=VALUE.
    """
    found: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*found, word, *words]
        if word in pairs and len(words) >= 2 and "=" not in words[0]:
            found += [word, f"{words.pop(0)}={words.pop(0)}"]
        elif word in several and words:
            found += [word, words.pop(0)]
            while words and not words[0].startswith("-"):
                found += [word, words.pop(0)]
        else:
            found.append(word)
    return found


def one_of(names: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Keywords of a Typer option that takes one of these names; a wrong one gets the nearest."""

    def check(value: str) -> str:
        if value is not None and value not in names:
            raise typer.BadParameter(
                f"unknown name {value!r}{did_you_mean(value, names) or ':'} "
                f"one of {', '.join(names)}"
            )
        return value

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return {"callback": check, "autocompletion": complete}


def whole(least: int, most: int = 1_000_000_000) -> dict[str, Callable[..., Any]]:
    """Keywords of a Typer option that takes a whole number of this range."""

    def check(value: Any) -> Any:
        if value is not None and not least <= value <= most:
            raise typer.BadParameter(f"expected a whole number from {least} to {most}, got {value}")
        return value

    return {"callback": check}


def number(
    least: float, most: float, *, above: bool = False, unit: str = ""
) -> dict[str, Callable[..., Any]]:
    """Keywords of a Typer option that takes a finite number of this range.

    Args:
        least: the smallest; with `above`, what it must be above.
        most: the largest.
        unit: such as "minutes", for the message.
    """
    what = f"a number of {unit}" if unit else "a number"
    start, end = ("above", "and at most") if above else ("from", "to")
    words = f"{start} {least:.12g} {end} {most:.12g}"

    def check(value: Any) -> Any:
        # (a comparison with nan is false)
        if value is not None and not (least <= value <= most and not (above and value == least)):
            raise typer.BadParameter(f"expected {what} {words}, got {value:.12g}")
        return value

    return {"callback": check}


MOST_MINUTES = 10_000_000.0  # 19 years
MOST_SEED = 2**63 - 1


def model_names(incomplete: str) -> list[str]:
    """Shipped models, for completion; their folders' names, without importing the library."""
    weights = Path(__file__).resolve().parent.parent / "weights"
    return sorted(p.parent.name for p in weights.glob(f"{incomplete}*/card.json"))


def examples(*lines: str) -> Callable[[_Function], _Function]:
    """A command's decorator: command lines that work, for the end of its help."""

    def mark(function: _Function) -> _Function:
        text = ["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)]
        function.__dict__["epilog"] = "\n\n".join(text)
        return function

    return mark


def pairs(items: Sequence[str] | None, option: str) -> dict[str, str]:
    """`KEY=VALUE` words as a dictionary; ValueError for a word without "="."""
    found = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{option} takes KEY=VALUE, got {item!r}")
        found[key] = value
    return found


def sources(words: Sequence[str] | None) -> list[str]:
    """Runs or names that were given as several words, several options, or with commas.

    A path that exists may hold a comma.
    """
    found: list[str] = []
    for word in words or ():
        found += [word] if Path(word).exists() else [part for part in word.split(",") if part]
    return found


def say_unused(given: Mapping[str, object], model: str) -> None:
    """Say which options change nothing, rather than take and forget them.

    Args:
        given: options of diffusion models, and whether the user gave each.
        model: the direct cascade that has no use for them.
    """
    unused = [option for option, value in given.items() if value]
    if unused:
        change = "changes" if len(unused) == 1 else "change"
        print(
            f"note: {', '.join(unused)} {change} nothing: {model} is a direct cascade, which has "
            f"no steps and no tiles and is the same on every machine",
            file=sys.stderr,
        )


def print_json(facts: Mapping[str, Any]) -> None:
    """What `--dry-run` prints."""
    typer.echo(json.dumps(facts, indent=2, default=str))


def process() -> str:
    """Who speaks, where torchrun started several: "process 0: "."""
    rank = os.environ.get("RANK")
    return "" if rank is None else f"process {rank}: "


# ---------------------------------------------------------------- options of several commands

Dataset = Annotated[
    str,
    typer.Option(
        help="auto, photos, cifar10, svhn, spectrograms, histology, imagenet32-new, folder:PATH, "
        "crops:PATH, ... (README lists them). auto: CIFAR-10 where the data folder holds it, else "
        "photos.",
        rich_help_panel=DATA,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="Side of the images in pixels, for data sets that come in several. Default: 32, or "
        "that of the name.",
        rich_help_panel=DATA,
        **whole(1, 65_535),
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(help="Data folder. Default: $PCDM_DATA, else ./data.", rich_help_panel=DATA),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:1, ... auto: a GPU where there is one.",
        rich_help_panel=MACHINE,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="The same seed gives the same figures.",
        rich_help_panel=MACHINE,
        **whole(0, MOST_SEED),
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.", rich_help_panel=MACHINE)]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        "-n",
        help="Print the resolved configuration as JSON, and end before any work.",
        rich_help_panel=OUTPUT,
    ),
]
Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="A run's folder, several that trained different scales, or a shipped model's name.",
        autocompletion=model_names,
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help="ema: the averaged weights; raw: those of the last step.",
        rich_help_panel=MODEL,
        **one_of(("ema", "raw")),
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        help="Score the first N held-out images. Default: all.",
        rich_help_panel=SCORING,
        **whole(1),
    ),
]
Repeats = Annotated[
    int,
    typer.Option(help="Independent estimates.", rich_help_panel=SCORING, **whole(1, 1_000_000)),
]
Times = Annotated[
    int,
    typer.Option(
        help="Network evaluations an image, scale and estimate.",
        rich_help_panel=SCORING,
        **whole(1, 1_000_000),
    ),
]
Figures = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Write the figures to this JSON file.", rich_help_panel=OUTPUT
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace a file that is there.", rich_help_panel=OUTPUT),
]
