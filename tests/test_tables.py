"""Results files, the tables and figures made of them, and the figures of others: nothing invented,
nothing lost, nothing paired that differs."""

import json
import math
import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_rules import faults

from pcdm_lib.data import paths
from pcdm_lib.experiments import experiment, published, results_files, suite, tables
from pcdm_lib.figures import tables as tables_figures
from pcdm_lib.likelihood import evaluation
from pcdm_lib.models import presets

matplotlib.use("Agg")

HELDOUT = np.array([3.0, 5.0, 4.0, 2.0])
SCALES = {
    "wavelet": ["base", "details1"],
    "laplacian": ["base", "residual1"],
    "standard": ["base", "image0"],
    "vdm": ["base"],
}
TABLES = [
    tables.density_table,
    tables.ood_table,
    tables.quality_table,
    tables.cascade_table,
    tables.likelihood_table,
    tables.compression_table,
    tables.paired_table,
]


def write(
    folder: Path,
    system: str = "wavelet",
    bpd: np.ndarray | None = HELDOUT,
    *,
    label: str = "CIFAR-10",
    **changes,
) -> dict:
    """A run's results.json, with scores.npz for the array `bpd` (images,); `changes` replace or add
    sections, None leaves one out."""
    mean = 3.5 if bpd is None else float(np.mean(bpd))
    names = SCALES[system]
    shares = {
        n: {
            "prior": 0.0,
            "diffusion": mean / len(names),
            "reconstruction": 0.0,
            "total": mean / len(names),
        }
        for n in names
    }
    record = {
        "format": 2,
        "config": presets.preset("tiny", system).to_dict(),
        "data": {"label": label, "name": "cifar10", "train_sha256": "t", "heldout_sha256": "h"},
        "training": {
            "steps": 100,
            "seconds": 600.0,
            "budget": {"minutes": 10.0},
            "seed": 0,
            "sessions": [
                {
                    "machine": "a machine, 2 threads",
                    "commit": "0123456789abcdef+changes",
                    "processes": [{"host": "secret"}],
                }
            ],
        },
        "evaluation": {
            "bpd": mean,
            "se_images": 0.02,
            "se_noise": 0.001,
            "images": 4 if bpd is None else len(bpd),
            "bound": "continuous time",
            "weights": "EMA",
            "table": shares | {"total": {"total": mean}},
        },
        "reference_codecs": {"JPEG XL": {"bpd": 4.07, "se_images": 0.03}},
        "provenance": {"commit": "fedcba9876", "machine": "another"},
    }
    record = {k: v for k, v in (record | changes).items() if v is not None}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record))
    if bpd is not None:
        np.savez(folder / "scores.npz", bpd=np.asarray(bpd, dtype=np.float64))
    return record


def log(folder: Path, rows: int = 40, end: float = 3.5, seconds: float = 600.0, **extra) -> None:
    lines = [
        {"step": 10 * k, "seconds": seconds * k / rows, "bpd": end + 6 / k, "scales": {"base": end}}
        | extra
        for k in range(1, rows + 1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(folder: Path) -> list[results_files.Result]:
    results, problems = results_files.read_results(folder)
    assert problems == []
    return results


def cells(rows: list[dict], **where) -> list[dict]:
    return [r for r in rows if all(r[k] == v for k, v in where.items())]


# ---- figures of others


# The paper's tables as they are printed, typed apart from the records: a row a line, columns by
# "/", "-" for an empty cell.
BY_DATA = {
    ("1", "bpd"): """
VAE with IAF / 3.11 / - / - / -
PixelCNN / 3.03 / 3.83 / 3.57 / -
PixelCNN++ / 2.92 / - / - / -
Glow / 3.35 / 4.09 / 3.81 / -
Image Transformer / 2.90 / 3.77 / - / -
SPN / - / 3.52 / - / -
CR-NVAE / 2.51 / - / - / -
Flow++ / 3.06 / 3.86 / 3.69 / -
Sparse Transformer / 2.80 / - / 3.44 / -
Sparse Transformer w\\/ dist. aug. / 2.53 / - / 3.44 / -
Very Deep VAE / 2.87 / 3.80 / 3.52 / -
DDPM / 3.69 / - / - / -
Score SDE / 2.99 / - / - / -
Improved DDPM / 2.94 / - / 3.54 / -
EBM-DRL / 3.18 / - / - / -
Routing Transformer / - / - / 3.43 / -
S4 / 2.85 / - / - / -
Score Flow / 2.80 / 3.76 / - / -
LSGM / 2.87 / - / - / -
Flow Matching / 2.99 / 3.53 / 3.31 / 2.90
Soft Truncation / 2.99 / 3.53 / - / -
INDM / 2.97 / - / - / -
VDM / 2.49 / 3.72 / 3.40 / -
i-DODE / 2.56 / 3.69 / - / -
LP-PCDM / 2.36 / 3.52 / 3.12 / 2.91
W-PCDM / 2.35 / 3.32 / 2.95 / 2.64""",
    ("3", "compressed bpd"): """
FLIF / 4.14
IDF / 3.26
LBB / 3.12
VDM / 2.72
ARDM / 2.71
LP-PCDM / 2.40
W-PCDM / 2.37""",
    ("4", "bpd"): """
C-VDM / 3.20 / 4.21 / 3.87 / 3.75
LP-PCDM / 2.36 / 3.52 / 3.12 / 2.91
W-PCDM / 2.35 / 3.32 / 2.95 / 2.64""",
    ("6", "compressed bpd"): """
C-VDM / 3.22
LP-PCDM / 2.40
W-PCDM / 2.37""",
}
BY_OUTLIERS = {  # SVHN, constant, uniform, average
    "2": """
GLOW / 0.24 / 0.0 / 1.0 / 0.41
PixelCNN++ / 0.32 / 0.0 / 1.0 / 0.44
EBM / 0.63 / 0.30 / 1.0 / 0.64
AR-CSM / 0.68 / 0.57 / 0.95 / 0.73
Typ. Test / 0.46 / 1.0 / 1.0 / 0.81
VDM / 0.53 / 0.96 / 1.0 / 0.83
LP-PCDM / 0.71 / 1.0 / 1.0 / 0.90
W-PCDM / 0.74 / 1.0 / 1.0 / 0.92""",
    "5": """
C-VDM / 0.43 / 0.55 / 1.0 / 0.66
LP-PCDM / 0.71 / 1.0 / 1.0 / 0.90
W-PCDM / 0.74 / 1.0 / 1.0 / 0.92""",
}


def typed(table: str, columns) -> dict[tuple[str, str], str]:
    """{(model, column): figure} of a table typed by hand."""
    found = {}
    for line in table.strip().splitlines():
        name, *values = (cell.strip() for cell in line.replace("\\/", "@").split("/"))
        for column, value in zip(columns, values, strict=len(values) > 1):
            if value != "-":
                found[name.replace("@", "/"), column] = value
    return found


def recorded(table: str, quantity: str, column: str) -> dict[tuple[str, str], str]:
    """The same of the records that say that they stand in this table."""
    there = [
        p
        for p in published.PUBLISHED
        if p.work == published.PAPER
        and p.quantity == quantity
        and p.place.startswith("Table")
        and table in p.place
    ]
    cells_ = {(p.name, getattr(p, column)): p.text for p in there}
    assert len(cells_) == len(there)
    return cells_


@pytest.mark.parametrize("table, quantity", BY_DATA)
def test_the_records_are_the_papers_tables_cell_by_cell(table, quantity):
    sets = ("CIFAR-10", "ImageNet-32", "ImageNet-64", "ImageNet-128")
    assert recorded(table, quantity, "data") == typed(BY_DATA[table, quantity], sets)


@pytest.mark.parametrize("table", BY_OUTLIERS)
def test_the_records_are_the_papers_auroc_cell_by_cell(table):
    sets = ("SVHN", "constant", "uniform", "average")
    assert recorded(table, "AUROC", "outliers") == typed(BY_OUTLIERS[table], sets)


def test_the_records_are_the_papers_sample_quality():
    found = {
        (p.name, p.weighting, p.quantity): p.text
        for p in published.PUBLISHED
        if p.place == "Sect. 6.1"
    }
    assert found == {
        ("LP-PCDM", "likelihood", "FID"): "6.31",
        ("W-PCDM", "likelihood", "FID"): "6.23",
        ("VDM", "likelihood", "FID"): "7.41",
        ("LP-PCDM", "edm", "FID"): "2.45",
        ("W-PCDM", "edm", "FID"): "2.42",
        ("LP-PCDM", "edm", "bpd"): "9.55",
        ("W-PCDM", "edm", "bpd"): "10.31",
    }


def test_every_published_figure_has_a_source():
    for figure in published.PUBLISHED:
        assert figure.work in published.REFERENCES and figure.place and figure.under, figure
        assert figure.data in published.DATA.values()
        assert f"{figure.value:.2f}".startswith(figure.text)
        assert bool(figure.outliers) == (figure.quantity == published.AUROC)
        assert presets.SYSTEMS.get(figure.system, figure.name) == figure.name
    keys = [(p.title, p.data, p.quantity, p.outliers, p.source) for p in published.PUBLISHED]
    assert len(keys) == len(set(keys))
    own = [p for p in published.PUBLISHED if p.updates and p.work == published.PAPER]
    assert {(p.data == "CIFAR-10", p.updates) for p in own} == {(True, 2.0), (False, 10.0)}


@pytest.mark.parametrize("change", [{"place": ""}, {"work": "someone"}, {"text": "unknown"}])
def test_a_figure_without_source_or_number_is_refused(change):
    figure = {
        "name": "M",
        "data": "CIFAR-10",
        "quantity": "bpd",
        "text": "1.0",
        "work": published.PAPER,
        "place": "Table 1",
    }
    assert published.PublishedFigure(**figure).value == 1.0
    with pytest.raises(ValueError, match="M, bpd on CIFAR-10: a figure needs a number"):
        published.PublishedFigure(**figure | change)


def test_later_work_stands_beside_the_paper_where_it_differs():
    later = {
        (p.name, p.data, p.quantity): p.text
        for p in published.PUBLISHED
        if p.work == published.LATER
    }
    assert (
        later[("VDM", "CIFAR-10", "bpd")] == "2.65" and later[("VDM", "CIFAR-10", "FID")] == "7.60"
    )
    assert later[("Glow", "ImageNet-32", "bpd")] == "4.02"
    assert later[("Score Flow", "ImageNet-32", "bpd")] == "3.79"
    assert ("VDM", "CIFAR-10", "compressed bpd") not in later  # 2.72 in both
    assert not any(name.startswith(("W-PCDM", "LP-PCDM")) for name, _, _ in later)
    assert published.paper_figure("vdm", "cifar10", published.BPD).text == "2.49"
    assert published.paper_figure("vdm", "imagenet128", published.BPD) is None
    assert [p.system for p in published.figures("cifar10", published.BPD)[:4]] == [
        "wavelet",
        "wavelet",
        "laplacian",
        "laplacian",
    ]
    assert published.figures("photos", published.BPD) == []


# ---- reading


def test_reads_all_depths_in_order_and_follows_no_links(tmp_path):
    write(tmp_path / "runs" / "b", "vdm")
    write(tmp_path / "runs" / "a" / "deep", format=1)
    write(tmp_path / "runs" / ".half")
    write(tmp_path / "elsewhere" / "c")
    os.symlink(tmp_path / "elsewhere", tmp_path / "runs" / "link")
    (tmp_path / "runs" / "d").mkdir()
    os.symlink(
        tmp_path / "elsewhere" / "c" / "results.json", tmp_path / "runs" / "d" / "results.json"
    )
    results = read(tmp_path / "runs")
    assert [r.name for r in results] == ["a/deep", "b"]
    assert np.array_equal(results[0].scores, HELDOUT) and results[0].no_scores == ""
    assert [r.name for r in read(tmp_path / "runs" / "b")] == ["b"]


def test_empty_and_missing_folders(tmp_path):
    assert results_files.read_results(tmp_path) == ([], [])
    results, (problem,) = results_files.read_results(tmp_path / "none")
    assert results == [] and "none is no folder" in problem


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"format": 2, "config": {"sys', "is not valid JSON"),
        ("", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        ("[1, 2]", "holds a list, expected a record of results"),
        (
            '{"format": 3, "config": {"system": "vdm"}}',
            "is of format 3, this version reads 1 and 2: read it with the version that wrote it",
        ),
        ('{"format": true, "config": {"system": "vdm"}}', "is of format True"),
        ('{"evaluation": {}}', "states no format, this version reads 1 and 2"),
        (
            '{"format": 2}',
            "config.system is None, expected one of wavelet, laplacian, standard, vdm",
        ),
        ('{"format": 2, "config": {"system": ["vdm"]}}', r"config.system is \['vdm'\]"),
        (
            '{"format": 2, "config": {"system": "vdm"}, "evaluation": [1]}',
            "not a record of results .evaluation is a list",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(tmp_path, content, message):
    """The others are read, and nothing is written."""
    write(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    path = tmp_path / "bad" / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    results, problems = results_files.read_results(tmp_path)
    assert [r.name for r in results] == ["good"] and len(problems) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problems[0])
    assert str(path) in problems[0] and "\n" not in problems[0]
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_what_write_results_writes_is_read(tmp_path):
    parts = np.random.default_rng(0).random((5, 2, 2, 3))
    scored = evaluation.Evaluation(parts, ("base", "details1"), None, "stratified", "EMA", 0)
    experiment.write_results(
        tmp_path / "run" / "results.json",
        config=presets.preset("tiny"),
        data_label="photos32",
        evaluation=scored,
        data_source={"heldout_sha256": "h"},
        training={"steps": 3, "seconds": 1.0},
        codecs={},
        device="cpu",
    )
    (result,) = read(tmp_path)
    assert result.bpd == scored.bpd and np.array_equal(result.scores, scored.per_image)
    assert (
        result.dataset == "photos"
        and result.heldout == ("h", 5)
        and list(results_files.scale_shares(result)) == ["base", "details1"]
    )


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: p.write_bytes(p.read_bytes()[:40]), "cannot be read"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: np.savez(p, other=HELDOUT), "expected an array bpd"),
        (lambda p: np.savez(p, bpd=np.array([{}], dtype=object)), "cannot be read"),
        (lambda p: np.savez(p, bpd=HELDOUT[:3]), "expected one figure for each of 4 images"),
        (lambda p: np.savez(p, bpd=HELDOUT[:, None]), r"shape \(4, 1\)"),
        (
            lambda p: np.savez(p, bpd=HELDOUT + 0.01),
            "has the mean 3.510000, where results.json says 3.500000",
        ),
        (lambda p: np.savez(p, bpd=HELDOUT * np.nan), "has the mean nan"),
    ],
)
def test_scores_that_are_damaged_or_of_another_scoring(tmp_path, damage, message):
    write(tmp_path / "run")
    damage(tmp_path / "run" / "scores.npz")
    (result,), (problem,) = results_files.read_results(tmp_path)
    assert result.scores is None and "damaged" in result.no_scores and result.bpd == 3.5
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem)


def test_numbers_and_text():
    assert [
        results_files.number(v) for v in (1, 2.5, True, "3", None, math.nan, math.inf, 10**400)
    ] == [
        1.0,
        2.5,
        *[None] * 6,
    ]
    assert [results_files.text(v) for v in (1.0, 7, None, math.nan, "a|b\nc", "")] == [
        "1.0000",
        "7",
        "n/a",
        "n/a",
        "a\\|b c",
        "n/a",
    ]


# ---- tables


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_nothing_say_what_fills_them(table):
    rows = table([])
    experiment.markdown_table(rows)
    assert all(list(r) == list(rows[0]) for r in rows)
    empty = [r for r in rows if "not run" in r.values()]
    own = {
        tables.paired_table: 1,
        tables.ood_table: 16,
        tables.quality_table: 6,
        tables.cascade_table: 12,
    }
    assert len(empty) == own.get(table, 4)
    parts = {p.name for p in suite.PARTS}
    for row in empty:
        command = (row["run"] if "run" in row else row["note"]).removeprefix("to fill it: ")
        if command.startswith("papermill reproduce/"):
            assert (paths.home() / command.split()[1]).is_file()
        elif table is tables.compression_table and row["system"] == "C-VDM":
            assert "coarse pixels twice" in command
        else:
            assert command.startswith("python -m pcdm_lib tables ")
            assert {*command.split("--only ")[1].split()[0].split(",")} <= parts


@pytest.mark.parametrize("table", TABLES)
def test_no_cell_says_that_a_figure_could_not_be_had(table):
    said = experiment.markdown_table(table([])) + " ".join(tables.NOTES.values())
    assert "not available" not in said and "not at hand" not in said
    assert "could not be checked" not in said and "not given" not in said


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_files_with_missing_keys_and_figures(tmp_path, table):
    """Whatever else is missing or no figure, a run is shown, with n/a."""
    write(
        tmp_path / "bare",
        bpd=None,
        data=None,
        training=None,
        evaluation=None,
        reference_codecs=None,
        provenance=None,
    )
    write(
        tmp_path / "nan",
        bpd=None,
        evaluation={
            "bpd": math.nan,
            "se_images": None,
            "images": 1,
            "table": {"base": {"total": math.inf}},
        },
    )
    write(
        tmp_path / "odd",
        bpd=None,
        evaluation={"bpd": "3.5", "images": "many", "table": [1]},
        training={"budget": "long", "sessions": {"a": 1}},
        ood={"rows": [1, {"set": "a|b", "auroc": math.nan}]},
        quality={"FID": 3, "band distance": {}},
        likelihoods=[None, {"name": None}],
        twice={"bpd": None},
    )
    rows = table(read(tmp_path))
    assert "nan" not in experiment.markdown_table(rows).replace("| nan |", "") and all(
        list(r) == list(rows[0]) for r in rows
    )


def test_density(tmp_path):
    write(tmp_path / "w", label="CIFAR-10 (some)")
    write(
        tmp_path / "w seed 1",
        bpd=HELDOUT - 0.5,
        label="CIFAR-10 (some)",
        training={"steps": 7, "seconds": 90.0, "seed": 1},
    )
    write(tmp_path / "v", "vdm", data={"label": "photos32", "name": "photos"})
    results = read(tmp_path)
    rows = tables.density_table(results)
    names = [r["system"] for r in rows]
    assert names[:5] == ["W-PCDM", "W-PCDM", "LP-PCDM", "C-VDM", "VDM"] and "BSI" in names
    assert [(r["paper"], r["later work"], r["ours"]) for r in rows[:5]] == [
        ("2.35", "", "3.0000"),
        ("2.35", "", "3.5000"),
        ("2.36", "", "not run"),
        ("3.20", "", "not run"),
        ("2.49", "2.65", "not run"),
    ]
    assert [r["difference"] for r in rows[:3]] == ["+0.65", "+1.15", ""]
    assert all(r["place"] for r in rows)
    first, second = rows[:2]
    # both, not the better one
    assert first["ours"] == "3.0000" and first["run"] == "w seed 1" and second["ours"] == "3.5000"
    assert (
        second["budget"] == "100 steps, 10.0 minutes"
        and second["standard error"] == "0.0200 images, 0.0010 noise"
    )
    assert (second["seed"], second["weights"], second["images"]) == ("0", "EMA", "4")
    assert (
        second["machine"] == "a machine, 2 threads"
        and second["commit"] == "0123456+"
        and "secret" not in str(rows)
    )
    # no session is recorded: those of the scoring
    assert first["commit"] == "fedcba9" and first["machine"] == "another"
    photos = tables.density_table(results, "photos")
    assert [(r["system"], r["paper"], r["ours"], r["difference"]) for r in photos] == [
        ("W-PCDM", "", "not run", ""),
        ("LP-PCDM", "", "not run", ""),
        ("C-VDM", "", "not run", ""),
        ("VDM", "", "3.5000", ""),
    ]
    assert "--only standard_cascade --dataset photos" in photos[2]["run"]
    larger = tables.density_table([], "imagenet64")
    assert larger[1]["run"] == (
        "to fill it: papermill reproduce/imagenet.ipynb out.ipynb -p system laplacian -p size 64 "
        "-p dataset imagenet64-old"
    )
    with pytest.raises(ValueError, match="unknown dataset 'cifar': one of cifar10, imagenet32"):
        tables.density_table(results, "cifar")


def test_imagenet_versions_stand_in_one_table(tmp_path):
    for version in ("old", "new"):
        write(
            tmp_path / version,
            data={"label": f"ImageNet 32x32 ({version})", "name": f"imagenet32-{version}"},
        )
    rows = tables.density_table(read(tmp_path), "imagenet32")
    assert [(r["data"], r["paper"]) for r in rows if r["commit"]] == [
        ("ImageNet 32x32 (new)", "3.32"),
        ("ImageNet 32x32 (old)", "3.32"),
    ]
    (dode,), (flow,) = cells(rows, system="i-DODE"), cells(rows, system="Score Flow")
    assert (dode["paper"], dode["later work"]) == ("3.69", "3.44")
    assert (flow["paper"], flow["later work"]) == ("3.76", "3.79 (original release)")
    assert flow["place"] == "Table 1; Shen, Gan and Ling, Table 1"


def test_ood(tmp_path):
    row = {
        "set": "SVHN",
        "statistic": "typicality",
        "scale": "total",
        "M": 1,
        "N": 20,
        "auroc": 0.91,
        "low": 0.9,
        "high": 0.92,
        "n_in": 600,
        "n_out": 500,
    }
    row |= {"references": 500}
    others = [
        row | {"set": "constant grey", "auroc": 1.0},
        row | {"set": "constant black", "auroc": 0.99},
        row | {"set": "uniform noise", "auroc": 1.0},
        row | {"N": 100, "auroc": 0.93},
        row | {"scale": "base", "auroc": 0.6},
        row | {"statistic": "likelihood", "references": None},
    ]
    older = {k: v for k, v in row.items() if k != "references"} | {"reference_mean": 0.8}
    write(tmp_path / "w", ood={"rows": [row, *others]})
    write(tmp_path / "v", "vdm", ood={"rows": [older]})
    results = read(tmp_path)
    rows = tables.ood_table(results)
    assert [(r["set"], r["paper"], r["ours"], r["difference"]) for r in cells(rows, run="w")] == [
        ("SVHN", "0.74", "0.9100", "+0.17"),
        ("constant grey", "1.0", "1.0000", "+0.00"),
        ("uniform noise", "1.0", "1.0000", "+0.00"),
        ("average", "0.92", "0.9700", "+0.05"),
    ]
    first = cells(rows, run="w")[0]
    assert (first["interval"], first["images in, out"]) == ("0.9000 to 0.9200", "600, 500")
    assert [(r["set"], r["paper"]) for r in cells(rows, system="VDM", ours="not run")] == [
        ("SVHN", "0.53"),
        ("constant grey", "0.96"),
        ("uniform noise", "1.0"),
        ("average", "0.83"),
    ]
    more = tables.ood_more_table(results)
    assert len(more) == 7 and {r["run"] for r in more} == {"w"}
    assert [r["AUROC"] for r in cells(more, N="100")] == ["0.9300"]
    assert [r["references"] for r in cells(more, statistic="likelihood")] == ["none"]
    line = tables.ood_left_out(results)
    assert "the AUROC of v." in line and "number of reference images" in line
    assert tables.ood_left_out([]) == "" and tables.ood_more_table([]) == []


def test_the_papers_auroc_in_its_own_layout():
    first, *_ = tables.ood_published_table()
    assert list(first) == [
        *("set", "GLOW", "PixelCNN++", "EBM", "AR-CSM", "Typ. Test"),
        *("VDM", "C-VDM", "LP-PCDM", "W-PCDM"),
    ]
    assert [*first.values()] == [
        *("SVHN", "0.24", "0.32", "0.63", "0.68", "0.46", "0.53", "0.43", "0.71", "0.74")
    ]


def test_quality(tmp_path):
    band = {"value": 1.25, "se": 0.05, "floor": 0.8, "samples": 500, "steps": 100}
    write(
        tmp_path / "a",
        quality={"band distance": band, "FID": {"missing": "torch-fidelity is not installed"}},
    )
    write(tmp_path / "b", "vdm", quality={"band distance": band})
    config = presets.preset("tiny").to_dict()
    write(
        tmp_path / "c",
        config=config | {"training": config["training"] | {"weighting": "edm"}},
        quality={"FID": band},
    )
    rows = tables.quality_table(read(tmp_path))
    fid, stand_in = sorted(cells(rows, run="a"), key=lambda r: r["measure"])
    assert (fid["measure"], fid["paper"], fid["ours"], fid["note"]) == (
        "FID",
        "6.23",
        "n/a",
        "missing: torch-fidelity is not installed",
    )
    assert (stand_in["measure"], stand_in["ours"], stand_in["floor"], stand_in["samples"]) == (
        "band distance",
        "1.2500",
        "0.8000",
        "500",
    )
    assert stand_in["paper"] == ""  # another measure has no figure of the paper beside it
    (other,) = cells(rows, run="b", measure="FID")
    assert (other["note"], other["paper"], other["later work"]) == (
        "missing: not in the results file",
        "7.41",
        "7.60",
    )
    (edm,) = cells(rows, run="c")
    assert (edm["system"], edm["paper"], edm["ours"], edm["difference"], edm["paper's bpd"]) == (
        "W-PCDM (EDM weight)",
        "2.42",
        "1.2500",
        "-1.17",
        "10.31",
    )
    (lp,) = cells(rows, system="LP-PCDM (EDM weight)")
    assert (lp["paper"], lp["paper's bpd"]) == ("2.45", "9.55") and "-p preset edm" in lp["run"]


def test_cascade(tmp_path):
    write(tmp_path / "c", "standard", HELDOUT + 1, twice={"bpd": 0.75, "se": 0.01})
    write(tmp_path / "w")
    write(tmp_path / "v", "vdm")
    rows = tables.cascade_table(read(tmp_path))
    by_run = {r["run"]: r for r in rows}
    assert (
        by_run["c"]["paid twice"] == "0.7500 ± 0.0100"
        and by_run["w"]["paid twice"] == by_run["v"]["paid twice"] == "none"
    )
    assert (by_run["c"]["base"], by_run["c"]["finer scales"]) == ("2.2500", "2.2500") and by_run[
        "v"
    ]["finer scales"] == "none"
    assert [(by_run[n]["paper"], by_run[n]["difference"]) for n in "cwv"] == [
        ("3.20", "+1.30"),
        ("2.35", "+1.15"),
        ("2.49", "+1.01"),
    ]
    empty = cells(rows, ours="not run")
    assert [r["system"] for r in empty if r["data"] == "CIFAR-10"] == ["LP-PCDM"]
    assert [r["paper"] for r in rows if r["data"] == "ImageNet-128"] == ["2.64", "2.91", "3.75"]


def test_likelihoods(tmp_path):
    ways = [
        {
            "name": n,
            "bpd": 3.5 + d,
            "se_images": 0.02,
            "se_noise": 0.01,
            "minus_continuous": d,
            "minus_se": 0.003,
            "evaluations": 64,
            "images": 4,
        }
        for n, d in (
            ("continuous bound", 0.0),
            ("T=1000", 0.01),
            ("probability flow, Hutchinson", -0.2),
        )
    ]
    write(tmp_path / "w", likelihoods=ways)
    rows = tables.likelihood_table(read(tmp_path))
    assert [(r["likelihood"], r["bpd"], r["minus continuous"]) for r in cells(rows, run="w")] == [
        ("continuous bound", "3.5000", "0.0000"),
        ("T=1000", "3.5100", "0.0100"),
        ("probability flow, Hutchinson", "3.3000", "-0.2000"),
    ]


@pytest.mark.parametrize("key", ["statistics", "books"])  # older files: "books"
def test_compression(tmp_path, key):
    entry = {
        "steps": 200,
        "file_bpd": 3.71,
        "net_bpd": 3.7,
        "bound": {"bpd": 3.69},
        "excess": {"bpd": 0.01, "se": 0.02},
        key: {"images": 64},
    }
    write(
        tmp_path / "w",
        compression=[
            entry,
            entry
            | {"steps": 50, "bound": None, "net_bpd": None, "excess": {"bpd": None, "se": None}},
            "nonsense",
        ],
    )
    rows = tables.compression_table(read(tmp_path))
    assert cells(rows, system="FLIF")[0]["paper"] == "4.14"
    assert [
        (
            r["paper"],
            r["difference"],
            r["T"],
            r["ours"],
            r["net"],
            r["T-step bound"],
            r["net minus bound"],
            r["images"],
        )
        for r in cells(rows, run="w")
    ] == [
        ("2.37", "+1.34", "200", "3.7100", "3.7000", "3.6900", "0.0100 ± 0.0200", "64"),
        ("2.37", "+1.34", "50", "3.7100", "n/a", "n/a", "n/a ± n/a", "64"),
    ]
    assert [(r["system"], r["paper"]) for r in cells(rows, ours="not run")] == [
        ("LP-PCDM", "2.40"),
        ("C-VDM", "3.22"),
        ("VDM", "2.72"),
    ]


# ---- differences image by image


def test_paired_by_hand(tmp_path):
    """Differences 1, 0, 2, 3: mean 1.5, sum of squares about it 5, so the standard error is sqrt(5
    / 3 / 4)."""
    write(tmp_path / "w", bpd=[1.0, 2.0, 3.0, 6.0])
    write(tmp_path / "v", "vdm", [0.0, 2.0, 1.0, 3.0])
    v, w = read(tmp_path)
    mean, error = tables.paired(w, v)
    assert mean == 1.5 and error == pytest.approx(math.sqrt(5 / 12))
    (row,) = tables.paired_table([v, w])
    assert (row["difference"], row["bpd"], row["standard error"], row["images"]) == (
        "W-PCDM minus VDM",
        "1.5000",
        "0.6455",
        4,
    )


def test_every_pair_of_systems_vdm_first(tmp_path):
    for shift, system in enumerate(presets.SYSTEMS):
        write(tmp_path / system, system, HELDOUT + shift)
    write(tmp_path / "again", "wavelet", HELDOUT + 9)
    rows = tables.paired_table(read(tmp_path))
    assert [r["difference"] for r in rows[:4]] == ["W-PCDM minus VDM"] * 2 + [
        "LP-PCDM minus VDM",
        "C-VDM minus VDM",
    ]
    assert len(rows) == 9 and rows[0]["bpd"] == "-3.0000" and rows[0]["standard error"] == "0.0000"


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"data": {"label": "CIFAR-10", "train_sha256": "t", "heldout_sha256": "other"}},
            "different held-out images (4 of CIFAR-10; 4 of CIFAR-10)",
        ),
        (
            {"data": {"label": "CIFAR-10", "train_sha256": "t"}},
            "which held-out images were scored is not recorded",
        ),
        (
            {"data": {"label": "CIFAR-10", "train_sha256": "other", "heldout_sha256": "h"}},
            "different training images",
        ),
        ({"bpd": HELDOUT[:3]}, "different held-out images (4 of CIFAR-10; 3 of CIFAR-10)"),
        ({"training": {"budget": {"minutes": 5.0}}}, "different budgets (10 minutes; 5 minutes)"),
        ({"training": {"budget": {"steps": 10}}}, "different budgets (10 minutes; 10 steps)"),
        ({"training": {}}, "different budgets (10 minutes; not recorded)"),
        ({"bpd": None}, "v: no scores.npz"),
    ],
)
def test_what_is_never_paired(tmp_path, changes, message):
    write(tmp_path / "w")
    write(tmp_path / "v", "vdm", **changes)
    v, w = read(tmp_path)
    assert message in "; ".join(tables.obstacles(w, v))
    with pytest.raises(ValueError, match="w and v cannot be paired: "):
        tables.paired(w, v)
    rows = tables.paired_table([v, w])
    assert {r["difference"] for r in rows} == {"W-PCDM: not paired", "VDM: not paired"} and all(
        r["bpd"] == "n/a" and r["note"] for r in rows
    )
    assert message.removeprefix("v: ") in cells(rows, runs="v")[0]["note"] or "different" in message


def test_bound_and_weights_must_agree_and_one_run_has_no_pair(tmp_path):
    write(tmp_path / "w")
    record = write(tmp_path / "v", "vdm")
    record["evaluation"] |= {"weights": "raw", "bound": "1000 steps"}
    (tmp_path / "v" / "results.json").write_text(json.dumps(record))
    v, w = read(tmp_path)
    assert tables.obstacles(w, v) == [
        "different bound (continuous time; 1000 steps)",
        "different weights (EMA; raw)",
    ]
    assert [r["note"] for r in tables.paired_table([w])] == ["no run of another system"]


def test_one_image_has_no_standard_error(tmp_path):
    write(tmp_path / "w", bpd=[3.0])
    write(tmp_path / "v", "vdm", [2.0])
    results = read(tmp_path)
    (row,) = tables.paired_table(results)
    assert (row["bpd"], row["standard error"]) == ("1.0000", "n/a")
    plt.close(tables_figures.bits_by_scale(results))


def test_summary_line(tmp_path):
    write(tmp_path / "w")
    write(tmp_path / "x", bpd=None, data=None, training=None, evaluation=None, provenance=None)
    w, x = map(results_files.summary_line, read(tmp_path))
    assert (
        w == "w: W-PCDM 3.5000 bpd (0.0200 images, 0.0010 noise), EMA weights, 4 images of "
        "CIFAR-10, 100 steps in 10.0 min, seed 0, commit 0123456+"
    )
    assert x.startswith("x: W-PCDM n/a bpd") and "\n" not in x


# ---- figures


@pytest.fixture
def four(tmp_path):
    """A run of every system on the same images, of different lengths, with its log."""
    for i, system in enumerate(presets.SYSTEMS):
        write(tmp_path / system, system, HELDOUT + 0.2 * i + 0.01 * i * np.array([1, -1, 1, -1]))
        log(tmp_path / system, rows=10 * (i + 1), seconds=150.0 * (i + 1))
    return tmp_path


def texts(figure) -> str:
    assert faults(figure) == []
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_learning_curves(four):
    figure = tables_figures.learning_curves(read(four))
    (ax,) = figure.axes
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "minutes of training (logarithmic)"
    said = texts(figure)
    for words in (
        "W-PCDM 3.50",
        "LP-PCDM 3.70",
        "C-VDM 3.90",
        "VDM 4.10",
        "JPEG XL files, held out 4.07",
        "CIFAR-10",
        "without prior and decoder",
        "averaged weights",
        "W-PCDM ends lowest, 0.200 ±",
    ):
        assert words in said
    colours = {line.get_color() for line in ax.lines if len(line.get_xdata()) > 2}
    assert len(colours) == 4
    plt.close(figure)


def test_learning_curves_of_one_run_and_without_logs(four):
    (run,) = read(four / "wavelet")
    figure = tables_figures.learning_curves([run])
    assert "W-PCDM ends at 3.50 held-out bits per dimension" in texts(figure)
    plt.close(figure)
    (four / "vdm" / "log.jsonl").write_text("not JSON\n" + '{"step": 1}\n')
    (four / "standard" / "log.jsonl").unlink()
    figure = tables_figures.learning_curves(read(four))
    said = " ".join(texts(figure).split())
    assert (
        "VDM has no line:" in said
        and "the log was edited" in said
        and "C-VDM has no line: its log is missing or empty" in said
    )
    assert "VDM 4.10" in said  # its held-out figure is drawn all the same
    plt.close(figure)


def test_learning_curves_leaves_out_what_is_no_bits(tmp_path):
    config = presets.preset("tiny").to_dict()
    write(tmp_path / "e", config=config | {"training": config["training"] | {"weighting": "edm"}})
    log(tmp_path / "e", weighting="edm")
    with pytest.raises(ValueError, match="e: neither a log of bits nor a held-out figure"):
        tables_figures.learning_curves(read(tmp_path))
    write(tmp_path / "w")
    log(tmp_path / "w")
    figure = tables_figures.learning_curves(read(tmp_path))
    assert "not drawn: W-PCDM (EDM weight), 3.50 held out" in texts(figure)
    plt.close(figure)


def test_smooth_log():
    """A constant stays one, the end is at the end, and rows without figures are left out."""
    rows = [{"seconds": 6.0 * k, "bpd": 3.0} for k in range(1, 3000)] + [
        {"seconds": 1e5, "bpd": None},
        {"seconds": 0.0, "bpd": 1.0},
        {"bpd": math.nan},
    ]
    minutes, bits = tables_figures.smooth_log(rows)
    assert (
        len(minutes) <= 401
        and minutes[0] == pytest.approx(0.1)
        and minutes[-1] == pytest.approx(299.9)
        and np.allclose(bits, 3.0)
    )
    noise = np.random.default_rng(0).normal(size=2999)
    _, noisy = tables_figures.smooth_log([r | {"bpd": 3.0 + e} for r, e in zip(rows, noise)])
    assert abs(noisy[-1] - 3) < 0.25 and len(tables_figures.smooth_log([])[0]) == 0


def test_bits_by_scale(four):
    figure = tables_figures.bits_by_scale(read(four))
    said = texts(figure)
    for words in (
        "base\n1.75",
        "details1\n1.75",
        "one scale\n4.10",
        "\N{MINUS SIGN}0.600 ± ",
        "JPEG XL files 4.07",
        "difference from VDM, image by image",
    ):
        assert words in said or words in " ".join(said.split())
    plt.close(figure)
    (four / "vdm" / "scores.npz").unlink()
    figure = tables_figures.bits_by_scale(read(four))
    assert "there is no run of VDM to pair with" in " ".join(texts(figure).split())
    plt.close(figure)


@pytest.mark.parametrize("draw", [tables_figures.learning_curves, tables_figures.bits_by_scale])
def test_figures_refuse_what_cannot_be_compared(tmp_path, draw):
    with pytest.raises(ValueError, match="no runs to draw"):
        draw([])
    write(tmp_path / "a")
    write(tmp_path / "b", bpd=HELDOUT[:3])
    results = read(tmp_path)
    with pytest.raises(
        ValueError,
        match="a, b were scored on 2 different sets of held-out images: draw each group of "
        "results_files.by_images",
    ):
        draw(results)
    assert [[r.name for r in group] for group in results_files.by_images(results)] == [["a"], ["b"]]
    write(tmp_path / "c" / "bare", bpd=None, evaluation=None)
    with pytest.raises(ValueError, match="held-out figure"):
        draw(read(tmp_path / "c"))
    assert not plt.get_fignums()


def test_figures_tell_runs_of_one_system_apart(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"seed{seed}", bpd=HELDOUT + seed)
        log(tmp_path / f"seed{seed}")
    for draw in (tables_figures.learning_curves, tables_figures.bits_by_scale):
        figure = draw(read(tmp_path))
        assert {"W-PCDM (seed0)", "W-PCDM (seed1)"} <= {t[:14] for t in texts(figure).splitlines()}
        plt.close(figure)


def test_level_runs_are_called_level(tmp_path):
    write(tmp_path / "w")
    write(tmp_path / "v", "vdm", HELDOUT + np.array([0.1, -0.1, 0.1, -0.08]))
    figure = tables_figures.bits_by_scale(read(tmp_path))
    assert "W-PCDM and VDM end level" in texts(figure)
    plt.close(figure)


def test_a_narrow_table_says_once_what_is_the_same() -> None:
    """Columns of provenance in which all of ours agree go out of every row, those in which they
    differ stay; columns without any figure go."""
    common = {"system": "VDM", "ours": "3.5", "seed": 0, "machine": "m", "note": ""}
    rows = [
        {**common, "commit": "a"},
        {**common, "commit": "b"},
        {**common, "ours": "", "machine": "", "seed": "", "commit": ""},
    ]
    narrow, same = tables.compact(rows)
    assert same == {"seed": "0", "machine": "m"}
    assert [set(row) for row in narrow] == [{"system", "ours", "commit"}] * 3
    assert tables.compact(rows[2:]) == ([{"system": "VDM"}], {})
    assert tables.compact([]) == ([], {})
