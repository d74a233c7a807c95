"""From the last block's sum back to the image, integer by integer: how a direct network
(models/direct.py) is sampled from, written to a file and read from one.

All three ask the network for the same distributions in the same order. Only who chooses the value
differs: a random draw, the image that is written, or the file that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pcdm_lib.maps.lattice import Progression
from pcdm_lib.models.direct import (
    HIDDEN,
    WIDE,
    DirectNetwork,
    Head,
    Level,
    coarse_features,
    coded_details,
    detail_features,
    finer,
    known_features,
    mixture_of,
    of_phase,
    phase_input,
    phases_of,
    ranges,
    sides_of,
)
from pcdm_lib.models.integers import UNIT, active, rounded
from pcdm_lib.models.mixture import (
    LOGIT_STEP,
    PLACE_STEP,
    WIDTH_STEP,
    Mixture,
    mixture_nats,
    width,
)


class Question(NamedTuple):
    """The distributions of one integer of every block of a phase that is coded.

    Attributes:
        level: number of the level, 1 for the finest.
        phase: of the level, 0 to 3.
        place: of the integer in its block, 0 to 3C - 1.
        mixture: parameters, (n, M) each.
        low: the smallest value allowed, (n,) integers.
        last: steps from there to the largest, (n,) integers.
        step: spacing of the values.
    """

    level: int
    phase: int
    place: int
    mixture: Mixture
    low: Tensor
    last: Tensor
    step: int


Choose = Callable[[Question], Tensor]


class HeadSteps:
    """A head's integers one after the other: what `Head.forward` computes in one pass, to the last
    bit.

    Args:
        head: of the network, in evaluation mode.
        features: of the blocks, (N, channels, h, w).
        number: of the level.
    """

    def __init__(self, head: Head, features: Tensor, number: int):
        self.head, self.number = head, number
        self._given = head.given(features)
        self._earlier, self._exit = head.earlier.whole(), head.exit.whole()

    def mixture(self, details: Tensor) -> Mixture:
        """The mixture of the next integer.

        Args:
            details: those before it, (N, j, h, w) integers.

        Returns:
            Parameters, (N, M, h, w) each.
        """
        head, j = self.head, details.shape[1]
        rows = slice(j * HIDDEN, (j + 1) * HIDDEN)
        h = self._given[:, rows]
        if j:
            known = known_features(self.number, details)
            weight, step = (part[rows] for part in self._earlier)
            h = h + rounded(F.conv2d(known, weight[:, : 3 * j]) * step.view(-1, 1, 1))
        out = slice(j * head.outputs, (j + 1) * head.outputs)
        weight, step = (part[out] for part in self._exit)
        sums = F.conv2d(active(h), weight) * step.view(-1, 1, 1)
        grid = head.grid[out]
        found = rounded(sums * (grid / UNIT)) + rounded(head.start[out].view(-1, 1, 1) * grid)
        found = found.unsqueeze(1)
        return Mixture(
            *(part[:, 0] for part in mixture_of(found, self.number, details, head.colours, j))
        )


@torch.no_grad()
def unfold(
    network: DirectNetwork,
    base: Tensor,
    height: int,
    width: int,
    choose: Choose,
    stop: int = 0,
    grey: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Images from coarse to fine.

    Args:
        network: in evaluation mode.
        base: sums of the last block, (N, C, 1, 1) integers.
        height: of the images.
        width: of the images.
        choose: gives the values (n,) that a question asks for.
        stop: the level to end at, 0 for the image itself.
        grey: whether all colours are alike, so that only the first is asked for.

    Yields:
        The number of a level and the sums of its blocks, (N, C, h, w): level 0 is the image.

    Raises:
        ValueError: where the values chosen belong to no image.
    """
    sides, coarse = sides_of(height, width), base
    yield len(sides) - 1, coarse
    for number in range(len(sides) - 1, stop, -1):
        coarse = coarse.to(torch.int64 if number >= WIDE else torch.int32)
        coarse = _unfold_level(network, number, coarse, sides[number - 1], choose, grey)
        yield number - 1, coarse


def _unfold_level(
    network: DirectNetwork,
    number: int,
    coarse: Tensor,
    sides: tuple[int, int],
    choose: Choose,
    grey: bool,
) -> Tensor:
    n, colours, high, wide = coarse.shape
    details = torch.zeros(n, 3 * colours, high, wide, dtype=coarse.dtype, device=coarse.device)
    features = coarse_features(number, coarse)
    coded = coded_details(colours, *sides)
    for phase in phases_of(high, wide):
        seen = phase_input(features, detail_features(number, details), phase)
        which = torch.full((n,), phase, device=coarse.device)
        steps = HeadSteps(network.head, network.trunk(seen, which, number), number)
        part = None if coded is None else of_phase(coded, phase).to(coarse.device)
        own, here = of_phase(coarse, phase), of_phase(details, phase)
        for index in range(3 * colours):
            band, colour = divmod(index, colours)
            if colour == 0:
                known = [here[:, i * colours : (i + 1) * colours] for i in range(band)]
                allowed = ranges(number, own, known, network.max_value)
            elif grey:
                here[:, index] = here[:, band * colours]
                continue
            mixture = steps.mixture(here[:, :index])
            where = None if part is None else part[index].expand(n, -1, -1)
            question = _question(number, phase, index, mixture, allowed, colour, where)
            if len(question.low):
                _answer(here[:, index], where, choose(question))
    return finer(Level(number, coarse, details, coded), *sides)


def _question(
    number: int,
    phase: int,
    index: int,
    mixture: Mixture,
    allowed: Progression,
    colour: int,
    where: Tensor | None,
) -> Question:
    """What is asked of the blocks where this integer is coded."""
    flat = [part.movedim(1, -1) for part in mixture]
    low, last = allowed.low[:, colour], allowed.last[:, colour]
    if where is None:
        chosen = [part.reshape(-1, part.shape[-1]) for part in flat]
        low, last = low.reshape(-1), last.reshape(-1)
    else:
        chosen = [part[where] for part in flat]
        low, last = low[where], last[where]
    return Question(number, phase, index, Mixture(*chosen), low, last, allowed.step)


def _answer(details: Tensor, where: Tensor | None, values: Tensor) -> None:
    values = values.to(details.device, details.dtype)
    if where is None:
        details.copy_(values.view(details.shape))
    else:
        details[where] = values


def values_at(level: Level, question: Question) -> Tensor:
    """The true values of what is asked for.

    Args:
        level: of the images, the one that the question is about.
        question: as `unfold` asks it.

    Returns:
        (n,) integers, what a `choose` for known images gives.
    """
    values = of_phase(level.details, question.phase)[:, question.place]
    if level.coded is not None:
        coded = of_phase(level.coded, question.phase)[question.place].to(values.device)
        values = values[coded.expand(values.shape)]
    return values.reshape(-1)


def draw(generator: torch.Generator) -> Choose:
    """Values drawn from the mixtures.

    Args:
        generator: of the draws, on the network's device.

    Returns:
        What `unfold` takes as `choose`.
    """

    def choose(question: Question) -> Tensor:
        mixture, unit = question.mixture, 4.0 ** (question.level - 1)
        weights = torch.softmax(mixture.logits.double() / LOGIT_STEP, dim=1)
        component = torch.multinomial(weights, 1, generator=generator)
        place = mixture.places.gather(1, component).squeeze(1).double() / PLACE_STEP
        scale = torch.exp(mixture.widths.gather(1, component).squeeze(1).double() / WIDTH_STEP)
        u = torch.rand(
            len(place), generator=generator, device=place.device, dtype=torch.float64
        ).clamp(1e-12, 1 - 1e-12)
        value = (place + float(width(0)) * scale * torch.logit(u)) * unit
        nearest = ((value - question.low.double()) / question.step).round()
        return question.low + question.step * nearest.clamp(min=0).minimum(
            question.last.double()
        ).to(question.low.dtype)

    return choose


def distribution(question: Question, row: int) -> tuple[list[int], list[float]]:
    """The allowed values of one of the integers that are asked for, and their probabilities.

    Args:
        question: as `unfold` asks it.
        row: which of its n integers.

    Returns:
        Values, and probabilities whose sum is 1.
    """
    unit = 4.0 ** (question.level - 1)
    count, step = int(question.last[row]) + 1, question.step
    values = int(question.low[row]) + step * torch.arange(count)

    def column(numbers: Tensor) -> Tensor:
        return numbers.double().view(-1, 1, 1, 1) / unit

    mixture = Mixture(
        *(
            part[row].double().view(1, 1, -1, 1, 1).expand(count, -1, -1, -1, -1)
            for part in question.mixture
        )
    )
    nats = mixture_nats(
        mixture,
        column(values),
        column(values[:1].expand(count)),
        column(values[-1:].expand(count)),
        torch.full((1, 1, 1, 1), step / unit, dtype=torch.float64),
    )
    return values.tolist(), (-nats.flatten()).exp().tolist()
