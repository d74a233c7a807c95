"""Trained models that come with the package: `load_pretrained("photos32-wavelet")`, and the card of
each.

A model is a folder of `weights/`:

    config.json              the configuration, as a training run keeps it
    <scale>.safetensors      EMA weights; trained matrices and kernels as float16, the rest exactly
    card.json                what it was trained on, by which commands, what it scores, and the
                             sha256 of the other files

The card's figures were measured on the weights as stored. shipping.py writes such a folder from a
run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pcdm_lib import records
from pcdm_lib.advice import did_you_mean
from pcdm_lib.models import checkpoints, headers, kept
from pcdm_lib.models.cascade import EXACT, Cascade
from pcdm_lib.models.config import Config
from pcdm_lib.models.presets import build

FORMAT = 1
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
MAX_BYTES = 5_000_000  # of one model's folder: models live in the repository


def names(root: Path | str = WEIGHTS) -> list[str]:
    """The models that are there, in alphabetical order.

    Args:
        root: folder of models, the package's by default.

    Returns:
        Their names.

    Example:
        >>> from pcdm_lib.models.pretrained import names
        >>> "photos32-wavelet" in names()
        True
    """
    return sorted(path.parent.name for path in Path(root).glob("[!.]*/card.json"))


def card(name: str, root: Path | str = WEIGHTS) -> dict[str, Any]:
    """A model's card: what it was trained on, by which commands, and what it scores.

    Args:
        name: of the model.
        root: folder of models, the package's by default.

    Returns:
        The card as a dictionary.

    Raises:
        ValueError: listing the models where there is none of that name, or where the card is
            damaged.
    """
    known = names(root)
    if name not in known:
        raise ValueError(
            f"no shipped model is called {name!r}{did_you_mean(name, known) or ':'} there are "
            f"{', '.join(known) or 'none'}"
        )
    found = records.read_json(Path(root) / name / "card.json")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(
            f"{Path(root) / name / 'card.json'} is no card of format {FORMAT}: use the version "
            f"that wrote it"
        )
    return found


def load_pretrained(
    name: str, device: torch.device | str = "cpu", root: Path | str = WEIGHTS
) -> Cascade:
    """A shipped model in float32, in eval mode, on `device`.

    Args:
        name: of the model; `python -m pcdm_lib card` lists them.
        device: where the model goes.
        root: folder of models, the package's by default.

    Returns:
        The cascade, in evaluation mode.

    Raises:
        ValueError: for an unknown name, and for a file that is missing or is not the one that the
            card was written for.

    Example:
        >>> model = pcdm.load_pretrained("photos32-wavelet")
        >>> model.map, model.image_shape
        (HaarWavelet(levels=1), (3, 32, 32))
    """
    files, folder = card(name, root)["files"], Path(root) / name
    for file, facts in files.items():
        _check(folder / file, facts["sha256"])
    cascade = build(Config.from_dict(records.read_json(folder / "config.json")["config"]).model)
    for scale in cascade.scales:
        checkpoints.load_weights(scale, folder / f"{scale.name}.safetensors", rounded=True)
    return cascade.to(device).eval()


def _check(path: Path, expected: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: install the package again, or restore the file (git checkout)"
        ) from None
    if found != expected:
        raise ValueError(
            f"{path} has the sha256 {found}, its card says {expected}: the file is damaged or "
            f"belongs to another card. "
            "Restore the folder (git checkout), or ship the model again"
        )


def open_model(
    sources: Sequence[Path | str], weights: str = "ema", device: torch.device | str = "cpu"
) -> tuple[Cascade, list[dict[str, Any]]]:
    """A cascade and the headers of its training, from run folders, from the folder of a kept model
    (kept.py), or from the name of a shipped model. A folder of that name goes first.

    Args:
        sources: folders of runs, one folder of a kept model, or one name of a shipped model.
        weights: "ema" or "raw"; kept and shipped models have one set only.
        device: where the cascade goes.

    Returns:
        The cascade in evaluation mode, and the header of each run.

    Raises:
        FileNotFoundError: for a name that is nearly that of a shipped model.
        ValueError: for a checkpoint whose config.json lacks a key, and for weights that were not
            kept or shipped. Also what `load_cascade` raises.
    """
    if len(sources) == 1 and kept.is_kept(sources[0]):
        if weights != "ema":
            raise ValueError(f"{sources[0]} holds one set of weights: leave {weights!r} out")
        cascade, found = kept.load_kept(sources[0], device)
        for header in found:
            headers.check_header(header, Path(sources[0]) / "config.json")
        return cascade, found
    name = str(sources[0]) if len(sources) == 1 else ""
    if name and not Path(name).exists() and name not in names():
        near = did_you_mean(name, names())
        if near:
            raise FileNotFoundError(f"no run and no shipped model is called {name!r}{near}")
    if name not in names() or Path(name).exists():
        for run in sources:
            _check_header(run)
        return checkpoints.load_cascade(*sources, weights=weights, device=device)
    if weights != "ema":
        raise ValueError(f"{name} was shipped with its EMA weights only, not with {weights!r} ones")
    config = records.read_json(WEIGHTS / name / "config.json")["config"]
    return load_pretrained(name, device), [
        training | {"config": config} for training in card(name)["training"]
    ]


def _check_header(run: Path | str) -> None:
    """Refuse a checkpoint whose config.json lacks a key; a run without one, and one of another
    format, is left to `load_cascade`."""
    folder = Path(run) if (Path(run) / "state.pt").exists() else checkpoints.newest_checkpoint(run)
    if folder is None:
        return
    header = records.read_json(folder / "config.json")
    if not isinstance(header, dict) or header.get("format") in (None, checkpoints.FORMAT):
        headers.read_header(folder)


def markdown(facts: Mapping[str, Any]) -> str:
    """A card for reading.

    Args:
        facts: the card, as `card` gives it.

    Returns:
        Markdown.
    """
    held, figures = facts["heldout"], facts["evaluation"]
    scored = (
        f"all {held['of']}"
        if held["images"] == held["of"]
        else f"the first {held['images']} of {held['of']}"
    )
    rows = [
        f"| {scale} | {row['bpd']:.4f} | {_error(row['se_images'])} | {_error(row['se_noise'])} |"
        for scale, row in [*figures["scales"].items(), ("**all**", figures)]
    ]
    training = [
        f"- {', '.join(t['scales'])}: {t['step']} steps in {t['seconds'] / 60:.1f} minutes, seed "
        f"{t['seed']}, on "
        + "; then ".join(
            f"{s['machine']} (commit {s['commit'] or 'unknown'})" for s in t["sessions"]
        )
        for t in facts["training"]
    ]
    made = facts["provenance"]
    return "\n".join(
        [
            f"# {facts['name']}",
            "",
            facts["summary"],
            "",
            "## Figures",
            "",
            f"Held-out bits per dimension, EMA weights as stored, {figures['bound']}, on {scored} "
            f"held-out images.",
            "",
            "| scale | bpd | standard error, choice of images | standard error, noise |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "Nothing is drawn, so there is no noise."
            if figures["bound"] == EXACT
            else f"{figures['repeats']} independent estimates of {figures['times_per_image']} "
            f"{figures['times']} noise levels an image and scale, "
            f"seed {figures['seed']}.",
            "",
            "## Training",
            "",
            f"{facts['data']['label']}. {facts['data']['train_count']} training images, sha256 "
            f"`{facts['data']['train_sha256']}`.",
            "",
            *training,
            "",
            "```",
            *facts["commands"],
            "```",
            "",
            "## Limits",
            "",
            *(f"- {line}" for line in facts["limits"]),
            "",
            "## Data and licence",
            "",
            facts["licence"],
            "",
            "## Files",
            "",
            f"{facts['bytes']} bytes: "
            + ", ".join(f"`{n}` {f['bytes']}" for n, f in facts["files"].items())
            + ".",
            f"Shipped from commit {made['commit'] or 'unknown'} on {made['machine']}, "
            + ", ".join(
                f"{k} {v}"
                for k, v in made["versions"].items()
                if k in ("python", "torch", "numpy", "safetensors")
            )
            + ".",
            "",
        ]
    )


def _error(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
