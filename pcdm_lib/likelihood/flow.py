"""The third way to the same number: the likelihood of the probability-flow ODE (paper, Eq. 6),
scale by scale.

With gamma as the time of integration the marginals of z_gamma = alpha y + sigma eps are carried
along by

    dz/dgamma = v(z, gamma) = sigma / 2 * ( eps_hat(z, gamma, coarse) - sigma z )
    log p_0(z_0) = log N(z_1; 0, I) + integral from gamma_0 to gamma_1 of tr(dv/dz) dgamma
    tr(dv/dz) = sigma / 2 * ( tr(d eps_hat / dz) - sigma d )

To see the first line: d alpha / dgamma = -alpha sigma^2 / 2 and d sigma^2 / dgamma = alpha^2
sigma^2, so the drift is -(sigma^2 / 2) z, the diffusion sigma^2, and the score -eps_hat / sigma. Of
the schedule only the two endpoints matter.

p_0 is a density over noisy coordinates. Integers are paid for by

    -log P(z | coarser)
        <=  E over q(z_0 | z) of
            [ -log P(z | z_0, coarser) - log p_0(z_0 | coarser) + log q(z_0 | z) ]

with the decoder of maps/lattice.py. So the sum over scales is a code length like the bound's
(docs/likelihood.md, Sect. 5). With the exact denoiser both are equal for every image, but for what
is left of the image at gamma_1; with a network the flow is a slightly different model.

The denoiser must treat the images of a batch apart, and be differentiable in z_t. Everything is in
nats but for `FlowEvaluation` and `compare_likelihoods`, in bits per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint
from tqdm.auto import tqdm

from pcdm_lib.diffusion.schedule import alpha_sigma
from pcdm_lib.diffusion.terms import Denoiser, add_noise, reconstruction_term
from pcdm_lib.likelihood.evaluation import ImageScores
from pcdm_lib.maps.scales import ScaleSpec
from pcdm_lib.models.cascade import Cascade, bits_per_dim, evaluation_mode
from pcdm_lib.models.scale import Scale

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun3", "rk4")
DIVERGENCES = ("exact", "hutchinson")
PROBES = ("rademacher", "gaussian")
FLOW_TERMS = ("decoder", "flow", "log_q")
MAX_EXACT = 256  # coordinates of a scale; every one costs a backward pass at every evaluation


@dataclass(frozen=True)
class FlowSettings:
    """How the flow is integrated. What is not valid raises ValueError.

    Args:
        method: one of `ADAPTIVE`, whose steps follow the tolerances, or of `FIXED`, which takes
            `steps` equal steps of gamma.
        rtol: relative tolerance. A step's error may be atol + rtol * |value|, root mean square over
            an image's coordinates, and for its log density in nats a dimension. On the shipped
            models 1e-4 is within 0.002 bpd of 1e-6, 1e-5 within 0.001, 1e-3 up to 0.1 off. float32
            holds about 1e-6 of a value: a tolerance below that has the solver chase rounding errors
            in ever smaller steps, until `max_evaluations` stops it. Use 1e-4 or 1e-5 there, and
            float64 for less.
        atol: absolute tolerance, see `rtol`.
        steps: of a fixed-step method; the others ignore it.
        divergence: "exact" is the trace, one backward pass a coordinate; "hutchinson" the mean over
            `probes` of e^T (dv/dz) e, without bias but noisy, one backward pass a probe.
        probes: of Hutchinson's estimator.
        probe_kind: "rademacher" (signs, whose estimate has no noise from the diagonal of the
            Jacobian) or "gaussian".
        max_evaluations: of v, along one trajectory, before it is given up.

    Example:
        >>> from pcdm_lib.likelihood.flow import FlowSettings
        >>> print(FlowSettings(rtol=1e-4, atol=1e-4))
        dopri5, rtol 0.0001, atol 0.0001, 1 rademacher probes
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 128
    divergence: str = "hutchinson"
    probes: int = 1
    probe_kind: str = "rademacher"
    max_evaluations: int = 20_000

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, ADAPTIVE + FIXED),
            ("divergence", self.divergence, DIVERGENCES),
            ("probe_kind", self.probe_kind, PROBES),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not all(math.isfinite(v) and v > 0 for v in (self.rtol, self.atol)):
            raise ValueError(
                f"tolerances must be positive numbers, got rtol={self.rtol} and atol={self.atol}"
            )
        if self.steps < 1 or self.probes < 1 or self.max_evaluations < 1:
            raise ValueError(
                f"steps, probes and max_evaluations must be at least 1, got {self.steps}, "
                f"{self.probes} and {self.max_evaluations}"
            )

    def __str__(self) -> str:
        solver = (
            f"{self.method}, rtol {self.rtol:g}, atol {self.atol:g}"
            if self.method in ADAPTIVE
            else f"{self.method}, {self.steps} steps"
        )
        return f"{solver}, " + (
            "exact trace"
            if self.divergence == "exact"
            else f"{self.probes} {self.probe_kind} probes"
        )


class FlowNoise(NamedTuple):
    """What is random in the estimate for one scale, float64: `eps_0` (N, ...) of z_0 = alpha_0 y +
    sigma_0 eps_0, and the `probes` (K, N, ...) of Hutchinson's estimator, None for the exact
    trace."""

    eps_0: Tensor
    probes: Tensor | None


class Density(NamedTuple):
    """log p_0 (N,) in nats, the latent z_1 (N, ...) at the end of the flow, and how many
    evaluations of v it took."""

    log_prob: Tensor
    z_1: Tensor
    evaluations: int


class FlowTerms(NamedTuple):
    """One draw for one scale, -log P(z | coarser) <= E[ decoder + flow + log_q ], each (N,) nats:
    -log P(z | z_0, coarser), -log p_0(z_0 | coarser) and log q(z_0 | z)."""

    decoder: Tensor
    flow: Tensor
    log_q: Tensor
    evaluations: int

    @property
    def total(self) -> Tensor:
        """decoder + flow + log_q, (N,) nats."""
        return self.decoder + self.flow + self.log_q


class FlowBound(NamedTuple):
    """One draw for all scales, nats: the terms of `FlowTerms` as (N, S), in the order of `names`;
    `evaluations` of v, one count a scale."""

    names: tuple[str, ...]
    decoder: Tensor
    flow: Tensor
    log_q: Tensor
    evaluations: tuple[int, ...]

    @property
    def per_scale(self) -> Tensor:
        """(N, S) nats."""
        return self.decoder + self.flow + self.log_q

    @property
    def total(self) -> Tensor:
        """(N,) nats: in expectation an upper bound on -log P(x)."""
        return self.per_scale.sum(dim=1)


# ---------------------------------------------------------------- one scale


class _Field:
    """dz/dgamma and the divergence a dimension for the solver, counting its evaluations."""

    def __init__(
        self,
        denoiser: Denoiser,
        coarse: Tensor | None,
        settings: FlowSettings,
        probes: Tensor | None,
    ):
        self.denoiser, self.coarse, self.settings, self.probes = denoiser, coarse, settings, probes
        self.evaluations = 0

    def __call__(self, gamma: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.evaluations == self.settings.max_evaluations:
            raise FloatingPointError(
                f"the flow was not through after {self.evaluations} evaluations, at gamma = "
                f"{float(gamma):.4f}: loosen rtol = "
                f"{self.settings.rtol:g} and atol = {self.settings.atol:g}, use float64 or a "
                f"fixed-step method"
            )
        self.evaluations += 1
        sigma = alpha_sigma(gamma)[1]
        with torch.enable_grad():
            z = state[0].detach().requires_grad_()
            eps_hat = self.denoiser(z, gamma.expand(len(z)), self.coarse)
            trace = self._trace(eps_hat, z, sigma)
        z, eps_hat = z.detach(), eps_hat.detach()
        if not (bool(torch.isfinite(eps_hat).all()) and bool(torch.isfinite(trace).all())):
            raise FloatingPointError(
                f"the flow is not finite at gamma = {float(gamma):.4f}: the weights are broken or "
                f"training diverged"
            )
        return sigma / 2 * (eps_hat - sigma * z), sigma / 2 * trace / z[0].numel()

    def _trace(self, eps_hat: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """tr(d eps_hat / dz - sigma I), (N,): the images do not meet in the denoiser, so a sum over
        them has each one's own gradient."""
        eps_hat = eps_hat + 0 * z  # for a constant, which has no gradient
        if self.probes is None:
            rows = eps_hat.flatten(1).sum(dim=0)
            parts = [
                torch.autograd.grad(row, z, retain_graph=True)[0].flatten(1)[:, i] - sigma
                for i, row in enumerate(rows)
            ]
            return torch.stack(parts).sum(dim=0)
        # sigma inside the estimate: with much noise eps_hat is about z, and Gaussian probes see
        # nothing of what cancels
        parts = [
            ((torch.autograd.grad(eps_hat, z, e, retain_graph=True)[0] - sigma * e) * e)
            .flatten(1)
            .sum(dim=1)
            for e in self.probes
        ]
        return torch.stack(parts).mean(dim=0)


def _worst_image(state: tuple[Tensor, Tensor]) -> Tensor:
    """The solver's norm: of the image that is worst off, so that the others in its batch cannot
    hide an error."""
    z, log_density = state
    return torch.maximum(z.flatten(1).square().mean(dim=1).sqrt(), log_density.abs()).max()


@torch.no_grad()
def flow_log_density(
    denoiser: Denoiser,
    gamma_range: tuple[float, float],
    z_0: Tensor,
    coarse: Tensor | None,
    settings: FlowSettings,
    probes: Tensor | None = None,
) -> Density:
    """log p_0(z_0 | coarse) of Eq. 6, in nats, by integrating from gamma_0 to gamma_1.

    The solver (torchdiffeq) takes the same steps for the whole batch. Their error is measured on
    the image that is worst off, so the tolerances hold for every image whatever it is batched with;
    but the steps, and with them the last digits, depend on the batch (a fixed-step method's do
    not), and so does the number of evaluations. Steps end at gamma_1: the denoiser is asked about
    no gamma beyond it. An embedding of the noise level that oscillates fast (unet.py's, about 160
    times over the range) makes tight tolerances expensive: a loose one steps over the ripples,
    which hardly matter, a tight one follows each.

    Args:
        denoiser: eps_hat(z_t, gamma, coarse), differentiable in z_t.
        gamma_range: (gamma_0, gamma_1).
        z_0: (N, ...) in the dtype to work in.
        coarse: passed on to the denoiser.
        settings: of the solver and the trace.
        probes: (K, N, ...) for Hutchinson's estimator, held fixed along the trajectory.

    Returns:
        log p_0 (N,) in nats, z_1, and the evaluations.

    Raises:
        ValueError: for an exact trace over more than `MAX_EXACT` coordinates, or probes missing or
            of the wrong shape.
        FloatingPointError: where the denoiser's values are not finite, or the tolerances cannot be
            met.
    """
    dims = z_0[0].numel()
    if settings.divergence == "exact":
        if dims > MAX_EXACT:
            raise ValueError(
                f"an exact trace over {dims} coordinates would take as many backward passes at "
                f"every evaluation, the limit is "
                f"{MAX_EXACT}: use divergence='hutchinson'"
            )
        probes = None
    elif probes is None or probes.shape[1:] != z_0.shape or len(probes) == 0:
        raise ValueError(
            f"Hutchinson's estimator needs probes (K, {', '.join(map(str, z_0.shape))}), got "
            f"{None if probes is None else tuple(probes.shape)}: use draw_noise"
        )
    else:
        probes = probes.to(z_0.dtype)
    gamma = torch.tensor(gamma_range, dtype=torch.float64, device=z_0.device)
    if settings.method in ADAPTIVE:
        # torchdiffeq's own guess of the first step tries the denoiser as far out as a flat start
        # suggests, also beyond gamma_1; a step grows tenfold at a time, so a short one costs little
        options: dict[str, Any] = {
            "norm": _worst_image,
            "step_t": gamma[1:],
            "first_step": float(gamma[1] - gamma[0]) / 1000,
        }
    else:
        grid = torch.linspace(
            *gamma_range, settings.steps + 1, dtype=gamma.dtype, device=gamma.device
        )
        options = {"grid_constructor": lambda *_: grid}
    field = _Field(denoiser, coarse, settings, probes)
    start = (z_0, torch.zeros(len(z_0), dtype=z_0.dtype, device=z_0.device))
    try:
        path, integral = odeint(
            field,
            start,
            gamma,
            rtol=settings.rtol,
            atol=settings.atol,
            method=settings.method,
            options=options,
        )
    except AssertionError as error:  # how torchdiffeq says that its step has shrunk to nothing
        raise FloatingPointError(
            f"the solver gave up after {field.evaluations} evaluations ({error}): loosen rtol = "
            f"{settings.rtol:g} and atol = "
            f"{settings.atol:g}, use float64 or a fixed-step method"
        ) from error
    z_1 = path[-1].double()
    log_normal = -(z_1.square().flatten(1).sum(dim=1) + dims * math.log(2 * math.pi)) / 2
    return Density(log_normal + dims * integral[-1].double(), path[-1], field.evaluations)


def draw_noise(
    specs: Sequence[ScaleSpec],
    n: int,
    settings: FlowSettings,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> list[FlowNoise]:
    """The noise of n images for each of `specs`, drawn image by image: what an image gets does not
    depend on how the set is cut into batches.

    Args:
        specs: the scales.
        n: images.
        settings: which say whether there are probes, and of which kind.
        generator: of the noise, on `device`.
        device: of the noise.

    Returns:
        One record a scale, float64.
    """
    drawn: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in specs]
    for _ in range(n):
        for images, spec in zip(drawn, specs):
            eps_0 = torch.randn(spec.shape, generator=generator, device=device, dtype=torch.float64)
            probes, shape = None, (settings.probes, *spec.shape)
            if settings.divergence == "hutchinson" and settings.probe_kind == "gaussian":
                probes = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
            elif settings.divergence == "hutchinson":
                probes = (
                    2.0 * torch.randint(2, shape, generator=generator, device=device).double() - 1.0
                )
            images.append((eps_0, probes))
    return [
        FlowNoise(
            torch.stack([e for e, _ in images]),
            None
            if images[0][1] is None
            else torch.stack([p for _, p in images if p is not None], dim=1),
        )
        for images in drawn
    ]


@torch.no_grad()
def scale_flow(
    scale: Scale,
    z: Tensor,
    coarse: Tensor | None,
    noise: FlowNoise,
    settings: FlowSettings = FlowSettings(),
    dtype: torch.dtype = torch.float64,
) -> FlowTerms:
    """The three terms of one scale in nats, (N,) float64 each, at given noise: no randomness of its
    own.

    Args:
        scale: spec, denoiser and schedule.
        z: integers of the scale (N, *spec.shape), as `Cascade.decompose` gives them.
        coarse: integers rebuilt from the coarser scales; None for the base.
        noise: what `draw_noise` gives for the scale.
        settings: of the solver and the trace.
        dtype: of the flow, the one that the denoiser's weights have; z_0 and the decoder are
            float64 always.

    Returns:
        Decoder, flow and log_q, and the evaluations.

    Raises:
        ValueError: as `flow_log_density`.
        FloatingPointError: as `flow_log_density`.
    """
    spec, schedule = scale.spec, scale.schedule
    y, gamma_0 = spec.to_float(z, torch.float64), schedule.gamma_min.detach().double()
    eps_0 = noise.eps_0.double()
    decoder = reconstruction_term(spec, schedule, y, z, coarse, eps_0)
    z_0 = add_noise(y, gamma_0.expand(len(y)), eps_0)
    # log N(z_0; alpha_0 y, sigma_0^2 I)
    log_q = -eps_0.square().flatten(1).sum(dim=1) / 2 - spec.dims * (
        math.log(2 * math.pi) / 2 + torch.log(alpha_sigma(gamma_0)[1])
    )
    density = flow_log_density(
        scale.denoiser,
        (float(gamma_0), float(schedule.gamma_max)),
        z_0.to(dtype),
        coarse,
        settings,
        noise.probes,
    )
    return FlowTerms(decoder, -density.log_prob, log_q, density.evaluations)


# ---------------------------------------------------------------- all scales


def _weights_dtype(cascade: Cascade, asked: torch.dtype | None) -> torch.dtype:
    """`asked`, by default the dtype of the networks' weights, float64 where there are none;
    ValueError where these two differ."""
    own = next((p.dtype for p in cascade.networks.parameters()), asked or torch.float64)
    if asked not in (None, own):
        raise ValueError(
            f"a flow in {asked} needs weights of that type, these are {own}: convert the cascade "
            f"first (cascade.double())"
        )
    return own


def cascade_flow(
    cascade: Cascade,
    x: Tensor,
    generator: torch.Generator,
    settings: FlowSettings = FlowSettings(),
    scales: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> FlowBound:
    """One draw of the flow's bound on -log P(x) for every image, nats.

    Source: Eq. 6 of the paper, scale by scale.

    Args:
        cascade: the model.
        x: integer images (N, *image_shape), one batch for the solver.
        generator: of the noise, on the device of x.
        settings: of the solver and the trace.
        scales: indices of the scales to score, all by default.
        dtype: of the flow, which has to be that of the weights; where it is None it is theirs, and
            float64 without any.

    Returns:
        The terms in nats, each (N, S).

    Raises:
        ValueError: as `flow_log_density`.
        FloatingPointError: as `flow_log_density`.
    """
    cascade.check_diffusion("the probability flow")
    pairs, dtype = cascade.decompose(x), _weights_dtype(cascade, dtype)
    chosen = range(len(cascade.specs)) if scales is None else scales
    specs = [cascade.specs[i] for i in chosen]
    noises = draw_noise(specs, len(x), settings, generator, x.device)
    rows = [
        scale_flow(cascade.scales[i], *pairs[i], noise, settings, dtype)
        for i, noise in zip(chosen, noises)
    ]
    *terms, evaluations = zip(*rows)
    decoder, flow, log_q = (torch.stack(column, dim=1) for column in terms)
    return FlowBound(tuple(s.name for s in specs), decoder, flow, log_q, evaluations)


@dataclass(frozen=True)
class FlowEvaluation(ImageScores):
    """The flow's bound on a set of images.

    Attributes:
        parts: (images, repeats, scales, 3) bits per dimension of the whole image; the terms stand
            in the order of `FLOW_TERMS` (see `FlowTerms`). The repeats have independent z_0 and
            probes.
        evaluations: (images, repeats, scales) evaluations of v along the trajectory; each is one of
            the network and, with Hutchinson's estimator, a backward pass a probe.
        scales: their names, coarsest first.
        settings: of the solver and the trace.
        dtype: of the flow, as text.
        weights: what the caller said of the weights.
        seed: of the noise.
    """

    parts: np.ndarray
    evaluations: np.ndarray
    scales: tuple[str, ...]
    settings: FlowSettings
    dtype: str
    weights: str
    seed: int

    @property
    def evaluations_per_scale(self) -> dict[str, float]:
        """Evaluations of v along one trajectory, mean over images and repeats."""
        return dict(zip(self.scales, map(float, self.evaluations.mean(axis=(0, 1)))))

    def table(self) -> dict[str, dict[str, float]]:
        """{scale: {term: bpd}}, with the sums under "total"; every figure is a share of the whole
        image's bits per dimension.

        Returns:
            Rows by scale, and "total".
        """
        means = self.parts.mean(axis=(0, 1))
        named = [*zip(self.scales, means), ("total", means.sum(axis=0))]
        return {
            name: dict(zip(FLOW_TERMS, map(float, row))) | {"total": float(row.sum())}
            for name, row in named
        }

    def to_dict(self) -> dict[str, Any]:
        """The figures for a results file, without the image-by-image arrays.

        Returns:
            What JSON can hold, but for nan.
        """
        return {
            "bpd": self.bpd,
            "se_images": self.se_images,
            "se_noise": self.se_noise,
            "images": len(self.parts),
            "repeats": self.parts.shape[1],
            "bound": "probability flow",
            "settings": asdict(self.settings),
            "dtype": self.dtype,
            "evaluations": self.evaluations_per_scale,
            "weights": self.weights,
            "seed": self.seed,
            "table": self.table(),
        }

    def __str__(self) -> str:
        head = f"{'bits per dim':14s}" + "".join(
            f"{t:>16s}" for t in (*FLOW_TERMS, "total", "evaluations")
        )
        counts = self.evaluations_per_scale | {"total": sum(self.evaluations_per_scale.values())}
        rows = [
            f"{name:14s}"
            + "".join(f"{row[t]:16.4f}" for t in (*FLOW_TERMS, "total"))
            + f"{counts[name]:16.1f}"
            for name, row in self.table().items()
        ]
        foot = (
            f"{self.bpd:.4f} bpd, standard error {self.se_images:.4f} over {len(self.parts)} "
            f"images and {self.se_noise:.4f} over the noise "
            f"({self.parts.shape[1]} repeats); probability flow: {self.settings}; {self.dtype}, "
            f"{self.weights} weights, seed {self.seed}"
        )
        return "\n".join([head, *rows, foot])


def evaluate_flow(
    cascade: Cascade,
    images: Tensor,
    settings: FlowSettings = FlowSettings(),
    *,
    repeats: int = 2,
    seed: int = 0,
    weights: str = "given",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> FlowEvaluation:
    """The flow's bound on every image, `repeats` times with independent z_0 and probes, in bits per
    dimension.

    Source: Eq. 6 of the paper, scale by scale.

    Args:
        cascade: the model; it is in evaluation mode meanwhile.
        images: integers (N, *cascade.image_shape).
        settings: of the solver and the trace.
        repeats: independent estimates, at least 2 for a standard error of the noise.
        seed: of the noise.
        weights: what the caller says of the weights ("EMA", "raw"), for the record.
        batch_size: of the solver; it changes the result within the tolerances only (see
            `flow_log_density`).
        device: where the cascade is.
        dtype: as for `cascade_flow`.
        progress: show a bar.

    Returns:
        Bits per dimension by image, repeat, scale and term.

    Raises:
        ValueError: for no images, another shape, or counts below 1.
        FloatingPointError: where the flow is not finite.

    Example:
        >>> from pcdm_lib.likelihood import example_source, exact_cascade
        >>> from pcdm_lib.likelihood.flow import FlowSettings, evaluate_flow
        >>> source = example_source()
        >>> exact = FlowSettings(method="rk4", steps=16, divergence="exact")
        >>> found = evaluate_flow(exact_cascade(source), source.images[:2], exact)
        >>> found.parts.shape  # two images, two repeats, one scale, three terms
        (2, 2, 1, 3)
    """
    cascade.check_diffusion("the probability flow")
    if len(images) == 0:
        raise ValueError("no images to evaluate")
    if repeats < 1 or batch_size < 1:
        raise ValueError(
            f"repeats and batch_size must be at least 1, got {repeats} and {batch_size}"
        )
    dtype = _weights_dtype(cascade, dtype)
    cascade.check_images(images)
    generator = torch.Generator(device).manual_seed(seed)
    n, count = len(images), len(cascade.specs)
    parts, evaluations = (
        np.zeros((n, repeats, count, len(FLOW_TERMS))),
        np.zeros((n, repeats, count), dtype=int),
    )
    bar = tqdm(total=repeats * n, desc="probability flow", unit="image", disable=not progress)
    with evaluation_mode(cascade), bar:
        for repeat in range(repeats):
            for start in range(0, n, batch_size):
                part = slice(start, start + batch_size)
                bound = cascade_flow(
                    cascade, images[part].to(device), generator, settings, dtype=dtype
                )
                nats = torch.stack([bound.decoder, bound.flow, bound.log_q], dim=-1)
                parts[part, repeat] = bits_per_dim(nats, cascade.dims).cpu().numpy()
                evaluations[part, repeat] = bound.evaluations
                bar.update(len(nats))
    if not np.isfinite(parts).all():
        raise FloatingPointError(
            "the flow is not finite: the weights are broken or training diverged"
        )
    return FlowEvaluation(
        parts,
        evaluations,
        tuple(s.name for s in cascade.specs),
        settings,
        str(dtype).removeprefix("torch."),
        weights,
        seed,
    )
