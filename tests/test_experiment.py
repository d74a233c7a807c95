"""What the notebooks of reproduce/ share, and the main notebook itself, run by papermill at a tiny
budget."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import papermill
import pytest
from PIL import Image

from pcdm_lib import outputs, records
from pcdm_lib.experiments import experiment
from pcdm_lib.experiments.parameters import AtLeast, check_parameters
from pcdm_lib.likelihood import evaluation
from pcdm_lib.models import presets

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOK = REPOSITORY / "reproduce" / "cifar_wavelet.ipynb"
ALLOWED = {"minutes": [float], "seed": int, "preset": ("small", "paper"), "name": str}


@pytest.mark.parametrize(
    "given",
    [
        {"minutes": 3, "seed": 0, "preset": "small", "name": "x"},
        {
            "minutes": None,
            "seed": 1,
            "preset": "paper",
            "name": "",
            "_private": 1,
            "In": [],
            "get_ipython": None,
        },
    ],
)
def test_parameters_that_are_right(given):
    check_parameters(given, ALLOWED)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sede": 1}, r"unknown parameters \['sede'\]"),
        ({"seed": 1.5}, "seed=1.5 is a float, expected int"),
        ({"seed": True}, "seed=True is a bool"),
        ({"minutes": "4"}, "minutes='4' is a str, expected float or None"),
        ({"preset": "large"}, "preset='large': one of 'small', 'paper'"),
        ({"name": None}, "name=None is a NoneType, expected str$"),
    ],
)
def test_parameters_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(
            {"minutes": 3, "seed": 0, "preset": "small", "name": "x"} | change, ALLOWED
        )


@pytest.mark.parametrize(
    "value, message",
    [
        (1, "count=1: expected a whole number of at least 2"),
        (2.0, "count=2.0: expected"),
        (True, "count=True: expected"),
        ("3", "count='3': expected"),
    ],
)
def test_numbers_that_are_too_small_are_refused_at_the_door(value, message):
    check_parameters({"count": 2}, {"count": AtLeast(2)})
    with pytest.raises(ValueError, match=message):
        check_parameters({"count": value}, {"count": AtLeast(2)})


def test_a_notebook_can_be_run_twice_in_one_kernel():
    """The second time its own names are there; the values are still checked."""
    names = {"minutes": 3, "seed": 0, "preset": "small", "name": "x"}
    check_parameters(names, ALLOWED)
    names["torch"] = object()
    check_parameters(names, ALLOWED)
    with pytest.raises(ValueError, match="seed='0'"):
        check_parameters(names | {"seed": "0"}, ALLOWED)


def test_results_are_json_without_nan(tmp_path):
    result = evaluation.Evaluation(
        np.ones((1, 1, 2, 3)), ("base", "details1"), None, "stratified", "EMA", 0
    )
    assert math.isnan(result.se_images)
    written = experiment.write_results(
        tmp_path / "r.json",
        config=presets.preset("tiny"),
        data_label="l",
        data_source={},
        evaluation=result,
        training={},
        codecs={"PNG": (5.0, 0.1)},
        device="cpu",
    )
    assert json.loads((tmp_path / "r.json").read_text())["evaluation"]["se_images"] is None
    assert written["evaluation"]["bpd"] == 6.0


def test_table():
    table = experiment.markdown_table([{"a": 1.23456, "b": "x"}, {"a": "none", "b": 2}])
    assert table.splitlines() == ["| a | b |", "| --- | --- |", "| 1.2346 | x |", "| none | 2 |"]
    with pytest.raises(ValueError, match="at least one row"):
        experiment.markdown_table([])


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "file.json"
    records.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        records.write_json(path, {"a": math.nan})
    assert records.read_json(path) == {"a": 1}
    with pytest.raises(RuntimeError), outputs.whole_folder(tmp_path / "folder") as work:
        (work / "half").write_text("x")
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(generator.integers(100, 140, (256, 256, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    return folder


def run_notebook(tmp_path, **parameters):
    return papermill.execute_notebook(
        NOTEBOOK, tmp_path / "out.ipynb", parameters=parameters, cwd=REPOSITORY, progress_bar=False
    )


def test_main_notebook_runs_and_resumes(tmp_path, images):
    """Everything but the waiting: a tiny network for three steps, then two more from its
    checkpoint."""
    settings = {
        "dataset": f"folder:{images}",
        "preset": "tiny",
        "output_dir": str(tmp_path / "run"),
        "heldout_images": 16,
        "flow_images": 2,
        "samples": 8,
        "sampling_steps": 10,
    }
    run_notebook(tmp_path, steps=3, **settings)
    first = records.read_json(tmp_path / "run" / "results.json")
    assert first["training"]["steps"] == 3 and first["config"]["preset"] == "tiny"
    assert first["evaluation"]["images"] == 16 and set(first["reference_codecs"]) == {
        "PNG",
        "WebP",
        "JPEG XL",
    }
    assert 0 < first["evaluation"]["bpd"] < 20
    assert [row["name"] for row in first["likelihoods"]] == [
        "continuous time",
        "T = 100",
        "T = 1000",
        "flow, hutchinson",
    ]
    run_notebook(tmp_path, steps=5, **(settings | {"flow_images": 0}))
    assert records.read_json(tmp_path / "run" / "results.json")["training"]["steps"] == 5


@pytest.mark.parametrize(
    "parameters, message",
    [({"minuts": 3}, "unknown parameters"), ({"preset": "large"}, "preset='large'")],
)
def test_main_notebook_refuses_unknown_values(tmp_path, parameters, message):
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        run_notebook(tmp_path, output_dir=str(tmp_path / "run"), **parameters)
    assert not (tmp_path / "run").exists()


def test_notebooks_are_executed_and_short():
    """A cell that never ran would pass nbval uncompared; a long one belongs in the library, and
    JupyterLab shows 100 characters of a line."""
    for path in [
        *(REPOSITORY / "notebooks").glob("*.ipynb"),
        *(REPOSITORY / "reproduce").glob("*.ipynb"),
    ]:
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert cells
        for cell in cells:
            lines = "".join(cell["source"]).splitlines()
            assert len(lines) <= 25, (path.name, lines[0])
            assert max(map(len, lines), default=0) <= 100, (path.name, max(lines, key=len))
            assert cell["execution_count"] is not None, (path.name, cell["source"][0])
            assert not any(
                o["output_type"] == "error" or o.get("name") == "stderr" for o in cell["outputs"]
            ), path.name


def test_shipped_models_stand_beside_the_runs(tmp_path, monkeypatch):
    """Without runs the shipped models of the same images, with runs these alone unless the shipped
    ones are asked for, and a folder without runs is an error either way."""
    name = experiment.pretrained.names()[0]
    wanted = experiment.pretrained.card(name)["data"]["train_sha256"]
    images = SimpleNamespace(source={"train_sha256": wanted}, label="some images")
    monkeypatch.setattr(experiment.pretrained, "load_pretrained", lambda *_: "shipped")
    monkeypatch.setattr(experiment.checkpoints, "load_cascade", lambda *_, **__: ("trained", {}))
    shipped = experiment.open_models(None, images)
    assert shipped[name] == ("shipped", None)
    for asked in (False, True):
        with pytest.raises(ValueError, match="no model trained on some images lies under"):
            experiment.open_models(str(tmp_path), images, shipped=asked)
    config = {"system": "wavelet", "training": {}}
    record = {"format": experiment.RESULTS_FORMAT, "data": images.source, "config": config}
    (tmp_path / "a").mkdir()
    records.write_json(tmp_path / "a" / "results.json", record)
    mine = {"W-PCDM": ("trained", tmp_path / "a")}
    assert experiment.open_models(str(tmp_path), images) == mine
    assert experiment.open_models(str(tmp_path), images, shipped=True) == mine | shipped
