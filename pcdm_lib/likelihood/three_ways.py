"""One likelihood three ways, side by side: the bound in continuous time, in T steps, and the
probability flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pcdm_lib.likelihood.evaluation import Evaluation, evaluate, paired_difference
from pcdm_lib.likelihood.flow import (
    MAX_EXACT,
    FlowEvaluation,
    FlowSettings,
    _weights_dtype,
    evaluate_flow,
)
from pcdm_lib.models.cascade import Cascade


# ---------------------------------------------------------------- three ways to one number
class Way(NamedTuple):
    """One way to the number: its record, its difference to the continuous-time bound over the same
    images in bits per dimension with its standard error (noise and choice of images together), and
    the network evaluations an image that the estimate took."""

    name: str
    result: Evaluation | FlowEvaluation
    difference: float
    se_difference: float
    evaluations: float


@dataclass(frozen=True)
class Comparison:
    """Several ways to the likelihood of the same images; the first is the continuous-time bound."""

    ways: tuple[Way, ...]

    def __getitem__(self, name: str) -> Way:
        return {way.name: way for way in self.ways}[name]

    def to_dict(self) -> dict[str, Any]:
        """{name: figures} for a results file: each record's, with its difference to the
        continuous-time bound.

        Returns:
            What JSON can hold, but for nan.
        """
        return {
            w.name: w.result.to_dict()
            | {
                "difference": w.difference,
                "se_difference": w.se_difference,
                "evaluations_per_image": w.evaluations,
            }
            for w in self.ways
        }

    def __str__(self) -> str:
        head = (
            f"{'bits per dim':20s}{'bpd':>10s}{'se images':>11s}{'se noise':>11s}"
            f"{'difference':>12s}{'se':>9s}{'evaluations an image':>22s}"
        )
        return "\n".join(
            [
                head,
                *(
                    f"{w.name:20s}{w.result.bpd:10.4f}{w.result.se_images:11.4f}"
                    f"{w.result.se_noise:11.4f}{w.difference:12.4f}"
                    f"{w.se_difference:9.4f}{w.evaluations:22.1f}"
                    for w in self.ways
                ),
            ]
        )


def compare_likelihoods(
    cascade: Cascade,
    images: Tensor,
    *,
    steps: Sequence[int] = (64, 256, 1024),
    flows: Sequence[FlowSettings] | None = None,
    repeats: int = 4,
    times_per_image: int = 16,
    flow_repeats: int = 2,
    seed: int = 0,
    weights: str = "given",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Comparison:
    """The continuous-time bound, the T-step bounds and the probability flow on the same images,
    with paired differences.

    Source: Eqs. 15-17 for the bounds, Eq. 6 for the flow.

    Args:
        cascade: the model.
        images: integers (N, *cascade.image_shape), at least two.
        steps: the T of the T-step bounds.
        flows: settings of the flows; Hutchinson's estimator and, where every scale has at most
            `MAX_EXACT` coordinates, the exact trace where it is None.
        repeats: of the bounds, which share their noise.
        times_per_image: network evaluations of the bounds an image, scale and repeat.
        flow_repeats: of the flows, which share their noise.
        seed: of times and noise.
        weights: what the caller says of the weights ("EMA", "raw"), for the record.
        batch_size: images at a time.
        device: where the cascade is.
        dtype: as for `evaluate_flow`.
        progress: show bars.

    Returns:
        One record a way, the continuous-time bound first; printed, it is a table.

    Raises:
        ValueError: as `evaluate` and `evaluate_flow`, and for fewer than two images.
        FloatingPointError: as `evaluate` and `evaluate_flow`.

    Example:
        >>> from pcdm_lib.likelihood import example_source, exact_cascade
        >>> from pcdm_lib.likelihood.flow import FlowSettings
        >>> source, flow = example_source(), FlowSettings(method="rk4", steps=8)
        >>> found = pcdm.compare_likelihoods(
        ...     exact_cascade(source), source.images[:4], steps=[10], flows=[flow], repeats=2
        ... )
        >>> [way.name for way in found.ways]
        ['continuous time', 'T = 10', 'flow, hutchinson']
    """
    cascade.check_diffusion("comparing likelihoods")
    if len(images) < 2:
        raise ValueError(f"paired differences need at least 2 images, got {len(images)}")
    if flows is None:
        flows = [FlowSettings()] + [FlowSettings(divergence="exact")] * all(
            s.dims <= MAX_EXACT for s in cascade.specs
        )
    dtype = _weights_dtype(cascade, dtype)
    shared: dict[str, Any] = {
        "seed": seed,
        "weights": weights,
        "batch_size": batch_size,
        "device": device,
        "dtype": dtype,
        "progress": progress,
    }
    ways: list[Way] = []
    for count in (None, *steps):
        result = evaluate(
            cascade, images, repeats=repeats, times_per_image=times_per_image, steps=count, **shared
        )
        _add(
            ways,
            "continuous time" if count is None else f"T = {count}",
            result,
            repeats * times_per_image * len(result.scales),
        )
    for settings in flows:
        flow = evaluate_flow(cascade, images, settings, repeats=flow_repeats, **shared)
        _add(
            ways,
            f"flow, {settings.divergence}",
            flow,
            float(flow.evaluations.sum(axis=(1, 2)).mean()),
        )
    return Comparison(tuple(ways))


def _add(
    ways: list[Way], name: str, result: Evaluation | FlowEvaluation, evaluations: float
) -> None:
    taken = sum(way.name.split(" (")[0] == name for way in ways)
    difference = paired_difference(result, ways[0].result) if ways else (0.0, 0.0)
    ways.append(Way(f"{name} ({taken + 1})" if taken else name, result, *difference, evaluations))
