"""Results files: every one under a folder, read, checked and held as a `Result`.

A run writes `results.json` and, beside it, `scores.npz` with the bits per dimension of each
held-out image (`experiment.write_results`). Nothing here writes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdm_lib import records
from pcdm_lib.experiments.published import NOT_MEASURED, titled
from pcdm_lib.models.presets import EVERY_SYSTEM

FORMATS = (1, 2)
_SECTIONS: dict[str, type] = {
    "config": dict,
    "data": dict,
    "training": dict,
    "evaluation": dict,
    "reference_codecs": dict,
    "provenance": dict,
    "ood": dict,
    "quality": dict,
    "likelihoods": list,
    "twice": dict,
    "compression": list,
}
# bits per dimension: scores.npz is the mean's own array, so only float rounding lies between them
_AGREE = 1e-6


@dataclass(frozen=True)
class Result:
    """One results file.

    Attributes:
        path: the file.
        name: its folder, relative to the one that was searched.
        record: what it holds, None for figures that are not finite.
        scores: (images,) float64, bits per dimension of each held-out image, from the `scores.npz`
            beside it; None where `no_scores` says why.
    """

    path: Path
    name: str
    record: Mapping[str, Any]
    scores: np.ndarray | None = None
    no_scores: str = "no scores.npz"

    def part(self, *keys: str) -> Any:
        """What lies under these keys, one inside the other; None where one of them is missing."""
        value: Any = self.record
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def number(self, *keys: str) -> float | None:
        """The same where it is a finite number, else None."""
        return number(self.part(*keys))

    @property
    def system(self) -> str:
        return self.record["config"]["system"]

    @property
    def weighting(self) -> str:
        """What its training loss weighed: "likelihood" is the bound, any other loss is no number of
        bits."""
        return str(self.part("config", "training", "weighting") or "likelihood")

    @property
    def title(self) -> str:
        """The system's name in the paper, with the weights of its loss where they are not the
        bound's."""
        return titled(EVERY_SYSTEM[self.system], self.weighting)

    @property
    def label(self) -> str:
        """The data in one line, as its source describes it."""
        return " ".join(str(self.part("data", "label") or "data without a label").split())

    @property
    def dataset(self) -> str:
        """One of DATASETS as a rule: the name it was loaded by, less its version; by the label's
        beginning in files that do not name it."""
        name = self.part("data", "name")
        if isinstance(name, str) and name:
            return name.partition("-")[0]
        return next(
            (
                key
                for key, start in {"cifar10": "CIFAR-10", "photos": "photos"}.items()
                if self.label.startswith(start)
            ),
            "folder",
        )

    @property
    def bpd(self) -> float | None:
        return self.number("evaluation", "bpd")

    @property
    def error(self) -> str:
        """Both standard errors, in bits per dimension."""
        return (
            f"{text(self.number('evaluation', 'se_images'))} images, "
            f"{text(self.number('evaluation', 'se_noise'))} noise"
        )

    @property
    def minutes(self) -> float | None:
        seconds = self.number("training", "seconds")
        return None if seconds is None else seconds / 60

    @property
    def budget(self) -> str | None:
        """What training was allowed, in words; None where the file does not say."""
        given = self.part("training", "budget")
        words = (
            [f"{number(v):g} {k}" for k, v in given.items() if number(v) is not None]
            if isinstance(given, Mapping)
            else []
        )
        return ", ".join(words) or None

    @property
    def heldout(self) -> tuple[str, int] | None:
        """What tells one set of held-out images from another: their checksum and number; None where
        the file does not say."""
        digest, count = self.part("data", "heldout_sha256"), self.number("evaluation", "images")
        return (digest, int(count)) if isinstance(digest, str) and count is not None else None

    @property
    def sessions(self) -> list[Mapping[str, Any]]:
        """Machine and commit of each session of training; of the scoring where the file does not
        say."""
        found = self.part("training", "sessions")
        found = [s for s in found if isinstance(s, Mapping)] if isinstance(found, list) else []
        return found or [self.part("provenance") or {}]


def number(value: Any) -> float | None:
    """A finite number as a float, None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON's integers have no limit
        return None


def text(value: Any, digits: int = 4) -> str:
    """What a cell says: floats with `digits` after the point, NOT_MEASURED for None, and nothing
    that would break a row of Markdown."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOT_MEASURED
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return " ".join(str(value).split()).replace("|", "\\|") or NOT_MEASURED


def read_results(folder: Path | str) -> tuple[list[Result], list[str]]:
    """Every `results.json` under a folder, at any depth. Links and folders whose names begin with a
    dot are not followed; nothing is written.

    Returns:
        The results in the order of their paths, and one line for each file that could not be read,
        naming it, what was wrong and what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [], [
            f"{folder} is no folder: train something first, or name the folder that holds the runs"
        ]
    results: list[Result] = []
    problems: list[str] = []
    for path in _files(folder, problems):
        try:
            record = _check(path, records.read_json(path))
            name = path.parent.relative_to(folder).as_posix()
        except (ValueError, OSError, RecursionError) as error:
            problems.append(str(error))
            continue
        scores, reason = None, "no scores.npz"
        if (file := path.parent / "scores.npz").is_file() and not file.is_symlink():
            try:
                scores, reason = _read_scores(file, record), ""
            except ValueError as error:
                reason = "scores.npz does not belong to results.json, or is damaged"
                problems.append(str(error))
        results.append(
            Result(path, folder.resolve().name if name == "." else name, record, scores, reason)
        )
    return results, problems


def _files(folder: Path, problems: list[str]) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        problems.append(
            f"{error.filename} cannot be listed ({error.strerror}): the runs in it are missing here"
        )

    for place, folders, files in os.walk(folder, onerror=failed):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        path = Path(place) / "results.json"
        if "results.json" in files and not path.is_symlink():
            yield path


def _check(path: Path, record: Any) -> Mapping[str, Any]:
    """The record with None for what is not finite; ValueError where it is of another version or not
    a record of results."""
    again = "run the notebook that wrote it again"
    if not isinstance(record, dict):
        raise ValueError(
            f"{path} holds a {type(record).__name__}, expected a record of results: {again}"
        )
    version = record.get("format")
    if type(version) is not int or version not in FORMATS:
        said = "states no format" if version is None else f"is of format {version!r}"
        raise ValueError(
            f"{path} {said}, this version reads {' and '.join(map(str, FORMATS))}: read it with "
            f"the version that wrote it, or {again}"
        )
    wrong = [
        f"{k} is a {type(record[k]).__name__}"
        for k, kind in _SECTIONS.items()
        if record.get(k) is not None and not isinstance(record[k], kind)
    ]
    system = record["config"].get("system") if isinstance(record.get("config"), dict) else None
    if not wrong and (not isinstance(system, str) or system not in EVERY_SYSTEM):
        wrong = [f"config.system is {system!r}, expected one of {', '.join(EVERY_SYSTEM)}"]
    if wrong:
        raise ValueError(f"{path} is not a record of results ({'; '.join(wrong)}): {again}")
    return records.finite(record)


def _read_scores(path: Path, record: Mapping[str, Any]) -> np.ndarray:
    """(images,) bits per dimension; ValueError naming the file where it is damaged or is not what
    the record's mean was taken over."""
    again = "score the run again"
    try:
        with (
            np.errstate(all="ignore"),
            open(path, "rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            scores = np.asarray(arrays["bpd"], dtype=np.float64)
    except Exception as error:  # NumPy and zipfile know as many as there are ways to break a file
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}), expected an array bpd: "
            f"{again}"
        ) from error
    evaluation = record.get("evaluation") or {}
    images, mean = number(evaluation.get("images")), number(evaluation.get("bpd"))
    if scores.ndim != 1 or images != len(scores):
        raise ValueError(
            f"{path} holds an array of shape {scores.shape}, expected one figure for each of "
            f"{text(images, 0)} images: {again}"
        )
    if mean is None or not abs(scores.mean() - mean) <= _AGREE:
        raise ValueError(
            f"{path} has the mean {scores.mean():.6f}, where results.json says {text(mean, 6)}: "
            f"they are of two scorings; {again}"
        )
    return scores


def in_order(results: Sequence[Result]) -> list[Result]:
    """By data, then bits per dimension, those without any last."""
    return sorted(results, key=lambda r: (r.label, math.inf if r.bpd is None else r.bpd, r.name))


def by_images(results: Sequence[Result]) -> list[list[Result]]:
    """Runs that were scored on the same held-out images, together; a run that does not say on which
    stands alone."""
    groups: dict[Any, list[Result]] = {}
    for result in in_order(results):
        groups.setdefault(result.heldout or result.path, []).append(result)
    return list(groups.values())


def summary_line(result: Result) -> str:
    """A run in one line, for a shell."""
    minutes = "" if result.minutes is None else f" in {result.minutes:.1f} min"
    return (
        f"{result.name}: {result.title} {text(result.bpd)} bpd ({result.error}), "
        f"{text(result.part('evaluation', 'weights'))} weights, "
        f"{text(result.number('evaluation', 'images'), 0)} images of {result.label}, "
        f"{text(result.number('training', 'steps'), 0)} steps{minutes}, "
        f"seed {text(result.part('training', 'seed'))}, commit {commit(result)}"
    )


def commit(result: Result) -> str:
    """The commits that it was trained at, in seven digits, with a + where files had been
    changed."""
    found = [str(s["commit"]) for s in result.sessions if s.get("commit")]
    return (
        " and ".join(dict.fromkeys(c[:7] + "+" * ("+changes" in c) for c in found)) or NOT_MEASURED
    )


def machine(result: Result) -> str:
    """The machines that it was trained on, in words."""
    return text(
        " and ".join(dict.fromkeys(str(s["machine"]) for s in result.sessions if s.get("machine")))
    )


def scale_shares(result: Result) -> dict[str, float]:
    """{scale: its share of the bits per dimension}, coarsest first; empty where the file does not
    say."""
    table = result.part("evaluation", "table")
    if not isinstance(table, Mapping):
        return {}
    shares: dict[str, float] = {}
    for scale, row in table.items():
        if scale != "total" and isinstance(row, Mapping):
            share = number(row.get("total"))
            if share is None:
                return {}
            shares[scale] = share
    return shares
