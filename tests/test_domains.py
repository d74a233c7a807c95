"""Spectrograms and tissue: the laws that hold for photographs hold here, and the noise
spectrogram's entropy is a floor for every bound."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chi2_contingency
from skimage.data import immunohistochemistry

from pcdm_lib import data
from pcdm_lib.__main__ import main
from pcdm_lib.data import domains
from pcdm_lib.experiments.studies import accounting, conditioning
from pcdm_lib.likelihood import evaluate
from pcdm_lib.maps import HaarWavelet, Identity, LaplacianPyramid, Subsampling
from pcdm_lib.maps.lattice import allowed, check_member
from pcdm_lib.models import checkpoints, presets
from pcdm_lib.training import Trainer

LEAST_P = 1e-4  # of a chi-square test; the seeds are fixed, so a test that passes keeps passing


@pytest.fixture(scope="module")
def slide() -> data.ImageData:
    return data.load_data("histology")


@pytest.fixture(scope="module")
def images(slide) -> dict[str, torch.Tensor]:
    """A few images of each source, and the hardest for a range limit: all black but one pixel."""
    spike = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    spike[..., 5, 7] = 255
    sound, noise = (
        torch.from_numpy(v)
        for v in (domains.spectrograms(24, 32, 3), domains.noise_spectrograms(8, 32, 3).images)
    )
    return {"sound": torch.cat([sound, spike]), "noise": noise, "tissue": slide.heldout[:12]}


@pytest.fixture(scope="module")
def noise() -> domains.NoiseSpectrograms:
    return domains.noise_spectrograms(400, 32, 0)


MAPS = [m(levels) for m in (HaarWavelet, LaplacianPyramid, Subsampling) for levels in range(6)] + [
    Identity()
]


# The map on these images


@pytest.mark.parametrize("hierarchy", MAPS, ids=repr)
def test_integers_there_and_back_and_every_one_a_candidate(images, hierarchy):
    """Every map at every level that fits 32x32; the truth is among the decoder's candidates, and a
    neighbour of it is not."""
    for x in images.values():
        pairs = hierarchy.decompose(x)
        assert torch.equal(hierarchy.synthesise_integers(hierarchy.analyse_integers(x)), x.int())
        for spec, (z, coarse) in zip(hierarchy.specs(tuple(x.shape[1:])), pairs):
            decoded = {}
            for band, truth in spec.split(z).items():
                candidates = allowed(spec, band, coarse, decoded, truth)
                check_member(truth, candidates, band)
                if spec.kind == "details":
                    with pytest.raises(ValueError, match="belong to no image"):
                        check_member(truth + 1, candidates, band)
                decoded[band] = truth


@pytest.mark.parametrize("hierarchy", [m for m in MAPS if m.volume_preserving], ids=repr)
def test_energy_is_kept(images, hierarchy):
    """|h(x)| = |x|, in the floats of the map and in the integers' orthonormal coordinates."""
    for x in images.values():
        y = 2 * x.double() / 255 - 1
        energy = y.square().flatten(1).sum(1)
        floats = sum(v.square().flatten(1).sum(1) for v in hierarchy.analyse(y))
        specs = hierarchy.specs(tuple(x.shape[1:]))
        integers = sum(
            s.to_float(z, torch.float64).square().flatten(1).sum(1)
            for s, z in zip(specs, hierarchy.analyse_integers(x))
        )
        torch.testing.assert_close(floats, energy, rtol=1e-12, atol=0)
        torch.testing.assert_close(integers, energy, rtol=1e-12, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_volume_of_the_floats(channels, levels):
    """log|det| of the wavelet is 0, and all singular values of the pyramid are 1; of the standard
    cascade they are not."""
    shape = (channels, 8, 8)
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    wavelet, pyramid, standard = (
        torch.cat([v.flatten(1) for v in m(levels).analyse(basis)], 1)
        for m in (HaarWavelet, LaplacianPyramid, Subsampling)
    )
    assert abs(float(torch.linalg.slogdet(wavelet).logabsdet)) < 1e-10
    torch.testing.assert_close(
        torch.linalg.svdvals(pyramid), torch.ones(len(basis), dtype=torch.float64)
    )
    gram = torch.linalg.slogdet(standard @ standard.T).logabsdet / 2
    assert float(gram) == pytest.approx(Subsampling(levels).log_volume(shape)) and float(gram) > 1


# Sound


def test_a_sine_stands_where_the_formula_says():
    """Amplitudes 1 and 0.1 at the centre of bin 9: white and 0 - 20 dB, in the ninth row from
    below."""
    time = np.arange(32 * 33)
    for amplitude, grey in ((1.0, 255), (0.1, round(255 * 50 / 70))):
        image = domains.spectrogram(amplitude * np.sin(2 * np.pi * 9 / 64 * time + 0.3)[None])[0, 0]
        assert (image[32 - 9] == grey).all() and image.argmax() // 32 == 32 - 9
        assert (image[: 32 - 12] == 0).all()  # a Hann window's leakage is gone three bins away


def test_spectrogram_against_frames_cut_by_hand():
    sound = domains.synthesise(1, 32 * 33, 5)[0]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    frames = np.stack([sound[k : k + 64] * window for k in range(0, 32 * 32, 32)])
    level = (
        20
        * np.log10(np.maximum(2 * np.abs(np.fft.rfft(frames)) / window.sum(), 1e-15))[:, 1:].T[::-1]
    )
    expected = np.clip(255 * (level + 70) / 70, 0, 255)
    found = domains.spectrogram(sound[None])[0, 0]
    assert np.abs(found - expected).max() < 0.501 and found.std() > 20


def test_sounds_follow_from_their_seed():
    a, b, other = (
        domains.spectrograms(6, 16, 1),
        domains.spectrograms(4, 16, 1),
        domains.spectrograms(6, 16, 2),
    )
    assert a.shape == (6, 1, 16, 16) and a.dtype == np.uint8
    assert np.array_equal(a[:4], b)  # the k-th sound does not depend on how many are made
    assert len(np.unique(np.concatenate([a, other]).reshape(12, -1), axis=0)) == 12
    state = np.random.get_state()[1].copy()
    domains.noise_spectrograms(2, 16, 0)
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("kind", domains.KINDS)
def test_events_are_heard(kind):
    """Finite, not silent, at most about 1, whatever is left of the sound."""
    generator = np.random.default_rng(0)
    for length in (1, 40, 1056):
        event = domains.EVENTS[kind](length, 1056, generator)
        assert event.shape == (length,) and np.isfinite(event).all()
        assert np.abs(event).max() < (5 if kind == "noise burst" else 1.01)
    assert np.abs(event).max() > 0.05


# Noise of known entropy


def test_histogram_is_that_of_the_law(noise):
    counts, expected = (
        np.bincount(noise.images.ravel(), minlength=256),
        noise.pmf * noise.images.size,
    )
    assert noise.pmf.sum() == pytest.approx(1, abs=1e-12) and (noise.pmf >= 0).all()

    def p_value(expected: np.ndarray) -> float:
        likely = expected >= 5
        found, wanted = (np.append(v[likely], v[~likely].sum()) for v in (counts, expected))
        return float(chi2.sf(((found - wanted) ** 2 / wanted).sum(), len(found) - 1))

    assert LEAST_P < p_value(expected) < 1 - LEAST_P
    # a tenth of a dB would be seen
    assert (
        p_value(domains.noise_spectrograms(1, 8, 0, mean_db=-20.1).pmf * noise.images.size) < 1e-9
    )


def test_entropy_is_that_of_the_images(noise):
    bits = -np.log2(noise.pmf[noise.images])
    assert abs(bits.mean() - noise.entropy) < 4 * bits.std() / math.sqrt(bits.size)
    share = np.bincount(noise.images.ravel(), minlength=256) / bits.size
    held = share[share > 0]
    # Miller 1955: its bias, to first order
    plug_in = -(held * np.log2(held)).sum() + (len(held) - 1) / (2 * bits.size * math.log(2))
    assert abs(plug_in - noise.entropy) < 4 * bits.std() / math.sqrt(bits.size)
    # a logarithm of an exponential variable has the entropy 1 + Euler's constant in nats, a grey
    # level is a short piece of its axis
    assert noise.entropy == pytest.approx(
        (1 + np.euler_gamma + math.log(10 / math.log(10) * 255 / 70)) / math.log(2), abs=1e-3
    )


def test_details_depend_on_the_base_in_size_if_not_in_sign(noise):
    """Independent pixels, equal energy in every band, and still the coarse image says something of
    the details: the law is skewed, so where the sum is low they are large. Correlation of s with
        p^2: -0.35 (with p itself: none)."""
    base, details = HaarWavelet(1).analyse(torch.from_numpy(noise.images).double())
    s, p = base.flatten().numpy(), details[:, :1].flatten().numpy()
    assert abs(np.corrcoef(s, p)[0, 1]) < 4 / math.sqrt(len(s))
    assert np.corrcoef(s, p**2)[0, 1] == pytest.approx(-0.35, abs=0.02)


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1)], ids=["time", "frequency", "both"])
def test_neighbours_are_independent(noise, shift):
    """Quartiles of a bin against those of a neighbour; of Hann frames that overlap they depend on
    each other."""
    down, right = shift

    def p_value(images: np.ndarray) -> float:
        quartile = np.searchsorted(np.quantile(images, (0.25, 0.5, 0.75)), images)
        first, second = (
            quartile[..., : 32 - down, : 32 - right].ravel(),
            quartile[..., down:, right:].ravel(),
        )
        return float(chi2_contingency(np.histogram2d(first, second, bins=4)[0]).pvalue)

    assert p_value(noise.images) > LEAST_P
    hann = domains.spectrogram(np.random.default_rng(0).normal(scale=0.5, size=(400, 32 * 33)))
    if shift != (1, 1):
        assert p_value(hann) < 1e-9


@pytest.fixture(scope="module")
def trained(noise, tmp_path_factory) -> Trainer:
    config = presets.preset("tiny", "wavelet", (1, 32, 32)).override(
        {"inputs": "whitened", "flips": False, "warmup_steps": 5, "ema": 0.9}
    )
    trainer = Trainer(
        config, torch.from_numpy(noise.images), tmp_path_factory.mktemp("noise") / "run"
    )
    trainer.run(steps=30, progress=False)
    return trainer


@pytest.mark.parametrize("system", ["wavelet", "laplacian", "vdm"])
def test_no_bound_is_below_the_entropy(system, trained):
    """Image by image against what the true law would pay, so that the luck of the draw is on both
    sides."""
    fresh = domains.noise_spectrograms(32, 32, 99)
    paid = -np.log2(fresh.pmf[fresh.images]).mean(axis=(1, 2, 3))
    x, cascades = (
        torch.from_numpy(fresh.images),
        [presets.build(presets.preset("tiny", system, (1, 32, 32)).model)],
    )
    # not trained, but for the scale of its inputs
    for spec, (z, coarse) in zip(cascades[0].specs, cascades[0].decompose(x)):
        cascades[0].networks[spec.name].fit(z, coarse)
    if system == "wavelet":
        cascades.append(trained.cascade)
    for cascade in cascades:
        excess = evaluate(cascade, x, repeats=2, times_per_image=32).per_image - paid
        error = excess.std(ddof=1) / math.sqrt(len(excess))
        assert excess.mean() > 5 * error, (excess.mean(), error)
        assert excess.mean() < 3 and error < 0.05


def test_a_slip_of_the_accounting_falls_below_the_entropy(noise, trained):
    """So the test above would notice: the base scored on LL/2 is no likelihood here either."""
    found = accounting.recount(trained.cascade, torch.from_numpy(noise.images[:32]), seed=0)
    assert found["valid"].bpd > noise.entropy > found["LL/2"].bpd + 0.5


# What is shown to the networks


def test_only_what_is_shown_changes(trained, noise):
    """The base does not change, the decoder does not, shown is a black or the neighbour's image;
    the first cascade stays as it was."""
    x, cascade = torch.from_numpy(noise.images[:8]), trained.cascade
    settings = {"repeats": 2, "times_per_image": 2, "seed": 3}
    before = evaluate(cascade, x, **settings)
    for change in (conditioning.nothing, conditioning.another):
        changed = conditioning.shown(cascade, change)
        parts = evaluate(changed, x, **settings).parts
        assert np.array_equal(parts[:, :, 0], before.parts[:, :, 0])
        assert np.array_equal(parts[:, :, 1, [0, 2]], before.parts[:, :, 1, [0, 2]])
        assert not np.allclose(parts[:, :, 1, 1], before.parts[:, :, 1, 1], atol=1e-4)
        (_, _), (_, coarse) = cascade.decompose(x)
        spec = cascade.specs[1]
        expected = cascade.map.condition_image(
            spec,
            torch.zeros_like(coarse)
            if change is conditioning.nothing
            else coarse[[7, 0, 1, 2, 3, 4, 5, 6]],
        )
        assert torch.equal(changed.networks["details1"].map.condition_image(spec, coarse), expected)
    same = conditioning.shown(cascade, lambda coarse: coarse)
    assert np.array_equal(evaluate(same, x, **settings).parts, before.parts)
    assert np.array_equal(evaluate(cascade, x, **settings).parts, before.parts)
    with pytest.raises(ValueError, match="score two or more in a batch"):
        conditioning.another(coarse[:1])


def test_trained_without_the_coarser_image(noise, tmp_path):
    """A network that is shown nothing cannot tell one coarse image from another, also in its
    average; and its run is never loaded as another."""
    config = presets.preset("tiny", "wavelet", (1, 32, 32)).override({"inputs": "whitened"})
    trainer = conditioning.train_shown(
        Trainer(config, torch.from_numpy(noise.images), tmp_path / "r", scales=["details1"]),
        conditioning.nothing,
    )
    trainer.run(steps=2, progress=False)
    _, (z, coarse) = trainer.cascade.decompose(torch.from_numpy(noise.images[:4]))
    y, gamma = trainer.cascade.specs[1].to_float(z), torch.full((4,), -2.0)
    for module in (trainer.scales[0].module, trainer.scales[0].ema):
        network = module.network.eval()
        with torch.no_grad():
            # the same residues: the lattice and its phase are the same
            a, b = network(y, gamma, coarse), network(y, gamma, coarse + 16)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    trainer.save()
    base = Trainer(config, torch.from_numpy(noise.images), tmp_path / "base", scales=["base"])
    base.run(steps=1, progress=False)
    with pytest.raises(
        checkpoints.CheckpointMismatch,
        match="trained on 'nothing' in place of the coarser image: load them by "
        "conditioning.load_shown",
    ):
        checkpoints.load_cascade(tmp_path / "base", tmp_path / "r")
    with pytest.raises(checkpoints.CheckpointMismatch, match="load them by"):
        conditioning.load_shown(conditioning.another, tmp_path / "base", tmp_path / "r")
    loaded = conditioning.load_shown(conditioning.nothing, tmp_path / "base", tmp_path / "r")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.networks["details1"](y, gamma, coarse),
            trainer.scales[0].ema.network.eval()(y, gamma, coarse),
        )
    with pytest.raises(checkpoints.CheckpointMismatch, match="shown"):
        Trainer(
            config, torch.from_numpy(noise.images), tmp_path / "r", scales=["details1"], resume=True
        )


# The data sets


def test_tissue_is_split_with_a_gap(slide):
    """Every held-out patch lies in the lowest rows, every training patch above the gap, and no
    pixel is in both."""
    whole = immunohistochemistry()
    assert slide.train.shape == (54 * 81, 3, 32, 32) and slide.heldout.shape == (64, 3, 32, 32)
    marked = np.zeros((512, 512, 3), np.uint8)
    # a picture whose pixels say where they are
    marked[..., 0], marked[..., 1] = np.arange(512)[:, None] // 2, np.arange(512) // 2
    where = domains.load_histology(marked, 32, None)
    assert int(where.train[:, 0].max()) == 349 // 2 and int(where.heldout[:, 0].min()) == 384 // 2
    # which share no pixel
    assert len({(int(p[0, 0, 0]), int(p[1, 0, 0])) for p in where.heldout}) == 64
    first = {p.numpy().tobytes() for p in slide.heldout}
    assert first == {
        np.ascontiguousarray(whole[r : r + 32, c : c + 32].transpose(2, 0, 1)).tobytes()
        for r in range(384, 512, 32)
        for c in range(0, 512, 32)
    }
    assert not first & {p.numpy().tobytes() for p in slide.train}
    assert "same slide" in slide.label and "64 held-out" in slide.label
    assert "first 5 of 64" in data.load_data("histology", heldout_limit=5).label


def test_a_model_of_photographs_has_seen_the_slide(capsys):
    """`photos` trains on the same slide: scoring such a model on the slide says so."""
    options = ["--images", "2", "--repeats", "2", "--times", "1", "--quiet"]
    assert main(["evaluate", "photos32-wavelet", "--dataset", "histology", *options]) == 0
    assert "this model has seen the slide" in capsys.readouterr().err
    assert main(["evaluate", "photos32-wavelet", "--dataset", "photos", *options]) == 0
    assert "slide" not in capsys.readouterr().err


@pytest.mark.parametrize("size", [64, 128])
def test_tissue_of_other_sizes(size):
    found = data.load_data("histology", size=size)
    assert found.train.shape[1:] == found.heldout.shape[1:] == (3, size, size) and len(
        found.heldout
    ) == (512 // size) * (128 // size)


def test_grey_images_from_the_shell(tmp_path, capsys):
    """One channel through training, evaluation and sampling; train and held-out sounds differ."""
    found = data.load_data("spectrograms", size=16, heldout_limit=100)
    assert (
        found.train.shape == (2000, 1, 16, 16)
        and found.heldout.shape == (100, 1, 16, 16)
        and "first 100 of 256" in found.label
    )
    assert not {p.numpy().tobytes() for p in found.train} & {
        p.numpy().tobytes() for p in found.heldout
    }
    json.dumps(found.source)
    options = ["--dataset", "spectrograms", "--size", "16"]
    assert (
        main(
            ["train", str(tmp_path / "r"), "--preset", "tiny", *options, "--steps", "2", "--quiet"]
        )
        == 0
    )
    assert capsys.readouterr().out.startswith("data: spectrograms16: synthesised sounds")
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "r"),
                *options,
                "--images",
                "4",
                "--repeats",
                "2",
                "--quiet",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "sample",
                str(tmp_path / "r"),
                "--out",
                str(tmp_path / "s"),
                "--count",
                "1",
                "--steps",
                "2",
                "--quiet",
            ]
        )
        == 0
    )
    assert len(list((tmp_path / "s").glob("*.png"))) == 2


def test_every_value_by_itself():
    """Frequencies of the training images, colour by colour: by hand for two colours, and a code at
    all for every value."""
    train = np.zeros((1, 2, 2, 2), np.uint8)
    train[0, 1] = [[7, 7], [7, 9]]
    heldout = np.array([[[[0]], [[9]]], [[[5]], [[7]]]], np.uint8)
    expected = [-math.log2(5 / 260 * 2 / 260) / 2, -math.log2(1 / 260 * 4 / 260) / 2]
    np.testing.assert_allclose(domains.histogram_bits(train, heldout), expected)
    every = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    assert np.exp2(-domains.histogram_bits(train[:, :1], every)).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="with the same colours, got uint8"):
        domains.histogram_bits(train, every)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: data.load_data("spectrograms", size=4),
            "size=4: spectrograms come in whole sides from 8 to 128 pixels",
        ),
        (lambda: data.load_data("spectrograms", size=200), "size=200: spectrograms come"),
        (lambda: data.load_data("spectrograms", size=0), "size=0: expected a positive integer"),
        (
            lambda: data.load_data("histology", size=129),
            "histology gives patches of at most 128 pixels, got size=129",
        ),
        (
            lambda: data.load_data("histologies"),
            "unknown dataset 'histologies': expected one of .*spectrograms, histology",
        ),
        (
            lambda: domains.spectrograms(0, 32, 0),
            "n=0, samples=1056, seed=0: expected at least 1 sound",
        ),
        (lambda: domains.spectrograms(1, 32, -1), "seed=-1"),
        (lambda: domains.spectrograms(1, 32.0, 0), "size=32.0: spectrograms come in whole sides"),
        (lambda: domains.spectrograms(1, True, 0), "size=True"),
        (lambda: domains.synthesise(1, 10, 0), "samples=10"),
        (
            lambda: domains.spectrogram(np.zeros((1, 1000))),
            r"sounds of shape \(1, 1000\): expected",
        ),
        (lambda: domains.spectrogram(np.full((1, 1056), np.nan)), "not finite real numbers"),
        (lambda: domains.spectrogram(np.zeros((1, 1056), complex)), "not finite real numbers"),
        (lambda: domains.noise_spectrograms(0, 32, 0), "n=0"),
        (lambda: domains.noise_spectrograms(1.5, 32, 0), "n=1.5"),
        (lambda: domains.noise_spectrograms(1, 32, 0.5), "seed=0.5"),
        (lambda: domains.noise_spectrograms(1, 7, 0), "size=7"),
        (
            lambda: domains.noise_spectrograms(1, 32, 0, mean_db=3.0),
            "mean_db=3.0: expected whole n >= 1 and seed >= 0, and a mean from -70 to 0 dB",
        ),
        (
            lambda: domains.load_histology(np.zeros((5, 5, 3), np.uint8), 4, None),
            r"the slide has the shape \(5, 5, 3\)",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
