"""A few damaged and hostile files for every reader; `make fuzz` reads 10,000."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz import damage, readers, run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture(scope="module")
def attacked() -> dict[str, readers.Reader]:
    return readers.all_readers()


def test_no_damaged_file_gives_wrong_pixels_or_a_traceback(
    attacked: dict[str, readers.Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some 200 files, without those that take long to make."""
    monkeypatch.setattr(damage, "BOMB", 1 << 24)
    monkeypatch.setattr(damage, "SIDES", (300, 3000))
    tallies = run.fuzz(attacked, 200, seed=1)
    assert [line for tally in tallies.values() for line in tally.faults] == []
    assert sum(tally.outcomes[run.REFUSED] for tally in tallies.values()) > 100


def test_a_seed_gives_the_same_files(attacked: dict[str, readers.Reader]) -> None:
    for name, reader in attacked.items():
        first, again, other = (run.damaged(reader, name, seed, 3) for seed in (1, 1, 2))
        assert first == again != other


@pytest.mark.parametrize(
    ("found", "outcome"),
    (
        ([b"right"], run.RIGHT),
        ([b"wrong"], "WRONG PIXELS"),
        ([b"right", ValueError("/tmp/a is cut short")], run.PARTLY),
        ([KeyError("a")], "KeyError: 'a'"),
        (["two\nlines"], "str of several lines, or a long one: 'two\\nlines'"),
    ),
)
def test_what_counts_as_a_fault(found: list[readers.Note], outcome: str) -> None:
    reader = readers.Reader({}, (), lambda folder: iter(()), frozenset({b"right"}))
    assert run.judge(found, reader, False) == outcome
