"""Sample quality: the Frechet distance against closed forms, FID's way through torch-fidelity and
out of it, and what the band distance sees."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from pcdm_lib import data
from pcdm_lib.experiments import quality
from pcdm_lib.experiments.quality import (
    band_distance,
    band_features,
    fid,
    frechet_distance,
    inception_weights,
)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """283 real patches, held-out photographs."""
    return data.load_data("photos").heldout


def covariance(size: int, seed: int, rank: int | None = None) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(size, rank or size))
    return factor @ factor.T / size


# The Frechet distance


def test_diagonal_gaussians() -> None:
    """Closed form: the means' squared distance, and of the standard deviations the squared
    difference."""
    mean1, mean2, sd1, sd2 = (
        np.array([1.0, 2, 0]),
        np.array([0.0, 2, 2]),
        np.array([1.0, 2, 3]),
        np.array([2.0, 2, 0.5]),
    )
    assert frechet_distance(mean1, np.diag(sd1**2), mean2, np.diag(sd2**2)) == pytest.approx(
        5 + 1 + 0 + 6.25, rel=1e-12
    )
    assert frechet_distance(
        np.zeros(1), np.array([[4.0]]), np.ones(1), np.array([[9.0]])
    ) == pytest.approx(2)


def test_equal_gaussians_have_no_distance() -> None:
    for matrix in (covariance(40, 0), covariance(40, 0, rank=3), np.zeros((40, 40))):
        assert frechet_distance(np.ones(40), matrix, np.ones(40), matrix) < 1e-11


@pytest.mark.parametrize("ranks", [(20, 20), (20, 4), (3, 4)])
def test_symmetric_and_scales(ranks: tuple[int, int]) -> None:
    """The order does not matter; a factor c on all features is c^2 on the distance; a rotation does
    nothing."""
    (mean1, mean2), (c1, c2) = (
        np.random.default_rng(0).normal(size=(2, 20)),
        (covariance(20, k, rank) for k, rank in enumerate(ranks)),
    )
    found = frechet_distance(mean1, c1, mean2, c2)
    assert frechet_distance(mean2, c2, mean1, c1) == pytest.approx(found, rel=1e-10)
    assert frechet_distance(3 * mean1, 9 * c1, 3 * mean2, 9 * c2) == pytest.approx(
        9 * found, rel=1e-10
    )
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0]
    assert frechet_distance(
        turn @ mean1, turn @ c1 @ turn.T, turn @ mean2, turn @ c2 @ turn.T
    ) == pytest.approx(found, rel=1e-9)


def test_against_the_matrix_root() -> None:
    """The definition with scipy's root of C1 C2, where that is stable."""
    c1, c2 = covariance(12, 0) + np.eye(12), covariance(12, 1) + np.eye(12)
    wanted = np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(np.zeros(12), c1, np.zeros(12), c2) == pytest.approx(wanted, rel=1e-10)


def test_orthogonal_singular_gaussians() -> None:
    """Supports that meet in a point only: the root of C1 C2 is zero, and the distance the sum of
    both traces."""
    c1, c2 = np.zeros((6, 6)), np.zeros((6, 6))
    c1[:3, :3], c2[3:, 3:] = covariance(3, 0), covariance(3, 1)
    assert frechet_distance(np.zeros(6), c1, np.zeros(6), c2) == pytest.approx(
        np.trace(c1) + np.trace(c2), rel=1e-12
    )


def test_errors_of_the_frechet_distance() -> None:
    mean, good = np.zeros(2), np.eye(2)
    for match, arguments in (
        (r"expected \(F,\), \(F,\), \(F, F\)", (mean, np.eye(3), mean, good)),
        (r"means \(2,\) and \(3,\)", (mean, good, np.zeros(3), good)),
        ("NaN or an infinity", (mean, good, mean * math.nan, good)),
        ("not symmetric", (mean, np.array([[1.0, 1], [0, 1]]), mean, good)),
        ("the eigenvalue -1", (mean, np.diag([1.0, -1]), mean, good)),
    ):
        with pytest.raises(ValueError, match=match):
            frechet_distance(*arguments)


# FID


def noise(n: int, seed: int = 0, shape: tuple[int, ...] = (3, 8, 8)) -> Tensor:
    return torch.randint(
        256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that passes for the weights, where torch hub keeps it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / quality.INCEPTION.name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    fake = dataclasses.replace(
        quality.INCEPTION, sha256=hashlib.sha256(b"weights").hexdigest(), bytes=len(b"weights")
    )
    monkeypatch.setattr(quality, "INCEPTION", fake)
    return path


def at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The weights are published there."""
    monkeypatch.setattr(quality, "INCEPTION", dataclasses.replace(quality.INCEPTION, url=url))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """A stand-in for torch-fidelity whose figure is the difference of the sets' mean brightness;
    the list holds what it was called with."""
    calls = []

    def calculate_metrics(**settings: object) -> dict[str, float]:
        calls.append(settings)
        one, two = (
            torch.stack([settings[k][i] for i in range(len(settings[k]))])
            for k in ("input1", "input2")
        )
        assert one.dtype == two.dtype == torch.uint8 and one.ndim == 4
        return {"frechet_inception_distance": float(one.double().mean() - two.double().mean())}

    module = types.ModuleType("torch_fidelity")
    module.calculate_metrics = calculate_metrics
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    return calls


def test_tensors_reach_the_package(package: list[dict], weights: Path) -> None:
    """The images arrive as they are, in the package's kind of dataset, the samples first; the
    figure comes back with what it depends on."""
    samples, reference = noise(5) // 2 + 128, noise(7, 1) // 2
    found = fid(samples, reference, batch_size=3)
    assert found.value == pytest.approx(float(samples.double().mean() - reference.double().mean()))
    (call,) = package
    assert (
        isinstance(call["input1"], torch.utils.data.Dataset)
        and torch.equal(call["input1"][4], samples[4])
        and len(call["input2"]) == 7
    )
    assert (
        call["fid"] is True
        and call["feature_extractor"] == "inception-v3-compat"
        and call["feature_extractor_weights_path"] == str(weights)
    )
    assert call["cuda"] is False and call["cache"] is False and call["batch_size"] == 3
    told = json.loads(json.dumps(found.to_dict()))
    assert (told["samples"], told["reference"], told["image_shape"]) == (5, 7, [3, 8, 8]) and told[
        "package"
    ].startswith("torch-fidelity")
    assert told["weights_sha256"] == quality.INCEPTION.sha256


def test_a_figure_that_is_none_is_refused(
    package: list[dict], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["torch_fidelity"],
        "calculate_metrics",
        lambda **_: {"frechet_inception_distance": math.nan},
    )
    with pytest.raises(FloatingPointError, match="nan for 2 and 3 images"):
        fid(noise(2), noise(3))


@pytest.mark.parametrize("broken", [None, "runtime"])
def test_a_missing_or_broken_package_is_explained(
    broken: str | None, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not installed, or beside a torchvision of another torch: one ImportError that says what to
    install."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    if broken:
        monkeypatch.delitem(sys.modules, "torch_fidelity")
        (tmp_path / "torch_fidelity.py").write_text(
            "raise RuntimeError('operator torchvision::nms does not exist')"
        )
        monkeypatch.syspath_prepend(tmp_path)
    why = "nms does not exist.*" if broken else ""
    with pytest.raises(
        ImportError,
        match=rf"FID needs torch-fidelity.*{why}pip install -e '\.\[fid\]'.*torchvision",
    ):
        fid(noise(2), noise(2))


def test_weights_that_cannot_be_had(
    package: list[dict], weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No file and no network: one ConnectionError that says where the file goes, and nothing left
    on the disk."""
    weights.unlink()
    at(monkeypatch, "http://127.0.0.1:9/" + weights.name)
    with pytest.raises(
        ConnectionError,
        match=f"fetch http://127.0.0.1:9/{weights.name} by hand and put it, as .*, into "
        f"{weights.parent}",
    ):
        fid(noise(2), noise(2))
    other = tmp_path / "other"
    other.write_bytes(b"nothing")
    at(monkeypatch, f"file://{tmp_path}/{weights.name}")
    (tmp_path / weights.name).write_bytes(b"a page that says no")
    with pytest.raises(ConnectionError, match="has 19 bytes, expected 7"):
        fid(noise(2), noise(2))
    (tmp_path / weights.name).write_bytes(b"forgery")
    with pytest.raises(ConnectionError, match="has sha256 .*, expected"):
        fid(noise(2), noise(2))
    assert list(weights.parent.iterdir()) == [] and package == []
    with pytest.raises(FileNotFoundError, match="nowhere is not there: fetch"):
        fid(noise(2), noise(2), weights=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="other has sha256 .*, expected .*: delete it"):
        inception_weights(other)


def test_weights_are_fetched_once(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    weights.unlink()
    at(monkeypatch, f"file://{tmp_path}/{weights.name}")
    assert (
        inception_weights() == weights
        and weights.read_bytes() == b"weights"
        and len(list(weights.parent.iterdir())) == 1
    )
    (tmp_path / weights.name).unlink()
    assert inception_weights() == weights


def test_errors_of_fid(package: list[dict], weights: Path) -> None:
    good = noise(3)
    for match, arguments in (
        (
            r"samples: expected at least 2 images as uint8 \(N, 3, H, W\), got torch.float32",
            (good.float(), good),
        ),
        (r"reference: .* got torch.uint8 \(1, 3, 8, 8\)", (good, good[:1])),
        (r"samples: .* \(3, 1, 8, 8\)", (good[:, :1], good)),
        (r"samples: .* got ndarray", (good.numpy(), good)),
        (r"\(3, 8, 8\) and reference \(3, 8, 6\) differ in shape", (good, good[..., :6])),
        ("device 'nonsense' cannot be used", (good, good, "nonsense")),
        ("runs on cpu and cuda", (good, good, "meta")),
    ):
        with pytest.raises(ValueError, match=match):
            fid(*arguments)
    assert package == []


# The band distance


def blurred(x: Tensor) -> Tensor:
    return (
        torch.nn.functional.avg_pool2d(x.float(), 3, 1, 1, count_include_pad=False)
        .round()
        .to(torch.uint8)
    )


def grainy(x: Tensor, sigma: float) -> Tensor:
    return (
        (x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )


def tinted(x: Tensor, by: int) -> Tensor:
    return (x.int() + torch.tensor([by, 0, -by])[:, None, None]).clamp(0, 255).to(torch.uint8)


def test_the_same_set_has_no_distance(photos: Tensor) -> None:
    found = band_distance(photos[:100], photos[:100], draws=5)
    assert 0 <= found.value < 1e-9 and (found.samples, found.reference, found.features) == (
        100,
        100,
        51,
    )


def test_other_photographs_are_near_the_floor(photos: Tensor) -> None:
    """Samples of the same kind score at most what halves of the reference do, up to the error."""
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0))
    found = band_distance(photos[order[:94]], photos[order[94:]], draws=20)
    print(found)
    assert (
        0.25 * found.floor < found.value < found.floor + 3 * found.se and 0 < found.se < found.floor
    )


def test_it_grows_with_every_damage(photos: Tensor) -> None:
    """More noise, blur, and tint are further away, each beyond the floor and by two standard
    errors."""
    samples, reference = photos[0::2], photos[1::2]
    plain = band_distance(samples, reference, draws=20)
    soft = blurred(samples)
    for damage in (
        [grainy(samples, s) for s in (4, 10, 30)],
        [soft, blurred(soft)],
        [tinted(samples, by) for by in (25, 60)],
    ):
        before = plain
        for images in damage:
            found = band_distance(images, reference, draws=20)
            print(found)
            assert found.value > max(before.value, found.floor) + 2 * found.se
            before = found


def test_a_model_that_sees_no_photographs_is_far(photos: Tensor) -> None:
    values = [
        band_distance(x, photos, draws=2, splits=1).value
        for x in (noise(50, 0, (3, 32, 32)), torch.zeros(50, 3, 32, 32, dtype=torch.uint8))
    ]
    assert min(values) > 300


def test_standard_error_is_the_spread(photos: Tensor) -> None:
    """Law: over 24 disjoint pairs of sets of 60 damaged and 60 plain images the spread of the value
    is the reported error (factor 1.6), where the distance is well above the floor; nearer to it the
    bootstrap says more, twice as much for equal kinds, never less."""
    plain = data.load_data("photos").train
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))[
        : 24 * 120
    ].reshape(24, 2, 60)
    for damage, low, high in ((blurred, 1 / 1.6, 1.6), (lambda x: x, 1 / 1.6, 3.0)):
        runs = [band_distance(damage(plain[a]), plain[b], draws=12, splits=1) for a, b in order]
        ratio = math.sqrt(np.mean([r.se**2 for r in runs])) / np.std(
            [r.value for r in runs], ddof=1
        )
        print(ratio, np.mean([r.value for r in runs]))
        assert low < ratio < high


def test_deterministic(photos: Tensor) -> None:
    state = np.random.get_state()[1].copy()
    first = band_distance(photos[:40], photos[40:90], draws=5, seed=1)
    assert band_distance(photos[:40], photos[40:90], draws=5, seed=1) == first
    other = band_distance(photos[:40], photos[40:90], draws=5, seed=2)
    assert other.value == first.value and other.se != first.se
    assert np.array_equal(np.random.get_state()[1], state) and json.loads(
        json.dumps(first.to_dict())
    )["image_shape"] == [3, 32, 32]
    assert "band distance" in str(first) and "40 samples, 50 reference" in str(first)


def test_features_by_hand() -> None:
    """One gray 4x4 image, black above white: the names, the mean, the variance, the layout, and no
    detail at the finest level."""
    image = torch.tensor([[0] * 4, [0] * 4, [255] * 4, [255] * 4], dtype=torch.uint8)[None, None]
    values, names = band_features(image)
    found = dict(zip(names, values[0]))
    assert (
        values.shape == (1, len(names))
        and list(found)[:2] == ["mean 0", "log variance 0"]
        and not any("correlation" in name for name in names)
    )
    assert found["mean 0"] == 0.5 and found["log variance 0"] == pytest.approx(
        math.log(0.25 + quality.ROUNDING)
    )
    assert (found["layout p"], found["layout q"], found["layout r"]) == (-2, 0, 0)
    for band in "pqr":
        assert found[f"log energy 1 {band} 0"] == pytest.approx(math.log(quality.ROUNDING))
    checkers = torch.tensor([[0, 255] * 4, [255, 0] * 4] * 4, dtype=torch.uint8)[None, None]
    values, names = band_features(checkers)
    found = dict(zip(names, values[0]))
    assert found["log energy 1 r 0"] == pytest.approx(math.log(1 + quality.ROUNDING))
    assert (
        found["log energy 1 p 0"]
        == found["log energy 2 r 0"]
        == pytest.approx(math.log(quality.ROUNDING))
    )


def test_features_of_any_size_are_finite() -> None:
    for shape in ((3, 4, 4), (1, 12, 20), (3, 64, 32)):
        for images in (
            noise(2, 0, shape),
            torch.zeros(2, *shape, dtype=torch.uint8),
            torch.full((2, *shape), 255, dtype=torch.uint8),
        ):
            values, names = band_features(images)
            assert (
                np.isfinite(values).all()
                and values.shape == (2, len(names))
                and len(set(names)) == len(names)
            )


def test_errors_of_the_band_distance() -> None:
    good = noise(5)
    for match, call in (
        ("reference: expected at least 4 images", lambda: band_distance(good, good[:3])),
        ("samples: expected at least 2", lambda: band_distance(good[:1], good)),
        ("differ in shape", lambda: band_distance(good, good[:, :1])),
        ("got torch.int32", lambda: band_distance(good.int(), good)),
        ("even sides of at least 4 pixels, got 7x8", lambda: band_features(good[..., :7, :])),
        ("at least 2 draws and 1 split, got 1 and 10", lambda: band_distance(good, good, draws=1)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
