"""Clocks: one thing repeatedly, several in turn, and the parts of one step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
MIN_ROUNDS = 3  # below that a median says nothing, so a slow measurement outlasts its budget


class Clock(NamedTuple):
    """What time is read from.

    `wall` is what a user waits. `processor` is the time that this process's threads were given,
    added up: on a machine that others use too, the only one by which small differences can be told,
        and only for one thread.
    """

    device: torch.device
    kind: str = "wall"

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        synchronise(self.device)
        return CLOCKS[self.kind]()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; the extremes in place of quartiles below four
    values."""
    if len(values) < 4:
        return min(values), statistics.median(values), max(values)
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


class Ratio(NamedTuple):
    """Time of a variant over that of the baseline in the same round: median and quartiles over the
    rounds."""

    median: float
    low: float
    high: float
    rounds: int
    seconds: float  # median time of the variant itself


def measure(action: Callable[[], object], seconds: float, clock: Clock) -> list[float]:
    """Times in seconds of repeated calls, after one that is not counted: until the budget is spent
    and there are MIN_ROUNDS."""
    return interleave({"": action}, seconds, clock)[""]


def interleave(
    actions: Mapping[str, Callable[[], object]], seconds: float, clock: Clock
) -> dict[str, list[float]]:
    """Times in seconds of several actions in turn, round after round, until each has had `seconds`
    on average.

    Drift of a shared machine then hits all of them alike. Where an action is so slow that its
    first, uncounted, call takes longer than the budget, MIN_ROUNDS rounds are run all the same.
    """
    if not actions or not seconds > 0:
        raise ValueError(
            f"need something to time and a positive budget, got {list(actions)} and {seconds} s"
        )
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    start, rounds = time.perf_counter(), 0
    while rounds < MIN_ROUNDS or time.perf_counter() - start < seconds * len(actions):
        for name, action in actions.items():
            before = clock.now()
            action()
            times[name].append(clock.now() - before)
        rounds += 1
    return times


def ratios(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Ratio]:
    """Each action's time over the baseline's, round by round."""
    found = {}
    for name, values in times.items():
        low, median, high = quartiles([a / b for a, b in zip(values, times[baseline])])
        found[name] = Ratio(median, low, high, len(values), statistics.median(values))
    return found


class Stages:
    """Where the time of a step goes. `mark(name)` gives the time since the last mark to `name`, so
    the stages tile the step.

    On CUDA the marks are events in the stream, read once at the end, so that measuring does not
    make the host wait.
    """

    def __init__(self, clock: Clock):
        self.device, self._now = clock.device, CLOCKS[clock.kind]
        self._marks: list[tuple[str | None, float | torch.cuda.Event]] = []

    def clear(self) -> None:
        """Forget what was measured so far."""
        self._marks.clear()

    def start(self) -> None:
        """The beginning of a step: what lies before it is nobody's."""
        self._add(None)

    def mark(self, name: str) -> None:
        self._add(name)

    def _add(self, name: str | None) -> None:
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = self._now()
        self._marks.append((name, now))

    def seconds(self) -> dict[str, float]:
        """Total seconds by stage, in order of first appearance."""
        synchronise(self.device)
        total: dict[str, float] = {}
        for (_, before), (name, now) in zip(self._marks, self._marks[1:]):
            if name is not None:
                passed = (
                    before.elapsed_time(now) / 1e3 if self.device.type == "cuda" else now - before
                )
                total[name] = total.get(name, 0.0) + passed
        return total
