"""The tables of the paper made from results files: published figures, the paper's and ours, each
with where it is from.

Pure functions of what `results_files.read_results` read; they give rows for
`experiment.markdown_table`. Where several runs fill one place all of them are shown. A place that
no run fills says so, and which command would fill it. Tables go by their content (TITLES): what
number the paper gives to some of them could not be checked here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pcdm_lib.data import domains
from pcdm_lib.experiments import published
from pcdm_lib.experiments.published import (
    AUROC,
    BPD,
    FID,
    FILES,
    LIKELIHOODS,
    NOT_GIVEN,
    NOT_MEASURED,
    NOT_RUN,
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

MEASURED = "measured here"
PROVENANCE = ("data", "budget", "seed", "weights", "machine", "commit")
DATASETS = (*published.DATA, "photos", "svhn", *domains.NAMES, "crops", "folder")

TITLES = {
    "density": "Density estimation: bits per dimension (Table 1 of the paper)",
    "ood": "Out-of-distribution detection: AUROC (Table 2 of the paper)",
    "quality": "Sample quality",
    "cascade": "The standard cascade against volume-preserving ones (Appendix C of the paper)",
    "likelihood": "Three likelihoods of one model",
    "compression": "Lossless compression: bits per dimension of files (Tables 3 and 6 of the "
    "paper)",
    "paired": "Differences between systems, image by image",
}

# what has to be said below a table; references of the published figures stand in
# published.REFERENCES
NOTES = {
    "density": "Figures of others: each work's own bound or likelihood, and its own "
    "dequantisation, so they are not one accounting. Ours: the bound "
    "of this package, a code length that could be paid.",
    "ood": "M images make up a test batch, N others estimate the entropy of the model's own data; "
    "the interval of a typicality counts the choice of "
    "those N. Images are resampled as if independent, which neighbouring patches and digits of "
    "one house number are not.",
    "quality": "The floor is what a measure gives between two halves of the real images. A "
    "measure other than FID is no FID, and an FID of as few "
    "samples as stand here is larger than the published ones of 50,000.",
    "cascade": "Paid twice: what the standard cascade's fine scale spends on what the coarse "
    "image already told.",
    "compression": "Ours: everything in the file counted; net is what the images that the model "
    "coded took, without the start of the stack and the container. "
    "Figures of others: each work's own coder and accounting.",
    "likelihood": "Minus continuous: less the continuous-time bound on the same images, with the "
    "standard error of that difference.",
    "paired": "The standard error is that of the difference, from the choice of images and the "
    "noise; another seed of training would add to it.",
}
NUMBERING = (
    "Tables are ordered by what they show. docs/results.md has the paper's own tables beside ours."
)

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

_FACTS = ("seed", "weights", "machine", "commit")


def _ours(result: Result) -> dict[str, Any]:
    """What every table says of a run of ours, after its own columns."""
    steps, minutes = result.number("training", "steps"), result.minutes
    return {
        "run": text(result.name),
        "data": text(result.label),
        "budget": f"{text(steps, 0)} steps, {text(minutes, 1)} minutes",
        "seed": text(result.part("training", "seed")),
        "weights": text(result.part("evaluation", "weights")),
        "machine": machine(result),
        "commit": commit(result),
        "source": MEASURED,
    }


def _theirs(figure: PublishedFigure) -> dict[str, Any]:
    """The same of a figure of others."""
    budget = NOT_GIVEN if figure.updates is None else f"{figure.updates:g} million steps"
    return {
        "run": "paper" if figure.system else "published",
        "data": figure.data,
        "budget": budget,
        **dict.fromkeys(_FACTS, NOT_GIVEN),
        "source": figure.source,
    }


def _absent(part: str | None, dataset: str = "cifar10") -> dict[str, Any]:
    """The same of a place that no run fills. `part`: of the suite, None where it has none for
    this."""
    fill = (
        "no part of the suite makes it"
        if part is None
        else "to fill it: " + COMMAND.format(part=part, dataset=_ARGUMENTS.get(dataset, dataset))
    )
    return {
        "run": "",
        "data": published.DATA.get(dataset, dataset),
        "budget": "",
        **dict.fromkeys(_FACTS, ""),
        "source": fill,
    }


def _part(system: str, dataset: str = "cifar10") -> str | None:
    """The part of the suite that trains a system on a data set."""
    if dataset in ("imagenet64", "imagenet128"):
        return dataset if system == "wavelet" else None
    return PARTS[system]


def _name(figure: PublishedFigure) -> str:
    return f"{figure.name}, paper" if figure.system else figure.name


def compact(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A table narrow enough to read: columns of provenance in which all measured rows agree are
    taken out and given once, {column: value}."""
    ours = [row for row in rows if row.get("source") == MEASURED]
    same = {
        c: str(ours[0][c])
        for c in PROVENANCE
        if ours and all(c in row and row[c] == ours[0][c] for row in ours)
    }
    return [{k: v for k, v in row.items() if k not in same} for row in rows], same


def _missing_systems(results: Sequence[Result]) -> list[str]:
    return [s for s in SYSTEMS if s not in {r.system for r in results}]


def density_table(results: Sequence[Result], dataset: str = "cifar10") -> list[dict[str, Any]]:
    """Bits per dimension on one data set (Table 1 of the paper): the paper's figures, others',
    ours.

    Args:
        dataset: one of DATASETS. Runs on a part of it, or on another version of it, are among ours:
            the column of the data says which.
    """
    if dataset not in DATASETS and dataset not in {r.dataset for r in results}:
        raise ValueError(f"unknown dataset {dataset!r}: one of {', '.join(DATASETS)}")
    rows = [
        {"system": _name(p), "bpd": p.text, "standard error": NOT_GIVEN, "images": NOT_GIVEN}
        | _theirs(p)
        for p in published.figures(dataset, BPD)
    ]
    mine = in_order([r for r in results if r.dataset == dataset])
    rows += [
        {
            "system": r.title,
            "bpd": text(r.bpd),
            "standard error": r.error,
            "images": text(r.number("evaluation", "images"), 0),
        }
        | _ours(r)
        for r in mine
    ]
    return rows + [
        {"system": SYSTEMS[s], "bpd": NOT_RUN, "standard error": "", "images": ""}
        | _absent(_part(s, dataset), dataset)
        for s in _missing_systems(mine)
    ]


def ood_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Area under the ROC curve of telling other images from the model's own (Table 2 of the paper);
    "data" is what the model was trained on."""
    head = ("set", "statistic", "scale", "M", "N")
    rows = [
        {"system": _name(p)}
        | dict.fromkeys(head, NOT_GIVEN)
        | {"AUROC": p.text, "interval": NOT_GIVEN, "batches in, out": NOT_GIVEN}
        | _theirs(p)
        for p in published.figures("cifar10", AUROC)
    ]
    filled = []
    for result in in_order(results):
        found = result.part("ood", "rows")
        for row in found if isinstance(found, list) else []:
            if not isinstance(row, Mapping):
                continue
            filled.append(result)
            # over the choice of the N reference images too, where that was drawn
            value, low, high = (
                number(row.get(k))
                for k in (
                    ("reference_mean", "reference_low", "reference_high")
                    if row.get("reference_mean") is not None
                    else ("auroc", "low", "high")
                )
            )
            # null: no reference was used
            cells = {k: text(row.get(k)) for k in head} | (
                {"N": "none"} if row.get("N", 0) is None else {}
            )
            rows.append(
                {"system": result.title}
                | cells
                | {
                    "AUROC": text(value),
                    "interval": f"{text(low)} to {text(high)}",
                    "batches in, out": f"{text(number(row.get('n_in')), 0)}, "
                    f"{text(number(row.get('n_out')), 0)}",
                }
                | _ours(result)
            )
    absent = (
        dict.fromkeys(head, "")
        | {"AUROC": NOT_RUN, "interval": "", "batches in, out": ""}
        | _absent(f"{','.join(PARTS.values())},ood")
    )
    return rows + [{"system": SYSTEMS[s]} | absent for s in _missing_systems(filled)]


def quality_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Sample quality beside bits per dimension. FID where there is one, else why not; what stands
    in for it goes by its own name.

    The floor is what the measure gives between two sets of real images.
    """
    bits = {(p.name, p.data): p.text for p in published.PUBLISHED if p.quantity == BPD}
    sampler = ("standard error", "floor", "samples", "sampling steps")
    rows = [
        {"system": _name(p), "measure": FID, "value": p.text}
        | dict.fromkeys(sampler, NOT_GIVEN)
        | {"bpd": bits.get((p.name, p.data), NOT_GIVEN)}
        | _theirs(p)
        for p in published.figures("cifar10", FID)
    ]
    filled = []
    for result in in_order(results):
        measures = result.part("quality")
        if not measures:
            continue
        filled.append(result)
        for name, entry in ({FID: {"missing": "not in the results file"}} | dict(measures)).items():
            entry = entry if isinstance(entry, Mapping) else {}
            row = {
                "system": result.title,
                "measure": text(name),
                "value": text(number(entry.get("value"))),
                "standard error": text(number(entry.get("se"))),
                "floor": text(number(entry.get("floor"))),
                "samples": text(number(entry.get("samples")), 0),
                "sampling steps": text(number(entry.get("steps")), 0),
                "bpd": text(result.bpd),
            } | _ours(result)
            rows.append(
                row
                | ({"source": f"missing: {text(entry['missing'])}"} if entry.get("missing") else {})
            )
    return rows + [
        {"system": SYSTEMS[s], "measure": "", "value": NOT_RUN}
        | dict.fromkeys((*sampler, "bpd"), "")
        | _absent(_part(s))
        for s in _missing_systems(filled)
    ]


def cascade_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The standard cascade C-VDM against the others (Appendix C of the paper), on every data set
    that has a run.

    C-VDM sends the coarse image and then every pixel, given the coarse image. "paid twice" are the
    bits per dimension that its fine scale spends on what the coarse image already told; a map that
    preserves volume has none, and VDM has no coarse image.
    """
    empty = ("standard error", "base", "finer scales", "paid twice")
    rows = [
        {"system": _name(p), "bpd": p.text} | dict.fromkeys(empty, NOT_GIVEN) | _theirs(p)
        for p in published.figures("cifar10", BPD)
        if p.system == "standard"
    ]
    for dataset in dict.fromkeys(r.dataset for r in in_order(results)) or ["cifar10"]:
        mine = in_order([r for r in results if r.dataset == dataset])
        for r in mine:
            base, *finer = scale_shares(r).values() or [None]
            rows.append(
                {
                    "system": r.title,
                    "bpd": text(r.bpd),
                    "standard error": r.error,
                    "base": text(base),
                    "finer scales": "none"
                    if r.system == "vdm"
                    else text(sum(finer) if finer else None),
                    "paid twice": _twice(r),
                }
                | _ours(r)
            )
        rows += [
            {"system": SYSTEMS[s], "bpd": NOT_RUN}
            | dict.fromkeys(empty, "")
            | _absent(_part(s, dataset), dataset)
            for s in _missing_systems(mine)
        ]
    return rows


def _twice(result: Result) -> str:
    if result.system != "standard":
        return "none"
    bits = result.number("twice", "bpd")
    return NOT_MEASURED if bits is None else f"{text(bits)} ± {text(result.number('twice', 'se'))}"


def likelihood_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The likelihoods of each model by several estimators: the continuous-time bound, the bound in
    T steps, the probability flow."""
    after = (
        "standard error",
        "minus continuous",
        "its standard error",
        "evaluations an image",
        "images",
    )
    rows = [
        {"system": _name(p), "likelihood": LIKELIHOODS, "bpd": p.text}
        | dict.fromkeys(after, NOT_GIVEN)
        | _theirs(p)
        for p in published.figures("cifar10", LIKELIHOODS)
    ]
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
        | _absent(_part(s))
        for s in _missing_systems(filled)
    ]


def compression_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Bits per dimension of real files, beside the T-step bound that they were to pay."""
    own = ("T", "T-step bound", "net", "net minus bound", "images")
    rows = [
        {"system": _name(p), "file": p.text} | dict.fromkeys(own, NOT_GIVEN) | _theirs(p)
        for p in published.figures("cifar10", FILES)
    ]
    filled = []
    for result in in_order(results):
        for entry in result.part("compression") or []:
            if not isinstance(entry, Mapping):
                continue
            filled.append(result)
            parts: dict[str, Mapping[str, Any]] = {
                key: value if isinstance(value := entry.get(key), Mapping) else {}
                for key in ("bound", "excess", "statistics", "books")
            }
            images = (parts["statistics"] or parts["books"]).get("images")  # older files: "books"
            rows.append(
                {
                    "system": result.title,
                    "file": text(number(entry.get("file_bpd"))),
                    "T": text(number(entry.get("steps")), 0),
                    "T-step bound": text(number(parts["bound"].get("bpd"))),
                    "net": text(number(entry.get("net_bpd"))),
                    "net minus bound": f"{text(number(parts['excess'].get('bpd')))} ± "
                    f"{text(number(parts['excess'].get('se')))}",
                    "images": text(number(images), 0),
                }
                | _ours(result)
            )
    return rows + [
        {"system": SYSTEMS[s], "file": NOT_RUN}
        | dict.fromkeys(own, "")
        | _absent(f"{_part(s)},compression")
        for s in _missing_systems(filled)
        if s != "standard"
    ]


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
    rows = []
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
            | {"note": _absent("vdm")["source"]}
        ]
    return rows
