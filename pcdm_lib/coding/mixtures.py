"""Integers of a mixture of logistic distributions <-> bits, with integer arithmetic alone.

A coefficient takes one of the values low, low + step, ..., low + last * step (maps/lattice.py), and
its distribution is a mixture whose parameters stand on grids (models/direct.py). It is coded by
yes-or-no questions "is it at or above this split?", each with the probability that the mixture
gives. The first split is near the middle of the mixture; from there the splits gallop away from it,
each step twice as long as the last, until the value is between two of them, and then halve the
distance. Whatever the splits are, the probabilities of all values have the sum 1: the questions
form a tree.

All of it is integers, from tables that `decimal` computes to the last digit, so every machine
computes the same. A range coder (`constriction`) turns the answers into words.
"""

from __future__ import annotations

import functools
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcdm_lib.advice import Later
from pcdm_lib.models.mixture import LOGIT_STEP, WIDTHS, width

constriction: Any = Later("constriction")

Integers = NDArray[np.int64]

_SCALE = 26  # bits of the logistic function's table
_WEIGHT = 12  # bits of a component's weight
_PROBABILITY = 20  # bits of the probability of an answer
_FINE = 14  # bits behind the point of a place, in units of its level
_KNOTS, _REACH, _BETWEEN = 64, 16, 20  # knots a unit, units each way, bits between two knots
_WIDTH = 20  # bits behind the point of one over a width


class Tables(NamedTuple):
    """Integers that stand for the logistic function, its widths and the exponential function."""

    logistic: Integers
    inverse_width: Integers
    weight: Integers


def _rounded(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


@functools.cache
def tables() -> Tables:
    """The tables, the same on every machine.

    Returns:
        The logistic function at multiples of 1/64 from -16 to 16, one over every width, and the
        weights exp(-k/16).

    Example:
        >>> from pcdm_lib.coding.mixtures import tables
        >>> found = tables().logistic
        >>> int(found[0]), int(found[1024]) == 2**25, len(found)
        (8, True, 2049)
    """
    with localcontext() as context:
        context.prec = 40
        half = _KNOTS * _REACH
        logistic = [
            _rounded(2**_SCALE / (1 + (-Decimal(k) / _KNOTS).exp())) for k in range(-half, half + 1)
        ]
        inverse = [
            _rounded(2**_WIDTH * Decimal(_KNOTS * 2**_BETWEEN) / (width(k) * 2**_FINE))
            for k in range(WIDTHS)
        ]
        weight = [
            _rounded(2**_WEIGHT * (-Decimal(k) / LOGIT_STEP).exp()) for k in range(16 * LOGIT_STEP)
        ]
    return Tables(*(np.array(table, dtype=np.int64) for table in (logistic, inverse, weight)))


@functools.cache
def _reaches() -> Integers:
    """The widths in sixteenths of a unit: the first step of a search."""
    return np.array([int(width(k) * 16) + 1 for k in range(WIDTHS)], dtype=np.int64)


class Symbols(NamedTuple):
    """The distributions of n coefficients of one level, on grids.

    Attributes:
        logits: (n, M), in steps of 1/16.
        places: (n, M), in sixteenths of a unit.
        widths: (n, M), indices of the table of widths.
        low: (n,), the smallest value allowed.
        last: (n,), steps from there to the largest.
        step: spacing of the values.
        shift: log2 of the level's unit, 2 (level - 1).
    """

    logits: Integers
    places: Integers
    widths: Integers
    low: Integers
    last: Integers
    step: int
    shift: int


class _Cumulative:
    """The cumulative distribution of every coefficient, as integers."""

    def __init__(self, symbols: Symbols):
        found, self.symbols, self._low = tables(), symbols, symbols.low
        behind = symbols.logits.max(axis=1, keepdims=True) - symbols.logits
        weight = found.weight.take(behind, mode="clip")
        self._weight = weight
        self._centre = symbols.places << _FINE - 4
        self._inverse = found.inverse_width.take(symbols.widths)
        self.total = weight.sum(axis=1) << _SCALE
        # the function at a knot, and how much it rises to the next
        self._logistic, self._rise = found.logistic, np.append(np.diff(found.logistic), 0)

    def keep(self, rows: Integers) -> None:
        """Forget all but these coefficients."""
        self._weight, self._centre, self._inverse, self._low = (
            part.take(rows, axis=0)
            for part in (self._weight, self._centre, self._inverse, self._low)
        )

    def below(self, split: Integers) -> Integers:
        """Of `total`, what lies below the value number `split`, counted from `low`."""
        s = self.symbols
        edge = 2 * (self._low + split * s.step) - s.step  # twice the middle between two values
        t = ((edge << _FINE - 1) >> s.shift)[:, None] - self._centre
        t *= self._inverse
        t >>= _WIDTH
        top = 2 * _KNOTS * _REACH << _BETWEEN
        t += top >> 1
        np.clip(t, 0, top, out=t)
        knot = t >> _BETWEEN
        t &= (1 << _BETWEEN) - 1
        t *= self._rise.take(knot)
        t >>= _BETWEEN
        t += self._logistic.take(knot)
        return np.einsum("nm,nm->n", t, self._weight)

    def start(self) -> tuple[Integers, Integers]:
        """The value at the middle of the mixture, and the length of the first step from there."""
        s = self.symbols
        heaviest = s.logits.argmax(axis=1)
        rows = np.arange(len(heaviest))
        total = self.total >> _SCALE
        middle = (self._weight * s.places).sum(axis=1)
        value = ((middle // total) << s.shift) >> 4
        split = np.clip((value - s.low) // s.step, 0, s.last)
        reach = (_reaches()[s.widths[rows, heaviest]] << s.shift) // (16 * s.step)
        return split, np.maximum(reach, 1)


class Answers:
    """A range coder of yes-or-no answers. Reading gives what writing took, in the same order.

    Args:
        words: what `Answers().words()` gave, to read; None to write.

    Example:
        >>> from pcdm_lib.coding.mixtures import Answers
        >>> answers = Answers()
        >>> quarter = np.full(4, 2**18)
        >>> _ = answers.code(quarter, np.array([1, 0, 0, 1]))
        >>> Answers(answers.words()).code(quarter).tolist()
        [1, 0, 0, 1]
    """

    def __init__(self, words: NDArray[np.uint32] | None = None):
        queue = constriction.stream.queue
        self._model = constriction.stream.model.Bernoulli(perfect=False)
        self._reads = words is not None
        self._coder = queue.RangeEncoder() if words is None else queue.RangeDecoder(words)

    def code(self, ones: Integers, answers: NDArray | None = None) -> NDArray[np.int32]:
        """Write these answers, or read as many.

        Args:
            ones: probability that the answer is 1, in units of 2^-20, from 1 to 2^20 - 1.
            answers: 0 or 1, to write; None to read.

        Returns:
            The answers.

        Raises:
            ValueError: for words that writing cannot have given.
        """
        probability = ones.astype(np.float64) * 2.0**-_PROBABILITY  # exact
        if self._reads:
            try:
                return self._coder.decode(self._model, probability)
            except AssertionError:
                raise ValueError("the coded words are damaged or cut short") from None
        assert answers is not None, "a coder that writes needs answers"
        found = np.ascontiguousarray(answers, dtype=np.int32)
        self._coder.encode(found, self._model, probability)
        return found

    @property
    def written(self) -> int:
        """Words up to here, with those that would end the stream here."""
        return int(self._coder.num_words())

    def words(self) -> NDArray[np.uint32]:
        """All that was written."""
        return self._coder.get_compressed()


def code(answers: Answers, symbols: Symbols, values: Integers | None = None) -> Integers:
    """Write coefficients, or read them.

    Args:
        answers: a coder that writes or reads.
        symbols: the distributions of n coefficients.
        values: (n,) to write; None to read.

    Returns:
        (n,) values.

    Raises:
        ValueError: where a value to write is not allowed.

    Example:
        >>> from pcdm_lib.coding.mixtures import Answers, Symbols, code
        >>> one = np.ones((3, 1), np.int64)
        >>> low, last = np.array([-8, -8, 0]), np.array([8, 8, 0])
        >>> symbols = Symbols(0 * one, 0 * one, 30 * one, low, last, step=2, shift=0)
        >>> answers = Answers()
        >>> _ = code(answers, symbols, np.array([-8, 4, 0]))
        >>> code(Answers(answers.words()), symbols).tolist()
        [-8, 4, 0]
    """
    target = None
    if values is not None:
        target, rest = np.divmod(values - symbols.low, symbols.step)
        if bool((rest != 0).any() or (target < 0).any() or (target > symbols.last).any()):
            raise ValueError("a coefficient that no image has: it is not one of the values allowed")
    cumulative, found = _Cumulative(symbols), np.zeros_like(symbols.last)
    split, stride = cumulative.start()
    low, high = np.zeros_like(found), symbols.last.copy()  # the value is one of these
    under, over = np.zeros_like(found), cumulative.total.copy()  # what lies below low, up to high
    # which way the splits gallop; 0: they halve
    side: NDArray[np.int8] = np.zeros(len(low), np.int8)
    rows, open_ = np.arange(len(low)), high > 0
    first = True
    while True:
        if not open_.all():
            found[rows] = low  # of those that are open, not yet the value
            left = np.flatnonzero(open_)
            rows, low, high, under, over, stride, split = (
                part.take(left) for part in (rows, low, high, under, over, stride, split)
            )
            side = side.take(left)
            target = None if target is None else target.take(left)
            cumulative.keep(left)
        if not len(rows):
            return symbols.low + found * symbols.step
        if first:
            at = np.clip(split, low + 1, high)
        else:
            at = (low + high + 1) >> 1
            at = np.where(side > 0, np.minimum(low + stride, high), at)
            at = np.where(side < 0, np.maximum(high - stride + 1, low + 1), at)
        here = cumulative.below(at)
        ones = _upper(under, here, over)
        told = answers.code(ones, None if target is None else target >= at).astype(bool)
        low, under = np.where(told, at, low), np.where(told, here, under)
        high, over = np.where(told, high, at - 1), np.where(told, over, here)
        way = (2 * told - 1).astype(np.int8)
        side = way if first else side * (side == way)
        stride = stride if first else stride << 1
        open_, first = low < high, False


def _upper(under: Integers, here: Integers, over: Integers) -> Integers:
    """Probability of the upper part, in units of 2^-20, never 0 nor 1; a half where the mixture has
    nothing on either side."""
    whole = over - under
    one = 1 << _PROBABILITY
    share = ((over - here) << _PROBABILITY) // np.maximum(whole, 1)
    return np.clip(np.where(whole > 0, share, one >> 1), 1, one - 1)
