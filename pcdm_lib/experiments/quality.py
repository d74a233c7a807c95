"""Quality of samples (Sect. 6.1): distances between a set of samples and a set of real images.

Both here are Frechet distances between Gaussians fitted to features of the images; they differ in
the features. `fid` takes those of the Inception network, by the package torch-fidelity and weights
that have to be downloaded; it is the figure that papers state. `band_distance` takes some fifty
fixed features and needs neither; it serves tests, and comparisons of small models among themselves.

Every such distance is biased upwards by a finite number of images, so sets are compared at equal
numbers, and the numbers belong to the figure.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pcdm_lib.data.download import PublishedFile, fetch
from pcdm_lib.maps.haar import haar_step
from pcdm_lib.records import check_device

EXTRACTOR = "inception-v3-compat"
# Where torch-fidelity itself fetches them; torch hub's file names end in the first eight digits of
# the sha256.
INCEPTION = PublishedFile(
    title="the Inception network of FID",
    name="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    bytes=95_628_359,
    instead="; band_distance needs none, but is another quantity",
)


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """Squared Frechet (Wasserstein-2) distance of two Gaussians, |m1 - m2|^2 + tr(C1 + C2 - 2 (C1
    C2)^(1/2)), in float64.

    The trace of the root is taken as the sum of the singular values of C1^(1/2) C2^(1/2), which is
    exact to rounding even where covariances are singular, as they are with fewer images than
    features; roots of the eigenvalues of C1 C2 are not.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, and matrices that are no
            covariances.
    """
    m1, m2 = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    c1, c2 = np.asarray(cov1, np.float64), np.asarray(cov2, np.float64)
    if (
        m1.ndim != 1
        or m1.size == 0
        or m2.shape != m1.shape
        or c1.shape != 2 * m1.shape
        or c2.shape != c1.shape
    ):
        raise ValueError(
            f"means {m1.shape} and {m2.shape} with covariances {c1.shape} and {c2.shape}: "
            f"expected (F,), (F,), (F, F) and (F, F)"
        )
    if not all(np.isfinite(v).all() for v in (m1, m2, c1, c2)):
        raise ValueError(
            "a mean or covariance holds NaN or an infinity: look for broken images, or for a set "
            "of one image"
        )
    roots = np.linalg.svd(_root(c1) @ _root(c2), compute_uv=False).sum()
    # rounding falls below zero for equal ones
    return max(0.0, float((m1 - m2) @ (m1 - m2) + np.trace(c1) + np.trace(c2) - 2 * roots))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root."""
    size = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > 1e-8 * size:
        raise ValueError(
            "a covariance is not symmetric: expected one such as np.cov(features, rowvar=False)"
        )
    values, vectors = np.linalg.eigh(covariance)
    if values[0] < -1e-8 * size * len(values):
        raise ValueError(
            f"a covariance has the eigenvalue {values[0]:.3g}: expected none below zero"
        )
    # what cannot be told from zero is zero: the root of a rounding error of 1e-16 would be one of
    # 1e-8
    values[values < len(values) * np.finfo(np.float64).eps * values[-1]] = 0
    return vectors * np.sqrt(values) @ vectors.T


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def _check_images(images: Tensor, name: str, channels: tuple[int, ...], least: int) -> None:
    if (
        not isinstance(images, Tensor)
        or images.dtype != torch.uint8
        or images.ndim != 4
        or images.shape[1] not in channels
        or len(images) < least
    ):
        found = (
            f"{images.dtype} {tuple(images.shape)}"
            if isinstance(images, Tensor)
            else type(images).__name__
        )
        raise ValueError(
            f"{name}: expected at least {least} images as uint8 (N, "
            f"{' or '.join(map(str, channels))}, H, W), got {found}"
        )


def _check_sizes(samples: Tensor, reference: Tensor) -> None:
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"samples {tuple(samples.shape[1:])} and reference {tuple(reference.shape[1:])} "
            f"differ in shape: resampling would be part of "
            "the figure, so bring both to one size first"
        )


# The Frechet inception distance


@dataclass(frozen=True)
class Fid:
    """A Frechet inception distance with what it depends on: the numbers of images (fewer than
    50,000 samples give larger figures of the same model), and the extractor, package and
    weights."""

    value: float
    samples: int
    reference: int
    image_shape: tuple[int, ...]
    extractor: str
    package: str
    weights_sha256: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"image_shape": list(self.image_shape)}


class _Images(Dataset):
    """What torch-fidelity takes: a dataset whose items are images, not tuples of one."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def fid(
    samples: Tensor,
    reference: Tensor,
    device: torch.device | str = "cpu",
    *,
    weights: Path | str | None = None,
    batch_size: int = 64,
) -> Fid:
    """Frechet inception distance (Heusel et al. 2017, arXiv 1706.08500) between uint8 images (N, 3,
    H, W) and (M, 3, H, W).

    Args:
        device: the CPU or a CUDA device, for the Inception network.
        weights: its file; by default torch hub's folder, where it is fetched to if it is not there.

    Raises:
        ImportError: where torch-fidelity is missing or does not run beside this torch.
        ConnectionError: where the weights are not there and cannot be fetched, within seconds.
        FileNotFoundError: where `weights` is not there.
        ValueError: for other images or devices, and for a file that is not the one that the figure
            is defined by.
    """
    _check_images(samples, "samples", (3,), 2)
    _check_images(reference, "reference", (3,), 2)
    _check_sizes(samples, reference)
    device = check_device(str(device))
    if device.type not in ("cpu", "cuda") or batch_size < 1:
        raise ValueError(
            f"torch-fidelity runs on cpu and cuda in batches of at least 1, got {str(device)!r} "
            f"and batch_size={batch_size}"
        )
    calculate = _torch_fidelity()
    path = inception_weights(weights)
    # every setting that has a default is said, since the figure hangs on it; features are not
    # cached, and no worker processes are started
    settings = {
        "fid": True,
        "feature_extractor": EXTRACTOR,
        "feature_layer_fid": "2048",
        "feature_extractor_weights_path": str(path),
        "batch_size": batch_size,
        "cuda": device.type == "cuda",
        "cache": False,
        "save_cpu_ram": True,
        "verbose": False,
    }
    # of several CUDA devices the package knows the current one only
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        value = float(
            calculate(input1=_Images(samples.cpu()), input2=_Images(reference.cpu()), **settings)[
                "frechet_inception_distance"
            ]
        )
    if not math.isfinite(value):
        raise FloatingPointError(
            f"torch-fidelity gave {value} for {len(samples)} and {len(reference)} images: too "
            f"few, or all alike"
        )
    return Fid(
        value,
        len(samples),
        len(reference),
        tuple(samples.shape[1:]),
        EXTRACTOR,
        f"torch-fidelity {_version()}",
        INCEPTION.sha256,
    )


def _torch_fidelity() -> Callable[..., dict[str, float]]:
    try:
        from torch_fidelity import calculate_metrics  # here, because only this figure needs it
    # a torchvision of another torch fails at import with either of the latter
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(
            f"FID needs torch-fidelity, which does not import here ({error}): pip install -e "
            f"'.[fid]', with the release of torchvision "
            f"that fits torch {torch.__version__}; band_distance needs neither, but is another "
            f"quantity"
        ) from error
    return calculate_metrics


def _version() -> str:
    try:
        return metadata.version("torch-fidelity")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def inception_weights(path: Path | str | None = None) -> Path:
    """The weights' file after a check of its sha256: `path`, else the one in torch hub's folder,
    which is fetched if it is not there.

    The check comes before anything reads it: torch-fidelity unpickles the file, and a pickle can
        run code.
    """
    final = (
        Path(torch.hub.get_dir(), "checkpoints", INCEPTION.name)
        if path is None
        else Path(path).expanduser()
    )
    if not final.is_file():
        if path is not None:
            raise FileNotFoundError(
                f"{final} is not there: fetch {INCEPTION.url} to it, or leave `weights` out"
            )
        fetch(INCEPTION, final)
    wrong = INCEPTION.wrong(final)
    if wrong:
        raise ValueError(f"{final} {wrong}: delete it and fetch {INCEPTION.url}")
    return final


# A stand-in that needs nothing


# variance that rounding to 8 bits gives a pixel, and with it every orthonormal coefficient
ROUNDING = 1 / 255**2 / 12
LEVELS = 3


@dataclass(frozen=True)
class BandDistance:
    """A band distance with its errors, in squared standard deviations of the reference's features.

    Attributes:
        se: bootstrap standard error from the choice of both sets' images; near the floor it says up
            to twice too much, since resampling adds there to a distance that is all chance.
        floor: mean value between random halves of the reference, what a perfect sampler would score
            if both sets had half as many images.
        samples, reference: numbers of images.
        features: their number.
    """

    value: float
    se: float
    floor: float
    samples: int
    reference: int
    image_shape: tuple[int, ...]
    features: int
    draws: int
    splits: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"image_shape": list(self.image_shape)}

    def __str__(self) -> str:
        return (
            f"band distance {self.value:.3f} ± {self.se:.3f} ({self.samples} samples, "
            f"{self.reference} reference images); between halves of the "
            f"reference {self.floor:.3f}"
        )


def band_features(images: Tensor) -> tuple[np.ndarray, tuple[str, ...]]:
    """Simple features of uint8 images (N, 1 or 3, H, W), float64 (N, F), and their names; F is 51
    for 3x32x32.

    Of every channel mean and log variance of brightness (in 0..1), and log energy of each Haar band
    (p, q, r) on up to three levels, 1 the finest; of every level how peaked its coefficients are,
    log of mean square over squared mean magnitude; of every level and of what is left below them
    the correlations between channels, by their inverse hyperbolic tangent; and how brightness
    differs between upper and lower, left and right, and diagonal quarters.
    """
    _check_images(images, "images", (1, 3), 1)
    channels, height, width = images.shape[1:]
    levels = min(LEVELS, _halvings(height), _halvings(width))
    if levels < 1:
        raise ValueError(
            f"band features need even sides of at least 4 pixels, got {height}x{width}: crop or "
            f"pad the images"
        )
    x = images.cpu().double() / 255
    named: dict[str, Tensor] = {}
    for k in range(channels):
        named[f"mean {k}"] = x[:, k].mean(dim=(1, 2))
        named[f"log variance {k}"] = torch.log(x[:, k].var(dim=(1, 2), correction=0) + ROUNDING)
    gray = x.mean(dim=1)
    top, bottom = gray[:, : height // 2], gray[:, height // 2 :]
    a, b, c, d = (
        half[..., place].mean(dim=(1, 2))
        for half in (top, bottom)
        for place in (slice(width // 2), slice(width // 2, None))
    )
    named |= {"layout p": a + b - c - d, "layout q": a - b + c - d, "layout r": a - b - c + d}
    low = x
    for level in range(1, levels + 1):
        bands = haar_step(low)
        details = torch.stack(bands[1:], dim=2)  # (N, C, 3, h, w)
        energy = details.square().mean(dim=(3, 4))
        for k, band in itertools.product(range(channels), range(3)):
            named[f"log energy {level} {'pqr'[band]} {k}"] = torch.log(
                energy[:, k, band] + ROUNDING
            )
        magnitude = details.abs().mean(dim=(1, 2, 3, 4))
        named[f"peakedness {level}"] = torch.log(
            (energy.mean(dim=(1, 2)) + ROUNDING) / (magnitude.square() + ROUNDING)
        )
        named |= _correlations(details.flatten(2), f"{level}")
        low = bands.s
    base = low.flatten(2)
    named |= _correlations(base - base.mean(dim=2, keepdim=True), "base")
    return torch.stack(list(named.values()), dim=1).numpy(), tuple(named)


def _halvings(side: int) -> int:
    """How often a side can be halved with at least 2 pixels left."""
    return 0 if side % 2 or side < 4 else 1 + _halvings(side // 2)


def _correlations(values: Tensor, name: str) -> dict[str, Tensor]:
    """Correlation over positions of each pair of channels of (N, C, K), without taking off a mean;
    zero where there is only rounding, which also keeps it below 1. Given as inverse hyperbolic
    tangent, whose spread does not vanish near 1, where photographs lie."""
    energy = values.square().mean(dim=2) + ROUNDING
    return {
        f"correlation {name} {c}{d}": torch.atanh(
            (values[:, c] * values[:, d]).mean(dim=1) / (energy[:, c] * energy[:, d]).sqrt()
        )
        for c, d in itertools.combinations(range(values.shape[1]), 2)
    }


def band_distance(
    samples: Tensor, reference: Tensor, *, draws: int = 100, splits: int = 10, seed: int = 0
) -> BandDistance:
    """Frechet distance between `band_features` of samples and of a reference, uint8 (N, 1 or 3, H,
    W) each, standardised by the reference.

    It is not the distance that papers state and cannot be set beside it. Its features are blind to
    shapes and objects: textures of the right colours, contrasts and edges pass for photographs. It
    sees blur, noise, and wrong colours and contrasts. As every such distance it falls with the
    number of images: compare models at equal numbers, and with `floor`.

    Args:
        draws: of the bootstrap for `se`.
        splits: random halvings of the reference for `floor`.

    Raises:
        ValueError: for other images, fewer than 2 samples or 4 reference images, sides that cannot
            be halved, and settings below 2 and 1.
    """
    _check_images(samples, "samples", (1, 3), 2)
    _check_images(reference, "reference", (1, 3), 4)
    _check_sizes(samples, reference)
    if draws < 2 or splits < 1:
        raise ValueError(f"need at least 2 draws and 1 split, got {draws} and {splits}")
    ours, (theirs, names) = band_features(samples)[0], band_features(reference)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        # features are logarithms, correlations and brightness, all of the order of 1: what hardly
        # varies shall not count by its rounding
        centre, spread = b.mean(axis=0), b.std(axis=0, ddof=1).clip(min=1e-3)
        return frechet_distance(
            *_gaussian((a - centre) / spread), *_gaussian((b - centre) / spread)
        )

    rng = np.random.default_rng(seed)
    resampled = [
        distance(*(f[rng.integers(len(f), size=len(f))] for f in (ours, theirs)))
        for _ in range(draws)
    ]
    half = len(theirs) // 2
    orders = [rng.permutation(len(theirs)) for _ in range(splits)]
    floor = float(np.mean([distance(theirs[o[:half]], theirs[o[half : 2 * half]]) for o in orders]))
    return BandDistance(
        distance(ours, theirs),
        float(np.std(resampled, ddof=1)),
        floor,
        len(samples),
        len(reference),
        tuple(samples.shape[1:]),
        len(names),
        draws,
        splits,
        seed,
    )
