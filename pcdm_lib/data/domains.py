"""Images that are no photographs: spectrograms of synthesised sound, spectrograms of noise whose
entropy is known, a stained tissue section.

A spectrogram here is the log-magnitude of a short-time Fourier transform as an 8-bit grey image,
lowest frequency in the last row, time to the right. With X the transform, scaled so that a sine of
amplitude A at the centre of a bin has |X| = A/2 (SciPy's "spectrum"),

    level = 20 log10(2 |X|)                                 in dB, 0 for a sine of amplitude 1
    grey  = clip(round(255 (level - LOW_DB) / (HIGH_DB - LOW_DB)), 0, 255)

Images of n x n pixels come from `2 n` samples a frame, so a row is SAMPLE_RATE / (2 n) wide: 125 Hz
at n = 32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy  # scipy.signal is imported at its first use: it takes half as long as torch

from pcdm_lib.data.images import ImageData, count, grid, image_data, spread

NAMES = ("spectrograms", "histology")
# sides of spectrograms: shorter frames hold no harmonics, and a set of longer sounds takes minutes
# to make
SIZES = (8, 128)

SAMPLE_RATE = 8000  # Hz
LOW_DB, HIGH_DB = -70.0, 0.0  # black and white; what lies beyond is clipped
KINDS = ("plucked string", "harmonic tone", "chirp", "noise burst")
TRAIN_SOUNDS, HELDOUT_SOUNDS = 2000, 256

# The tissue section of scikit-image, whole; sha256 of the file. `skimage.data.immunohistochemistry`
# says: colonic glands, FHL2 protein stained with DAB (brown), haematoxylin counterstain (blue);
# Center for Microscopy and Molecular Imaging (CMMI); no known copyright restrictions.
SLIDE, SLIDE_SHA256 = "ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"
# pixels; the lowest rows are held out, and the gap above them is used for nothing
SLIDE_SIDE, HELDOUT_ROWS, GAP = 512, 128, 32


# Sound


def synthesise(n: int, samples: int, seed: int) -> np.ndarray:
    """n sounds (n, samples) float64, each of one to three events of KINDS over a floor of white
    noise; amplitudes mostly below 1, seldom up to 2.

    Pitch (250 to 1000 Hz), onset, decay, level (0 to -24 dB) and floor (-90 to -50 dB in a bin) are
    drawn for each. The k-th sound depends on `seed`, k and `samples` alone.

    Raises:
        ValueError: for n < 1, samples < 64 or a negative seed.
    """
    _check_sounds(n, samples, seed)
    return np.stack([_sound(samples, np.random.default_rng([seed, k])) for k in range(n)])


def _check_sounds(n: int, samples: int, seed: int) -> None:
    if not _whole(n, 1) or not _whole(samples, 64) or not _whole(seed, 0):
        raise ValueError(
            f"n={n}, samples={samples}, seed={seed}: expected at least 1 sound of 64 samples and "
            f"a seed of at least 0, whole numbers"
        )


def _whole(value: object, least: int) -> bool:
    return (
        isinstance(value, (int, np.integer))
        and not isinstance(value, bool)
        and bool(value >= least)
    )


def _sound(samples: int, generator: np.random.Generator) -> np.ndarray:
    # that of the spectrogram that as many samples fill: the floor's level in a bin depends on it
    frame = 2 * math.isqrt(samples)
    floor_db = generator.uniform(-90, -50)
    sound = generator.normal(size=samples) * math.sqrt(10 ** (floor_db / 10) * frame / 6)
    for _ in range(generator.integers(1, 4)):
        start, level = (
            int(generator.integers(0, 3 * samples // 4)),
            10 ** (-generator.uniform(0, 24) / 20),
        )
        event = EVENTS[KINDS[generator.integers(len(KINDS))]](samples - start, samples, generator)
        sound[start:] += level * event
    return sound


def _decay(length: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """An exponential decay whose time constant is 0.03 to 1 times the whole sound."""
    return np.exp(-np.arange(length) / (samples * 10 ** generator.uniform(-1.5, 0)))


def plucked_string(length: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """A delay line filled with noise, whose neighbours are averaged each time round (Karplus and
    Strong 1983): high harmonics die first."""
    period = int(generator.integers(8, 33))  # half a sample more is the loop: 941 to 246 Hz
    excitation = np.zeros(length)
    filled = min(period, length)
    excitation[:filled] = generator.uniform(-1, 1, filled)
    # a string has no frequency 0, which here would hardly die
    excitation[:filled] -= excitation[:filled].mean()
    feedback = np.zeros(period + 2)
    feedback[0], feedback[period], feedback[period + 1] = 1, -0.498, -0.498
    return scipy.signal.lfilter([1.0], feedback, excitation)


def harmonic_tone(length: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """A fundamental and its overtones below half the sample rate, the k-th of amplitude k^-rolloff,
    with one decay."""
    pitch, rolloff = 250 * 4 ** generator.uniform(), generator.uniform(0.5, 1.5)
    orders = np.arange(1, int(0.45 * SAMPLE_RATE / pitch) + 1)[:, None]
    phases = generator.uniform(0, 2 * np.pi, orders.shape)
    waves = (
        np.sin(2 * np.pi * orders * pitch * np.arange(length) / SAMPLE_RATE + phases)
        * orders**-rolloff
    )
    return waves.sum(0) / (orders**-rolloff).sum() * _decay(length, samples, generator)


def sweep(length: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """A sine whose frequency moves evenly between two that are drawn from 200 to 3600 Hz, over the
    whole sound."""
    first, last = generator.uniform(200, 3600, 2)
    return 0.5 * scipy.signal.chirp(
        np.arange(length) / SAMPLE_RATE, first, samples / SAMPLE_RATE, last
    )


def noise_burst(length: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """White noise in a band of 400 to 1600 Hz, with a decay."""
    width = generator.uniform(400, 1600)
    low = generator.uniform(50, 0.48 * SAMPLE_RATE - width)
    band = scipy.signal.firwin(31, [low, low + width], pass_zero=False, fs=SAMPLE_RATE)
    return scipy.signal.lfilter(band, [1.0], generator.normal(size=length)) * _decay(
        length, samples, generator
    )


EVENTS = dict(zip(KINDS, (plucked_string, harmonic_tone, sweep, noise_burst)))


def sound_samples(size: int) -> int:
    """Samples that a spectrogram of size x size needs: frames of 2 * size, half of each shared with
    the next. Raises ValueError for other sizes than SIZES allows."""
    low, high = SIZES
    if isinstance(size, bool) or not isinstance(size, int) or not low <= size <= high:
        raise ValueError(
            f"size={size!r}: spectrograms come in whole sides from {low} to {high} pixels"
        )
    return size * (size + 1)


def grey_levels(level_db: np.ndarray) -> np.ndarray:
    """Levels in dB as grey, uint8: the formula at the head of this module."""
    return np.clip(np.rint(255 * (level_db - LOW_DB) / (HIGH_DB - LOW_DB)), 0, 255).astype(np.uint8)


def _levels(sounds: np.ndarray, frame: int, window: str, overlap: int) -> np.ndarray:
    """20 log10(2 |X|) of every bin but that of frequency 0, (n, frame / 2, frames), lowest
    frequency last."""
    _, _, x = scipy.signal.stft(
        sounds,
        window=window,
        nperseg=frame,
        noverlap=overlap,
        detrend=False,
        boundary=None,
        padded=False,
        scaling="spectrum",
    )
    power = 4 * (x.real**2 + x.imag**2)[:, 1:]
    return 10 * np.log10(np.maximum(power, 1e-30))[:, ::-1]


def spectrogram(sounds: np.ndarray) -> np.ndarray:
    """Grey images (n, 1, size, size) uint8 of sounds (n, size * (size + 1)): Hann frames of 2 *
    size samples, half overlapping, of whose bins that of frequency 0 is left out. Raises ValueError
    for other lengths."""
    size = math.isqrt(sounds.shape[-1]) if sounds.ndim == 2 else 0
    if (
        sounds.ndim != 2
        or sounds.shape[0] < 1
        or size * (size + 1) != sounds.shape[1]
        or sound_samples(size) < 1
    ):
        raise ValueError(
            f"sounds of shape {sounds.shape}: expected (n, size * (size + 1)) samples, as "
            f"sound_samples gives them"
        )
    if not np.isrealobj(sounds) or not np.isfinite(sounds).all():
        raise ValueError("the sounds hold values that are not finite real numbers")
    return grey_levels(_levels(sounds, 2 * size, "hann", size))[:, None]


def spectrograms(n: int, size: int, seed: int) -> np.ndarray:
    """n grey images (n, 1, size, size) uint8 of synthesised sounds, each of size * (size + 1)
    samples at SAMPLE_RATE: 0.13 s at size 32, 0.52 s at 64.

    The same on every machine but for a grey level here and there, where libraries round
    differently.
    """
    samples = sound_samples(size)
    _check_sounds(n, samples, seed)
    return np.concatenate(
        [spectrogram(_sound(samples, np.random.default_rng([seed, k]))[None]) for k in range(n)]
    )


# Noise whose entropy is known


class NoiseSpectrograms(NamedTuple):
    """Images (n, 1, size, size) uint8 whose pixels are independent, each with the probabilities
    `pmf` (256,), and the entropy in bits a pixel."""

    images: np.ndarray
    pmf: np.ndarray
    entropy: float


def noise_spectrograms(n: int, size: int, seed: int, mean_db: float = -20.0) -> NoiseSpectrograms:
    """Spectrograms of white Gaussian noise in rectangular frames that do not overlap: a source of
    exactly known entropy.

    The transform of one frame is orthogonal, so without frequency 0 and half the sample rate its
    bins are independent complex Gaussians of one variance, and frames share no sample: every |X|^2
    is an independent exponential variable. With mean power `mean_db` a grey level g is the event
    e_g <= |X|^2 / mean < e_(g+1), of probability exp(-e_g) - exp(-e_(g+1)). No code for these
    images is shorter on average than their entropy.

    Raises:
        ValueError: for n < 1, a negative seed, a size outside SIZES, or a mean outside
            LOW_DB..HIGH_DB.
    """
    sound_samples(size)
    if not _whole(n, 1) or not _whole(seed, 0) or not LOW_DB <= mean_db <= HIGH_DB:
        raise ValueError(
            f"n={n}, seed={seed}, mean_db={mean_db}: expected whole n >= 1 and seed >= 0, and a "
            f"mean from {LOW_DB:g} to {HIGH_DB:g} dB"
        )
    frame = 2 * size + 2  # bins 1..size; bin size + 1 is half the sample rate
    # E |X|^2 = std^2 / frame with the spectrum's scaling, and the level is that of 4 |X|^2
    std = math.sqrt(10 ** (mean_db / 10) * frame / 4)
    # a stream that is no sound's
    sounds = np.random.default_rng([seed, 0, 1]).normal(scale=std, size=(n, frame * size))
    images = grey_levels(_levels(sounds, frame, "boxcar", 0)[:, 1:])[:, None]
    edges = LOW_DB + (np.arange(1, 256) - 0.5) * (HIGH_DB - LOW_DB) / 255
    survival = np.concatenate([[1.0], np.exp(-(10 ** ((edges - mean_db) / 10))), [0.0]])
    pmf = -np.diff(survival)
    held = pmf[pmf > 0]
    return NoiseSpectrograms(images, pmf, float(-(held * np.log2(held)).sum()))


# Data sets


def load_spectrograms(size: int, limit: int | None) -> ImageData:
    """TRAIN_SOUNDS images to train on (seed 0) and HELDOUT_SOUNDS held out (seed 1), all
    independent draws of one law."""
    train, heldout = (
        spectrograms(TRAIN_SOUNDS, size, 0),
        spectrograms(HELDOUT_SOUNDS, size, 1)[:limit],
    )
    clipped = [float((train == end).mean()) for end in (0, 255)]
    seconds = sound_samples(size) / SAMPLE_RATE
    label = (
        f"spectrograms{size}: synthesised sounds of {seconds:.2f} s, {LOW_DB:g} to {HIGH_DB:g} dB, "
        f"{len(train)} train / {count(len(heldout), HELDOUT_SOUNDS)} held-out {size}x{size} grey "
        f"images"
    )
    return image_data(
        "spectrograms",
        label,
        train,
        heldout,
        sample_rate=SAMPLE_RATE,
        decibels=[LOW_DB, HIGH_DB],
        clipped=clipped,
        seeds=[0, 1],
    )


def load_histology(slide: np.ndarray, size: int, limit: int | None) -> ImageData:
    """Patches of the tissue section `slide` (SLIDE_SIDE, SLIDE_SIDE, 3): those of the upper rows to
    train on, overlapping; held out are patches of the lowest HELDOUT_ROWS that share no pixel. GAP
    rows between the two are in neither. Both are parts of one section of one patient's tissue. The
    whole slide, reduced, is also among what `photos` trains on (data.TRAIN_PHOTOS): a model of
    those has seen it.

    Raises ValueError for a size that the held-out rows do not hold.
    """
    if slide.shape != (SLIDE_SIDE, SLIDE_SIDE, 3) or slide.dtype != np.uint8:
        raise ValueError(
            f"the slide has the shape {slide.shape} and holds {slide.dtype}, expected uint8 "
            f"({SLIDE_SIDE}, {SLIDE_SIDE}, 3)"
        )
    if size > HELDOUT_ROWS:
        raise ValueError(
            f"histology gives patches of at most {HELDOUT_ROWS} pixels, got size={size}"
        )
    split = SLIDE_SIDE - HELDOUT_ROWS
    # steps of 6 at 32x32, as for the photographs
    train = grid(slide[: split - GAP], size, max(6, size * 3 // 16))
    heldout = grid(slide[split:], size, size)
    total = len(heldout)
    heldout = heldout[spread(total)][:limit]
    label = (
        f"histology{size}: one immunohistochemistry slide (scikit-image's {SLIDE}), {len(train)} "
        f"train / {count(len(heldout), total)} held-out "
        f"{size}x{size} patches of the same slide, {GAP} rows apart"
    )
    rows = {"train": [0, split - GAP], "heldout": [split, SLIDE_SIDE]}
    return image_data(
        "histology", label, train, heldout, folder="skimage/data", files=[SLIDE], rows=rows
    )


# The simplest code


def histogram_bits(train: np.ndarray, heldout: np.ndarray) -> np.ndarray:
    """Bits per dimension (M,) of uint8 images (M, C, H, W) when every value is coded by itself,
    with the frequencies of its colour in `train` (N, C, H, W), each value counted once more so that
    none is impossible. A receiver who has `train` can decode it."""
    if (
        train.ndim != 4
        or heldout.ndim != 4
        or train.shape[1] != heldout.shape[1]
        or train.dtype != np.uint8
        or heldout.dtype != np.uint8
    ):
        raise ValueError(
            f"expected uint8 (N, C, H, W) twice, with the same colours, got {train.dtype} "
            f"{train.shape} and {heldout.dtype} {heldout.shape}"
        )
    bits = np.empty(heldout.shape)
    for colour in range(train.shape[1]):
        counts = np.bincount(train[:, colour].ravel(), minlength=256) + 1
        bits[:, colour] = -np.log2(counts / counts.sum())[heldout[:, colour]]
    return bits.mean(axis=(1, 2, 3))
