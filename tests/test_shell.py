"""The shell commands end to end on small data, and what they say to bad input."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image

from pcdm_lib.__main__ import main


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "a"
    arguments = [
        "train",
        str(run_dir),
        "--preset",
        "tiny",
        "--dataset",
        f"folder:{folder}",
        "--steps",
        "4",
        "--quiet",
    ]
    assert main(arguments) == 0
    return run_dir


def test_train_says_which_data_first(folder, tmp_path, capsys):
    assert (
        main(
            [
                "train",
                str(tmp_path / "r"),
                "--preset",
                "tiny",
                "--system",
                "laplacian",
                "--dataset",
                f"folder:{folder}",
                "--steps",
                "2",
                "--set",
                "batch_size=4",
                "--set",
                "ema=0.9",
                "--quiet",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines()[0].startswith("data: folder images")
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert (
        config["config"]["training"]["batch_size"] == 4
        and config["config"]["system"] == "laplacian"
    )
    assert config["provenance"][0]["versions"]["torch"] == torch.__version__


def test_evaluate_writes_what_it_prints(folder, run, tmp_path, capsys):
    out = tmp_path / "figures.json"
    arguments = [
        "evaluate",
        str(run),
        "--dataset",
        f"folder:{folder}",
        "--repeats",
        "2",
        "--quiet",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    first = out.read_text()
    record = json.loads(first)
    assert f"{record['evaluation']['bpd']:.4f} bpd" in capsys.readouterr().out
    assert record["evaluation"]["weights"] == "EMA" and record["evaluation"]["images"] == 4
    assert (
        record["data"]["label"].startswith("folder images") and record["training"][0]["step"] == 4
    )
    assert main(arguments) == 0  # same seed, same figures
    assert json.loads(out.read_text())["evaluation"] == record["evaluation"]


def test_evaluate_against_another_model(folder, run, tmp_path, capsys):
    """The paired difference is that of the two figures, and of a model to itself exactly none."""
    other = tmp_path / "v"
    assert (
        main(
            [
                "train",
                str(other),
                "--preset",
                "tiny",
                "--system",
                "vdm",
                "--dataset",
                f"folder:{folder}",
                "--steps",
                "2",
                "--quiet",
            ]
        )
        == 0
    )
    out = tmp_path / "pair.json"
    for against, same in ((other, False), (run, True)):
        assert (
            main(
                [
                    "evaluate",
                    str(run),
                    "--dataset",
                    f"folder:{folder}",
                    "--against",
                    str(against),
                    "--quiet",
                    "--out",
                    str(out),
                ]
            )
            == 0
        )
        record = json.loads(out.read_text())
        found = record["against"]["paired difference"]["bpd"]
        assert found == pytest.approx(
            record["evaluation"]["bpd"] - record["against"]["evaluation"]["bpd"], abs=1e-9
        )
        assert (found == 0) == same and record["against"]["config"]["system"] == (
            "wavelet" if same else "vdm"
        )
        assert f"image by image: {found:+.4f}" in capsys.readouterr().out


def test_evaluate_refuses_another_resolution(run, folder, tmp_path, capsys):
    small = tmp_path / "grey"
    small.mkdir()
    for name in "ab":
        Image.new("RGB", (16, 16)).save(small / f"{name}.png")
    assert main(["evaluate", str(run), "--dataset", f"folder:{small}", "--quiet"]) == 2
    assert "16x16 pixels, expected at least 32x32" in capsys.readouterr().err


def test_figures_without_an_error_are_written_all_the_same(folder, run, tmp_path):
    out = tmp_path / "figures.json"
    assert (
        main(
            [
                "evaluate",
                str(run),
                "--dataset",
                f"folder:{folder}",
                "--repeats",
                "1",
                "--images",
                "1",
                "--quiet",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert json.loads(out.read_text())["evaluation"]["se_images"] is None


def test_evaluate_refuses_a_folder_that_has_changed(folder, run, tmp_path, capsys):
    """New files move the split, and images that were trained on would pass as held out."""
    copy = tmp_path / "images"
    shutil.copytree(folder, copy)
    assert (
        main(
            [
                "train",
                str(tmp_path / "r"),
                "--preset",
                "tiny",
                "--dataset",
                f"folder:{copy}",
                "--steps",
                "1",
                "--quiet",
            ]
        )
        == 0
    )
    shutil.copy(copy / "0.png", copy / "9.png")
    assert main(["evaluate", str(tmp_path / "r"), "--dataset", f"folder:{copy}", "--quiet"]) == 2
    assert "has changed since training" in capsys.readouterr().err


def test_steps_must_be_positive(folder, run, capsys):
    for steps in ("0", "-1"):
        assert (
            main(
                ["evaluate", str(run), "--dataset", f"folder:{folder}", "--steps", steps, "--quiet"]
            )
            == 2
        )
        assert "at least one step" in capsys.readouterr().err


def test_sample_writes_every_scale(run, tmp_path):
    for out in ("x", "y"):
        assert (
            main(
                [
                    "sample",
                    str(run),
                    "--out",
                    str(tmp_path / out),
                    "--count",
                    "2",
                    "--steps",
                    "3",
                    "--seed",
                    "5",
                    "--quiet",
                ]
            )
            == 0
        )
    names = sorted(p.name for p in (tmp_path / "x").iterdir())
    assert names == [f"sample-00{i}-{s}.png" for i in range(2) for s in ("base", "details1")]
    for name in names:
        with Image.open(tmp_path / "x" / name) as image:
            assert image.size == ((16, 16) if "base" in name else (32, 32)) and image.mode == "RGB"
            assert image.text["Description"].startswith(
                "sample of a model trained on folder images"
            )
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--set", "widht=3"], "unknown setting 'widht'"),
        (["--set", "batch_size=x"], "batch_size='x' cannot be read as int"),
        (["--set", "batch_size"], "KEY=VALUE"),
        (["--scales", "bass"], r"unknown scales \['bass'\]"),
        (["--set", "lr_decay=cosin"], "lr_decay='cosin' makes no sense"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used here"),
        (["--dataset", "imagenet"], "unknown dataset 'imagenet'"),
        (["--dataset", "folder:/nowhere/at/all"], "is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, capsys, arguments, message):
    command = [
        "train",
        str(tmp_path / "r"),
        "--preset",
        "tiny",
        "--dataset",
        f"folder:{folder}",
        "--steps",
        "2",
        "--quiet",
    ]
    assert main(command + arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)
    assert not (tmp_path / "r").exists()


def test_a_run_is_not_overwritten_and_a_missing_one_is_named(folder, run, capsys):
    arguments = [
        "train",
        str(run),
        "--preset",
        "tiny",
        "--dataset",
        f"folder:{folder}",
        "--steps",
        "4",
        "--quiet",
    ]
    assert main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (
        main(["evaluate", str(run.parent / "b"), "--dataset", f"folder:{folder}", "--quiet"]) == 2
    )
    assert "holds no checkpoint" in capsys.readouterr().err


def test_likelihoods_side_by_side(folder, run, tmp_path, capsys):
    """The bound in continuous time and in steps and the flow, on the same images, with differences;
    bad numbers are one line."""
    out = tmp_path / "ways.json"
    words = [
        "likelihoods",
        str(run),
        "--dataset",
        f"folder:{folder}",
        "--images",
        "2",
        "--tolerance",
        "1e-2",
        "--quiet",
    ]
    assert main([*words, "--steps", "4,16", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["likelihoods"]
    assert list(found) == ["continuous time", "T = 4", "T = 16", "flow, hutchinson"]
    assert found["T = 4"]["difference"] == pytest.approx(
        found["T = 4"]["bpd"] - found["continuous time"]["bpd"]
    )
    assert f"{found['flow, hutchinson']['bpd']:.4f}" in capsys.readouterr().out
    for change, message in (
        (["--steps", "4,x"], "whole numbers with commas"),
        (["--tolerance", "0"], "tolerances must be positive"),
    ):
        assert main([*words, *change]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1


def test_a_budget_belongs_to_the_papers_presets_only(folder, tmp_path, capsys):
    """Without --steps or --minutes: the paper's number of updates where the preset has one, else an
    error; and only for its resolution."""
    words = ["train", str(tmp_path / "r"), "--dataset", f"folder:{folder}", "--quiet"]
    assert main([*words, "--preset", "tiny"]) == 2
    assert (
        "preset 'tiny' has no budget of its own: give --minutes or --steps"
        in capsys.readouterr().err
    )
    assert main([*words, "--preset", "paper-imagenet64"]) == 2
    assert (
        "preset 'paper-imagenet64' is for 64x64 images, got 32x32: use paper-cifar10 or "
        "paper-imagenet32 or small" in capsys.readouterr().err
    )
    assert not (tmp_path / "r").exists()


def test_other_sizes(folder, tmp_path, capsys):
    """--size 64 gives three scales, and a run is scored at the size that it was trained at."""
    run_dir = tmp_path / "r"
    words = ["--dataset", f"folder:{folder}", "--quiet"]
    assert (
        main(
            [
                "train",
                str(run_dir),
                "--preset",
                "tiny",
                "--steps",
                "1",
                "--size",
                "64",
                "--set",
                "batch_size=2",
                *words,
            ]
        )
        == 0
    )
    assert json.loads((run_dir / "config.json").read_text())["config"]["model"]["levels"] == 2
    assert main(["evaluate", str(run_dir), "--size", "64", "--repeats", "1", *words]) == 0
    assert "details2" in capsys.readouterr().out
    assert main(["evaluate", str(run_dir), *words]) == 2
    assert "this cascade takes integer images (N, 3, 64, 64), got" in capsys.readouterr().err
