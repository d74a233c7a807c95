"""Reads damaged files under limits on time and memory, and counts what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from . import damage
from .readers import Note, Reader, noted, place

MEMORY = 2 << 30  # bytes that the process may have
SECONDS = 10.0  # of the processor, after which reading a file is a hang
LINE = 2000  # characters of a message at most
# What a reader may raise: the shell makes one line of it.
CLEAR = (ValueError, OSError)
UNCLEAR = (UnicodeError, json.JSONDecodeError)

# what came of a file
RIGHT = "read whole"  # the damage changed nothing that is read
PARTLY = "in part"  # what could be read is right, the rest is named
REFUSED = "refused"
OTHER = "other content"  # no checksum covers it, or a forger made it right
OUTCOMES = (RIGHT, PARTLY, REFUSED, OTHER)


class Hang(BaseException):
    """Raised in whatever is being read when its time is over."""


@dataclass
class Tally:
    """What came of the files of one reader: counts, faults, seconds of the slowest file, and bytes
    of the process at its largest."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory: int = 0


def damaged(reader: Reader, name: str, seed: int, number: int) -> tuple[dict[str, bytes], bool]:
    """A sample with one damaged file, and whether other content may come of it."""
    r = Random(f"{seed} {name} {number}")
    attack = r.choice(reader.attacks)
    files = dict(reader.files)
    data = files[attack.file]
    if not r.randrange(100):
        del files[attack.file]
        return files, not attack.checked
    if attack.forger and r.randrange(2):
        files[attack.file] = attack.forger(r, data)
        return files, not attack.sealed
    other = files[r.choice(sorted(files))]
    size = attack.part or len(data)
    files[attack.file] = damage.accident(r, data[:size], other[:size]) + data[size:]
    # a whole file in place of another has right checksums
    return files, not attack.checked or (other in files[attack.file] and not attack.sealed)


def judge(found: list[Note], reader: Reader, free: bool) -> str:
    """One of OUTCOMES, or what is wrong with what a reader gave; `free`: it may be other content
    than the sample's."""
    pixels = [item for item in found if isinstance(item, bytes)]
    errors = [item for item in found if isinstance(item, Exception)]
    for item in found:
        if not isinstance(item, bytes) and (complaint := unclear(item)):
            return complaint
    if not reader.truth.issuperset(pixels):
        return OTHER if free else "WRONG PIXELS"
    if not errors:
        return RIGHT
    return PARTLY if pixels else REFUSED


def unclear(said: Exception | str) -> str:
    """What is wrong with an error or a line that a user sees; "" where nothing is."""
    text, kind = str(said), type(said).__name__
    if "\n" in text or len(text) > LINE:
        return f"{kind} of several lines, or a long one: {text[:200]!r}"
    if isinstance(said, str):
        return ""
    if not isinstance(said, CLEAR) or isinstance(said, UNCLEAR):
        return f"{kind}: {text[:200]}"
    named = tempfile.gettempdir() in text or "no image can be written" in text
    return "" if named else f"{kind} that names no file: {text[:200]}"


def read_one(reader: Reader, files: Mapping[str, bytes], free: bool, folder: Path) -> str:
    """What came of a sample, which is laid into the empty folder first."""
    place(folder, files)
    found: list[Note] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found.extend(map(noted, reader.read(folder)))  # holds no array while the next is read
        except Exception as error:
            found.append(error)
    if Path("unpickled").exists():
        return "UNPICKLED: the file's own code was run"
    if caught:
        return f"a warning beside the message: {str(caught[0].message)[:200]}"
    return judge(found, reader, free)


@contextlib.contextmanager
def limits(seconds: float) -> Iterator[None]:
    """Raise Hang in the block after so many seconds of the processor, which other processes do not
    lengthen."""

    def over(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def limit_memory() -> None:
    """Let no allocation take more than MEMORY beyond what the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Bytes, the most that the process had since `_forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def fuzz(
    readers: Mapping[str, Reader],
    files: int,
    seed: int = 0,
    first: int = 0,
    on_file: Callable[[str, int], object] = lambda name, number: None,
) -> dict[str, Tally]:
    """Read so many damaged files, shared out over the readers.

    Args:
        readers: whom to attack.
        files: how many in all; every reader gets one at least.
        seed: of the damage.
        first: number of the first file of each reader.
        on_file: called with the reader and the number of a file before it is read.
    """
    tallies = {name: Tally() for name in readers}
    for name, reader in readers.items():
        for number in range(first, first + max(1, round(files / len(readers)))):
            on_file(name, number)
            _count(name, reader, seed, number, tallies[name])
    return tallies


def _count(name: str, reader: Reader, seed: int, number: int, tally: Tally) -> None:
    sample, free = damaged(reader, name, seed, number)
    top = Path(tempfile.mkdtemp(prefix="fuzz-"))
    here = Path.cwd()
    try:
        os.chdir(top)
        _forget_peak()
        began = time.process_time()
        try:
            with limits(SECONDS):
                outcome = read_one(reader, sample, free, top / "sample")
        except Hang:
            outcome = f"HANG over {SECONDS:g} s"
        tally.seconds = max(tally.seconds, time.process_time() - began)
        peak = _peak()
        tally.memory = max(tally.memory, peak)
        if peak > MEMORY:
            outcome = f"{peak >> 20} MiB of memory"
    finally:
        os.chdir(here)
        shutil.rmtree(top, ignore_errors=True)
    if outcome in OUTCOMES:
        tally.outcomes[outcome] += 1
    else:
        tally.faults.append(f"{name}, number {number}: {outcome}")


def table(tallies: Mapping[str, Tally]) -> str:
    """The figures as a Markdown table."""
    total = Tally()
    for tally in tallies.values():
        total.outcomes += tally.outcomes
        total.faults += tally.faults
        total.seconds = max(total.seconds, tally.seconds)
        total.memory = max(total.memory, tally.memory)
    heads = "reader", "files", *OUTCOMES, "faults", "slowest, s", "largest, MB"
    rows = [heads, ("---", *["---:"] * (len(heads) - 1))]
    for name, t in [*tallies.items(), ("all", total)]:
        files = t.outcomes.total() + len(t.faults)
        counts = (t.outcomes[outcome] for outcome in OUTCOMES)
        costs = f"{t.seconds:.2f}", f"{t.memory / 1e6:.0f}"
        rows.append((name, *map(str, (files, *counts, len(t.faults))), *costs))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
