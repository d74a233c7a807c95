"""The main jobs from a shell: `python -m pcdm_lib train | evaluate | likelihoods | sample |
compress | decompress | tables | ship | card`, with the presets and settings of the notebooks."""

from __future__ import annotations

import argparse
import ast
import io
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from pcdm_lib import records
from pcdm_lib.coding import archive, chunks, container
from pcdm_lib.data import domains, sets
from pcdm_lib.data.images import SUFFIXES, ImageData, beyond_rgb, image_files, read_pixels
from pcdm_lib.experiments import shipping
from pcdm_lib.likelihood import evaluation, flow, three_ways
from pcdm_lib.models import checkpoints, presets, pretrained
from pcdm_lib.training import distributed
from pcdm_lib.training.trainer import Trainer

DEFAULT_MODEL = "photos32-vdm"  # of compress: the shipped model of the lowest bits per dimension


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 with one line on stderr for bad input, 1 where another
    process of the job or a part of the tables failed, an image of a file is damaged, or a file that
    was written does not decode."""
    parser = argparse.ArgumentParser(prog="python -m pcdm_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _train_options(commands.add_parser("train", help="train a cascade, or some of its scales"))
    _evaluate_options(
        commands.add_parser("evaluate", help="held-out bits per dimension of a trained run")
    )
    _likelihoods_options(
        commands.add_parser(
            "likelihoods",
            help="the bound in continuous time and in T steps, and the probability flow, side by "
            "side",
        )
    )
    _sample_options(
        commands.add_parser("sample", help="images from a trained run, and their coarser scales")
    )
    _compress_options(
        commands.add_parser(
            "compress", help="images into one file, losslessly, by a trained model's likelihood"
        )
    )
    _decompress_options(
        commands.add_parser("decompress", help="the images of such a file, the same to the bit")
    )
    _tables_options(
        commands.add_parser(
            "tables",
            help="every system and every table of the paper at one budget; continues where it was "
            "stopped",
        )
    )
    _ship_options(
        commands.add_parser("ship", help="make a trained run a model that comes with the package")
    )
    _card_options(commands.add_parser("card", help="what is known of a shipped model, as Markdown"))
    options = parser.parse_args(arguments)
    try:
        if options.device != "auto":
            records.check_device(options.device)
        return options.run(options)
    except (ValueError, TypeError, OSError, KeyError, ArithmeticError) as error:
        print(f"{parser.prog} {options.command}: {_process()}{error}", file=sys.stderr)
        return 2
    except distributed.ProcessFailed as error:
        print(f"{parser.prog} {options.command}: {_process()}{error}", file=sys.stderr)
        return 1
    except archive.NotVerified as error:
        print(f"{parser.prog} {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"{_process()}stopped; a training run continues with --resume, tables with the same "
            f"command; of a file nothing was written",
            file=sys.stderr,
        )
        return 130


def _process() -> str:
    """Who speaks, where torchrun started several."""
    rank = os.environ.get("RANK")
    return "" if rank is None else f"process {rank}: "


def _common(parser: argparse.ArgumentParser, *, dataset: bool) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    if dataset:
        parser.add_argument(
            "--dataset",
            default="auto",
            help="auto, photos, cifar10, svhn, folder:PATH, ... as in README's table (default: "
            "auto)",
        )
        parser.add_argument(
            "--size",
            type=int,
            default=None,
            help="side of the images, for data sets that come in several (default: 32, or that of "
            "the name)",
        )
        parser.add_argument(
            "--data-root", default=None, help="data folder (default: $PCDM_DATA, else ./data)"
        )


def _train_options(parser: argparse.ArgumentParser) -> None:
    _common(parser, dataset=True)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--preset", default="small", choices=presets.PRESETS)
    parser.add_argument("--system", default="wavelet", choices=presets.SYSTEMS)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting of the preset; repeatable",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float)
    budget.add_argument(
        "--steps",
        type=int,
        help="a paper-* preset has its own number, which is taken where no budget is given",
    )
    parser.add_argument(
        "--scales", default=None, help="train only these, by name, separated by commas"
    )
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--side-by-side",
        action="store_true",
        help="train the scales in threads at once (one process on a CPU); faster on some "
        "processors",
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=2.0,
        help="time between checkpoints (default: %(default)g); 0: every step",
    )
    several = parser.add_argument_group(
        "several processes",
        "start them by torchrun: torchrun --standalone --nproc-per-node 2 -m pcdm_lib train ...",
    )
    several.add_argument(
        "--groups",
        default="together",
        choices=distributed.GROUPS,
        help="all processes train every scale (default), or each trains one scale",
    )
    several.add_argument(
        "--shard",
        action="store_true",
        help="divide weights, averages and optimiser state among the processes (FSDP2)",
    )
    several.add_argument(
        "--timeout",
        type=float,
        default=distributed.TIMEOUT,
        metavar="SECONDS",
        help="how long a process waits for the others before it fails (default: %(default)g)",
    )
    parser.set_defaults(run=_train)


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    _common(parser, dataset=True)
    parser.add_argument(
        "run_dirs",
        type=Path,
        nargs="+",
        help="a run, several that trained different scales, or a shipped model's name",
    )
    parser.add_argument("--weights", default="ema", choices=("ema", "raw"))
    parser.add_argument(
        "--images", type=int, default=None, help="score the first N held-out images (default: all)"
    )
    parser.add_argument("--repeats", type=int, default=4, help="independent estimates (default: 4)")
    parser.add_argument(
        "--times",
        type=int,
        default=4,
        help="network evaluations an image, scale and repeat (default: 4)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        help="the T-step bound instead of the continuous-time one",
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=None,
        metavar="RUN",
        help="score this model too, and state the paired difference over the images",
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="write the figures to this JSON file"
    )
    parser.set_defaults(run=_evaluate)


def _likelihoods_options(parser: argparse.ArgumentParser) -> None:
    _common(parser, dataset=True)
    parser.add_argument(
        "run_dirs",
        type=Path,
        nargs="+",
        help="a run, several that trained different scales, or a shipped model's name",
    )
    parser.add_argument("--weights", default="ema", choices=("ema", "raw"))
    parser.add_argument(
        "--images", type=int, default=16, help="the first N held-out images (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        default="100,1000",
        help="the T of the T-step bounds, with commas (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="of the flow's solver, relative and absolute (default: %(default)g)",
    )
    parser.add_argument(
        "--probes", type=int, default=1, help="of Hutchinson's estimator (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="write the figures to this JSON file"
    )
    parser.set_defaults(run=_likelihoods)


def _sample_options(parser: argparse.ArgumentParser) -> None:
    _common(parser, dataset=False)
    parser.add_argument(
        "run_dirs",
        type=Path,
        nargs="+",
        help="a run, several that trained different scales, or a shipped model's name",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the PNG files, made if need be"
    )
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--weights", default="ema", choices=("ema", "raw"))
    parser.set_defaults(run=_sample)


def _compress_options(parser: argparse.ArgumentParser) -> None:
    _device_and_progress(parser)
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        help="PNG, JPEG or WebP files, or folders of them; pixels and names are kept, metadata "
        "are not",
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="the file to write, such as out.pcdm"
    )
    parser.add_argument(
        "--model",
        default=[DEFAULT_MODEL],
        nargs="+",
        metavar="RUN",
        help=f"a shipped model's name, a run, or several that trained different scales (default: "
        f"{DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=chunks.STEPS,
        help="steps of the chain: more take fewer bits and more time (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=chunks.BATCH,
        help="tiles coded at once; more are faster on a GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        default=chunks.CHUNK_TILES,
        metavar="TILES",
        help="tiles after which a chunk is closed: fewer make single images quicker to get at "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=None,
        metavar="SIDE",
        help="side of the tiles of larger images (default: the side that the model was trained on)",
    )
    parser.add_argument(
        "--precision",
        default="float64",
        choices=tuple(chunks.PRECISIONS),
        help="float64 decodes on any machine (default), float32 is faster and decodes on this one "
        "only",
    )
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not decode and compare before the file gets its name: twice as fast",
    )
    parser.set_defaults(run=_compress)


def _decompress_options(parser: argparse.ArgumentParser) -> None:
    _device_and_progress(parser)
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--out", type=Path, help="folder for the PNG files, made if need be")
    parser.add_argument(
        "--model",
        default=None,
        nargs="+",
        metavar="RUN",
        help="the model that wrote the file, where it is not a shipped one",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="only this image; repeatable. Only the chunks that hold them are decoded",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the names and how the file was written, decode nothing",
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.set_defaults(run=_decompress)


def _device_and_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _tables_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, required=True, help="training of each system")
    parser.add_argument(
        "--dataset",
        default="auto",
        help="of the CIFAR parts: auto, photos, cifar10, folder:PATH (default: auto)",
    )
    parser.add_argument(
        "--preset",
        default="small",
        choices=("small", "tiny"),
        help="of all parts; a paper-* preset is for one data set (default: small)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--only",
        default="",
        help="run only these parts, by name, separated by commas; the tables are always made",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder for notebooks and runs (default: one under runs/tables)",
    )
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="another value of a notebook's parameter, such as heldout_images 100; repeatable",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_tables)


def _ship_options(parser: argparse.ArgumentParser) -> None:
    _common(parser, dataset=True)
    parser.add_argument(
        "run_dirs", type=Path, nargs="+", help="a run, or several that trained different scales"
    )
    parser.add_argument(
        "name", help="what load_pretrained will call it; an older model of that name is replaced"
    )
    parser.add_argument(
        "--images", type=int, default=None, help="score the first N held-out images (default: all)"
    )
    parser.add_argument("--repeats", type=int, default=4, help="independent estimates (default: 4)")
    parser.add_argument(
        "--times",
        type=int,
        default=4,
        help="network evaluations an image, scale and repeat (default: 4)",
    )
    parser.add_argument(
        "--weights-root",
        type=Path,
        default=pretrained.WEIGHTS,
        help="folder of models (default: the package's)",
    )
    parser.set_defaults(run=_ship)


def _card_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", help="a shipped model; without it, their names are listed"
    )
    parser.set_defaults(run=_card, device="cpu")


def _train(options: argparse.Namespace) -> int:
    if options.minutes is None and options.steps is None:
        options.steps = presets.budget(options.preset)
        if options.steps is None:
            raise ValueError(
                f"preset {options.preset!r} has no budget of its own: give --minutes or --steps"
            )
    changes = {}
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {item!r}")
        changes[key] = value
    with distributed.processes(options.device, options.timeout) as device:
        try:
            _train_here(options, changes, device)
        except RuntimeError:
            if distributed.size() > 1:
                print(
                    f"{_process()}ends here, perhaps because another process was lost: torchrun's "
                    f"table of failures names it. The same "
                    f"command with --resume continues from the last checkpoint of "
                    f"{options.run_dir}",
                    file=sys.stderr,
                    flush=True,
                )
                # torchrun blames whoever it finds dead first: let that be the process that was lost
                time.sleep(2)
            raise
    return 0


def _train_here(options: argparse.Namespace, changes: dict[str, str], device: torch.device) -> None:
    speaks = distributed.rank() == 0
    # what has to be downloaded or unpacked is so once, not by all processes at once
    images = distributed.in_turn(
        lambda: sets.load_data(options.dataset, root=options.data_root, size=options.size)
    )
    if speaks:
        print(f"data: {images.label}", flush=True)
    config = presets.preset(options.preset, options.system, tuple(images.train.shape[1:])).override(
        changes
    )
    trainer = Trainer(
        config,
        images.train,
        options.run_dir,
        data=images.source | {"label": images.label},
        seed=options.seed,
        scales=options.scales.split(",") if options.scales else None,
        device=device,
        resume=options.resume,
        groups=options.groups,
        shard=options.shard,
        side_by_side=options.side_by_side,
    )
    together = f" in {distributed.size()} processes" if distributed.size() > 1 else ""
    if speaks and together:
        print(
            f"training{together}, groups: {options.groups}; should the job end early, the same "
            f"command with --resume continues it",
            flush=True,
        )
    trainer.run(
        minutes=options.minutes,
        steps=options.steps,
        progress=not options.quiet,
        checkpoint_minutes=options.checkpoint_minutes,
    )
    if speaks:
        print(
            f"{trainer.step} steps{together} in {trainer.seconds:.0f} s of training; "
            f"checkpoint {checkpoints.newest_checkpoint(options.run_dir)}"
        )


def _evaluate(options: argparse.Namespace) -> int:
    images = sets.load_data(
        options.dataset, root=options.data_root, heldout_limit=options.images, size=options.size
    )
    print(f"data: {images.label}", flush=True)
    result, headers = _score(options, options.run_dirs, images)
    facts = {
        "data": {"label": images.label, **images.source},
        "config": headers[0]["config"],
        "training": _trained(headers),
        "evaluation": records.finite(result.to_dict()),
        "provenance": records.provenance(options.device),
    }
    if options.against:
        other, others = _score(options, options.against, images)
        mean, error = evaluation.paired_difference(result, other)
        print(f"the first less the second, image by image: {mean:+.4f} +- {error:.4f} bpd")
        facts["against"] = {
            "config": others[0]["config"],
            "training": _trained(others),
            "evaluation": records.finite(other.to_dict()),
            "paired difference": records.finite({"bpd": mean, "se": error}),
        }
    if options.out is not None:
        records.write_json(options.out, facts)
    return 0


def _trained(headers: list[dict]) -> list[dict]:
    return [{k: h[k] for k in ("scales", "step", "seconds", "seed", "data")} for h in headers]


def _score(
    options: argparse.Namespace, sources: list[Path], images: ImageData
) -> tuple[evaluation.Evaluation, list[dict]]:
    """Score what `sources` name on the held-out images, and say so."""
    cascade, headers = pretrained.open_model(sources, options.weights, options.device)
    for header in headers:
        print(
            f"{', '.join(header['scales'])} trained on: "
            f"{header['data'].get('label', 'unnamed data')}, {header['step']} steps"
        )
    _check_folder(headers, images)
    result = evaluation.evaluate(
        cascade,
        images.heldout,
        repeats=options.repeats,
        times_per_image=options.times,
        seed=options.seed,
        steps=options.steps,
        weights=options.weights.upper() if options.weights == "ema" else options.weights,
        device=options.device,
        progress=not options.quiet,
    )
    print(result)
    return result, headers


def _check_folder(headers: list[dict], images: ImageData) -> None:
    trained_on = headers[0]["data"]
    # other sizes are refused when they are scored
    same_size = tuple(headers[0]["config"]["model"]["image_shape"]) == tuple(images.train.shape[1:])
    same_folder = (
        same_size and images.of_a_path and trained_on.get("folder") == images.source["folder"]
    )
    if same_folder and trained_on.get("train_sha256") != images.source["train_sha256"]:
        raise ValueError(
            f"{images.source['folder']} has changed since training, so held-out images may have "
            f"been trained on: "
            "train anew, or score another folder"
        )
    if images.name == "histology" and str(trained_on.get("label", "")).startswith("photos"):
        print(
            f"note: this model has seen the slide, held-out rows included: {domains.SLIDE}, "
            f"reduced, is one of the photographs it was trained on",
            file=sys.stderr,
        )


def _likelihoods(options: argparse.Namespace) -> int:
    images = sets.load_data(
        options.dataset, root=options.data_root, heldout_limit=options.images, size=options.size
    )
    print(f"data: {images.label}", flush=True)
    cascade, headers = pretrained.open_model(options.run_dirs, options.weights, options.device)
    _check_folder(headers, images)
    steps = [int(s) for s in options.steps.split(",") if s.strip().isdigit()]
    if not steps or ",".join(map(str, steps)) != options.steps:
        raise ValueError(f"--steps takes whole numbers with commas, got {options.steps!r}")
    settings = flow.FlowSettings(
        rtol=options.tolerance, atol=options.tolerance, probes=options.probes
    )
    found = three_ways.compare_likelihoods(
        cascade,
        images.heldout,
        steps=steps,
        flows=[settings],
        seed=options.seed,
        device=options.device,
        weights=options.weights.upper() if options.weights == "ema" else options.weights,
        progress=not options.quiet,
    )
    print(f"{found}\n{len(images.heldout)} images; flow: {settings}")
    if options.out is not None:
        records.write_json(
            options.out,
            {
                "data": {"label": images.label, **images.source},
                "config": headers[0]["config"],
                "training": _trained(headers),
                "likelihoods": records.finite(found.to_dict()),
                "provenance": records.provenance(options.device),
            },
        )
    return 0


def _sample(options: argparse.Namespace) -> int:
    cascade, headers = pretrained.open_model(options.run_dirs, options.weights, options.device)
    label = headers[0]["data"].get("label", "unnamed data")
    print(f"trained on: {label}", flush=True)
    generator = torch.Generator(options.device).manual_seed(options.seed)
    with tqdm(
        total=options.steps * len(cascade.specs),
        desc="sampling",
        unit="step",
        disable=options.quiet,
    ) as bar:
        samples = cascade.sample(
            options.count, options.steps, generator, options.device, on_step=bar.update
        )
    options.out.mkdir(parents=True, exist_ok=True)
    for index, coarse in enumerate(samples.growth):
        pixels = (
            (cascade.map.brightness(index, coarse, cascade.max_value).cpu() * 255)
            .round()
            .to(torch.uint8)
        )
        for number, image in enumerate(pixels):
            array = image.permute(1, 2, 0).numpy()
            _save_png(
                options.out / f"sample-{number:03d}-{cascade.specs[index].name}.png",
                array,
                f"sample of a model trained on {label}",
            )
    print(f"{options.count} images, scale by scale, in {options.out}")
    return 0


def _compress(options: argparse.Namespace) -> int:
    files = _image_files(options.images)
    settings = chunks.Settings(
        options.steps,
        batch=options.batch,
        chunk_tiles=options.chunk,
        side=options.tile,
        precision=options.precision,
    )
    cascade, headers = pretrained.open_model(options.model, "ema", options.device)
    name = (
        options.model[0]
        if options.model[0] in pretrained.names()
        else ", ".join(run.rstrip("/").rpartition("/")[2] for run in options.model)
    )
    print(
        f"model {name}, trained on: {headers[0]['data'].get('label', 'unnamed data')}", flush=True
    )
    total = archive.work(cascade, settings, map(_size, files.values())) * (1 + options.verify)
    with tqdm(
        total=total,
        desc="coding" + (" and decoding" if options.verify else ""),
        unit=" evaluations",
        disable=options.quiet,
    ) as bar:
        books = archive.compress(
            ((name, read_pixels(path)) for name, path in files.items()),
            options.out,
            cascade,
            name,
            settings,
            verify=options.verify,
            device=options.device,
            on_evaluation=bar.update,
        )
    given = sum(path.stat().st_size for path in files.values())
    print(f"{options.out}: {books}; the files given have {given} bytes")
    print(
        f"coded by the model: {books.model_images} images at {books.net_bpd:.4f} bits per "
        f"dimension; by PNG or JPEG XL, which was smaller there: "
        f"{books.plain_images} images and {books.start_tiles} first tiles"
    )
    print(
        f"{books.images / books.seconds:.3f} images a second, "
        f"{1 - books.network_seconds / books.seconds:.0%} of the time outside the network; "
        + (
            f"decoded and compared in {books.verify_seconds:.1f} s"
            if options.verify
            else "NOT verified: --no-verify was given"
        )
    )
    return 0


def _image_files(paths: list[Path]) -> dict[str, Path]:
    """Image files by the name that each gets in an archive; ValueError where two would have the
    same, or one is none."""
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        inner = (
            [(file, path / file) for file in image_files(path)]
            if path.is_dir()
            else [(path.name, path)]
        )
        if not inner:
            raise ValueError(f"{path} holds no images ({', '.join(SUFFIXES)})")
        for name, file in inner:
            if name in found:
                raise ValueError(
                    f"{found[name]} and {file} would both be called {name!r} in the file: rename "
                    f"one, or use two files"
                )
            found[name] = file
    return found


def _size(path: Path) -> tuple[int, int]:
    """Height and width of an image file; ValueError where it holds more than 8-bit grey or RGB, so
    that this is known before hours of work."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            what = beyond_rgb(image, file)
            size = image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as PNG, JPEG or WebP ({error}): repair or remove it"
        ) from error
    if what:
        raise ValueError(
            f"{path} has {what}, expected one 8-bit RGB, grey or palette image: convert or remove "
            f"it"
        )
    return size


def _decompress(options: argparse.Namespace) -> int:
    with archive.Archive(options.file) as file:
        for line in file.reader.damage:
            print(f"{options.file}: {line}", file=sys.stderr)
        if options.list:
            s = file.settings
            print(
                ascii(f"model {file.model}, {s.steps} steps, tiles of {s.side}, {s.precision}")[
                    1:-1
                ]
            )
            print(
                *(ascii(name)[1:-1] if not name.isprintable() else name for name in file.names()),
                sep="\n",
            )
            return 1 if file.reader.damage else 0
        if options.out is None:
            raise ValueError("give a folder for the images by -o")
        missing = sorted({*(options.only or ())} - {*file.names()})
        if missing:
            raise ValueError(
                f"{options.file} holds no image called {missing[0]!r}: --list shows the names"
            )
        targets = _targets(
            file.names() if options.only is None else options.only, options.out, options.force
        )
        # a path in a stranger's file is not followed
        if options.model is None and file.model not in pretrained.names():
            raise ValueError(
                f"{options.file} was written with the model {file.model!r}, which does not come "
                f"with the package: name the run by --model"
            )
        cascade, _ = pretrained.open_model(options.model or [file.model], "ema", options.device)
        failed = len(file.reader.damage)
        with tqdm(desc="decoding", unit=" evaluations", disable=options.quiet) as bar:
            file.prepare(cascade, options.device, on_evaluation=bar.update)
            done = 0
            for found in file.images(options.only):
                if isinstance(found, container.DamagedFile):
                    print(found, file=sys.stderr)
                    failed += 1
                    continue
                name, pixels = found
                _save_png(targets[name], pixels if pixels.ndim == 3 else pixels[..., None])
                done += 1
    print(f"{done} images in {options.out}")
    return 1 if failed else 0


def _targets(names: list[str], folder: Path, force: bool) -> dict[str, Path]:
    """The file of every name; ValueError where a name leads out of the folder, or a file is there
    already."""
    found = {}
    for name in names:
        path = Path(name if name.lower().endswith(".png") else f"{name}.png")
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in name
            or (folder / path).resolve().is_relative_to(folder.resolve()) is False
        ):
            raise ValueError(
                f"the name {name!r} leads out of {folder}: the file was made by somebody who "
                f"means no good; nothing was written"
            )
        found[name] = folder / path
    taken = {path for path in found.values() if path.exists()}
    if taken and not force:
        raise ValueError(
            f"{sorted(taken)[0]} is there already ({len(taken)} such files): give another folder, "
            f"or --force"
        )
    if len({str(path).casefold() for path in found.values()}) < len(found):
        raise ValueError(
            "two names of this file would become the same PNG file (also where case does not "
            "count): take them one by one with --only"
        )
    return found


def _tables(options: argparse.Namespace) -> int:
    from pcdm_lib.experiments import suite, tables  # papermill takes a second to import

    folder, failed = suite.run(
        options.minutes,
        dataset=options.dataset,
        seed=options.seed,
        preset=options.preset,
        device=options.device,
        only=[name for name in options.only.split(",") if name],
        folder=options.out,
        progress=not options.quiet,
        changes={name: _literal(value) for name, value in options.parameter},
    )
    results, problems = tables.read_results(folder)
    for line in (*(tables.summary_line(result) for result in results), *problems):
        print(line)
    print(f"tables: {folder / 'tables.ipynb'}")
    for name, error in failed.items():
        print(
            f"part {name} failed: {error}; mend it and give the same command again", file=sys.stderr
        )
    return 1 if failed else 0


def _literal(text: str) -> Any:
    """A number, True, False or None where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _ship(options: argparse.Namespace) -> int:
    images = sets.load_data(options.dataset, root=options.data_root, size=options.size)
    print(f"data: {images.label}", flush=True)
    checks = {options.dataset if images.of_a_path else images.name: images}
    # figures that can be checked where that data set is not at hand
    if images.name != "photos" and images.train.shape[1] == 3:
        checks["photos"] = sets.load_data("photos", size=images.train.shape[-1])
    words = [
        "python",
        "-m",
        "pcdm_lib",
        "ship",
        *(f"runs/{run.resolve().name}" for run in options.run_dirs),
        options.name,
        "--dataset",
        options.dataset,
        *(["--images", str(options.images)] if options.images else []),
        "--repeats",
        str(options.repeats),
        "--times",
        str(options.times),
        "--seed",
        str(options.seed),
    ]
    facts = shipping.ship(
        options.run_dirs,
        options.name,
        images,
        checks=checks,
        count=options.images,
        repeats=options.repeats,
        times_per_image=options.times,
        seed=options.seed,
        command=shlex.join(words),
        device=options.device,
        root=options.weights_root,
        progress=not options.quiet,
    )
    print(pretrained.markdown(facts))
    return 0


def _card(options: argparse.Namespace) -> int:
    print(
        pretrained.markdown(pretrained.card(options.name))
        if options.name
        else "\n".join(pretrained.names())
    )
    return 0


def _save_png(path: Path, array: np.ndarray, description: str | None = None) -> None:
    text = PngInfo()
    if description is not None:
        text.add_text("Description", description)
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(
        buffer, "PNG", pnginfo=text
    )
    records.write_bytes(path, buffer.getvalue())


if __name__ == "__main__":
    distributed.end(main())
