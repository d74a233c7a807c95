"""`pcdm train`, and `pcdm settings`: what `--set` may change."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcdm_lib.commands.options import (
    BUDGET,
    DATA,
    MODEL,
    MOST_MINUTES,
    OUTPUT,
    PRESETS,
    PROCESSES,
    SYSTEMS,
    TRAINING,
    DataRoot,
    Dataset,
    Device,
    DryRun,
    Quiet,
    Seed,
    Size,
    examples,
    number,
    one_of,
    pairs,
    print_json,
    process,
    whole,
)

if TYPE_CHECKING:
    import torch

    from pcdm_lib.data.images import ImageData
    from pcdm_lib.models.config import Config

Preset = Annotated[
    str,
    typer.Option(
        help="Networks and training: tiny (tests), small (learns in minutes on two cores), edm "
        "(small, for the look of samples); the paper's Appendix B: paper-cifar10, "
        "paper-imagenet32, paper-imagenet64, paper-imagenet128; or the code released with it: "
        "release-cifar10, release-imagenet32, release-imagenet64.",
        rich_help_panel=MODEL,
        **one_of(PRESETS),
    ),
]
System = Annotated[
    str,
    typer.Option(
        help="wavelet (W-PCDM), laplacian (LP-PCDM), standard (C-VDM) or vdm (VDM), which are "
        "diffusion models; or direct (no diffusion, an exact likelihood, the quick compressor).",
        rich_help_panel=MODEL,
        **one_of(SYSTEMS),
    ),
]


@dataclasses.dataclass(frozen=True)
class Choices:
    """What `pcdm train` was asked for, beside the configuration."""

    run: Path
    dataset: str
    data_root: str | None
    size: int | None
    preset: str
    system: str
    changes: dict[str, str]
    minutes: float | None
    steps: int | None
    scales: list[str] | None
    seed: int
    resume: bool
    side_by_side: bool
    checkpoint_minutes: float
    groups: str
    shard: bool
    quiet: bool


@examples(
    "pcdm train runs/a --minutes 10",
    "pcdm train runs/a --minutes 10 --resume",
    "pcdm train runs/b --system vdm --dataset folder:mine/ --steps 2000 --set learning_rate=0.002",
    "pcdm train runs/c --preset paper-cifar10 --dataset cifar10 --device cuda --dry-run",
    "pcdm train runs/details --scales details1 --steps 2000",
    "torchrun --standalone --nproc-per-node 2 -m pcdm_lib train runs/d --minutes 10",
)
def train(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run, made if need be.")],
    preset: Preset = "small",
    system: System = "wavelet",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one setting of the preset; repeatable. `pcdm settings` lists all keys "
            "with type, value and meaning.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            help="Train only these scales, by name, separated by commas, such as base,details1. "
            "Default: all.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dataset: Dataset = "auto",
    size: Size = None,
    data_root: DataRoot = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Minutes of training. Give this or --steps.",
            rich_help_panel=BUDGET,
            **number(0, MOST_MINUTES, above=True, unit="minutes"),
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of training. Default: none, but for a paper-* or release-* preset its own "
            "number.",
            rich_help_panel=BUDGET,
            **whole(1),
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run from its last checkpoint.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            help="Time between checkpoints; 0: every step.",
            rich_help_panel=TRAINING,
            **number(0, MOST_MINUTES, unit="minutes"),
        ),
    ] = 2.0,
    side_by_side: Annotated[
        bool,
        typer.Option(
            "--side-by-side",
            help="Train the scales in threads at once (one process on a CPU); faster on some "
            "processors.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    groups: Annotated[
        str,
        typer.Option(
            help="together: all processes train every scale; scales: each trains one scale.",
            rich_help_panel=PROCESSES,
            **one_of(("together", "scales")),
        ),
    ] = "together",
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="Divide weights, averages and optimiser state among the processes (FSDP2).",
            rich_help_panel=PROCESSES,
        ),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long a process waits for the others before it fails.",
            rich_help_panel=PROCESSES,
            **number(0, 1e6, above=True, unit="seconds"),
        ),
    ] = 120.0,
) -> int:
    """Train a cascade, or some of its scales."""
    from pcdm_lib import records
    from pcdm_lib.models import presets
    from pcdm_lib.training import distributed

    if minutes is not None and steps is not None:
        raise ValueError("give --minutes or --steps, not both")
    if minutes is None and steps is None:
        steps = presets.budget(preset)
        if steps is None:
            raise ValueError(
                f"preset {preset!r} has no budget of its own: give --minutes or --steps"
            )
    choices = Choices(
        run,
        dataset,
        data_root,
        size,
        preset,
        system,
        pairs(set_, "--set"),
        minutes,
        steps,
        scales.split(",") if scales else None,
        seed,
        resume,
        side_by_side,
        checkpoint_minutes,
        groups,
        shard,
        quiet,
    )
    where = records.find_device(device)
    _check_settings(choices, where)
    if dry_run:
        if int(os.environ.get("RANK", 0)) == 0:
            print_json(_resolved(choices, where))
        return 0
    with distributed.processes(where, timeout) as own:
        try:
            _train_here(choices, own)
        except RuntimeError:
            if distributed.size() > 1:
                print(
                    f"{process()}ends here, perhaps because another process was lost: torchrun's "
                    f"table of failures names it. The same command with --resume continues from "
                    f"the last checkpoint of {run}",
                    file=sys.stderr,
                    flush=True,
                )
                # torchrun blames whoever it finds dead first: let that be the process that was lost
                time.sleep(2)
            raise
    return 0


@examples(
    "pcdm settings", "pcdm settings --preset paper-cifar10 --system vdm", "pcdm settings --json"
)
def settings(
    preset: Preset = "small",
    system: System = "wavelet",
    size: Annotated[
        int,
        typer.Option(help="Side of the images.", rich_help_panel=DATA, **whole(1, 65_535)),
    ] = 32,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.", rich_help_panel=OUTPUT)] = False,
) -> int:
    """List the keys of `--set` with their type, their value in a preset and their meaning."""
    from pcdm_lib.models import presets
    from pcdm_lib.models import settings as described

    found = described.settings(presets.preset(preset, system, (3, size, size)))
    if json_:
        print_json({group: [row._asdict() for row in rows] for group, rows in found.items()})
        return 0
    print(f"preset {preset}, system {system}, {size}x{size} images: KEY (TYPE) = VALUE  MEANING")
    for group, rows in found.items():
        print(f"\n{group}")
        left = [f"{row.key} ({row.kind}) = {_text(row.value)}" for row in rows]
        width = min(max(map(len, left)), 44)
        for text, row in zip(left, rows, strict=True):
            print(f"  {text:<{width}}  {row.meaning}")
    return 0


def _text(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "(empty)"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_settings(choices: Choices, device: torch.device) -> None:
    """Refuse settings and networks that cannot be, before the data are read or fetched."""
    import torch

    from pcdm_lib.models import memory, presets

    full = presets.FULL_SIZE.get(choices.preset)
    side = full.side if full else choices.size or 32
    config = presets.preset(choices.preset, choices.system, (3, side, side))
    config = config.override(choices.changes)
    room = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes == 1:  # several may divide the work, on several machines
        memory.check_training(config.model, config.training.batch_size, choices.scales, room)


def _configure(choices: Choices, images: ImageData) -> Config:
    from pcdm_lib.models import presets

    channels, height, width = images.train.shape[1:]
    config = presets.preset(choices.preset, choices.system, (channels, height, width))
    return config.override(choices.changes)


def _resolved(choices: Choices, device: torch.device) -> dict[str, Any]:
    """Everything that a training would start from. Data that lie here are read, nothing is
    fetched."""
    import torch

    from pcdm_lib.data import sets
    from pcdm_lib.models import presets

    images = sets.load_data(
        choices.dataset, root=choices.data_root, size=choices.size, download=False
    )
    config = _configure(choices, images)
    with torch.device("meta"):
        cascade = presets.build(config.model, choices.seed, choices.scales)
    counts = presets.parameter_counts(config.model)
    budget = {"minutes": choices.minutes, "steps": choices.steps}
    return {
        "preset": config.preset,
        "system": config.system,
        "model": dataclasses.asdict(config.model),
        "training": dataclasses.asdict(config.training),
        "scales": {s.name: counts[s.name] for s in cascade.specs if s.name in cascade.networks},
        "budget": {key: value for key, value in budget.items() if value is not None},
        "data": {
            "label": images.label,
            "train": len(images.train),
            "heldout": len(images.heldout),
        },
        "device": str(device),
        "seed": choices.seed,
        "output": str(choices.run),
        "resume": choices.resume,
        "checkpoint_minutes": choices.checkpoint_minutes,
        "side_by_side": choices.side_by_side,
        "processes": {
            "count": int(os.environ.get("WORLD_SIZE", 1)),
            "groups": choices.groups,
            "shard": choices.shard,
        },
    }


def _train_here(choices: Choices, device: torch.device) -> None:
    """What one process does."""
    from pcdm_lib.data import sets
    from pcdm_lib.models import checkpoints
    from pcdm_lib.training import distributed, place
    from pcdm_lib.training.trainer import Trainer

    speaks = distributed.rank() == 0
    distributed.from_first(lambda: place.check_place(choices.run, choices.resume))
    # what has to be downloaded or unpacked is so once, not by all processes at once
    images = distributed.in_turn(
        lambda: sets.load_data(choices.dataset, root=choices.data_root, size=choices.size)
    )
    if speaks:
        print(f"data: {images.label}", flush=True)
    trainer = Trainer(
        _configure(choices, images),
        images.train,
        choices.run,
        data=images.source | {"label": images.label},
        seed=choices.seed,
        scales=choices.scales,
        device=device,
        resume=choices.resume,
        groups=choices.groups,
        shard=choices.shard,
        side_by_side=choices.side_by_side,
    )
    if speaks and trainer.note:
        print(trainer.note, flush=True)
    together = f" in {distributed.size()} processes" if distributed.size() > 1 else ""
    if speaks and together:
        print(
            f"training{together}, groups: {choices.groups}; should the job end early, the same "
            f"command with --resume continues it",
            flush=True,
        )
    trainer.run(
        minutes=choices.minutes,
        steps=choices.steps,
        progress=not choices.quiet,
        checkpoint_minutes=choices.checkpoint_minutes,
    )
    if speaks:
        print(
            f"{trainer.step} steps{together} in {trainer.seconds:.0f} s of training; "
            f"checkpoint {checkpoints.newest_checkpoint(choices.run)}"
        )
