"""Out-of-distribution detection by typicality (Sect. 6.2, Appendix B and B.1): images whose code
length is unlike that of the model's own data, longer or shorter.

A batch of M images scores (Sect. 6.2; Nalisnick et al. 2019, arXiv 1906.02994)

    | (1/M) sum_m -log p(x_m)  -  H |,

with our bound in place of -log p, in bits per dimension, and H the entropy of the model. The paper
takes M = 1. Its N = 20 is the number of Monte-Carlo draws, of noise level and noise, that estimate
the bound of one image (Appendix B).

The paper does not say how it estimates H. Here H is the mean code length of many images of the
model's own data, which are neither trained on nor tested. Every interval counts its error too.

Beside the typicality stands the plain code length, high for an outlier. It fails where an outlier
is simpler than the data, because simple images have short codes under every model. The code length
of an image is a sum over scales, so each scale has a typicality of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcdm_lib.advice import need
from pcdm_lib.models.cascade import Cascade, bits_per_dim, evaluation_mode

TOTAL = "total"
MAX, SUM = "max of scales", "sum of scales"
DRAWS = (1, 5, 20, 100)


@dataclass(frozen=True)
class Scores:
    """Code lengths of n images, each from several numbers N of draws.

    Attributes:
        estimates: (n, K, S) bits per dimension of the whole image, one draw of noise level and
            noise each, so that the scales of an image sum to its code length. The first N draws,
            for an N of `draws`, are an estimate of their own.
        scales: their S names, coarsest first.
        draws: the N, ascending; the last is K.
        times: "stratified" or "uniform", see `image_scores`.
        seed: of the noise.
        digests: one an image, of its pixels, by which an image in two sets is found.
    """

    estimates: np.ndarray
    scales: tuple[str, ...]
    draws: tuple[int, ...]
    times: str
    seed: int
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.estimates)

    def at(self, draws: int) -> Scores:
        """The scores from the first N draws alone; ValueError for an N that is not in `draws`."""
        if draws not in self.draws:
            raise ValueError(
                f"N={draws} draws: these images were scored with {_listed(self.draws)}, so choose "
                f"one of those, or score them again"
            )
        kept = self.draws[: self.draws.index(draws) + 1]
        return replace(self, estimates=self.estimates[:, :draws], draws=kept)

    @property
    def per_scale(self) -> np.ndarray:
        """(n, S) bits per dimension, from all draws."""
        return self.estimates.mean(axis=1)

    @property
    def total(self) -> np.ndarray:
        """(n,) bits per dimension, from all draws."""
        return self.per_scale.sum(axis=1)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of `columns`; a model of one scale has its total only."""
        return (*self.scales, TOTAL) if len(self.scales) > 1 else (TOTAL,)

    @property
    def columns(self) -> np.ndarray:
        """(n, len(names)) bits per dimension, from all draws."""
        return self._columns(self.per_scale)

    def noise(self, draws: int) -> dict[str, float]:
        """Standard error of one image's code length from N draws, root mean square over the images.

        It is the spread of the K / N estimates that the K draws hold. Stratified ones share their
        strata, so with B = K / N of them the figure is too large by a factor of at most
        sqrt(B / (B - 1)). nan for N = K, where there is one estimate only.
        """
        self.at(draws)
        sets = self.estimates.shape[1] // draws
        if sets < 2:
            return dict.fromkeys(self.names, math.nan)
        n, _, scales = self.estimates.shape
        means = self.estimates.reshape(n, sets, draws, scales).mean(axis=2)
        variance = self._columns(means).var(axis=1, ddof=1).mean(axis=0)
        return dict(zip(self.names, map(float, np.sqrt(variance))))

    def part(self, chosen: slice | Sequence[int] | np.ndarray) -> Scores:
        """The scores of some of the images."""
        places = np.arange(len(self))[chosen]
        digests = tuple(self.digests[i] for i in places)
        return replace(self, estimates=self.estimates[places], digests=digests)

    def _columns(self, per_scale: np.ndarray) -> np.ndarray:
        total = per_scale.sum(axis=-1, keepdims=True)
        return np.concatenate([per_scale, total], axis=-1) if len(self.scales) > 1 else total


@torch.no_grad()
def image_scores(
    cascade: Cascade,
    images: Tensor,
    *,
    draws: int | Sequence[int] = DRAWS,
    times: str = "stratified",
    seed: int = 0,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Scores:
    """Code lengths of integer images (n, *cascade.image_shape), from N draws of noise level and
    noise an image and scale, for each N of `draws`.

    Every draw is one network evaluation a scale. The largest N is evaluated, K times in all, and
    the smaller ones are its first draws: the estimates are nested, which saves time and makes the
    difference between two N a paired one. Each image has levels and noise of its own, also where
    images are alike.

    With `times="stratified"` the N levels of an image and scale lie one in each of N equal parts of
    the noise levels, for every N at once (`nested_strata`), independently between images and
    scales. This has less noise than N independent levels, so an N here is worth more than the same
    N drawn independently. `times="uniform"` draws them independently. The paper does not say which
    of the two it does.

    Sets to be compared want a seed each, or the k-th images of two sets get the same noise.

    Source: Appendix B of the paper, which has N = 20.

    Args:
        cascade: the model; it is in evaluation mode meanwhile.
        images: integers (n, *cascade.image_shape).
        draws: one N, or several of which each divides the next.
        times: "stratified" or "uniform".
        seed: of noise levels and noise.
        batch_size: images at a time.
        device: where the cascade is.
        dtype: of the computation; the networks' weights must have it.

    Returns:
        Bits per dimension by image, draw and scale.

    Raises:
        ValueError: for images of another shape, range or number, and settings out of range.
        FloatingPointError: where the bound is not finite.

    Example:
        >>> from pcdm_lib.likelihood.typicality import image_scores
        >>> model = pcdm.load_pretrained("photos32-wavelet")
        >>> images = pcdm.load_data("photos").heldout[:2]
        >>> scores = image_scores(model, images, draws=(1, 2))
        >>> scores.at(1).total.shape, scores.names
        ((2,), ('base', 'details1', 'total'))
    """
    sizes = _checked_draws(draws)
    if len(images) == 0:
        raise ValueError("no images to score")
    if batch_size < 1 or times not in ("stratified", "uniform"):
        raise ValueError(
            f"need batch_size >= 1 and times 'stratified' or 'uniform', got {batch_size} and "
            f"{times!r}"
        )
    cascade.check_images(images)
    generator = torch.Generator(device).manual_seed(seed)
    scales = cascade.parts
    levels = torch.stack(
        [_times(len(images), sizes, times, generator, device, dtype) for _ in scales], dim=1
    )
    estimates = np.zeros((len(images), sizes[-1], len(scales)))
    with evaluation_mode(cascade):
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            x = images[part].to(device)
            for k in range(sizes[-1]):
                bound = cascade.bound(x, generator, times=levels[k, :, part], dtype=dtype)
                nats = bound.prior + bound.diffusion + bound.reconstruction
                estimates[part, k] = bits_per_dim(nats, cascade.dims).double().cpu().numpy()
    if not np.isfinite(estimates).all():
        raise FloatingPointError(
            "the bound is not finite: the weights are broken or training diverged"
        )
    digests = tuple(
        hashlib.sha256(image.tobytes()).hexdigest()[:16]
        for image in images.to(torch.int32).cpu().numpy()
    )
    return Scores(estimates, scales, sizes, times, seed, digests)


def nested_strata(
    n: int, draws: Sequence[int], generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """For each image an order of the K strata in which the first N, and every N after them, lie one
    in each of N equal parts, for every N of `draws`. Which stratum of a part comes first is drawn
    independently for every part and image.

    Args:
        n: images.
        draws: the N, ascending; each divides the next, K is the last.
        generator: of the orders, on `device`.
        device: of the result.

    Returns:
        (n, K) int64, each row a permutation of 0 to K - 1.

    Example:
        >>> from pcdm_lib.likelihood.typicality import nested_strata
        >>> order = nested_strata(1, (1, 2, 4), torch.Generator().manual_seed(0))
        >>> sorted(order[0].tolist()), sorted((order[0, :2] // 2).tolist())
        ([0, 1, 2, 3], [0, 1])
    """
    places, before = torch.zeros(n, 1, dtype=torch.int64, device=device), 1
    for size in draws:
        parts = size // before
        order = torch.rand(n, before, parts, generator=generator, device=device).argsort(dim=-1)
        places = (places[..., None] * parts + order).transpose(1, 2).reshape(n, size)
        before = size
    return places


def _times(
    n: int,
    draws: tuple[int, ...],
    kind: str,
    generator: torch.Generator,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    """(K, n) times of one scale in [0, 1)."""
    within = torch.rand(draws[-1], n, generator=generator, device=device, dtype=dtype)
    if kind == "uniform":
        return within
    strata = nested_strata(n, draws, generator, device).T
    return ((strata + within) / draws[-1]).clamp(max=1 - torch.finfo(dtype).eps)


# Scores of batches; in all of them high means unlike the data


def batch_means(scores: np.ndarray, batch: int = 1, seed: int = 0) -> np.ndarray:
    """Means of batches of M images drawn without overlap: an order of the images by the seed, cut
    up; the n % M last images are left out.

    Args:
        scores: (n, ...) code lengths.
        batch: M.
        seed: of the order.

    Returns:
        (n // M, ...) float64.

    Raises:
        ValueError: for scores that are not finite, and an M out of range.

    Example:
        >>> from pcdm_lib.likelihood.typicality import batch_means
        >>> batch_means(np.array([1.0, 3.0]), batch=2).tolist()
        [2.0]
    """
    _check_array(scores, "scores")
    if not 1 <= batch <= len(scores):
        raise ValueError(
            f"a batch of M={batch} images cannot be drawn from {len(scores)}: choose 1 <= M <= "
            f"{len(scores)}"
        )
    if batch == 1:
        return np.asarray(scores, np.float64)
    order = np.random.default_rng(seed).permutation(len(scores))[: len(scores) // batch * batch]
    return (
        np.asarray(scores, np.float64)[order].reshape(-1, batch, *np.shape(scores)[1:]).mean(axis=1)
    )


def typicality(
    scores: np.ndarray, reference: np.ndarray, batch: int = 1, seed: int = 0
) -> np.ndarray:
    """| mean code length of a batch of M - mean code length of the reference |, in the unit of the
    scores.

    Args:
        scores: (n,) code lengths of the tested images, or (n, S), scale by scale.
        reference: (R,) or (R, S), of other images of the model's data, whose mean estimates H.
        batch: M.
        seed: of the choice of the batches; see `batch_means`.

    Returns:
        (n // M,) or (n // M, S).

    Raises:
        ValueError: for scores that are not finite, of other scales, and an M out of range.

    Example:
        >>> from pcdm_lib.likelihood.typicality import typicality
        >>> typicality(np.array([3.0, 6.0]), reference=np.array([3.5, 4.5])).tolist()
        [1.0, 2.0]
    """
    _check_pair(scores, reference)
    return np.abs(batch_means(scores, batch, seed) - np.mean(reference, axis=0))


def combined_typicality(
    scores: np.ndarray, reference: np.ndarray, how: str = "max", batch: int = 1, seed: int = 0
) -> np.ndarray:
    """Typicality over all scales: the deviation of every scale in standard deviations of the
    reference images there, of which the largest or the sum is taken. One scale may be long where
    another is short, which their total does not see.

    Args:
        scores: (n, S) code lengths of the tested images, scale by scale.
        reference: (R, S) of other images of the model's data.
        how: "max" or "sum".
        batch: M.
        seed: of the choice of the batches; see `batch_means`.

    Returns:
        (n // M,) standard deviations.

    Raises:
        ValueError: as `typicality`, and for a reference without spread on some scale.
    """
    if how not in ("max", "sum"):
        raise ValueError(f"how={how!r}: expected 'max' or 'sum'")
    _check_pair(scores, reference)
    if np.ndim(scores) != 2:
        raise ValueError(
            f"the combination needs code lengths scale by scale, (n, S), got {np.shape(scores)}: "
            f"pass Scores.per_scale"
        )
    spread = (
        np.std(reference, axis=0, ddof=1)
        if len(reference) > 1
        else np.zeros(np.shape(reference)[1])
    )
    if not (spread > 0).all():
        raise ValueError(
            f"the {len(reference)} reference images have no spread on some scale: standardising "
            f"needs at least two different ones"
        )
    deviations = typicality(scores, reference, batch, seed) / spread
    return deviations.max(axis=1) if how == "max" else deviations.sum(axis=1)


# The area under the ROC curve


class Auroc(NamedTuple):
    """Area under the ROC curve: the probability that an outlier scores higher than an image (or
    batch) of the data, ties counted half; with the bootstrap interval of that confidence from
    `resamplings` of the n_in and the n_out scores."""

    value: float
    low: float
    high: float
    n_in: int
    n_out: int
    resamplings: int
    confidence: float


def auroc(
    in_scores: np.ndarray,
    out_scores: np.ndarray,
    *,
    resamplings: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Auroc:
    """AUROC of scores (n_in,) of the data and (n_out,) of outliers, high for outliers, with a
    percentile interval.

    Both sets are resampled, so the interval is for the populations that they are independent draws
    from. Where they do not overlap it is [1, 1] whatever their size: it knows nothing of overlaps
    too rare for these sets.

    Args:
        in_scores: (n_in,) of the data.
        out_scores: (n_out,) of the outliers.
        resamplings: number of bootstrap draws.
        confidence: of the interval.
        seed: of the resampling.

    Returns:
        The area and its interval.

    Raises:
        ValueError: for scores that are empty, not finite or not one-dimensional, and for settings
            out of range.
    """
    inside, outside = (
        _check_array(in_scores, "in_scores", 1),
        _check_array(out_scores, "out_scores", 1),
    )
    _check_bootstrap(resamplings, confidence)
    n, m = len(inside), len(outside)
    rng = np.random.default_rng(seed)
    values = _areas(
        inside[rng.integers(n, size=(resamplings, n))],
        outside[rng.integers(m, size=(resamplings, m))],
    )
    return Auroc(
        _area(inside, outside), *_interval(values, confidence), n, m, resamplings, confidence
    )


def _area(inside: np.ndarray, outside: np.ndarray) -> float:
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    return float(need("sklearn.metrics").roc_auc_score(truth, np.concatenate([inside, outside])))


def _areas(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """(B, n) and (B, m) -> the AUROC of each row, by the ranks of the outliers."""
    from scipy.stats import rankdata

    n, m = inside.shape[1], outside.shape[1]
    ranks = rankdata(np.concatenate([inside, outside], axis=1), axis=1)[:, n:]
    return (ranks.sum(axis=1) - m * (m + 1) / 2) / (n * m)


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def statistics(scales: Sequence[str]) -> list[tuple[str, str]]:
    """(statistic, scale) of every row that `detect` makes for a model of these scales."""
    names = [*scales, TOTAL] if len(scales) > 1 else [TOTAL]
    combined = [MAX, SUM] if len(scales) > 1 else []
    return [("likelihood", name) for name in names] + [
        ("typicality", name) for name in (*names, *combined)
    ]


def detect(
    inside: Scores,
    reference: Scores,
    outliers: Mapping[str, Scores],
    *,
    draws: Sequence[int] | None = None,
    batches: Sequence[int] = (1,),
    resamplings: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How well each outlier set is told from the model's own data, by every statistic.

    Args:
        inside: scores of the tested images of the data.
        reference: of other images of the data, whose mean code length estimates H. The more images
            the better; they may have fewer draws than the tested ones, since the mean of the bound
            does not depend on N.
        outliers: scores of the tested images that are not of the data, by the name of the set.
        draws: the N to try, of those that the tested images were scored with; None for all.
        batches: the M to try; the paper has M = 1.
        resamplings: number of bootstrap draws of an interval.
        confidence: of the intervals.
        seed: of batches and resampling.

    Returns:
        Rows of figures that JSON can hold, one for every set, statistic, scale, M and N:
        "set", "statistic" ("likelihood": the code length itself; "typicality"), "scale" (one of
        them; "total"; "max of scales" and "sum of scales", see `combined_typicality`), "M", "N"
        (draws of the bound an image), "references" (images that estimate H; None for the
        likelihood, which has no H), "auroc", its interval "low" to "high", and the numbers of
        batches "n_in" and "n_out".

        The interval resamples both tested sets and the reference images, all at once. So it counts
        the choice of the images, the noise of their draws and the error of H.

    Raises:
        ValueError: for sets of different models or draws, a tested image that is in the reference,
            code lengths that are not finite, and M or N out of range: each set must give at least
            two batches.
    """
    sizes = _check_request(inside, reference, outliers, draws, batches, resamplings, confidence)
    rows = []
    for name, outside in outliers.items():
        for batch in batches:
            trial = _Trial(inside, reference, outside, batch, resamplings, seed)
            for statistic, scale in statistics(inside.scales):
                for size in sizes:
                    value, values = trial.areas(statistic, scale, size)
                    low, high = _interval(values, confidence)
                    rows.append(
                        {
                            "set": name,
                            "statistic": statistic,
                            "scale": scale,
                            "M": batch,
                            "N": size,
                            "references": len(reference) if statistic == "typicality" else None,
                            "auroc": value,
                            "low": low,
                            "high": high,
                            "n_in": len(inside) // batch,
                            "n_out": len(outside) // batch,
                        }
                    )
    return rows


def draws_gains(
    inside: Scores,
    reference: Scores,
    outliers: Mapping[str, Scores],
    *,
    scale: str = TOTAL,
    batch: int = 1,
    resamplings: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What more draws add to the AUROC of the typicality: the paper says that it "only improves"
    with N and that N = 20 is enough (Appendix B).

    Args:
        inside: scores of the tested images of the data, from several N.
        reference: of other images of the data, which estimate H.
        outliers: scores of the tested images that are not of the data, by the name of the set.
        scale: one of `statistics`' scales.
        batch: M.
        resamplings: number of bootstrap draws of an interval.
        confidence: of the intervals.
        seed: of batches and resampling.

    Returns:
        One row a set and pair of neighbouring N: "set", "scale", "M", "from" and "to" (the two N),
        "gain" (AUROC at the larger N less that at the smaller), "low", "high". The interval is that
        of the difference: both N see the same images and the same resamplings (see `detect`).

    Raises:
        ValueError: as `detect`, and for a scale that the model does not have.
    """
    sizes = _check_request(inside, reference, outliers, None, (batch,), resamplings, confidence)
    if ("typicality", scale) not in statistics(inside.scales):
        known = ", ".join(repr(s) for kind, s in statistics(inside.scales) if kind == "typicality")
        raise ValueError(f"scale={scale!r}: this model has {known}")
    rows = []
    for name, outside in outliers.items():
        trial = _Trial(inside, reference, outside, batch, resamplings, seed)
        found = [trial.areas("typicality", scale, size) for size in sizes]
        for (few, many), (before, after) in zip(zip(sizes, sizes[1:]), zip(found, found[1:])):
            low, high = _interval(after[1] - before[1], confidence)
            rows.append(
                {
                    "set": name,
                    "scale": scale,
                    "M": batch,
                    "from": few,
                    "to": many,
                    "gain": after[0] - before[0],
                    "low": low,
                    "high": high,
                }
            )
    return rows


class _Trial:
    """One set of outliers against the data, and its resamplings, which every statistic, scale and N
    shares: so their differences are paired."""

    def __init__(
        self,
        inside: Scores,
        reference: Scores,
        outside: Scores,
        batch: int,
        resamplings: int,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.sides, self.batch, self.seed = (inside, outside), batch, seed
        self.names = inside.names
        known = reference.columns
        self.centre, self.spread = known.mean(axis=0), known.std(axis=0, ddof=1)
        picks = rng.integers(len(known), size=(resamplings, len(known)))
        # one image drawn every time has no spread to divide by
        while not (good := np.ptp(known[picks], axis=1).all(axis=1)).all():
            picks[~good] = rng.integers(len(known), size=(int((~good).sum()), len(known)))
        self.centres = known[picks].mean(axis=1)[:, None]
        self.spreads = known[picks].std(axis=1, ddof=1)[:, None]
        self.picks = [
            rng.integers(len(s) // batch, size=(resamplings, len(s) // batch)) for s in self.sides
        ]

    def areas(self, statistic: str, scale: str, size: int) -> tuple[float, np.ndarray]:
        """The AUROC at N, and its values over the resamplings."""
        means = [batch_means(s.at(size).columns, self.batch, self.seed) for s in self.sides]
        value = _area(*(self._score(statistic, scale, m, self.centre, self.spread) for m in means))
        resampled = _areas(
            *(
                self._score(statistic, scale, m[chosen], self.centres, self.spreads)
                for m, chosen in zip(means, self.picks)
            )
        )
        return value, resampled

    def _score(
        self,
        statistic: str,
        scale: str,
        means: np.ndarray,
        centre: np.ndarray,
        spread: np.ndarray,
    ) -> np.ndarray:
        """(..., k, columns) code lengths of batches -> (..., k) scores."""
        if scale in (MAX, SUM):
            deviations = (np.abs(means - centre) / spread)[..., :-1]
            return deviations.max(axis=-1) if scale == MAX else deviations.sum(axis=-1)
        column = self.names.index(scale)
        if statistic == "likelihood":
            return means[..., column]
        return np.abs(means - centre)[..., column]


# Checks


def _check_array(values: np.ndarray, name: str, ndim: int | None = None) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim not in ((1, 2) if ndim is None else (ndim,)) or array.size == 0:
        raise ValueError(
            f"{name} has the shape {array.shape}, expected "
            f"{'(n,) or (n, S)' if ndim is None else '(n,)'} with n >= 1"
        )
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} values of {array.size} that are NaN or infinite: leave those "
            f"images out, or score them again"
        )
    return array


def _check_pair(scores: np.ndarray, reference: np.ndarray) -> None:
    tested, known = _check_array(scores, "scores"), _check_array(reference, "reference")
    if tested.shape[1:] != known.shape[1:]:
        raise ValueError(
            f"scores {tested.shape} and reference {known.shape} need the same scales: take both "
            f"from one model, or both as totals"
        )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _checked_draws(draws: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (draws,) if isinstance(draws, int) else tuple(draws)
    pairs = zip((1, *sizes), sizes)
    if not sizes or sizes[0] < 1 or any(b % a or (a == b and k) for k, (a, b) in enumerate(pairs)):
        raise ValueError(
            f"draws={draws}: expected numbers of at least 1, each of which divides the next, such "
            f"as {_listed(DRAWS)}: the estimate from few draws is a part of that from many"
        )
    return sizes


def _check_bootstrap(resamplings: int, confidence: float) -> None:
    if resamplings < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"need resamplings >= 1 and 0 < confidence < 1, got resamplings={resamplings} and "
            f"confidence={confidence}"
        )


def _check_request(
    inside: Scores,
    reference: Scores,
    outliers: Mapping[str, Scores],
    draws: Sequence[int] | None,
    batches: Sequence[int],
    resamplings: int,
    confidence: float,
) -> tuple[int, ...]:
    """The N to try."""
    _check_sets(inside, reference, outliers)
    _check_bootstrap(resamplings, confidence)
    smallest = min(len(s) for s in (inside, *outliers.values()))
    for batch in batches:
        if not 1 <= batch <= smallest // 2:
            raise ValueError(
                f"M={batch}: the smallest set has {smallest} images and has to give two batches, "
                f"so choose 1 <= M <= {smallest // 2}"
            )
    sizes = inside.draws if draws is None else tuple(draws)
    for size in sizes:
        inside.at(size)
    return sizes


def _check_sets(inside: Scores, reference: Scores, outliers: Mapping[str, Scores]) -> None:
    if not outliers:
        raise ValueError("no outlier sets: give at least one, as {name: scores}")
    named = {"inside": inside, "reference": reference}
    named |= {f"outliers[{k!r}]": v for k, v in outliers.items()}
    known = set(reference.digests)
    for name, scores in named.items():
        _check_array(scores.columns, name)
        _check_alike(name, scores, inside, tested=name != "reference")
        shared = 0 if name == "reference" else sum(digest in known for digest in scores.digests)
        if shared:
            raise ValueError(
                f"{shared} of the {len(scores)} images of {name} are reference images too: the "
                f"entropy has to come from other images, "
                "so split them (Scores.part)"
            )
    if not np.ptp(reference.columns, axis=0).all():
        raise ValueError(
            f"the {len(reference)} reference images all have one code length on some scale: the "
            f"entropy and its error need at least two different ones, and want hundreds"
        )


def _check_alike(name: str, scores: Scores, inside: Scores, tested: bool) -> None:
    """One model, and for the tested sets the same draws."""
    if scores.scales != inside.scales:
        raise ValueError(
            f"{name} was scored on scales {scores.scales}, inside on {inside.scales}: score all "
            f"sets with one model"
        )
    mine, theirs = (scores.draws, scores.times), (inside.draws, inside.times)
    if tested and mine != theirs:
        raise ValueError(
            f"{name} was scored with {_listed(mine[0])} {mine[1]} draws an image, inside with "
            f"{_listed(theirs[0])} {theirs[1]}: noise is a deviation too, so score both alike"
        )
