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


def test_every_published_figure_has_a_source():
    for figure in published.PUBLISHED:
        assert any(work in figure.source for work in published.REFERENCES), figure
        assert figure.under and figure.data in published.DATA.values()
        assert (figure.value is None) == bool(figure.missing)
        assert figure.value is None or "as quoted by" in figure.source
    keys = [(p.name, p.data, p.quantity, p.source) for p in published.PUBLISHED]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    "change",
    [
        {"source": ""},
        {"value": None},
        {"missing": published.NOT_AVAILABLE},
        {"value": None, "missing": "who knows"},
    ],
)
def test_a_figure_without_source_or_reason_is_refused(change):
    with pytest.raises(ValueError, match="M, bpd on CIFAR-10: a figure needs a source"):
        published.PublishedFigure(
            **{
                "name": "M",
                "data": "CIFAR-10",
                "quantity": "bpd",
                "value": 1.0,
                "source": "s",
                "under": "u",
            }
            | change
        )


def test_no_number_where_the_paper_was_not_at_hand():
    """Its out-of-distribution table, LP-PCDM on CIFAR-10, the standard cascade, the three
    likelihoods."""
    for figure in published.PUBLISHED:
        ours = figure.data == "CIFAR-10" and figure.system in ("laplacian", "standard")
        if ours or figure.quantity in (published.AUROC, published.LIKELIHOODS):
            assert (figure.value, figure.text) == (None, "not available"), figure
    assert {p.name for p in published.PUBLISHED if p.value is None} == {
        "W-PCDM",
        "LP-PCDM",
        "VDM",
        "C-VDM",
    }


def test_published_figures_as_quoted():
    bpd = {p.name: p.text for p in published.figures("cifar10", published.BPD)}
    assert bpd == {
        "W-PCDM (VDM weight)": "2.35",
        "W-PCDM (EDM weight)": "10.31",
        "VDM": "2.65",
        "LP-PCDM": "not available",
        "C-VDM": "not available",
        "ScoreFlow": "2.80",
        "Flow Matching": "2.99",
        "Stochastic Interpolants": "2.99",
        "i-DODE (SP with IS)": "2.56",
        "DiffEnc": "2.62",
        "MuLAN": "2.55",
        "BSI": "2.64",
    }
    assert "BSI" not in {p.name for p in published.figures("CIFAR-10", published.FID)}
    assert [p.text for p in published.figures("imagenet128", published.BPD)] == [
        "2.64",
        "2.91",
        "2.90",
    ]
    marked = {
        (p.name, p.value) for p in published.figures("imagenet32", published.BPD) if "*" in p.source
    }
    assert marked == {
        ("VDM", 3.72),
        ("ScoreFlow", 3.79),
        ("Stochastic Interpolants", 3.48),
        ("i-DODE", 3.69),
        ("MuLAN", 3.67),
    }
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
def test_tables_of_nothing_say_what_is_not_run(table):
    rows = table([])
    experiment.markdown_table(rows)
    assert all(list(r) == list(rows[0]) for r in rows)
    empty = [r for r in rows if "not run" in r.values()]
    assert len(empty) == {tables.paired_table: 1, tables.compression_table: 3}.get(table, 4)
    parts = {p.name for p in suite.PARTS}
    for row in empty:
        command = (row.get("source") or row["note"]).removeprefix("to fill it: ")
        assert (
            command.startswith("python -m pcdm_lib tables ")
            and {*command.split("--only ")[1].split()[0].split(",")} <= parts
        )


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
    assert names[:5] == [
        "W-PCDM (VDM weight), paper",
        "W-PCDM (EDM weight), paper",
        "VDM, paper",
        "LP-PCDM, paper",
        "C-VDM, paper",
    ]
    assert names[-5:] == ["W-PCDM", "W-PCDM", "LP-PCDM", "C-VDM", "VDM"] and "BSI" in names
    assert all(r["source"] for r in rows)
    first, second = cells(rows, source="measured here")
    # both, not the better one
    assert first["bpd"] == "3.0000" and first["run"] == "w seed 1" and second["bpd"] == "3.5000"
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
    assert [(r["system"], r["bpd"]) for r in photos] == [
        ("VDM", "3.5000"),
        ("W-PCDM", "not run"),
        ("LP-PCDM", "not run"),
        ("C-VDM", "not run"),
    ]
    assert "--only standard_cascade --dataset photos" in photos[-1]["source"]
    assert "no part of the suite" in tables.density_table([], "imagenet64")[-1]["source"]
    with pytest.raises(ValueError, match="unknown dataset 'cifar': one of cifar10, imagenet32"):
        tables.density_table(results, "cifar")


def test_imagenet_versions_stand_in_one_table(tmp_path):
    for version in ("old", "new"):
        write(
            tmp_path / version,
            data={"label": f"ImageNet 32x32 ({version})", "name": f"imagenet32-{version}"},
        )
    rows = tables.density_table(read(tmp_path), "imagenet32")
    assert [r["data"] for r in cells(rows, source="measured here")] == [
        "ImageNet 32x32 (new)",
        "ImageNet 32x32 (old)",
    ]
    assert (
        len(cells(rows, system="i-DODE")) == 2
        and cells(rows, system="VDM, paper")[0]["bpd"] == "3.72"
    )


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
    write(tmp_path / "w", ood={"rows": [row, row | {"statistic": "likelihood", "N": None}]})
    rows = tables.ood_table(read(tmp_path))
    assert [(r["system"], r["AUROC"]) for r in rows[:3]] == [
        (f"{n}, paper", "not available") for n in ("W-PCDM", "LP-PCDM", "VDM")
    ]
    one, two = cells(rows, run="w")
    assert (one["AUROC"], one["interval"], one["batches in, out"], one["N"], two["N"]) == (
        "0.9100",
        "0.9000 to 0.9200",
        "600, 500",
        "20",
        "none",
    )
    assert [r["system"] for r in cells(rows, AUROC="not run")] == ["LP-PCDM", "C-VDM", "VDM"]


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
    assert (fid["measure"], fid["value"], fid["source"]) == (
        "FID",
        "n/a",
        "missing: torch-fidelity is not installed",
    )
    assert (stand_in["measure"], stand_in["value"], stand_in["floor"], stand_in["samples"]) == (
        "band distance",
        "1.2500",
        "0.8000",
        "500",
    )
    assert cells(rows, run="b", measure="FID")[0]["source"] == "missing: not in the results file"
    assert cells(rows, run="c")[0]["system"] == "W-PCDM (EDM weight)"
    (paper,) = cells(rows, system="W-PCDM (EDM weight), paper")
    assert (paper["value"], paper["bpd"]) == ("2.42", "10.31")
    assert cells(rows, system="LP-PCDM, paper")[0]["value"] == "not available"


def test_cascade(tmp_path):
    write(tmp_path / "c", "standard", HELDOUT + 1, twice={"bpd": 0.75, "se": 0.01})
    write(tmp_path / "w")
    write(tmp_path / "v", "vdm")
    rows = tables.cascade_table(read(tmp_path))
    assert (rows[0]["system"], rows[0]["bpd"]) == ("C-VDM, paper", "not available")
    by_run = {r["run"]: r for r in rows}
    assert (
        by_run["c"]["paid twice"] == "0.7500 ± 0.0100"
        and by_run["w"]["paid twice"] == by_run["v"]["paid twice"] == "none"
    )
    assert (by_run["c"]["base"], by_run["c"]["finer scales"]) == ("2.2500", "2.2500") and by_run[
        "v"
    ]["finer scales"] == "none"
    assert [r["system"] for r in cells(rows, bpd="not run")] == ["LP-PCDM"]


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
    assert rows[0]["bpd"] == "not available"
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
    assert rows[0]["system"] == "W-PCDM, paper" and rows[0]["file"] == "2.37"
    assert [
        (r["T"], r["file"], r["net"], r["T-step bound"], r["net minus bound"], r["images"])
        for r in cells(rows, run="w")
    ] == [
        ("200", "3.7100", "3.7000", "3.6900", "0.0100 ± 0.0200", "64"),
        ("50", "3.7100", "n/a", "n/a", "n/a ± n/a", "64"),
    ]
    assert [r["system"] for r in cells(rows, file="not run")] == ["LP-PCDM", "VDM"]


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
    differ stay."""
    common = {"system": "VDM", "bpd": "3.5", "seed": 0, "machine": "m", "source": tables.MEASURED}
    rows = [
        {**common, "commit": "a"},
        {**common, "commit": "b"},
        {**common, "machine": "not given", "seed": "", "commit": "", "source": "as quoted"},
    ]
    narrow, same = tables.compact(rows)
    assert same == {"seed": "0", "machine": "m"}
    assert [set(row) for row in narrow] == [{"system", "bpd", "source", "commit"}] * 3
    assert tables.compact(rows[2:]) == (rows[2:], {})
