"""From a training run to a model that comes with the package (pretrained.py): weights, figures and
card in one step."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcdm_lib import outputs, records
from pcdm_lib.data import domains
from pcdm_lib.data.images import ImageData
from pcdm_lib.likelihood.evaluation import Evaluation, evaluate
from pcdm_lib.models import checkpoints, presets, pretrained
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.config import Config

# What a test scores anew: few images, the same draws.
CHECK = {"images": 16, "repeats": 1, "times_per_image": 4, "seed": 1}

FILES = ("config.json", "card.json", "*.safetensors")  # of a model that comes with the package

LICENCES = {
    "photos": "Photographs that the scikit-image package ships. By its documentation: astronaut "
    "(NASA) is in the public domain, chelsea (Stefan van "
    "der Walt) and coffee (Rachel Michetti) are CC0, ihc (Center for Microscopy and Molecular "
    "Imaging) has no known copyright restrictions; "
    "the motorcycle pair is of the Middlebury 2014 stereo benchmark (Scharstein and others, GCPR "
    "2014), for which it names no licence. The "
    "images themselves are not part of this repository.",
    "cifar10": "CIFAR-10 (Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, "
    "2009), published for research without an "
    "explicit licence; the images themselves are not part of this repository.",
    "svhn": "SVHN (Netzer and others 2011), for non-commercial use; the images themselves are not "
    "part of this repository.",
    "imagenet": "ImageNet, reduced; for non-commercial research under the terms of image-net.org; "
    "the images themselves are not part of this "
    "repository.",
    "spectrograms": "Sounds synthesised by this repository, under its own licence.",
    "histology": "An immunohistochemistry slide that the scikit-image package ships (Center for "
    "Microscopy and Molecular Imaging); by its documentation it "
    "has no known copyright restrictions. The image itself is not part of this repository.",
    "folder": "A folder of images of whoever shipped this model; their licence is not known here.",
}


def check_place(root: Path | str, name: str, force: bool = False) -> Path:
    """Refuse a folder where a model cannot be put, before the work; returns it.

    Args:
        root: the folder of models.
        name: of the model.
        force: whether a model of that name may be replaced.
    Raises:
        ValueError: for a name that is no folder name.
        FileExistsError: where the folder is there, without `force` or with other files in it.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ValueError(f"a model's name is of small letters, digits and hyphens, got {name!r}")
    place = Path(root) / name
    outputs.check_folder(place)
    others = outputs.strangers(place, FILES)
    if others:
        raise FileExistsError(
            f"{place} holds {others[0]}, which is no model's: move it, or give another name"
        )
    if place.exists() and not force:
        raise FileExistsError(f"{place} is there already: give another name, or --force")
    return place


def ship(
    run_dirs: Sequence[Path | str],
    name: str,
    images: ImageData,
    *,
    checks: Mapping[str, ImageData],
    count: int | None = None,
    repeats: int = 4,
    times_per_image: int = 4,
    seed: int = 0,
    command: str = "",
    licence: str = "",
    device: torch.device | str = "cpu",
    root: Path | str = pretrained.WEIGHTS,
    progress: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Round the EMA weights of the newest checkpoint, score what a reader will load, and put the
    folder in place of an older one.

    Args:
        run_dirs: the run, or several that trained different scales.
        name: what `load_pretrained` will call it.
        images: the data that the run was trained on; its held-out images are scored, the first
            `count` of them or all.
        checks: data sets on whose first held-out images a test compares fresh figures with the
            card's, by the name that `data.load` takes.
        command: the shell command that asks for this, for the card.
        licence: what the card says of the images' licence; by default what is known of the data
            set.
        force: whether a model of that name may be replaced.
    Returns:
        The card.
    Raises:
        FileExistsError: as `check_place`.
        ValueError: for a name that is no folder name, a run trained on other images, weights that
            float16 cannot hold, or more bytes than a shipped model may have. Nothing is written
            then.
    """
    place = check_place(root, name, force)
    cascade, headers = checkpoints.load_cascade(*run_dirs, weights="ema")
    for header, run in zip(headers, run_dirs):
        if header["data"].get("train_sha256") != images.source["train_sha256"]:
            raise ValueError(
                f"{run} was trained on {header['data'].get('label', 'unnamed data')}, not on "
                f"{images.label}: "
                "give the data set and folder that it was trained on"
            )
    least = min(CHECK["images"], len(images.heldout))
    if count is not None and not least <= count <= len(images.heldout):
        raise ValueError(
            f"images={count}: there are {len(images.heldout)} held-out images, and a card is of "
            f"at least {least}"
        )
    heldout = images.heldout[:count]
    with outputs.whole_folder(place, FILES) as folder:
        for scale in cascade.scales:
            records.write_tensors(folder / f"{scale.name}.safetensors", _rounded(scale))
            # from here on it is scored as it is stored
            checkpoints.load_weights(scale, folder / f"{scale.name}.safetensors", rounded=True)
        records.write_json(
            folder / "config.json", {"format": checkpoints.FORMAT, "config": headers[0]["config"]}
        )
        _check_size(folder, name)  # before the scoring, which takes minutes
        cascade.to(device)
        result = evaluate(
            cascade,
            heldout,
            repeats=repeats,
            times_per_image=times_per_image,
            seed=seed,
            weights="EMA",
            device=device,
            progress=progress,
        )
        cascade.cpu()  # the checks' draws are a CPU's, wherever the figures were measured
        facts: dict[str, Any] = {
            "format": pretrained.FORMAT,
            "name": name,
            "summary": _summary(headers, images),
            "data": {
                "name": images.name,
                **{k: images.source[k] for k in ("train_count", "train_sha256", "heldout_sha256")},
                "label": images.label,
            },
            "heldout": {"images": len(heldout), "of": len(images.heldout)},
            "training": [_training(header, run, images) for header, run in zip(headers, run_dirs)],
            "commands": [
                *(_train_command(header, run, images) for header, run in zip(headers, run_dirs)),
                *([command] if command else []),
            ],
            "evaluation": _figures(result),
            "checks": {key: _check(cascade, found) for key, found in checks.items()},
            "limits": _limits(headers, images),
            "licence": licence or _licence(images.name),
            "files": {
                f.name: {
                    "bytes": f.stat().st_size,
                    "sha256": hashlib.sha256(f.read_bytes()).hexdigest(),
                }
                for f in sorted(folder.iterdir())
            },
            "provenance": records.provenance(device),
        }
        facts["bytes"] = sum(f["bytes"] for f in facts["files"].values())
        facts = records.finite(facts)
        records.write_json(folder / "card.json", facts)
        _check_size(folder, name)
    return facts


def _licence(name: str) -> str:
    return LICENCES[
        "imagenet" if name.startswith("imagenet") else "folder" if name == "crops" else name
    ]


def _check_size(folder: Path, name: str) -> None:
    total = sum(f.stat().st_size for f in folder.iterdir())
    if total > pretrained.MAX_BYTES:
        raise ValueError(
            f"{name} would take {total} bytes, more than the {pretrained.MAX_BYTES} of a shipped "
            f"model: train narrower networks "
            "(--set channels=...)"
        )


def _rounded(module: nn.Module) -> dict[str, Tensor]:
    """The tensors to store: trained matrices and kernels as float16; vectors, and what was measured
    on the data, are few, and exact."""
    stored, trained = {}, dict(module.named_parameters())
    for key, value in module.state_dict().items():
        value = value.detach().cpu().contiguous()
        if key in trained and value.ndim >= 2:
            value = value.half()
            if not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"{key} holds values that float16 cannot: this run's weights have grown "
                    f"without bound"
                )
        stored[key] = value
    return stored


def _figures(result: Evaluation) -> dict[str, Any]:
    """The evaluation with both standard errors for each scale too."""
    figures = result.to_dict()
    figures["scales"] = {}
    for index, scale in enumerate(result.scales):
        part = dataclasses.replace(
            result, parts=result.parts[:, :, index : index + 1], scales=(scale,)
        )
        figures["scales"][scale] = {
            "bpd": part.bpd,
            "se_images": part.se_images,
            "se_noise": part.se_noise,
        }
    return figures


def _check(cascade: Cascade, images: ImageData) -> dict[str, Any]:
    """Figures that a test can demand to the last digits: the first held-out images, scored with the
    draws of `CHECK`."""
    first = images.heldout[: CHECK["images"]]
    settings: dict[str, Any] = {k: CHECK[k] for k in ("repeats", "times_per_image", "seed")}
    result = evaluate(cascade, first, **settings)
    return {
        "label": images.label,
        "sha256": hashlib.sha256(first.contiguous().numpy().data).hexdigest(),
        "images": len(first),
        **settings,
        "bpd": result.bpd,
        "scales": {s: row["total"] for s, row in result.table().items() if s != "total"},
    }


def _run_folder(run: Path | str) -> Path:
    """The run's folder, where `run` is that or one of its checkpoints."""
    folder = Path(run).resolve()
    return folder.parent.parent if (folder / "state.pt").exists() else folder


def _sessions(run: Path | str) -> list[dict[str, Any]]:
    """What the run's folder says of each of its sessions; whose process it was is nobody's
    business."""
    sessions = records.read_json(_run_folder(run) / "config.json")["provenance"]
    return [{k: v for k, v in session.items() if k != "processes"} for session in sessions]


def _training(header: Mapping[str, Any], run: Path | str, images: ImageData) -> dict[str, Any]:
    """One run's part of the card. Of paths only that of a folder of images is kept: `evaluate`
    looks whether it has changed."""
    keys = ("label", "train_count", "train_sha256", *(["folder"] if images.of_a_path else []))
    return {
        **{k: header[k] for k in ("scales", "step", "seconds", "seed")},
        "data": {k: header["data"].get(k) for k in keys},
        "sessions": _sessions(run),
    }


def _train_command(header: Mapping[str, Any], run: Path | str, images: ImageData) -> str:
    """The command that asks for this training: the preset as it is in this version, with what the
    run did otherwise."""
    config = Config.from_dict(header["config"])
    words = [
        "python",
        "-m",
        "pcdm_lib",
        "train",
        f"runs/{_run_folder(run).name}",
        "--preset",
        config.preset,
        "--system",
        config.system,
    ]
    words += ["--dataset", images.asked]
    side = config.model.image_shape[-1]
    words += (
        ["--size", str(side)]
        if side != 32 and images.name in ("photos", "folder", "crops", *domains.NAMES)
        else []
    )
    usual = presets.preset(config.preset, config.system, config.model.image_shape)
    for ours, theirs in ((config.model, usual.model), (config.training, usual.training)):
        for field in dataclasses.fields(ours):
            value = getattr(ours, field.name)
            if value != getattr(theirs, field.name):
                written = ",".join(map(str, value)) if isinstance(value, tuple) else value
                words += ["--set", f"{field.name}={written}"]
    if tuple(header["scales"]) != presets.map_of(config.model).names():
        words += ["--scales", ",".join(header["scales"])]
    budget = _sessions(run)[-1].get("budget", {})  # runs of older versions did not keep theirs
    steps, minutes = budget.get("steps"), budget.get("minutes", header["seconds"] / 60)
    words += ["--steps", str(steps)] if steps else ["--minutes", f"{minutes:.3g}"]
    return shlex.join([*words, "--seed", str(header["seed"])])


def _summary(headers: Sequence[Mapping[str, Any]], images: ImageData) -> str:
    system = {
        "wavelet": "W-PCDM, the wavelet cascade",
        "laplacian": "LP-PCDM, the Laplacian pyramid",
        "vdm": "VDM, one scale",
        "standard": "C-VDM, the usual cascade",
        "direct": "The direct cascade, which has no latents and an exact likelihood",
    }[headers[0]["config"]["system"]]
    return f"{system} ({headers[0]['config']['preset']} preset), on {images.label}."


def _limits(headers: Sequence[Mapping[str, Any]], images: ImageData) -> list[str]:
    minutes = sum(h["seconds"] for h in headers) / 60
    if headers[0]["config"]["system"] == presets.DIRECT:
        lines = [
            f"Trained for {minutes:.1f} minutes on {images.source['train_count']} images. It codes "
            f"images of any size; how well depends on how much they look like these."
        ]
    else:
        lines = [
            f"Trained for {minutes:.1f} minutes on {images.source['train_count']} images: not the "
            f"paper's model, which had 2 million updates of far "
            "larger networks. For trying the notebooks out, not a result of the paper's method."
        ]
    if images.name == "photos":
        lines.append(
            "Six photographs are a small world, and the held-out patches overlap and come from "
            "two of them: the standard error says how well "
            "those two were scored, not how other photographs would do."
        )
    return lines
