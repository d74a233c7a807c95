"""`pcdm evaluate` and `pcdm likelihoods`: bits per dimension of a trained model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pcdm_lib.commands.options import (
    SCORING,
    DataRoot,
    Dataset,
    Device,
    Figures,
    Force,
    Images,
    Quiet,
    Repeats,
    Runs,
    Seed,
    Size,
    Times,
    Weights,
    examples,
    model_names,
    number,
    sources,
    whole,
)

if TYPE_CHECKING:
    import torch

    from pcdm_lib.data.images import ImageData
    from pcdm_lib.likelihood.evaluation import Evaluation
    from pcdm_lib.models.cascade import Cascade


class How(NamedTuple):
    """How a model is scored."""

    weights: str
    repeats: int
    times: int
    steps: int | None
    seed: int
    device: torch.device
    quiet: bool


@examples(
    "pcdm evaluate photos32-wavelet --dataset photos --images 32",
    "pcdm evaluate photos32-vdm --dataset folder:my-images/",
    "pcdm evaluate runs/a --repeats 8 --times 8 --out a.json",
    "pcdm evaluate runs/base runs/details --against runs/b",
)
def evaluate(
    runs: Runs,
    weights: Weights = "ema",
    dataset: Dataset = "auto",
    size: Size = None,
    data_root: DataRoot = None,
    images: Images = None,
    repeats: Repeats = 4,
    times: Times = 4,
    steps: Annotated[
        int | None,
        typer.Option(
            help="The bound in this many steps. Default: the bound in continuous time.",
            rich_help_panel=SCORING,
            **whole(1),
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN...",
            help="Score this model too, and state the paired difference over the images. Several "
            "runs of different scales: --against A B, or --against A --against B, or A,B. All "
            "words up to the next option belong to it.",
            rich_help_panel=SCORING,
            autocompletion=model_names,
        ),
    ] = None,
    out: Figures = None,
    force: Force = False,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> int:
    """Measure the held-out bits per dimension of a trained model."""
    from pcdm_lib import outputs, records
    from pcdm_lib.data import sets
    from pcdm_lib.likelihood import evaluation

    if out is not None:
        outputs.check_output(out, force=force)
    where = records.find_device(device)
    data = sets.load_data(dataset, root=data_root, heldout_limit=images, size=size)
    print(f"data: {data.label}", flush=True)
    how = How(weights, repeats, times, steps, seed, where, quiet)
    # all models are opened and compared with the images before the first of them is scored
    first = _open(sources(runs), data, how)
    second = _open(sources(against), data, how) if against else None
    result, headers = _score(first, data, how), first.headers
    facts = {
        "data": {"label": data.label, **data.source},
        "config": headers[0]["config"],
        "training": _trained(headers),
        "evaluation": records.finite(result.to_dict()),
        "provenance": records.provenance(where),
    }
    if second is not None:
        if out is not None:  # should the second fail, the first is there
            records.write_json(out, facts)
        other, others = _score(second, data, how), second.headers
        mean, error = evaluation.paired_difference(result, other)
        print(f"the first less the second, image by image: {mean:+.4f} +- {error:.4f} bpd")
        facts["against"] = {
            "config": others[0]["config"],
            "training": _trained(others),
            "evaluation": records.finite(other.to_dict()),
            "paired difference": records.finite({"bpd": mean, "se": error}),
        }
    if out is not None:
        records.write_json(out, facts)
    return 0


@examples(
    "pcdm likelihoods photos32-wavelet --dataset photos --images 4",
    "pcdm likelihoods runs/a --steps 100,1000 --tolerance 1e-5 --out ways.json",
)
def likelihoods(
    runs: Runs,
    weights: Weights = "ema",
    dataset: Dataset = "auto",
    size: Size = None,
    data_root: DataRoot = None,
    images: Annotated[
        int,
        typer.Option(
            help="Score the first N held-out images.", rich_help_panel=SCORING, **whole(1)
        ),
    ] = 16,
    steps: Annotated[
        str,
        typer.Option(help="The T of the T-step bounds, with commas.", rich_help_panel=SCORING),
    ] = "100,1000",
    tolerance: Annotated[
        float,
        typer.Option(
            help="Relative and absolute tolerance of the flow's solver.",
            rich_help_panel=SCORING,
            **number(1e-14, 1),
        ),
    ] = 1e-4,
    probes: Annotated[
        int,
        typer.Option(
            help="Probes of Hutchinson's estimator.",
            rich_help_panel=SCORING,
            **whole(1, 1_000_000),
        ),
    ] = 1,
    out: Figures = None,
    force: Force = False,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> int:
    """Compare the bound in continuous time, the bound in T steps, and the probability flow."""
    from pcdm_lib import outputs, records
    from pcdm_lib.data import sets
    from pcdm_lib.likelihood import flow, three_ways
    from pcdm_lib.models import pretrained

    if out is not None:
        outputs.check_output(out, force=force)
    where = records.find_device(device)
    counts = _counts(steps)
    how = flow.FlowSettings(rtol=tolerance, atol=tolerance, probes=probes)
    data = sets.load_data(dataset, root=data_root, heldout_limit=images, size=size)
    print(f"data: {data.label}", flush=True)
    cascade, headers = pretrained.open_model(sources(runs), weights, where)
    cascade.check_images(data.heldout)
    _warn(headers, data)
    found = three_ways.compare_likelihoods(
        cascade,
        data.heldout,
        steps=counts,
        flows=[how],
        seed=seed,
        device=where,
        weights=_label(weights),
        progress=not quiet,
    )
    print(f"{found}\n{len(data.heldout)} images; flow: {how}")
    if out is not None:
        records.write_json(
            out,
            {
                "data": {"label": data.label, **data.source},
                "config": headers[0]["config"],
                "training": _trained(headers),
                "likelihoods": records.finite(found.to_dict()),
                "provenance": records.provenance(where),
            },
        )
    return 0


def _counts(text: str) -> list[int]:
    """Whole numbers with commas."""
    counts = [int(part) for part in text.split(",") if part.isdecimal() and len(part) <= 10]
    if not counts or ",".join(map(str, counts)) != text:
        raise ValueError(f"--steps takes whole numbers with commas, got {text!r}")
    if not all(1 <= count <= 1_000_000_000 for count in counts):
        raise ValueError(f"--steps takes numbers from 1 to 1000000000, got {text!r}")
    return counts


class Opened(NamedTuple):
    """A model, and what its training says of itself."""

    cascade: Cascade
    headers: list[dict[str, Any]]


def _open(runs: list[str], images: ImageData, how: How) -> Opened:
    """A model that these images fit; says what it was trained on."""
    from pcdm_lib.models import pretrained

    cascade, headers = pretrained.open_model(runs, how.weights, how.device)
    cascade.check_images(images.heldout)
    for header in headers:
        print(
            f"{', '.join(header['scales'])} trained on: "
            f"{header['data'].get('label', 'unnamed data')}, {header['step']} steps"
        )
    _warn(headers, images)
    return Opened(cascade, headers)


def _score(model: Opened, images: ImageData, how: How) -> Evaluation:
    """Score a model on the held-out images."""
    from pcdm_lib.likelihood import evaluation

    result = evaluation.evaluate(
        model.cascade,
        images.heldout,
        repeats=how.repeats,
        times_per_image=how.times,
        seed=how.seed,
        steps=how.steps,
        weights=_label(how.weights),
        device=how.device,
        progress=not how.quiet,
    )
    print(result, flush=True)
    return result


def _label(weights: str) -> str:
    return "EMA" if weights == "ema" else weights


def _warn(headers: list[dict[str, Any]], images: ImageData) -> None:
    from pcdm_lib.data.seen import check_unseen

    shape = headers[0]["config"]["model"]["image_shape"]
    warning = check_unseen(headers[0]["data"], shape, images)
    if warning:
        print(f"note: {warning}", file=sys.stderr)


def _trained(headers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: h[k] for k in ("scales", "step", "seconds", "seed", "data")} for h in headers]
