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
    Force,
    Quiet,
    examples,
    model_names,
    one_of,
    print_json,
    say_unused,
    sources,
    whole,
)

DEFAULT_MODEL = "photos-direct"  # the shipped model for photographs of any size


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
            help="Steps of the chain of a diffusion model: more take fewer bits and more time.",
            rich_help_panel=CODING,
            **whole(2, 65_535),
        ),
    ] = 200,
    batch: Annotated[
        int,
        typer.Option(
            help="Tiles coded at once; more are faster on a GPU.",
            rich_help_panel=CODING,
            **whole(1, 65_535),
        ),
    ] = 16,
    chunk: Annotated[
        int,
        typer.Option(
            metavar="TILES",
            help="Tiles after which a chunk is closed: fewer make single images quicker to get at.",
            rich_help_panel=CODING,
            **whole(1, 65_536),
        ),
    ] = 256,
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="SIDE",
            help="Side of the tiles of larger images. Default: the side that the model was trained "
            "on.",
            rich_help_panel=CODING,
            **whole(1, 65_535),
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
    with_model: Annotated[
        bool,
        typer.Option(
            "--with-model",
            help="Keep the model beside the file, in OUT.model/, so that the file can be decoded "
            "when the run is gone.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    no_verify: Annotated[
        bool,
        typer.Option(
            "--no-verify",
            help="Do not decode and compare before the file gets its name: twice as fast.",
            rich_help_panel=CODING,
        ),
    ] = False,
    force: Force = False,
    dry_run: DryRun = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Write images into one file, losslessly, by a trained model's likelihood."""
    from tqdm.auto import tqdm

    from pcdm_lib import outputs, records
    from pcdm_lib.coding import archive, chunks
    from pcdm_lib.data.files import name_files, read_image
    from pcdm_lib.models import kept, pretrained

    where = records.find_device(device)
    settings = chunks.Settings(
        steps, batch=batch, chunk_tiles=chunk, side=tile, precision=precision
    )
    files = name_files(images)
    outputs.check_output(out, files.values(), force)
    beside = kept.folder_beside(out)
    if with_model:
        outputs.check_folder(beside)
        kept.check_place(beside, force)
    runs = sources(model) or [DEFAULT_MODEL]
    cascade, headers = pretrained.open_model(runs, "ema", where)
    name = _model_name(runs)
    if cascade.exact:
        unused = {"--steps": steps != 200, "--batch": batch != 16, "--tile": tile}
        say_unused(unused | {"--precision": precision != "float64"}, name)
    archive.check_model(cascade, settings)
    sizes = _check_inputs(files)
    label = headers[0]["data"].get("label", "unnamed data")
    verify = not no_verify
    total = archive.work(cascade, settings, sizes) * (1 + verify)
    given = sum(path.stat().st_size for path in files.values())
    if dry_run:
        print_json(
            {
                "model": {"name": name, "trained on": label},
                "settings": {"plain": settings.plain, "piece": settings.piece}
                if cascade.exact
                else settings.__dict__ | {"side": tile or max(cascade.image_shape[1:])},
                "images": len(files),
                "bytes": given,
                "evaluations": total,
                "verify": verify,
                "device": str(where),
                "output": str(out),
                "model kept in": str(beside) if with_model else None,
            }
        )
        return 0
    print(f"model {name}, trained on: {label}", flush=True)
    what = "coding and decoding" if verify else "coding"
    unit = " blocks" if cascade.exact else " evaluations"
    with tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=quiet) as bar:
        statistics = archive.compress(
            ((name, read_image(path)) for name, path in files.items()),
            out,
            cascade,
            name,
            settings,
            verify=verify,
            device=where,
            on_evaluation=bar.update,
        )
    _report(out, statistics, given, verify)
    if with_model:
        kept.keep(cascade, headers, beside)
        print(f"{beside}: the model; keep it beside the file")
    elif name not in pretrained.names():
        print(
            f"decoding needs the model as it is now: keep {', '.join(runs)} and do not train it "
            f"further, or give --with-model"
        )
    return 0


@examples(
    "pcdm decompress out.pcdm --list",
    "pcdm decompress out.pcdm -o restored/",
    "pcdm decompress out.pcdm -o restored/ --only a.png --model runs/a",
    "pcdm decompress out.pcdm -o thumbnails/ --scale 1/4",
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
    scale: Annotated[
        str,
        typer.Option(
            help="Small pictures instead, at this part of the side: only the coarse levels are "
            "decoded, of a file that is cut short too. For files of a direct cascade.",
            rich_help_panel=OUTPUT,
            **one_of(("1", "1/2", "1/4", "1/8", "1/16")),
        ),
    ] = "1",
    list_: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Print the names and how the file was written, decode nothing.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    rename: Annotated[
        bool,
        typer.Option(
            "--rename",
            help="Write images whose names no file can have here as image-00007.png, by their "
            "place in the file, and print which is which.",
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
    from pcdm_lib import outputs, records
    from pcdm_lib.coding import archive
    from pcdm_lib.coding.extract import described, targets
    from pcdm_lib.models import pretrained

    where = records.find_device(device)
    level = {"1": 0, "1/2": 1, "1/4": 2, "1/8": 3, "1/16": 4}[scale]
    with archive.Archive(file) as opened:
        if level and not opened.direct:
            raise ValueError(
                f"{file} was written by a diffusion model and has no small pictures in it: leave "
                f"--scale out"
            )
        for line in opened.reader.damage:
            print(f"{file}: {line}", file=sys.stderr)
        names = opened.names(cut=level > 0)
        if list_:
            _list(opened, names)
            return 1 if opened.reader.damage else 0
        if out is None:
            raise ValueError("give a folder for the images by -o")
        missing = sorted({*(only or ())} - {*names})
        if missing:
            raise ValueError(f"{file} holds no image called {missing[0]!r}: --list shows the names")
        outputs.check_folder(out)
        plan = targets(names, out, force, rename, chosen=only)
        for path in plan.paths.values():
            outputs.check_output(path, [file], force)
        for name, reason in plan.impossible.items():
            print(
                f"not written: {described(name, reason)}; --rename writes it under a number",
                file=sys.stderr,
            )
        runs = sources(model) or _sources_of(opened)
        cascade, _ = pretrained.open_model(runs, "ema", where)
        done, failed = _decode(opened, cascade, where, plan.paths, quiet, level)
    for name, path in plan.renamed.items():
        print(f"{path.name} is {name!a}")
    print(f"{done} images in {out}")
    return 1 if failed or plan.impossible else 0


def _check_inputs(files: dict[str, Path]) -> list[tuple[int, int]]:
    """Height and width of the images; one error for all that cannot be stored. Every file is
    decoded once, which takes a moment, where coding takes hours."""
    from pcdm_lib.coding.container import check_name
    from pcdm_lib.coding.extract import warnings
    from pcdm_lib.data.files import is_turned, read_image
    from pcdm_lib.data.found import counted

    sizes, refused = [], []
    for name, path in files.items():
        try:
            check_name(name)
            height, width = read_image(path).shape[:2]
        except ValueError as error:
            refused.append(str(error).encode(errors="backslashreplace").decode())
        else:
            sizes.append((height, width))
    if refused:
        more = f" (and {len(refused) - 5} more)" if len(refused) > 5 else ""
        raise ValueError(
            f"{len(refused)} of {len(files)} images cannot be stored, and nothing was coded: "
            + "; ".join(refused[:5])
            + more
        )
    for line in warnings(list(files)):
        print(f"warning: {line}", file=sys.stderr)
    turned = sum(map(is_turned, files.values()))
    if turned:
        print(
            f"note: {counted(turned, 'images carry an EXIF orientation')}, which is not kept: "
            f"pixels come back as they lie in the file, so a viewer may show them on their side",
            file=sys.stderr,
        )
    return sizes


def _sources_of(opened: Any) -> list[str]:
    """The model that a file names: a shipped one, or the one kept beside the file. A path in a
    stranger's file is not followed."""
    from pcdm_lib.coding import archive
    from pcdm_lib.models import kept, pretrained

    beside = kept.folder_beside(opened.path)
    if kept.is_kept(beside):
        return [str(beside)]
    if opened.model in pretrained.names():
        return [opened.model]
    if opened.single:
        for name in pretrained.names():
            shipped = pretrained.card(name)["files"]
            if "levels.safetensors" in shipped and opened.wrote(
                archive.digest(pretrained.load_pretrained(name))
            ):
                return [name]
        raise ValueError(
            f"{opened.path} was written with a model of digest {opened.digest}..., which does not "
            f"come with the package, and {beside} is no kept model: name the run by --model"
        )
    raise ValueError(
        f"{opened.path} was written with the model {opened.model!a} of digest {opened.digest}, "
        f"which does not come with the package, and {beside} is no kept model: name the run by "
        f"--model, or a checkpoint of it if the run was trained further"
    )


def _model_name(runs: list[str]) -> str:
    """What the file calls its model: a shipped model's name, or the names of the runs' folders."""
    from pcdm_lib.models import pretrained

    if runs[0] in pretrained.names():
        return runs[0]
    return ", ".join(run.rstrip("/").rpartition("/")[2] for run in runs)


def _report(out: Path, statistics: Any, given: int, verify: bool) -> None:
    print(f"{out}: {statistics}; the files given have {given} bytes")
    word = "pieces" if statistics.extra_pieces else "images"
    first = f" and {statistics.start_tiles} first tiles" if statistics.start_tiles else ""
    print(
        f"coded by the model: {statistics.model_images} {word} at {statistics.net_bpd:.4f} bits "
        f"per dimension; by PNG or JPEG XL, which was smaller there: {statistics.plain_images} "
        f"{word}{first}"
    )
    checked = (
        f"decoded and compared in {statistics.verify_seconds:.1f} s"
        if verify
        else "NOT verified: --no-verify was given"
    )
    print(
        f"{statistics.images / statistics.seconds:.3f} {word} a second, "
        f"{1 - statistics.network_seconds / statistics.seconds:.0%} of the time outside the "
        f"network; {checked}"
    )


def _list(opened: Any, names: list[str]) -> None:
    """The names, safe for a terminal: a stranger chose them."""
    s = opened.settings
    head = f"model {opened.model or opened.digest}, direct"
    if not opened.direct:
        head = f"model {opened.model}, {s.steps} steps, tiles of {s.side}, {s.precision}"
    print(ascii(head)[1:-1])
    print(*(name if name.isprintable() else ascii(name)[1:-1] for name in names), sep="\n")


def _decode(
    opened: Any, cascade: Any, device: Any, paths: dict[str, Path], quiet: bool, level: int
) -> tuple[int, int]:
    """Write the images of these names; how many were written, and how many parts of the file are
    damaged."""
    from tqdm.auto import tqdm

    from pcdm_lib.coding import container
    from pcdm_lib.data.files import write_png

    done, failed = 0, len(opened.reader.damage)
    unit = " blocks" if opened.direct else " evaluations"
    with tqdm(desc="decoding", unit=unit, unit_scale=True, disable=quiet) as bar:
        opened.prepare(cascade, device, on_evaluation=bar.update)
        wanted = [*paths]
        for found in opened.previews(level, wanted) if level else opened.images(wanted):
            if isinstance(found, container.DamagedFile):
                print(found, file=sys.stderr)
                failed += 1
                continue
            name, pixels = found
            try:
                write_png(paths[name], pixels)
            except OSError as error:
                raise OSError(
                    f"{paths[name]} cannot be written ({error.strerror or error}): the "
                    f"{done} images before it are whole; make room or give another folder, and "
                    f"get the others by --only"
                ) from error
            done += 1
    return done, failed
