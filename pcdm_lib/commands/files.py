"""`pcdm compress` and `pcdm decompress`: images into one file and back, losslessly."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pcdm_lib.commands.options import (
    CODING,
    OUTPUT,
    Device,
    DryRun,
    Quiet,
    examples,
    model_names,
    one_of,
    print_json,
    sources,
)

DEFAULT_MODEL = "photos32-vdm"  # the shipped model of the lowest bits per dimension


@examples(
    "pcdm compress images/ -o out.pcdm",
    "pcdm compress a.png b.png -o out.pcdm --model photos32-wavelet --steps 100",
    "pcdm compress images/ -o out.pcdm --model runs/base runs/details --dry-run",
)
def compress(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...",
            help="PNG, JPEG or WebP files, or folders of them. Pixels and names are kept, metadata "
            "are not.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The file to write, such as out.pcdm.", rich_help_panel=OUTPUT
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN...",
            help="A shipped model's name, a run, or several that trained different scales: "
            "--model A B, or --model A --model B, or A,B. All words up to the next option belong "
            f"to it, so name the images first. Default: {DEFAULT_MODEL}.",
            rich_help_panel=CODING,
            autocompletion=model_names,
        ),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(
            help="Steps of the chain: more take fewer bits and more time.", rich_help_panel=CODING
        ),
    ] = 200,
    batch: Annotated[
        int,
        typer.Option(help="Tiles coded at once; more are faster on a GPU.", rich_help_panel=CODING),
    ] = 16,
    chunk: Annotated[
        int,
        typer.Option(
            metavar="TILES",
            help="Tiles after which a chunk is closed: fewer make single images quicker to get at.",
            rich_help_panel=CODING,
        ),
    ] = 256,
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="SIDE",
            help="Side of the tiles of larger images. Default: the side that the model was trained "
            "on.",
            rich_help_panel=CODING,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="float64 decodes on any machine; float32 is faster and decodes on this one only.",
            rich_help_panel=CODING,
            **one_of(("float64", "float32")),
        ),
    ] = "float64",
    no_verify: Annotated[
        bool,
        typer.Option(
            "--no-verify",
            help="Do not decode and compare before the file gets its name: twice as fast.",
            rich_help_panel=CODING,
        ),
    ] = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Write images into one file, losslessly, by a trained model's likelihood."""
    from tqdm.auto import tqdm

    from pcdm_lib import records
    from pcdm_lib.coding import archive, chunks
    from pcdm_lib.data.files import image_size, name_files
    from pcdm_lib.data.images import read_pixels
    from pcdm_lib.models import pretrained

    where = records.find_device(device)
    files = name_files(images)
    settings = chunks.Settings(
        steps, batch=batch, chunk_tiles=chunk, side=tile, precision=precision
    )
    runs = sources(model) or [DEFAULT_MODEL]
    cascade, headers = pretrained.open_model(runs, "ema", where)
    name = _model_name(runs)
    label = headers[0]["data"].get("label", "unnamed data")
    verify = not no_verify
    total = archive.work(cascade, settings, map(image_size, files.values())) * (1 + verify)
    given = sum(path.stat().st_size for path in files.values())
    if dry_run:
        print_json(
            {
                "model": {"name": name, "trained on": label},
                "settings": settings.__dict__ | {"side": tile or max(cascade.image_shape[1:])},
                "images": len(files),
                "bytes": given,
                "evaluations": total,
                "verify": verify,
                "device": str(where),
                "output": str(out),
            }
        )
        return 0
    print(f"model {name}, trained on: {label}", flush=True)
    what = "coding and decoding" if verify else "coding"
    with tqdm(total=total, desc=what, unit=" evaluations", disable=quiet) as bar:
        statistics = archive.compress(
            ((name, read_pixels(path)) for name, path in files.items()),
            out,
            cascade,
            name,
            settings,
            verify=verify,
            device=where,
            on_evaluation=bar.update,
        )
    _report(out, statistics, given, verify)
    return 0


@examples(
    "pcdm decompress out.pcdm --list",
    "pcdm decompress out.pcdm -o restored/",
    "pcdm decompress out.pcdm -o restored/ --only a.png --model runs/a",
)
def decompress(
    file: Annotated[Path, typer.Argument(help="A file that `pcdm compress` wrote.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the PNG files, made if need be.", rich_help_panel=OUTPUT
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN...",
            help="The model that wrote the file, where it is not a shipped one. Several runs: "
            "--model A B, or --model A --model B, or A,B.",
            rich_help_panel=CODING,
            autocompletion=model_names,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this image; repeatable. Only the chunks that hold them are decoded.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    list_: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Print the names and how the file was written, decode nothing.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace files that are there.", rich_help_panel=OUTPUT),
    ] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Get the images of such a file, the same to the bit."""
    from pcdm_lib import records
    from pcdm_lib.coding import archive
    from pcdm_lib.coding.extract import targets
    from pcdm_lib.models import pretrained

    where = records.find_device(device)
    with archive.Archive(file) as opened:
        for line in opened.reader.damage:
            print(f"{file}: {line}", file=sys.stderr)
        names = opened.names()
        if list_:
            _list(opened, names)
            return 1 if opened.reader.damage else 0
        if out is None:
            raise ValueError("give a folder for the images by -o")
        missing = sorted({*(only or ())} - {*names})
        if missing:
            raise ValueError(f"{file} holds no image called {missing[0]!r}: --list shows the names")
        paths = targets(only or names, out, force)
        # a path in a stranger's file is not followed
        if not model and opened.model not in pretrained.names():
            raise ValueError(
                f"{file} was written with the model {opened.model!r}, which does not come with the "
                f"package: name the run by --model"
            )
        runs = sources(model) or [opened.model]
        cascade, _ = pretrained.open_model(runs, "ema", where)
        done, failed = _decode(opened, cascade, where, only or None, paths, quiet)
    print(f"{done} images in {out}")
    return 1 if failed else 0


def _model_name(runs: list[str]) -> str:
    """What the file calls its model: a shipped model's name, or the names of the runs' folders."""
    from pcdm_lib.models import pretrained

    if runs[0] in pretrained.names():
        return runs[0]
    return ", ".join(run.rstrip("/").rpartition("/")[2] for run in runs)


def _report(out: Path, statistics: Any, given: int, verify: bool) -> None:
    print(f"{out}: {statistics}; the files given have {given} bytes")
    print(
        f"coded by the model: {statistics.model_images} images at {statistics.net_bpd:.4f} bits "
        f"per dimension; by PNG or JPEG XL, which was smaller there: {statistics.plain_images} "
        f"images and {statistics.start_tiles} first tiles"
    )
    checked = (
        f"decoded and compared in {statistics.verify_seconds:.1f} s"
        if verify
        else "NOT verified: --no-verify was given"
    )
    print(
        f"{statistics.images / statistics.seconds:.3f} images a second, "
        f"{1 - statistics.network_seconds / statistics.seconds:.0%} of the time outside the "
        f"network; {checked}"
    )


def _list(opened: Any, names: list[str]) -> None:
    """The names, safe for a terminal: a stranger chose them."""
    s = opened.settings
    head = f"model {opened.model}, {s.steps} steps, tiles of {s.side}, {s.precision}"
    print(ascii(head)[1:-1])
    print(*(name if name.isprintable() else ascii(name)[1:-1] for name in names), sep="\n")


def _decode(
    opened: Any, cascade: Any, device: Any, only: list[str] | None, paths: dict, quiet: bool
) -> tuple[int, int]:
    """Write the images; how many were written, and how many parts of the file are damaged."""
    from tqdm.auto import tqdm

    from pcdm_lib.coding import container
    from pcdm_lib.data.files import write_png

    done, failed = 0, len(opened.reader.damage)
    with tqdm(desc="decoding", unit=" evaluations", disable=quiet) as bar:
        opened.prepare(cascade, device, on_evaluation=bar.update)
        for found in opened.images(only):
            if isinstance(found, container.DamagedFile):
                print(found, file=sys.stderr)
                failed += 1
                continue
            name, pixels = found
            write_png(paths[name], pixels)
            done += 1
    return done, failed
