"""Figures of others, as records with their source and what they were measured under; and what
stands in a cell that has no figure.

None was measured here. They come from the tables of one later work that quotes the original papers
(REFERENCES). A figure that only the PCDM paper's own tables hold is a record without a value,
NOT_AVAILABLE; docs/results.md has those figures with their place in the paper. Where the later work
has a dash there is no record. Each figure keeps the digits in which it was quoted.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a cell says that holds no figure; the first two are about figures of others, the last two
# about ours.
NOT_GIVEN = "not given"  # the source does not state it
NOT_AVAILABLE = "not available"  # the paper has it, the later work does not
NOT_RUN = "not run"  # no results file holds it
NOT_MEASURED = "n/a"  # the results file holds none, or one that is not finite

QUOTED, PAPER = "Shen, Gan and Ling", "Li, Basri and Kluger"
REFERENCES = {
    QUOTED: 'Y. Shen, L. Gan and C. Ling, "Information Theoretic Learning for Diffusion Models '
    'with Warm Start", 2025, arXiv 2510.20903',
    PAPER: 'H. Li, R. Basri and Y. Kluger, "Likelihood Training of Cascaded Diffusion Models via '
    'Hierarchical Volume-preserving Maps", ICLR 2024, '
    "arXiv 2501.06999",
}

BPD, FID, FILES, AUROC, LIKELIHOODS = "bpd", "FID", "compressed bpd", "AUROC", "three likelihoods"
DATA = {
    "cifar10": "CIFAR-10",
    "imagenet32": "ImageNet-32",
    "imagenet64": "ImageNet-64",
    "imagenet128": "ImageNet-128",
}

_UNDER = {
    BPD: "each work's own bound or likelihood, and its own dequantisation",
    FID: "each work's own samples and reference images",
    FILES: "each work's own coder; lossless",
}


@dataclass(frozen=True)
class PublishedFigure:
    """One figure.

    Attributes:
        name: the model, as the source has it.
        data: a value of DATA.
        quantity: BPD and FILES in bits per dimension, FID and AUROC without unit.
        value: None where it is missing; `missing` then says why.
        source: a work of REFERENCES and the place in it.
        under: what it was measured under, as far as that is known.
        updates: millions of training steps, None where not given.
        system: our name of it (presets.SYSTEMS) where the paper lists it as its own or as its
            baseline, else empty.
    """

    name: str
    data: str
    quantity: str
    value: float | None
    source: str
    under: str
    updates: float | None = None
    system: str = ""
    missing: str = ""

    def __post_init__(self) -> None:
        if not self.source or (self.value is None) != (self.missing in (NOT_GIVEN, NOT_AVAILABLE)):
            raise ValueError(
                f"{self.name}, {self.quantity} on {self.data}: a figure needs a source, and a "
                f"value or the reason why there is none"
            )

    @property
    def text(self) -> str:
        """The figure as it was quoted, or why there is none."""
        return self.missing if self.value is None else f"{self.value:.2f}"


def _quoted(table: str, mark: str = "") -> str:
    return f"as quoted by {QUOTED}, {table}" + (
        f", marked {mark} there: the original (old) release" if mark else ""
    )


def _records(
    name: str,
    data: str,
    quantity: str,
    value: float | None,
    table: str,
    *,
    mark: str = "",
    updates: float | None = None,
    system: str = "",
    weight: str = "",
) -> list[PublishedFigure]:
    under = _UNDER[quantity] + (f"; trained with the {weight}" if weight else "")
    name = f"{name} ({weight})" if weight else name
    return (
        []
        if value is None
        else [
            PublishedFigure(
                name, data, quantity, value, _quoted(table, mark), under, updates, system
            )
        ]
    )


def _missing(
    name: str, system: str, quantity: str, where: str, data: str = "CIFAR-10"
) -> PublishedFigure:
    return PublishedFigure(
        name,
        data,
        quantity,
        None,
        f"{PAPER}, {where}",
        "could not be looked up",
        system=system,
        missing=NOT_AVAILABLE,
    )


_MINE = {"W-PCDM": "wavelet", "LP-PCDM": "laplacian", "VDM": "vdm"}

# name, weight, bits per dimension, FID, millions of updates
_CIFAR10 = [
    ("W-PCDM", "VDM weight", 2.35, 6.23, 2.0),
    ("W-PCDM", "EDM weight", 10.31, 2.42, 2.0),
    ("VDM", "", 2.65, 7.60, 10.0),
    ("ScoreFlow", "", 2.80, 5.34, 1.6),
    ("Flow Matching", "", 2.99, 6.35, 0.391),
    ("Stochastic Interpolants", "", 2.99, 10.27, 0.5),
    ("i-DODE (SP with IS)", "", 2.56, 11.20, 6.2),
    ("DiffEnc", "", 2.62, 11.20, 8.0),
    ("MuLAN", "", 2.55, 17.62, 8.0),
    ("BSI", "", 2.64, None, 10.0),
]

# name, bits per dimension, table, mark, millions of updates; * is the original release there, the
# old version of the data
_IMAGENET32 = [
    ("W-PCDM", 3.32, "Tables 1 and 2", "", 10.0),
    ("LP-PCDM", 3.52, "Table 2", "", None),
    ("VDM", 3.72, "Tables 1 and 2", "* (Table 1)", 2.0),
    ("ScoreFlow", 3.79, "Table 1", "*", 1.6),
    ("Flow Matching", 3.53, "Tables 1 and 2", "", 0.25),
    ("Stochastic Interpolants", 3.48, "Table 1", "*", 0.6),
    ("i-DODE", 3.44, "Table 1", "", 2.25),
    ("i-DODE", 3.69, "Table 1", "*", 2.5),
    ("DiffEnc", 3.46, "Table 1", "", 8.0),
    ("MuLAN", 3.67, "Table 1", "*", 2.0),
    ("BSI", 3.44, "Table 1", "", 10.0),
    ("PixelCNN", 3.83, "Table 2", "", None),
    ("Glow", 4.02, "Table 2", "", None),
    ("Flow++", 3.86, "Table 2", "", None),
    ("Very deep VAE", 3.80, "Table 2", "", None),
]

# name, bits per dimension on ImageNet-64 and -128
_IMAGENET_LARGER = [
    ("W-PCDM", 2.95, 2.64),
    ("LP-PCDM", 3.12, 2.91),
    ("VDM", 3.40, None),
    ("PixelCNN", 3.57, None),
    ("Glow", 3.81, None),
    ("Flow++", 3.69, None),
    ("Sparse Transformer", 3.44, None),
    ("Very deep VAE", 3.52, None),
    ("Improved DDPM", 3.54, None),
    ("Routing Transformer", 3.43, None),
    ("Flow Matching", 3.31, 2.90),
]

_FILES = [
    ("W-PCDM", 2.37),
    ("VDM", 2.72),
    ("FLIF", 4.14),
    ("LBB", 3.12),
    ("IDF", 3.26),
    ("ARDM", 2.71),
]

PUBLISHED: tuple[PublishedFigure, ...] = (
    *(
        r
        for name, weight, bpd, fid, updates in _CIFAR10
        for quantity, value in ((BPD, bpd), (FID, fid))
        for r in _records(
            name,
            "CIFAR-10",
            quantity,
            value,
            "Table 1",
            updates=updates,
            system=_MINE.get(name, ""),
            weight=weight,
        )
    ),
    *(
        r
        for name, bpd, table, mark, updates in _IMAGENET32
        for r in _records(
            name,
            "ImageNet-32",
            BPD,
            bpd,
            table,
            mark=mark,
            updates=updates,
            system=_MINE.get(name, ""),
        )
    ),
    *(
        r
        for name, *values in _IMAGENET_LARGER
        for data, bpd in zip(("ImageNet-64", "ImageNet-128"), values)
        for r in _records(name, data, BPD, bpd, "Table 2", system=_MINE.get(name, ""))
    ),
    *(
        r
        for name, bpd in _FILES
        for r in _records(name, "CIFAR-10", FILES, bpd, "Table 4", system=_MINE.get(name, ""))
    ),
    _missing("LP-PCDM", "laplacian", BPD, "Table 1"),
    _missing("LP-PCDM", "laplacian", FID, "samples"),
    _missing("C-VDM", "standard", BPD, "the standard cascade of Appendix C"),
    *(_missing(name, system, AUROC, "Table 2") for name, system in _MINE.items()),
    _missing("W-PCDM", "wavelet", LIKELIHOODS, "the comparison of likelihoods"),
)


def figures(data: str, quantity: str) -> list[PublishedFigure]:
    """The records of one quantity on one data set, the paper's own first; none where nobody
    published any.

    Args:
        data: a key or a value of DATA.
    """
    found = [p for p in PUBLISHED if p.data == DATA.get(data, data) and p.quantity == quantity]
    return sorted(found, key=lambda p: not p.system)
