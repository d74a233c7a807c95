"""Figures of others, as records with their source and what they were measured under.

The paper's own come first: Tables 1 to 6 whole and the FIDs of Sect. 6.1, typed as they stand
there. Its authors took the figures of other models from the literature. One later work quotes many
of the same models (REFERENCES). Where it agrees with the paper there is one record, the paper's;
where it differs or has more there is a record of its own. None was measured here. Each figure keeps
the digits of its source. A dash or an empty cell there is no record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pcdm_lib.models.presets import SYSTEMS

# What a cell says that holds no figure; the first is about figures of others, the last two about
# ours.
NOT_GIVEN = "not given"  # the source does not state it
NOT_RUN = "not run"  # no results file holds it
NOT_MEASURED = "n/a"  # the results file holds none, or one that is not finite

PAPER, LATER = "Li, Basri and Kluger", "Shen, Gan and Ling"
REFERENCES = {
    PAPER: 'H. Li, R. Basri and Y. Kluger, "Likelihood Training of Cascaded Diffusion Models via '
    'Hierarchical Volume-preserving Maps", ICLR 2024, '
    "arXiv 2501.06999",
    LATER: 'Y. Shen, L. Gan and C. Ling, "Information Theoretic Learning for Diffusion Models '
    'with Warm Start", 2025, arXiv 2510.20903',
}

BPD, FID, FILES, AUROC = "bpd", "FID", "compressed bpd", "AUROC"
DATA = {
    "cifar10": "CIFAR-10",
    "imagenet32": "ImageNet-32",
    "imagenet64": "ImageNet-64",
    "imagenet128": "ImageNet-128",
}
# the rows of Tables 2 and 5, as the paper has them: what the model's own images are told from
OUTLIERS = {
    "SVHN": "SVHN",
    "Const. Uniform": "constant",
    "Uniform": "uniform",
    "Average": "average",
}

# ---- the paper, arXiv 2501.06999. In Table 5 the column VDM is empty.

_TABLE_1 = """
model                            | CIFAR-10 | ImageNet-32 | ImageNet-64 | ImageNet-128
VAE with IAF                     | 3.11     |             |             |
PixelCNN                         | 3.03     | 3.83        | 3.57        |
PixelCNN++                       | 2.92     |             |             |
Glow                             | 3.35     | 4.09        | 3.81        |
Image Transformer                | 2.90     | 3.77        |             |
SPN                              |          | 3.52        |             |
CR-NVAE                          | 2.51     |             |             |
Flow++                           | 3.06     | 3.86        | 3.69        |
Sparse Transformer               | 2.80     |             | 3.44        |
Sparse Transformer w/ dist. aug. | 2.53     |             | 3.44        |
Very Deep VAE                    | 2.87     | 3.80        | 3.52        |
DDPM                             | 3.69     |             |             |
Score SDE                        | 2.99     |             |             |
Improved DDPM                    | 2.94     |             | 3.54        |
EBM-DRL                          | 3.18     |             |             |
Routing Transformer              |          |             | 3.43        |
S4                               | 2.85     |             |             |
Score Flow                       | 2.80     | 3.76        |             |
LSGM                             | 2.87     |             |             |
Flow Matching                    | 2.99     | 3.53        | 3.31        | 2.90
Soft Truncation                  | 2.99     | 3.53        |             |
INDM                             | 2.97     |             |             |
VDM                              | 2.49     | 3.72        | 3.40        |
i-DODE                           | 2.56     | 3.69        |             |
LP-PCDM                          | 2.36     | 3.52        | 3.12        | 2.91
W-PCDM                           | 2.35     | 3.32        | 2.95        | 2.64
"""

_TABLE_2 = """
outliers       | GLOW | PixelCNN++ | EBM  | AR-CSM | Typ. Test | VDM  | LP-PCDM | W-PCDM
SVHN           | 0.24 | 0.32       | 0.63 | 0.68   | 0.46      | 0.53 | 0.71    | 0.74
Const. Uniform | 0.0  | 0.0        | 0.30 | 0.57   | 1.0       | 0.96 | 1.0     | 1.0
Uniform        | 1.0  | 1.0        | 1.0  | 0.95   | 1.0       | 1.0  | 1.0     | 1.0
Average        | 0.41 | 0.44       | 0.64 | 0.73   | 0.81      | 0.83 | 0.90    | 0.92
"""

_TABLE_3 = """
model   | CIFAR-10
FLIF    | 4.14
IDF     | 3.26
LBB     | 3.12
VDM     | 2.72
ARDM    | 2.71
LP-PCDM | 2.40
W-PCDM  | 2.37
"""

_TABLE_4 = """
model   | CIFAR-10 | ImageNet-32 | ImageNet-64 | ImageNet-128
C-VDM   | 3.20     | 4.21        | 3.87        | 3.75
LP-PCDM | 2.36     | 3.52        | 3.12        | 2.91
W-PCDM  | 2.35     | 3.32        | 2.95        | 2.64
"""

_TABLE_5 = """
outliers       | VDM | C-VDM | LP-PCDM | W-PCDM
SVHN           |     | 0.43  | 0.71    | 0.74
Const. Uniform |     | 0.55  | 1.0     | 1.0
Uniform        |     | 1.0   | 1.0     | 1.0
Average        |     | 0.66  | 0.90    | 0.92
"""

_TABLE_6 = """
model   | CIFAR-10
C-VDM   | 3.22
LP-PCDM | 2.40
W-PCDM  | 2.37
"""

# name, weighting of the loss, FID, bits per dimension (those of the likelihood's are in Table 1)
_SECTION_6_1 = (
    ("LP-PCDM", "likelihood", "6.31", ""),
    ("W-PCDM", "likelihood", "6.23", ""),
    ("VDM", "likelihood", "7.41", ""),
    ("LP-PCDM", "edm", "2.45", "9.55"),
    ("W-PCDM", "edm", "2.42", "10.31"),
)

# ---- the later work, arXiv 2510.20903, names as the paper has them; * marks the original (old)
# release of the data there. Updates are in millions.

_LATER_CIFAR10 = """
model                   | bpd   | FID   | updates
W-PCDM (VDM weight)     | 2.35  | 6.23  | 2
W-PCDM (EDM weight)     | 10.31 | 2.42  | 2
VDM                     | 2.65  | 7.60  | 10
Score Flow              | 2.80  | 5.34  | 1.6
Flow Matching           | 2.99  | 6.35  | 0.391
Stochastic Interpolants | 2.99  | 10.27 | 0.5
i-DODE (SP with IS)     | 2.56  | 11.20 | 6.2
DiffEnc                 | 2.62  | 11.20 | 8
MuLAN                   | 2.55  | 17.62 | 8
BSI                     | 2.64  |       | 10
"""

# name, bits per dimension, place, millions of updates
_LATER_IMAGENET32 = (
    ("W-PCDM", "3.32", "Tables 1 and 2", 10.0),
    ("LP-PCDM", "3.52", "Table 2", None),
    ("VDM", "3.72", "Tables 1* and 2", 2.0),
    ("Score Flow", "3.79", "Table 1*", 1.6),
    ("Flow Matching", "3.53", "Tables 1 and 2", 0.25),
    ("Stochastic Interpolants", "3.48", "Table 1*", 0.6),
    ("i-DODE", "3.44", "Table 1", 2.25),
    ("i-DODE", "3.69", "Table 1*", 2.5),
    ("DiffEnc", "3.46", "Table 1", 8.0),
    ("MuLAN", "3.67", "Table 1*", 2.0),
    ("BSI", "3.44", "Table 1", 10.0),
    ("PixelCNN", "3.83", "Table 2", None),
    ("Glow", "4.02", "Table 2", None),
    ("Flow++", "3.86", "Table 2", None),
    ("Very Deep VAE", "3.80", "Table 2", None),
)

_LATER_LARGER = """
model               | ImageNet-64 | ImageNet-128
W-PCDM              | 2.95        | 2.64
LP-PCDM             | 3.12        | 2.91
VDM                 | 3.40        |
PixelCNN            | 3.57        |
Glow                | 3.81        |
Flow++              | 3.69        |
Sparse Transformer  | 3.44        |
Very Deep VAE       | 3.52        |
Improved DDPM       | 3.54        |
Routing Transformer | 3.43        |
Flow Matching       | 3.31        | 2.90
"""

_LATER_FILES = """
model  | CIFAR-10
W-PCDM | 2.37
VDM    | 2.72
FLIF   | 4.14
LBB    | 3.12
IDF    | 3.26
ARDM   | 2.71
"""

_UNDER = {
    BPD: "each work's own bound or likelihood, and its own dequantisation",
    FID: "each work's own samples and reference images",
    FILES: "each work's own coder; lossless",
    AUROC: "a model of CIFAR-10; one image a batch (M = 1)",
}
_SYSTEM = {name: key for key, name in SYSTEMS.items()}
_OWN = ("W-PCDM", "LP-PCDM", "C-VDM")  # trained by the paper's authors


def titled(name: str, weighting: str) -> str:
    """A model's name, with the weights of its loss where they are not the bound's."""
    return name if weighting == "likelihood" else f"{name} ({weighting.upper()} weight)"


@dataclass(frozen=True)
class PublishedFigure:
    """One figure.

    Attributes:
        name: the model, as the source has it.
        data: a value of DATA; for AUROC what the model was trained on.
        quantity: BPD and FILES in bits per dimension, FID and AUROC without unit.
        text: the figure in the digits of its source.
        work: PAPER or LATER, a key of REFERENCES.
        place: where it stands in that work, such as "Tables 1 and 4".
        outliers: for AUROC a value of OUTLIERS, else empty.
        weighting: of the training loss: "likelihood", or "edm" (Karras and others 2022).
        updates: millions of training steps, None where not given.
        system: our name of it (presets.SYSTEMS) where it is one of the four, else empty.

    Raises:
        ValueError: without a known work and a place, or where the text is no number.

    Example:
        >>> figure = paper_figure("vdm", "cifar10", BPD)
        >>> figure.text, figure.source
        ('2.49', 'Li, Basri and Kluger, Table 1')
    """

    name: str
    data: str
    quantity: str
    text: str
    work: str
    place: str
    outliers: str = ""
    weighting: str = "likelihood"
    updates: float | None = None
    system: str = ""

    def __post_init__(self) -> None:
        try:
            float(self.text)
            sourced = self.work in REFERENCES and bool(self.place)
        except ValueError:
            sourced = False
        if not sourced:
            raise ValueError(
                f"{self.name}, {self.quantity} on {self.data}: a figure needs a number, a work of "
                f"REFERENCES and its place there; got {self.text!r}, {self.work!r}, {self.place!r}"
            )

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def source(self) -> str:
        """The work and the place in it."""
        return f"{self.work}, {self.place}"

    @property
    def under(self) -> str:
        """What it was measured under, as far as that is known."""
        return _UNDER[self.quantity]

    @property
    def title(self) -> str:
        """Its name, with the weights of its loss where they are not the bound's."""
        return titled(self.name, self.weighting)


def _cells(table: str) -> Iterator[tuple[str, str, str]]:
    """(row, column, text) of every cell of a table that is not empty."""
    (_, *columns), *rows = (
        [cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()
    )
    for name, *values in rows:
        for column, text in zip(columns, values, strict=True):
            if text:
                yield name, column, text


def _paper() -> Iterator[PublishedFigure]:
    """The paper's figures; one that stands in two tables is one record with both places."""
    found: dict[tuple[str, str, str, str, str], list[str]] = {}
    by_data = (("1", BPD, _TABLE_1), ("3", FILES, _TABLE_3), ("4", BPD, _TABLE_4))
    for number, quantity, table in (*by_data, ("6", FILES, _TABLE_6)):
        for name, data, text in _cells(table):
            found.setdefault((name, data, quantity, text, ""), []).append(number)
    for number, table in (("2", _TABLE_2), ("5", _TABLE_5)):
        for row, name, text in _cells(table):
            found.setdefault((name, "CIFAR-10", AUROC, text, OUTLIERS[row]), []).append(number)
    for (name, data, quantity, text, outliers), numbers in found.items():
        place = f"Table{'s' * (len(numbers) > 1)} {' and '.join(numbers)}"
        yield _own(name, data, quantity, text, place, outliers=outliers)
    for name, weighting, fid, bpd in _SECTION_6_1:
        yield _own(name, "CIFAR-10", FID, fid, "Sect. 6.1", weighting=weighting)
        if bpd:
            yield _own(name, "CIFAR-10", BPD, bpd, "Sect. 6.1", weighting=weighting)


def _own(
    name: str,
    data: str,
    quantity: str,
    text: str,
    place: str,
    *,
    outliers: str = "",
    weighting: str = "likelihood",
) -> PublishedFigure:
    """A record of the paper; the updates of its own models are those of Appendix B."""
    return PublishedFigure(
        name,
        data,
        quantity,
        text,
        PAPER,
        place,
        outliers=outliers,
        weighting=weighting,
        updates=None if name not in _OWN else 2.0 if data == "CIFAR-10" else 10.0,
        system=_SYSTEM.get(name, ""),
    )


def _later() -> Iterator[PublishedFigure]:
    """What the later work quotes, whether or not it agrees with the paper."""
    rows: list[tuple[str, str, str, str, str, float | None]] = []
    cifar10 = list(_cells(_LATER_CIFAR10))
    updates = {name: float(text) for name, column, text in cifar10 if column == "updates"}
    rows += [
        (name, "CIFAR-10", column, text, "Table 1", updates[name])
        for name, column, text in cifar10
        if column != "updates"
    ]
    rows += [(name, "ImageNet-32", BPD, *rest) for name, *rest in _LATER_IMAGENET32]
    for quantity, table, place in (
        (BPD, _LATER_LARGER, "Table 2"),
        (FILES, _LATER_FILES, "Table 4"),
    ):
        rows += [(name, data, quantity, text, place, None) for name, data, text in _cells(table)]
    for name, data, quantity, text, place, steps in rows:
        yield PublishedFigure(
            name, data, quantity, text, LATER, place, updates=steps, system=_SYSTEM.get(name, "")
        )


def _published() -> tuple[PublishedFigure, ...]:
    paper = tuple(_paper())
    known = {(p.name, p.data, p.quantity, p.text) for p in paper}
    more = tuple(
        p for p in _later() if (base_name(p.name), p.data, p.quantity, p.text) not in known
    )
    return paper + more


def base_name(name: str) -> str:
    """A model's name without what stands in brackets after it."""
    return name.partition(" (")[0]


PUBLISHED: tuple[PublishedFigure, ...] = _published()


def figures(data: str, quantity: str) -> list[PublishedFigure]:
    """The records of one quantity on one data set: the paper's own systems first, then the others
    of the paper, then later work; none where nobody published any.

    Args:
        data: a key or a value of DATA.
    """
    found = [p for p in PUBLISHED if p.data == DATA.get(data, data) and p.quantity == quantity]
    order = [*SYSTEMS, ""]
    return sorted(found, key=lambda p: (p.work != PAPER, order.index(p.system)))


def paper_figure(
    system: str, data: str, quantity: str, *, weighting: str = "likelihood", outliers: str = ""
) -> PublishedFigure | None:
    """The paper's figure for one of the four systems, None where it gives none.

    Args:
        system: a key of presets.SYSTEMS.
        data: a key or a value of DATA.
        weighting: of the training loss.
        outliers: for AUROC, a value of OUTLIERS.
    """
    wanted = (PAPER, system, weighting, outliers)
    return next(
        (
            p
            for p in figures(data, quantity)
            if (p.work, p.system, p.weighting, p.outliers) == wanted
        ),
        None,
    )
