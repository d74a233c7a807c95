"""Bits-back coding over the diffusion chain of every scale: integers of an image <-> a stack of
bits, to the bit.

A codec is a pair `push(message, x)`, `pop(message) -> x` on one stack (asymmetric numeral systems,
by `constriction`). One law tests all codecs: after a push, pop gives x back and leaves the message
as it was. A pop that no push came before draws from the codec's distribution. This is how a latent
is chosen by bits that the receiver gets back.

The chain of a scale has integers z and latents z_0, ..., z_T (T steps). Its densities are those of
Kingma and others 2021 (arXiv 2107.00630), its order that of Bit-Swap (arXiv 1905.06845). It pays
the bound of Eqs. 15-16 of the paper (arXiv 2501.06999):

    pop  z_0 ~ q(z_0 | z)          push z       with P(z | z_0, coarser)   by maps/lattice.py
    pop  z_k ~ q(z_k | z_{k-1})    push z_{k-1} with p(z_{k-1} | z_k)      for k = 1..T
                                   push z_T     with N(0, I)

Each k takes one evaluation of the network. The forward chain is Markov, so all but the first draws
are paid by what was pushed before. What remains on the stack is, on average, the T-step bound.

Nothing here may differ between machines. Latents are integers n_k that stand for z_k = n_k *
spacing_k, with a spacing that follows the noise of the two steps that meet there. The network is
evaluated in float64 and its prediction rounded to multiples of PREDICTION. From there to the
parameters of the entropy coder everything is integer arithmetic, with FRACTION bits after the
point.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pcdm_lib.advice import Later

FRACTION = 30  # bits after the point
PREDICTION = 2.0**-6  # eps_hat is rounded to multiples of it: costs about 3e-4 bits a dimension
LARGEST_PREDICTION = 64  # in units of the noise; more is clipped
# spacing of a latent's grid in units of the narrower of the two Gaussians that meet there
FINENESS = 0.5
MAX_SUPPORT = 2**16  # symbols of one distribution: the coder's probabilities have 24 bits
_REACH = 8.0  # standard deviations that the symbols of p cover; beyond them an escape
# and those of q, with no escape: the coder leaves 2^-24 to every symbol, and what can be drawn will
# be
_DRAW_REACH = 6.0
_ESCAPE = 15  # bits of each of the two halves of an escape
_PHASES = 8  # bits in which the decoder sees where z_0 lies between two integers

constriction: Any = Later("constriction")
Ints = NDArray[np.int64]


@functools.cache
def _half() -> Any:
    """The model of one half of an escape."""
    return constriction.stream.model.Uniform(2**_ESCAPE)


class Message:
    """A stack of bits that knows how deep it was ever read.

    Args:
        words: uint32 words to begin with, the bottom first.
        sealed: whether `words` are given as they are (an encoder's start) or came from `finished`
            (a decoder's).
        needed: how many of the topmost words the receiver needs, whether they are read or not.
    """

    def __init__(self, words: NDArray[np.uint32], sealed: bool = True, needed: int = 0):
        self._coder = constriction.stream.stack.AnsCoder(
            np.ascontiguousarray(words, np.uint32), seal=sealed
        )
        self._untouched = min(self._coder.pos()[0], len(words) - needed)

    def push(
        self, symbols: NDArray[np.int32], model: Any, *parameters: NDArray[np.float64]
    ) -> None:
        """Symbols (n,) with a model and its parameters (n, ...)."""
        self._coder.encode_reverse(symbols, model, *parameters)

    def pop(self, model: Any, *parameters: Any) -> NDArray[np.int32]:
        """As many symbols as there are parameters, or as the one number given instead."""
        symbols = self._coder.decode(model, *parameters)
        self._untouched = min(self._untouched, self._coder.pos()[0])
        return symbols

    def scramble(self, count: int, key: int) -> None:
        """Exclusive-or with a pseudo-random stream of the topmost `count` words, below the two that
        the coder works on. Twice is not at all."""
        words = self._coder.get_compressed()
        top = max(len(words) - 2, 0)
        bottom = max(top - count, 0)
        words[bottom:top] ^= np.random.Philox(key=key).random_raw(top - bottom).astype(np.uint32)
        self._coder = constriction.stream.stack.AnsCoder(words)
        self._untouched = min(self._untouched, bottom)

    @property
    def bits(self) -> int:
        """Bits on the stack."""
        return self._coder.num_valid_bits()

    @property
    def untouched(self) -> int:
        """Words at the bottom that a receiver does not need: no pop ever reached them."""
        return self._untouched

    def finished(self) -> NDArray[np.uint32]:
        """What a receiver needs: the stack without its untouched bottom."""
        return self._coder.get_compressed()[self._untouched :]

    def words(self) -> NDArray[np.uint32]:
        """The words that the stack began with, once all that was pushed has been popped; ValueError
        where it has not."""
        return self._coder.get_compressed(unseal=True)


class Codec(Protocol):
    """push(message, x) and pop(message) -> x, with pop(push(m, x)) == (m, x)."""

    def push(self, message: Message, x: Any) -> None: ...

    def pop(self, message: Message) -> Any: ...


class Counted(Codec, Protocol):
    """A codec that knows what each element costs: `bits` as it is coded, and `ideal` by the
    distribution that it stands for."""

    def bits(self, x: Any) -> NDArray[np.float64]: ...

    def ideal(self, x: Any) -> NDArray[np.float64]: ...


# ---------------------------------------------------------------- Gaussians on a grid


class Gaussian:
    """Whole numbers by a Gaussian, element by element: P(n) is its mass between n - 1/2 and n +
    1/2.

    Symbols are counted from the whole number next to the mean, so that a few dozen do; what lies
    outside takes an escape.

    Args:
        mean: (...) in fixed point, units of 2^-FRACTION.
        std: one number, in units of the grid.
    """

    _sigmas = _REACH

    def __init__(self, mean: Ints, std: float):
        self.reach = math.ceil(self._sigmas * std) + 1
        if 2 * self.reach + 1 > MAX_SUPPORT:
            raise ValueError(
                f"a Gaussian of {std:.0f} grid points takes more than {MAX_SUPPORT} symbols: use "
                f"fewer steps, or a coarser grid"
            )
        mean = np.clip(mean, -(1 << 54), 1 << 54)
        self.std, self.centre = std, (mean + (1 << (FRACTION - 1))) >> FRACTION
        # exact: at most FRACTION bits
        self.offset = (mean - (self.centre << FRACTION)) * 2.0**-FRACTION
        self._model = constriction.stream.model.QuantizedGaussian(-self.reach, self.reach, std=std)

    def push(self, message: Message, x: Ints) -> None:
        symbols = (x - self.centre).ravel()
        outside = np.flatnonzero(np.abs(symbols) >= self.reach)
        if len(outside):
            beyond = np.abs(symbols[outside]) - self.reach
            if beyond.max() >= 1 << (2 * _ESCAPE):
                raise OverflowError(
                    "a latent lies further from its mean than an escape can say: the weights or "
                    "the schedule are broken"
                )
            halves = np.concatenate([beyond >> _ESCAPE, beyond & ((1 << _ESCAPE) - 1)]).astype(
                np.int32
            )
            message.push(halves, _half())
            symbols = np.clip(symbols, -self.reach, self.reach)
        message.push(symbols.astype(np.int32), self._model, self.offset.ravel())

    def pop(self, message: Message) -> Ints:
        symbols = message.pop(self._model, self.offset.ravel()).astype(np.int64)
        outside = np.flatnonzero(np.abs(symbols) == self.reach)
        if len(outside):
            high, low = message.pop(_half(), 2 * len(outside)).astype(np.int64).reshape(2, -1)
            symbols[outside] += np.sign(symbols[outside]) * ((high << _ESCAPE) + low)
        return symbols.reshape(self.centre.shape) + self.centre

    def bits(self, x: Ints) -> NDArray[np.float64]:
        """What each element costs, (...), closely: the mass of a bin by the density of a Gaussian
        that is wider by the bin's variance."""
        variance = self.std**2 + 1 / 12
        found = self._density(x, variance)
        return np.where(
            np.abs(x - self.centre) < self.reach, np.minimum(found, 24.0), 24.0 + 2 * _ESCAPE
        )

    def ideal(self, x: Ints) -> NDArray[np.float64]:
        """By the density, as wide as the grid's bins make it, with no floor and no escape, (...):
        summed over a chain, a draw of the T-step bound on the same latents."""
        return self._density(x, self.std**2 + 1 / 12)

    def _density(self, x: Ints, variance: float) -> NDArray[np.float64]:
        return (
            (x - self.centre - self.offset) ** 2 / variance + math.log(2 * math.pi * variance)
        ) / (2 * math.log(2))


class Noise(Gaussian):
    """A Gaussian to draw from: `pop` chooses a latent by the bits that lie on the stack, `push`
    gives them back.

    Two things differ from a Gaussian to code with. There is no escape: the coder leaves 2^-24 to
    every symbol, and what can be drawn will be. And the bits are scrambled first. The topmost were
    written a moment ago, by a Gaussian that was not quite right, and popping undoes
    pushing: without scrambling, the new noise would be the last latent's deviation over again, too
        wide and anything but independent.

    Args:
        key: of the pseudo-random stream; another one for every draw.
    """

    _sigmas = _DRAW_REACH

    def __init__(self, mean: Ints, std: float, key: int):
        super().__init__(mean, std)
        expected = mean.size * math.log2(std * math.sqrt(2 * math.pi * math.e)) + 8 * math.sqrt(
            mean.size
        )
        self._key, self._words = key, math.ceil(expected / 32) + 1

    def push(self, message: Message, x: Ints) -> None:
        symbols = (x - self.centre).ravel()
        if symbols.size and np.abs(symbols).max() > self.reach:
            raise OverflowError(
                "a latent lies where it cannot have been drawn: the message is damaged, or "
                "belongs to another model"
            )
        message.push(symbols.astype(np.int32), self._model, self.offset.ravel())
        message.scramble(self._words, self._key)

    def pop(self, message: Message) -> Ints:
        message.scramble(self._words, self._key)
        symbols = message.pop(self._model, self.offset.ravel()).astype(np.int64)
        return symbols.reshape(self.centre.shape) + self.centre

    def bits(self, x: Ints) -> NDArray[np.float64]:
        return np.minimum(self._density(x, self.std**2 + 1 / 12), 24.0)


# ---------------------------------------------------------------- integers given z_0


class Progressions:
    """Integers of arithmetic progressions by P(z | z_0) proportional to N(z_0; z, tau^2), the
    decoder of lattice.py.

    Args:
        centre: z_0 on the axis of the integers, (...) in fixed point.
        tau: its noise there.
        low, last: the progression low, low + step, ..., low + last * step of every element.
        step: 1, 2 or 4.
        reach: how many tau z_0 can be away from the truth.
    """

    def __init__(
        self,
        centre: Ints,
        tau: float,
        low: Ints,
        last: Ints,
        step: int,
        reach: float = _DRAW_REACH + 1,
    ):
        self.low, self.last, self.step = low, last, step
        shift = FRACTION - _PHASES + step.bit_length() - 1
        # in units of 2^-_PHASES steps
        place = (centre - (low << FRACTION) + (1 << (shift - 1))) >> shift
        half = 1 << (_PHASES - 1)
        self.nearest = np.clip((place + half) >> _PHASES, 0, last)
        phase = np.clip(place - (self.nearest << _PHASES), -half, half - 1)
        self.window, table = _decoder_table(tau / step, reach)
        candidates = self.nearest.ravel()[:, None] + np.arange(-self.window, self.window + 1)
        inside = (candidates >= 0) & (candidates <= last.ravel()[:, None])
        self.probabilities = table[phase.ravel() + half] * inside
        self._model = constriction.stream.model.Categorical(perfect=False)

    def _symbols(self, x: Ints) -> Ints:
        return ((x - self.low) // self.step - self.nearest + self.window).ravel()

    def push(self, message: Message, x: Ints) -> None:
        symbols = self._symbols(x)
        if symbols.size and (symbols.min() < 0 or symbols.max() > 2 * self.window):
            raise OverflowError(
                "an integer lies further from z_0 than the noise at t = 0 can be: the latent was "
                "not drawn from q(z_0 | z)"
            )
        message.push(symbols.astype(np.int32), self._model, self.probabilities)

    def pop(self, message: Message) -> Ints:
        symbols = message.pop(self._model, self.probabilities).astype(np.int64)
        index = symbols.reshape(self.nearest.shape) - self.window + self.nearest
        # the coder leaves 2^-24 to what is not allowed
        return self.low + self.step * np.clip(index, 0, self.last)

    def bits(self, x: Ints) -> NDArray[np.float64]:
        """What each element costs, (...)."""
        chosen = np.take_along_axis(self.probabilities, self._symbols(x)[:, None], axis=1)[:, 0]
        bits = np.log2(self.probabilities.sum(axis=1)) - np.log2(np.maximum(chosen, 2.0**-24))
        return bits.reshape(self.nearest.shape)

    def ideal(self, x: Ints) -> NDArray[np.float64]:
        """The same: the table is the decoder's distribution."""
        return self.bits(x)


@functools.lru_cache(maxsize=64)
def _decoder_table(ratio: float, reach: float) -> tuple[int, NDArray[np.float64]]:
    """Half-width of the window, and probabilities (2^_PHASES, 2 * half-width + 1) of the candidates
    around the nearest for every place of z_0 between them, whole multiples of 2^-24. `ratio`: noise
    over distance of candidates. `reach`: standard deviations that z_0 can be away."""
    window = math.ceil(reach * ratio) + 1
    if window > 512:
        raise ValueError(
            f"noise at t = 0 of {ratio:.0f} spacings of the integers is too much for this codec: "
            f"use a lower gamma_min"
        )
    rows = []
    for phase in range(-(1 << (_PHASES - 1)), 1 << (_PHASES - 1)):
        f = phase * 2.0**-_PHASES
        weights = [
            math.exp(-((f - m) ** 2 - f**2) / (2 * ratio**2)) for m in range(-window, window + 1)
        ]
        total = math.fsum(weights)
        rows.append([round(w / total * 2**24) for w in weights])
    return window, np.array(rows, np.float64) * 2.0**-24


# ---------------------------------------------------------------- bits back


class Pushed(NamedTuple):
    """One push of a chain: `value` was drawn by `drawn_by`, whose bits came back, and pushed with
    `coded_by`.

    `step` is 0 for x, which was drawn by nothing (None), k for z_{k-1}, T + 1 for z_T."""

    step: int
    drawn_by: Counted | None
    value: Any
    coded_by: Counted

    @property
    def bits(self) -> NDArray[np.float64]:
        """What each element cost, less what its draw gave back."""
        spent = self.coded_by.bits(self.value)
        return spent if self.drawn_by is None else spent - self.drawn_by.bits(self.value)

    @property
    def ideal(self) -> NDArray[np.float64]:
        """The same by the densities that the codecs stand for."""
        spent = self.coded_by.ideal(self.value)
        return spent if self.drawn_by is None else spent - self.drawn_by.ideal(self.value)


@dataclass(frozen=True)
class BitsBack:
    """x with a Markov chain of latents z_0, ..., z_T: bits back, one latent ahead.

    `push` and `pop` mirror each other line by line.

    Args:
        steps: T.
        first: q(z_0 | x).
        data: P(x | z_0).
        forward: (k, z_{k-1}) -> q(z_k | z_{k-1}).
        reverse: (k, z_k) -> p(z_{k-1} | z_k).
        prior: p(z_T).
    """

    steps: int
    first: Callable[[Any], Counted]
    data: Callable[[Any], Counted]
    forward: Callable[[int, Any], Counted]
    reverse: Callable[[int, Any], Counted]
    prior: Counted

    def push(self, message: Message, x: Any) -> None:
        for _ in self.pushes(message, x):
            pass

    def pushes(self, message: Message, x: Any) -> Iterator[Pushed]:
        """Push x; after each single push what was pushed, and by what."""
        drawn_by = self.first(x)
        z = drawn_by.pop(message)
        coded_by = self.data(z)
        coded_by.push(message, x)
        yield Pushed(0, None, x, coded_by)
        for k in range(1, self.steps + 1):
            next_by = self.forward(k, z)
            next_z = next_by.pop(message)
            coded_by = self.reverse(k, next_z)
            coded_by.push(message, z)
            yield Pushed(k, drawn_by, z, coded_by)
            z, drawn_by = next_z, next_by
        self.prior.push(message, z)
        yield Pushed(self.steps + 1, drawn_by, z, self.prior)

    def pop(self, message: Message) -> Any:
        z = self.prior.pop(message)
        for k in range(self.steps, 0, -1):
            previous = self.reverse(k, z).pop(message)
            self.forward(k, previous).push(message, z)
            z = previous
        x = self.data(z).pop(message)
        self.first(x).push(message, z)
        return x
