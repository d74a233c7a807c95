"""The tables of the paper: its figure, ours and the difference beside each other, then the figures
of others.

Pure functions of what `results_files.read_results` read; they give rows for
`experiment.markdown_table`. Where several runs fill one place all of them are shown. A place that
no run fills says so, and which command fills it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pcdm_lib.data import domains
from pcdm_lib.experiments import published
from pcdm_lib.experiments.published import (
    AUROC,
    BPD,
    FID,
    FILES,
    LATER,
    NOT_MEASURED,
    NOT_RUN,
    OUTLIERS,
    PAPER,
    PublishedFigure,
)
from pcdm_lib.experiments.results_files import (
    Result,
    commit,
    in_order,
    machine,
    number,
    scale_shares,
    text,
)
from pcdm_lib.models.presets import SYSTEMS

PROVENANCE = ("data", "budget", "seed", "weights", "machine", "commit")
DATASETS = (*published.DATA, "photos", "svhn", *domains.NAMES, "crops", "folder")

TITLES = {
    "density": "Density estimation: bits per dimension (Table 1 of the paper)",
    "ood published": "Out-of-distribution detection: AUROC, the paper's figures (Tables 2 and 5)",
    "ood": "Out-of-distribution detection: AUROC, the paper's beside ours (Tables 2 and 5)",
    "ood more": "Out-of-distribution detection: all of ours, by scale, M and N",
    "compression": "Lossless compression: bits per dimension of files (Tables 3 and 6 of the "
    "paper)",
    "cascade": "The standard cascade against volume-preserving ones (Table 4 of the paper)",
    "quality": "Sample quality (Sect. 6.1 of the paper)",
    "likelihood": "Three likelihoods of one model",
    "paired": "Differences between systems, image by image",
}

_DIFFERENCE = (
    "Difference: ours minus the paper's. Data and budget are not the same: the paper trains for "
    "2 million updates on CIFAR-10 and 10 million on ImageNet (Appendix B); ours, often on a part "
    "of the images, are stated with each run."
)
# what has to be said below a table; references of the published figures stand in
# published.REFERENCES
NOTES = {
    "density": f"{_DIFFERENCE} The released code counts bits in another way, so the paper's figure "
    "is no target for ours, which is a code length that could be paid. Later work: figures that "
    "differ from the paper's, or that it does not have.",
    "ood published": "M = 1 image a batch. Constant is the zero of images scaled to [-1, 1]. A "
    "model of CIFAR-10.",
    "ood": f"{_DIFFERENCE} M images make up a test batch, N is the number of Monte-Carlo draws of "
    "the bound of an image. Ours: typicality of the whole image, M = 1, N = 20. The interval "
    "counts the choice of images, resampled as if independent. Average: the mean of the three.",
    "ood more": "References: how many images of its own data estimate the model's entropy. Images "
    "are resampled as if independent, which neighbouring patches and digits of one house number "
    "are not.",
    "quality": f"{_DIFFERENCE} The floor is what a measure gives between two halves of the real "
    "images. A measure other than FID is no FID, and an FID of as few samples as stand here is "
    "larger than one of 50,000.",
    "cascade": f"{_DIFFERENCE} Paid twice: what the standard cascade's fine scale spends on what "
    "the coarse image already told.",
    "compression": f"{_DIFFERENCE} Ours: everything in the file counted; net is what the images "
    "that the model coded took, without the start of the stack and the container. Figures of "
    "others: each work's own coder and accounting.",
    "likelihood": "The paper has no figures for this. Minus continuous: less the continuous-time "
    "bound on the same images, with the standard error of that difference.",
    "paired": "The standard error is that of the difference, from the choice of images and the "
    "noise; another seed of training would add to it.",
}

# Which command fills a place: parts of the suite by system, at a budget that is an example.
# "{part}" and "{dataset}" are its arguments.
COMMAND = "python -m pcdm_lib tables --minutes 10 --only {part} --dataset {dataset}"
PARTS = {
    "wavelet": "wavelet",
    "laplacian": "laplacian",
    "standard": "standard_cascade",
    "vdm": "vdm",
}
_ARGUMENTS = {
    "folder": "folder:PATH",
    "crops": "crops:PATH",
    "imagenet32": "imagenet32-new",
    "imagenet64": "imagenet64-old",
    "imagenet128": "imagenet128:PATH",
}
# sets of outliers: ours and the paper's name
_SETS = {
    "SVHN": "SVHN",
    "constant grey": "constant",
    "uniform noise": "uniform",
    "average": "average",
}


def _ours(result: Result, place: str = "") -> dict[str, Any]:
    """What every table says of a run of ours, after its own columns. `place`: of the paper's figure
    beside it."""
    steps, minutes = result.number("training", "steps"), result.minutes
    return {
        "run": text(result.name),
        "data": text(result.label),
        "budget": f"{text(steps, 0)} steps, {text(minutes, 1)} minutes",
        "seed": text(result.part("training", "seed")),
        "weights": text(result.part("evaluation", "weights")),
        "machine": machine(result),
        "commit": commit(result),
        "place": place,
    }


def _not_ours(run: str, data: str, figure: PublishedFigure | None = None) -> dict[str, Any]:
    """The same of a row without a run."""
    updates = None if figure is None else figure.updates
    return dict.fromkeys(("run", *PROVENANCE), "") | {
        "run": run,
        "data": data,
        "budget": "" if updates is None else f"{updates:g} million updates",
        "place": "" if figure is None else figure.place,
    }


def _fill(
    system: str, dataset: str = "cifar10", weighting: str = "likelihood", then: str = ""
) -> str:
    """The command that fills a place that no run fills. `then`: a part of the suite that reads the
    trained model."""
    data = _ARGUMENTS.get(dataset, dataset)
    part = PARTS[system]
    if weighting != "likelihood":
        part = "wavelet_edm" if (system, dataset) == ("wavelet", "cifar10") else ""
    elif dataset in ("imagenet64", "imagenet128"):
        part = dataset if system == "wavelet" else ""
    if part:
        return "to fill it: " + COMMAND.format(part=part + then, dataset=data)
    if dataset.startswith("imagenet"):
        rest = f"-p system {system} -p size {dataset.removeprefix('imagenet')}"
        return f"to fill it: papermill reproduce/imagenet.ipynb out.ipynb {rest} -p dataset {data}"
    notebook = f"reproduce/cifar_{PARTS[system]}.ipynb"
    return f"to fill it: papermill {notebook} out.ipynb -p preset {weighting} -p dataset {data}"


def compact(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A table narrow enough to read: columns without any figure are dropped, and columns of
    provenance in which all rows of ours agree are taken out and given once, {column: value}."""
    empty = (
        {c for c in rows[0] if all(row[c] in ("", NOT_MEASURED) for row in rows)} if rows else {}
    )
    ours = [row for row in rows if row.get("commit")]
    same = {
        c: str(ours[0][c])
        for c in PROVENANCE
        if ours
        and c not in empty
        and all(c in row and row[c] == ours[0][c] for row in ours)
        and all(row in ours or row[c] in ("", ours[0][c]) or c == "data" for row in rows)
    }
    drop = {*empty, *same}
    return [{k: v for k, v in row.items() if k not in drop} for row in rows], same


def _missing_systems(results: Sequence[Result]) -> list[str]:
    return [s for s in SYSTEMS if s not in {r.system for r in results}]


def _difference(ours: float | None, paper: PublishedFigure | None) -> str:
    """Ours minus the paper's, in the paper's digits; nothing where one of them is missing."""
    return "" if ours is None or paper is None else f"{ours - paper.value:+.2f}"


def _quoted(figures: Sequence[PublishedFigure]) -> str:
    """What later work quotes, with the release of the data where it is marked there."""
    return ", ".join(p.text + " (original release)" * ("*" in p.place) for p in figures)


Measured = Callable[[Result], Sequence[tuple[float | None, dict[str, Any]]]]


def _beside(
    results: Sequence[Result],
    dataset: str,
    quantity: str,
    measured: Measured,
    columns: Sequence[str],
    fill: Callable[[str, str], str],
) -> list[dict[str, Any]]:
    """The rows of one quantity on one data set: system by system, the paper's figure beside every
    run; then the figures of others.

    Args:
        measured: what a run has of it: our figure, and the cells of `columns`.
        fill: what fills an empty place, by system and weighting.
    """
    mine = [(r, *found) for r in in_order(results) if r.dataset == dataset for found in measured(r)]
    theirs = published.figures(dataset, quantity)
    kinds = [(s, "likelihood") for s in SYSTEMS]
    if quantity == FID:  # elsewhere the price of another weighting is no row of the paper's table
        kinds += [(p.system, p.weighting) for p in theirs if p.system]
    kinds += [(r.system, r.weighting) for r, *_ in mine]
    rows = []
    for system, weighting in dict.fromkeys(kinds):
        paper = published.paper_figure(system, dataset, quantity, weighting=weighting)
        later = [p for p in theirs if (p.work, p.system, p.weighting) == (LATER, system, weighting)]
        head = {
            "system": published.titled(SYSTEMS[system], weighting),
            "paper": "" if paper is None else paper.text,
            "later work": _quoted(later),
        }
        place = "" if paper is None else paper.place
        own = [row for row in mine if (row[0].system, row[0].weighting) == (system, weighting)]
        rows += [
            head
            | {"ours": text(value), "difference": _difference(value, paper)}
            | cells
            | _ours(result, place)
            for result, value, cells in own
        ]
        if not own:
            run = fill(system, weighting)
            rows.append(
                head
                | {"ours": NOT_RUN, "difference": ""}
                | dict.fromkeys(columns, "")
                | _not_ours(run, published.DATA.get(dataset, dataset), paper)
            )
    return rows + list(_others(theirs, columns))


def _others(theirs: Sequence[PublishedFigure], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each other model: the paper's figure beside what later work quotes."""
    names = dict.fromkeys(published.base_name(p.name) for p in theirs if not p.system)
    for name in names:
        found = [p for p in theirs if published.base_name(p.name) == name]
        paper = next((p for p in found if p.work == PAPER), None)
        later = [p for p in found if p.work == LATER]
        places = [p.place for p in found if p.work == PAPER] + [
            f"{LATER}, {p.place.replace('*', '')}" for p in later
        ]
        yield (
            {
                "system": name,
                "paper": "" if paper is None else paper.text,
                "later work": _quoted(later),
                "ours": "",
                "difference": "",
            }
            | dict.fromkeys(columns, "")
            | _not_ours("", found[0].data, later[0] if later else paper)
            | {"place": "; ".join(dict.fromkeys(places))}
        )


def density_table(results: Sequence[Result], dataset: str = "cifar10") -> list[dict[str, Any]]:
    """Bits per dimension on one data set (Table 1 of the paper).

    Args:
        dataset: one of DATASETS. Runs on a part of it, or on another version of it, are among ours:
            the column of the data says which.
    Raises:
        ValueError: for a data set that neither the library nor a run knows.
    """
    if dataset not in DATASETS and dataset not in {r.dataset for r in results}:
        raise ValueError(f"unknown dataset {dataset!r}: one of {', '.join(DATASETS)}")
    columns = ("standard error", "images")

    def measured(r: Result) -> list[tuple[float | None, dict[str, Any]]]:
        cells = (r.error, text(r.number("evaluation", "images"), 0))
        return [(r.bpd, dict(zip(columns, cells)))]

    return _beside(results, dataset, BPD, measured, columns, lambda s, w: _fill(s, dataset, w))


def ood_published_table() -> list[dict[str, Any]]:
    """The paper's AUROC, Tables 2 and 5 in one: a row for each set of outliers, a column for each
    model."""
    theirs = published.figures("cifar10", AUROC)
    own = [SYSTEMS[s] for s in reversed(SYSTEMS)]
    names = [*dict.fromkeys(p.name for p in theirs if not p.system), *own]
    return [
        {"set": row}
        | {n: next((p.text for p in theirs if (p.name, p.outliers) == (n, key)), "") for n in names}
        for row, key in OUTLIERS.items()
    ]


def ood_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """AUROC of telling other images from the model's own, ours beside the paper's (Tables 2 and 5):
    typicality of the whole image, M = 1, N = 20 draws of the bound. "data" is what the model was
    trained on."""
    columns = ("interval", "images in, out")
    rows = []
    for system in SYSTEMS:
        own = [
            (result, sets)
            for result in in_order(results)
            if result.system == system and (sets := _headline(result))
        ]
        for name, key in _SETS.items():
            paper = published.paper_figure(system, "cifar10", AUROC, outliers=key)
            head = {
                "system": SYSTEMS[system],
                "set": name,
                "paper": "" if paper is None else paper.text,
            }
            for result, sets in own:
                value, cells = sets.get(name, (None, ("", "")))
                comparable = paper if result.dataset == "cifar10" else None
                rows.append(
                    head
                    | {"paper": "" if comparable is None else comparable.text}
                    | {"ours": text(value), "difference": _difference(value, comparable)}
                    | dict(zip(columns, cells))
                    | _ours(result, "" if comparable is None else comparable.place)
                )
            if not own:
                run = _fill(system, then=",ood")
                rows.append(
                    head
                    | {"ours": NOT_RUN, "difference": ""}
                    | dict.fromkeys(columns, "")
                    | _not_ours(run, "CIFAR-10", paper)
                )
    return rows


def _headline(result: Result) -> dict[str, tuple[float | None, tuple[str, str]]]:
    """{set: (AUROC, (interval, numbers of images))} under the paper's conditions, with the average
    where all of the paper's sets are there; empty where the run has none of them."""
    wanted = {"statistic": "typicality", "scale": "total", "M": 1, "N": 20}
    found = {
        str(row.get("set")): (number(row.get("auroc")), (_interval(row), _counts(row)))
        for row in _ood_rows(result)
        if all(row.get(k) == v for k, v in wanted.items()) and row.get("set") in _SETS
    }
    values = [found[name][0] for name in _SETS if name in found]
    known = [v for v in values if v is not None]
    if len(known) == len(_SETS) - 1:
        found["average"] = (sum(known) / len(known), ("", ""))
    return found


def _ood_rows(result: Result, old: bool = False) -> list[Mapping[str, Any]]:
    """The rows of AUROC of a run. `old`: instead those of an older meaning of N, the number of
    reference images; they have no key for that number."""
    found = result.part("ood", "rows")
    rows = [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
    return [row for row in rows if ("references" not in row) == old]


def _interval(row: Mapping[str, Any]) -> str:
    return f"{text(number(row.get('low')))} to {text(number(row.get('high')))}"


def _counts(row: Mapping[str, Any]) -> str:
    return f"{text(number(row.get('n_in')), 0)}, {text(number(row.get('n_out')), 0)}"


def ood_more_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every AUROC of ours: all sets, statistics, scales, M and N; none where no run has any."""
    head = ("set", "statistic", "scale", "M", "N", "references")
    return [
        {"system": result.title}
        | {k: "none" if row.get(k, 0) is None else text(row.get(k)) for k in head}
        | {
            "AUROC": text(number(row.get("auroc"))),
            "interval": _interval(row),
            "images in, out": _counts(row),
        }
        | _ours(result)
        for result in in_order(results)
        for row in _ood_rows(result)
    ]


def ood_left_out(results: Sequence[Result]) -> str:
    """One line on the rows that both tables leave out; empty where there are none."""
    names = [text(r.name) for r in in_order(results) if _ood_rows(r, old=True)]
    if not names:
        return ""
    return (
        f"Left out, because N is the number of reference images there: the AUROC of "
        f"{', '.join(names)}. Run reproduce/ood.ipynb again on these runs."
    )


def quality_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Sample quality beside bits per dimension (Sect. 6.1). FID where there is one, else why not;
    what stands in for it goes by its own name.

    The floor is what the measure gives between two sets of real images.
    """
    columns = ("standard error", "floor", "samples", "sampling steps", "bpd", "note")

    def measured(result: Result) -> list[tuple[float | None, dict[str, Any]]]:
        entry = (result.part("quality") or {}).get(FID)
        if not result.part("quality"):
            return []
        return [_measure(result, entry or {"missing": "not in the results file"})]

    rows = _beside(results, "cifar10", FID, measured, columns, lambda s, w: _fill(s, weighting=w))
    rows = [{"system": row["system"], "measure": FID} | row for row in rows]
    for row in rows:  # what the samples' weighting costs in bits stands beside them in the paper
        row["paper's bpd"] = _paper_bpd(row["system"]) if row["paper"] else ""
    for result in in_order(results):
        for name, entry in (result.part("quality") or {}).items():
            if name == FID and result.dataset == "cifar10":
                continue
            value, cells = _measure(result, entry)
            blank = dict.fromkeys(("paper", "later work", "difference"), "")
            row = {"system": result.title, "measure": text(name)} | blank | {"ours": text(value)}
            rows.append(row | cells | _ours(result) | {"paper's bpd": ""})
    order = [*rows[0]]
    return [{key: row[key] for key in order} for row in rows]


def _measure(result: Result, entry: Any) -> tuple[float | None, dict[str, Any]]:
    """One measure of samples: its figure and the cells beside it."""
    entry = entry if isinstance(entry, Mapping) else {}
    return number(entry.get("value")), {
        "standard error": text(number(entry.get("se"))),
        "floor": text(number(entry.get("floor"))),
        "samples": text(number(entry.get("samples")), 0),
        "sampling steps": text(number(entry.get("steps")), 0),
        "bpd": text(result.bpd),
        "note": f"missing: {text(entry['missing'])}" if entry.get("missing") else "",
    }


def _paper_bpd(title: str) -> str:
    found = (p.text for p in published.figures("cifar10", BPD) if p.title == title)
    return next(found, "")


_TABLE_4 = [SYSTEMS[s] for s in ("standard", "laplacian", "wavelet")]  # what it lists


def cascade_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The standard cascade C-VDM against the others (Table 4 and Appendix C of the paper), on the
    paper's data sets and on every other that has a run.

    C-VDM sends the coarse image and then every pixel, given the coarse image. "paid twice" are the
    bits per dimension that its fine scale spends on what the coarse image already told; a map that
    preserves volume has none, and VDM has no coarse image.
    """
    columns = ("standard error", "base", "finer scales", "paid twice")

    def measured(r: Result) -> list[tuple[float | None, dict[str, Any]]]:
        base, *finer = scale_shares(r).values() or [None]
        fine = "none" if r.system == "vdm" else text(sum(finer) if finer else None)
        return [(r.bpd, dict(zip(columns, (r.error, text(base), fine, _twice(r)))))]

    rows = []
    for dataset in dict.fromkeys([*published.DATA, *(r.dataset for r in in_order(results))]):

        def fill(system: str, weighting: str, dataset: str = dataset) -> str:
            return _fill(system, dataset, weighting)

        found = _beside(results, dataset, BPD, measured, columns, fill)
        rows += [r for r in found if r["commit"] or r["system"] in _TABLE_4]
    return rows


def _twice(result: Result) -> str:
    if result.system != "standard":
        return "none"
    bits = result.number("twice", "bpd")
    return NOT_MEASURED if bits is None else f"{text(bits)} ± {text(result.number('twice', 'se'))}"


def likelihood_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The likelihoods of each model by several estimators: the continuous-time bound, the bound in
    T steps, the probability flow. The paper has no figures for this."""
    after = (
        "standard error",
        "minus continuous",
        "its standard error",
        "evaluations an image",
        "images",
    )
    rows = []
    filled = []
    for result in in_order(results):
        for entry in result.part("likelihoods") or []:
            if not isinstance(entry, Mapping):
                continue
            filled.append(result)
            rows.append(
                {
                    "system": result.title,
                    "likelihood": text(entry.get("name")),
                    "bpd": text(number(entry.get("bpd"))),
                    "standard error": f"{text(number(entry.get('se_images')))} images, "
                    f"{text(number(entry.get('se_noise')))} noise",
                    "minus continuous": text(number(entry.get("minus_continuous"))),
                    "its standard error": text(number(entry.get("minus_se"))),
                    "evaluations an image": text(number(entry.get("evaluations")), 0),
                    "images": text(number(entry.get("images")), 0),
                }
                | _ours(result)
            )
    return rows + [
        {"system": SYSTEMS[s], "likelihood": "", "bpd": NOT_RUN}
        | dict.fromkeys(after, "")
        | _not_ours(_fill(s), "CIFAR-10")
        for s in _missing_systems(filled)
    ]


def compression_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Bits per dimension of real files beside the paper's (Tables 3 and 6), and beside the T-step
    bound that they were to pay."""
    columns = ("T", "T-step bound", "net", "net minus bound", "images")

    def measured(result: Result) -> list[tuple[float | None, dict[str, Any]]]:
        entries = [e for e in result.part("compression") or [] if isinstance(e, Mapping)]
        return [(number(e.get("file_bpd")), dict(zip(columns, _coded(e)))) for e in entries]

    def fill(system: str, weighting: str) -> str:
        if system == "standard":
            return "the coder leaves it out: it would pay for its coarse pixels twice"
        return _fill(system, weighting=weighting, then=",compression")

    rows = _beside(results, "cifar10", FILES, measured, columns, fill)
    for dataset in dict.fromkeys(r.dataset for r in in_order(results) if r.dataset != "cifar10"):
        found = _beside(results, dataset, FILES, measured, columns, fill)
        rows += [row for row in found if row["commit"]]
    return rows


def _coded(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of one coding: T, bound, net, net minus bound, number of images."""
    parts: dict[str, Mapping[str, Any]] = {
        key: value if isinstance(value := entry.get(key), Mapping) else {}
        for key in ("bound", "excess", "statistics", "books")
    }
    images = (parts["statistics"] or parts["books"]).get("images")  # older files: "books"
    excess = parts["excess"]
    return (
        text(number(entry.get("steps")), 0),
        text(number(parts["bound"].get("bpd"))),
        text(number(entry.get("net_bpd"))),
        f"{text(number(excess.get('bpd')))} ± {text(number(excess.get('se')))}",
        text(number(images), 0),
    )


def obstacles(a: Result, b: Result) -> list[str]:
    """Why two runs cannot be compared image by image, in words; empty where they can."""
    found = []
    if a.heldout is None or b.heldout is None:
        found.append("which held-out images were scored is not recorded")
    elif a.heldout != b.heldout:
        found.append(
            f"different held-out images ({a.heldout[1]} of {a.label}; {b.heldout[1]} of {b.label})"
        )
    if a.part("data", "train_sha256") != b.part("data", "train_sha256"):
        found.append("different training images")
    if a.budget is None or a.budget != b.budget:
        found.append(
            f"different budgets ({a.budget or 'not recorded'}; {b.budget or 'not recorded'})"
        )
    presets = [
        "small" if preset == "edm" else preset
        for preset in (a.part("config", "preset"), b.part("config", "preset"))
    ]
    if presets[0] != presets[1]:  # edm is small with another loss, whose price in bits is asked for
        found.append(f"different presets ({text(presets[0])}; {text(presets[1])})")
    for key in ("bound", "weights"):
        one, other = a.part("evaluation", key), b.part("evaluation", key)
        if one != other:
            found.append(f"different {key} ({text(one)}; {text(other)})")
    return found + [f"{r.name}: {r.no_scores}" for r in (a, b) if r.scores is None]


def paired(a: Result, b: Result) -> tuple[float, float]:
    """Mean of a - b over the same held-out images in bits per dimension, and its standard error
    (choice of images and noise together; not the choice of the training's seed); nan for one image.
    Raises ValueError where they are not to be compared (`obstacles`)."""
    if reasons := obstacles(a, b):
        raise ValueError(f"{a.name} and {b.name} cannot be paired: {'; '.join(reasons)}")
    assert a.scores is not None and b.scores is not None  # `obstacles` names what has none
    difference = a.scores - b.scores
    error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.nan
    return float(difference.mean()), float(error)


def paired_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Differences between systems on the same held-out images, after the same budget on the same
    training images: those with VDM first, then the other pairs, every run with every run. A run
    that cannot be paired with a run of any other system has a row that says why."""
    order = list(SYSTEMS)
    pairs = [
        tuple(sorted(p, key=lambda r: order.index(r.system)))
        for p in itertools.combinations(in_order(results), 2)
        if p[0].system != p[1].system
    ]
    good = [p for p in pairs if not obstacles(*p)]
    good.sort(
        key=lambda p: (
            p[0].label,
            p[0].budget,
            p[1].system != "vdm",
            *(order.index(r.system) for r in p),
        )
    )
    rows: list[dict[str, Any]] = []
    for a, b in good:
        mean, error = paired(a, b)
        assert a.scores is not None
        rows.append(
            {
                "difference": f"{a.title} minus {b.title}",
                "bpd": text(mean),
                "standard error": text(error),
                "runs": text(f"{a.name}, {b.name}"),
                "images": len(a.scores),
                "budget": a.budget,
                "seeds": f"{text(a.part('training', 'seed'))}, {text(b.part('training', 'seed'))}",
                "data": text(a.label),
                "note": "",
            }
        )
    together = {r.path for p in good for r in p}
    for result in in_order([r for r in results if r.path not in together]):
        others = [r for r in results if r.system != result.system]
        nearest = min(
            ((r, obstacles(result, r)) for r in others), key=lambda x: len(x[1]), default=None
        )
        why = result.no_scores if result.scores is None else "no run of another system"
        if nearest is not None and result.scores is not None:
            why = f"with {nearest[0].name}: {'; '.join(nearest[1])}"
        rows.append(
            {
                "difference": f"{result.title}: not paired",
                "bpd": NOT_MEASURED,
                "standard error": NOT_MEASURED,
                "runs": text(result.name),
                "images": text(result.number("evaluation", "images"), 0),
                "budget": text(result.budget),
                "seeds": text(result.part("training", "seed")),
                "data": text(result.label),
                "note": text(why),
            }
        )
    if not rows:
        rows = [
            {"difference": NOT_RUN}
            | dict.fromkeys(
                ("bpd", "standard error", "runs", "images", "budget", "seeds", "data"), ""
            )
            | {"note": _fill("vdm")}
        ]
    return rows
