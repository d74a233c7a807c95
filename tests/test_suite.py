"""Every notebook of reproduce/ at a tiny budget, through the one command that runs them all; that
it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcdm_lib import records
from pcdm_lib.__main__ import main
from pcdm_lib.experiments import experiment, results_files, suite, tables

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = {
    "heldout_images": 16,
    "flow_images": 0,  # tests/test_experiment.py has the likelihoods of the main notebook
    "samples": 8,
    "sampling_steps": 10,
    "images": 10,
    "reference": 8,
    "draws": "1,2",
    "compressed_images": 4,
    "codec_steps": "4",
    "law_steps": "3",
}
CIFAR = ("wavelet", "laplacian", "vdm", "standard_cascade", "wavelet_edm")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth colour noise, 64 held-out patches of 32x32."""
    path, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(4):
        field = generator.normal(size=(256, 256, 3)).cumsum(0).cumsum(1)
        Image.fromarray(
            (255 * (field - field.min()) / (field.max() - field.min())).astype(np.uint8)
        ).save(path / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def ran(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole suite but the 128x128 part, a moment of training each."""
    folder = tmp_path_factory.mktemp("suite")
    parts = [part.name for part in suite.PARTS if part.name != "imagenet128"]
    found, failed = suite.run(
        0.01,
        dataset=f"folder:{pictures}",
        preset="tiny",
        only=parts,
        folder=folder,
        changes=SMALL,
        progress=False,
    )
    assert found == folder and failed == {}
    return folder


def test_every_part_leaves_its_figures(ran: Path) -> None:
    results, problems = results_files.read_results(ran)
    assert problems == [] and {r.name.split("/")[-1] for r in results} == {*CIFAR, "imagenet64"}
    by_name = {r.name.split("/")[-1]: r for r in results}
    for name in CIFAR:
        record = by_name[name].record
        assert record["format"] == experiment.RESULTS_FORMAT and by_name[name].scores.shape == (16,)
        assert record["quality"]["band distance"]["samples"] == 8 and set(
            record["quality"]["FID"]
        ) & {"missing", "value"}
        assert ("ood" in record) == (name != "wavelet_edm")  # whose training is not on the bound
        # C-VDM would pay twice
        assert ("compression" in record) == (name in ("wavelet", "laplacian", "vdm"))
    assert (
        by_name["standard_cascade"].record["twice"]["bpd"] > 0
        and "twice" not in by_name["wavelet"].record
    )
    assert by_name["wavelet_edm"].record["config"]["training"]["weighting"] == "edm"
    assert by_name["imagenet64"].record["config"]["model"]["levels"] == 2  # S = 3


def test_the_tables_hold_them(ran: Path) -> None:
    """The last notebook shows the four systems and their differences, and what is missing."""
    notebook = json.loads((ran / "tables.ipynb").read_text())
    shown = [
        output
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
    ]
    text = "\n".join(
        "".join(output["data"].get("text/markdown", "")) for output in shown if "data" in output
    )
    for name in (
        "W-PCDM",
        "LP-PCDM",
        "VDM",
        "C-VDM",
        "Shen, Gan and Ling",
        tables.TITLES["paired"],
        tables.TITLES["compression"],
        "not run",
    ):
        assert name in text, name
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 2
    results, _ = results_files.read_results(ran)
    rows = tables.paired_table([r for r in results if r.name.split("/")[-1] in CIFAR[:4]])
    assert len(rows) >= 3 and all(row for row in rows)


def test_what_is_done_is_not_done_again(
    ran: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The same command runs the tables alone; a part that was cut short is run again, from its
    checkpoint, and the others are left."""
    folder = tmp_path / "copy"
    shutil.copytree(ran, folder)
    for path in (folder / "runs").iterdir():  # two runs are enough for what reads them
        if path.name not in ("wavelet", "vdm"):
            shutil.rmtree(path)
    for path in folder.glob("*.done.json"):  # executed for the other folder
        path.write_text(path.read_text().replace(str(ran), str(folder)))
    steps = records.read_json(folder / "runs" / "vdm" / "results.json")["training"]["steps"]
    # a kill while it was being written
    (folder / "vdm.ipynb").write_text((folder / "vdm.ipynb").read_text()[:1000])
    (folder / "vdm.done.json").unlink()
    words = [
        "tables",
        "--minutes",
        "0.01",
        "--dataset",
        f"folder:{pictures}",
        "--preset",
        "tiny",
        "--only",
        "wavelet,vdm,ood",
        "--out",
        str(folder),
        "--quiet",
        *(w for k, v in SMALL.items() for w in ("-p", k, str(v))),
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert (
        "part 1 of 4, wavelet: done before" in out
        and "part 2 of 4, vdm: cifar_vdm.ipynb into" in out
    )
    assert "part 3 of 4, ood: ood.ipynb into" in out  # a run that it reads is new
    assert "part 4 of 4, tables: tables.ipynb into" in out
    assert "ood" in records.read_json(folder / "runs" / "vdm" / "results.json")
    executed = []
    monkeypatch.setattr(
        "papermill.execute_notebook", lambda path, out, **_: executed.append(Path(out).stem)
    )
    assert main(words) == 0
    assert capsys.readouterr().out.count("done before") == 3 and executed == ["tables"]
    # its budget was used up
    assert records.read_json(folder / "runs" / "vdm" / "results.json")["training"]["steps"] == steps
    assert "W-PCDM" in out  # a line for each result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minutes": 0}, "positive number of minutes"),
        ({"minutes": float("nan")}, "positive number of minutes"),
        ({"only": ["wavlet"]}, r"unknown parts \['wavlet'\]"),
        ({"changes": {"heldout": 3}}, r"the parameters \['heldout'\]"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    change: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        suite.run(**({"minutes": 1.0, "folder": tmp_path / "x"} | change))
    assert not (tmp_path / "x").exists() or not list((tmp_path / "x").iterdir())


def test_a_part_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Data that are gone when the part begins: it says so once, the tables are made all the same,
    and the exit status tells."""
    monkeypatch.setattr("pcdm_lib.experiments.checks.check_steps", lambda _: None)
    words = ["tables", "--minutes", "0.01", "--dataset", f"folder:{tmp_path / 'nowhere'}"]
    words += ["--preset", "tiny", "--only", "wavelet", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 1
    assert "part wavelet failed: FileNotFoundError" in capsys.readouterr().err
    assert (tmp_path / "out" / "tables.ipynb").exists()


def test_notebooks_refuse_unknown_values(tmp_path: Path) -> None:
    import papermill

    for name, parameters, message in (
        ("ood", {"imges": 3}, "unknown parameters"),
        ("imagenet", {"size": 48}, "size=48"),
        ("tables", {"run": "x"}, "unknown parameters"),
        ("cifar_vdm", {"preset": "paper-imagenet64"}, "preset="),
    ):
        with pytest.raises(papermill.PapermillExecutionError, match=message):
            papermill.execute_notebook(
                REPOSITORY / "reproduce" / f"{name}.ipynb",
                tmp_path / "out.ipynb",
                parameters=parameters,
                cwd=REPOSITORY,
                progress_bar=False,
            )


def test_a_results_file_of_another_version_is_not_written_to(tmp_path: Path) -> None:
    records.write_json(tmp_path / "results.json", {"format": 1, "config": {}})
    with pytest.raises(ValueError, match="has format 1, this version writes 2"):
        experiment.add_result(tmp_path, "ood", {})
    assert records.read_json(tmp_path / "results.json") == {"format": 1, "config": {}}


def test_a_part_that_was_interrupted_is_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """papermill notes an end for a notebook that an interrupt or a dead kernel stopped, too; the
    second call runs the part again."""
    calls = []

    def execute(path, out, parameters, **_):
        calls.append(Path(out).stem)
        facts = {"exception": None, "end_time": "now", "parameters": parameters}
        Path(out).write_text(json.dumps({"cells": [], "metadata": {"papermill": facts}}))
        if calls == ["vdm"]:
            raise KeyboardInterrupt
        if calls[-1] == "laplacian":
            raise RuntimeError("Kernel died")

    monkeypatch.setattr("papermill.execute_notebook", execute)
    with pytest.raises(KeyboardInterrupt):
        suite.run(1.0, only=["vdm"], folder=tmp_path)
    assert suite.run(1.0, only=["vdm"], folder=tmp_path)[1] == {} and calls == [
        "vdm",
        "vdm",
        "tables",
    ]
    assert suite.run(1.0, only=["vdm", "laplacian"], folder=tmp_path)[1] == {
        "laplacian": "RuntimeError: Kernel died"
    }
    assert (
        calls == ["vdm", "vdm", "tables", "laplacian", "tables"]
        and "vdm: done before" in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match=r"\['output_dir'\] are set by the suite itself"):
        suite.run(1.0, folder=tmp_path, changes={"output_dir": "x"})
