"""The shipped models: they load, are small, and score what their cards say. And how a run becomes
one of them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import pcdm_lib
from benchmarks.parts import bf16_difference
from pcdm_lib import data
from pcdm_lib.__main__ import main
from pcdm_lib.experiments.shipping import CHECK
from pcdm_lib.likelihood import evaluate
from pcdm_lib.models import checkpoints, pretrained
from pcdm_lib.models.cascade import EXACT

SHIPPED = (
    "cifar10-subset-wavelet",
    "photos-direct",
    "photos32-laplacian",
    "photos32-vdm",
    "photos32-wavelet",
)

# The same draws on the same images: what is left is float rounding. With the vector instructions of
# three generations of processors, and with and without oneDNN, it was below 1e-7 bpd; other weights
# or other noise show at 1e-2.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def photos() -> data.ImageData:
    return data.load_data("photos")


def test_the_models_are_there() -> None:
    assert set(SHIPPED) <= set(pretrained.names())


@pytest.mark.parametrize("name", pretrained.names())
def test_it_is_small_and_its_card_is_whole(name: str) -> None:
    folder, facts = pretrained.WEIGHTS / name, pretrained.card(name)
    total = sum(p.stat().st_size for p in folder.iterdir())
    assert facts["bytes"] < total <= pretrained.MAX_BYTES == 5_000_000
    assert {p.name for p in folder.iterdir()} == {*facts["files"], "card.json"}
    assert facts["name"] == name and facts["evaluation"]["weights"] == "EMA"
    figures = facts["evaluation"]
    exact = figures["bound"] == EXACT
    assert (
        (figures["se_noise"] == 0) == exact
        and figures["se_images"] > 0
        and figures["images"] == facts["heldout"]["images"]
    )
    assert sum(row["bpd"] for row in figures["scales"].values()) == pytest.approx(figures["bpd"])
    for training in facts["training"]:
        assert training["data"]["train_sha256"] == facts["data"]["train_sha256"]
        assert training["sessions"] and all(
            s["commit"] and s["machine"] for s in training["sessions"]
        )
    assert facts["commands"][0].startswith("python -m pcdm_lib train ") and facts["commands"][
        -1
    ].startswith("python -m pcdm_lib ship ")
    text = pretrained.markdown(facts)
    assert (
        f"{figures['bpd']:.4f}" in text
        and ("not the paper's model" in text) != exact
        and facts["data"]["train_sha256"] in text
    )
    assert all(command in text for command in facts["commands"])
    assert str(Path.home()) not in json.dumps(facts)  # nobody's folders


@pytest.mark.parametrize("name", pretrained.names())
def test_it_scores_what_its_card_says(name: str, photos: data.ImageData) -> None:
    """On every data set of its card that is available, the photographs always: the same images and
    draws give the card's figures."""
    cascade, facts = pcdm_lib.load_pretrained(name), pretrained.card(name)
    assert not cascade.training and {p.dtype for p in cascade.parameters()} == {torch.float32}
    assert "photos" in facts["checks"]
    for source, check in facts["checks"].items():
        if source == "photos":
            side = cascade.image_shape[-1]
            images = photos if side == 32 else data.load_data("photos", size=side)
        elif os.environ.get("PCDM_DATA") and ":" not in source:
            images = data.load_data(source, download=False)
        else:
            continue
        first = images.heldout[: check["images"]]
        if hashlib.sha256(first.numpy()).hexdigest() != check["sha256"]:
            assert source != "photos"  # another part of the data set than the card's
            continue
        result = evaluate(
            cascade,
            first,
            repeats=check["repeats"],
            times_per_image=check["times_per_image"],
            seed=check["seed"],
        )
        assert result.bpd == pytest.approx(check["bpd"], abs=ROUNDING)
        for scale, bpd in check["scales"].items():
            assert result.table()[scale]["total"] == pytest.approx(bpd, abs=ROUNDING)
        # and the main figure, of more images and other draws, within five standard errors of so few
        if source == facts["data"]["name"]:
            main_figure, times = facts["evaluation"], check["repeats"] * check["times_per_image"]
            fewer = main_figure["images"] / len(first)
            noise = main_figure["se_noise"] * math.sqrt(
                fewer * main_figure["repeats"] * main_figure["times_per_image"] / times
            )
            assert abs(result.bpd - main_figure["bpd"]) < 5 * math.hypot(
                main_figure["se_images"] * math.sqrt(fewer), noise
            )


def test_an_unknown_name_lists_the_models(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(
        ValueError,
        match="no shipped model is called 'photos32-wavlet', did you mean 'photos32-wavelet'",
    ):
        pcdm_lib.load_pretrained("photos32-wavlet")
    with pytest.raises(ValueError, match="there are none"):
        pretrained.card("x", root=Path("/nowhere"))
    assert main(["card", "../secrets"]) == 2
    assert "no shipped model" in capsys.readouterr().err


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder of models with one in it."""
    shutil.copytree(pretrained.WEIGHTS / "photos32-wavelet", tmp_path / "photos32-wavelet")
    return tmp_path


def test_a_damaged_file_is_named(copy: Path) -> None:
    folder = copy / "photos32-wavelet"
    assert pretrained.load_pretrained("photos32-wavelet", root=copy) is not None
    path = folder / "details1.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"details1\.safetensors has the sha256 .*damaged"):
            pretrained.load_pretrained("photos32-wavelet", root=copy)
    path.unlink()
    with pytest.raises(ValueError, match=r"details1\.safetensors is missing"):
        pretrained.load_pretrained("photos32-wavelet", root=copy)
    path.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["model"]["gamma_max"] = [4.0, 4.0]  # a smaller bound by a stroke of the pen
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json has the sha256"):
        pretrained.load_pretrained("photos32-wavelet", root=copy)
    (folder / "card.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        pretrained.load_pretrained("photos32-wavelet", root=copy)
    (folder / "card.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="no card of format 1"):
        pretrained.card("photos32-wavelet", root=copy)


# ---- shipping


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    assert (
        main(
            [
                "train",
                str(run_dir),
                "--preset",
                "tiny",
                "--set",
                "ema=0.5",
                "--dataset",
                f"folder:{folder}",
                "--steps",
                "4",
                "--quiet",
            ]
        )
        == 0
    )
    return run_dir


def ship(run_dir: Path, root: Path, dataset: str, *more: str) -> int:
    return main(
        [
            "ship",
            str(run_dir),
            "mine",
            "--dataset",
            dataset,
            "--repeats",
            "2",
            "--times",
            "2",
            "--weights-root",
            str(root),
            "--quiet",
            *more,
        ]
    )


@pytest.mark.parametrize("name", ["photos32-wavelet", "photos32-laplacian", "photos32-vdm"])
def test_bf16_does_the_bound_no_harm(name: str, photos: data.ImageData) -> None:
    """The networks under bf16 autocast, the same draws: a difference, and one far inside the
    Monte-Carlo error."""
    found = bf16_difference(
        pretrained.load_pretrained(name), photos.heldout[:16], torch.device("cpu"), repeats=2
    )
    assert 0 < abs(found["difference"]) < 2e-3 and found["Monte-Carlo error"] > 2e-3


def test_ship_makes_a_model(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What is shipped are the EMA weights rounded to float16, what is scored is what loads, and the
    command does it again."""
    assert ship(run, tmp_path, f"folder:{folder}") == 0
    printed = capsys.readouterr().out
    facts = pretrained.card("mine", root=tmp_path)
    assert f"{facts['evaluation']['bpd']:.4f}" in printed and set(facts["checks"]) == {
        f"folder:{folder}",
        "photos",
    }
    cascade = pretrained.load_pretrained("mine", root=tmp_path)
    images = data.load_data(f"folder:{folder}")
    again = evaluate(cascade, images.heldout, repeats=2, times_per_image=2, seed=0)
    assert again.bpd == facts["evaluation"]["bpd"]
    first = evaluate(
        cascade,
        data.load_data("photos").heldout[: CHECK["images"]],
        **{k: CHECK[k] for k in ("repeats", "times_per_image", "seed")},
    )
    assert first.bpd == facts["checks"]["photos"]["bpd"]
    ema, _ = checkpoints.load_cascade(run)
    trained = dict(ema.named_parameters())  # what was measured on the data is stored as it is
    for name, value in ema.state_dict().items():
        stored = cascade.state_dict()[name]
        expected = value.half().float() if value.ndim >= 2 and name in trained else value
        assert torch.equal(stored, expected), name
    assert {
        v.dtype
        for v in safetensors.torch.load_file(tmp_path / "mine" / "base.safetensors").values()
    } == {torch.float16, torch.float32}
    assert (
        "--preset tiny" in facts["commands"][0]
        and "--set ema=0.5" in facts["commands"][0]
        and "--steps 4" in facts["commands"][0]
    )
    before = sorted(p.name for p in tmp_path.iterdir())
    assert ship(run, tmp_path, f"folder:{folder}") == 2
    assert "--force" in capsys.readouterr().err
    assert ship(run, tmp_path, f"folder:{folder}", "--force") == 0  # in place of the first
    assert pretrained.card("mine", root=tmp_path) == facts and sorted(
        p.name for p in tmp_path.iterdir()
    ) == before == ["mine"]


@pytest.mark.parametrize(
    "dataset, more, message",
    [
        ("photos", [], "was trained on folder images"),
        (None, ["--images", "1"], "images=1"),
    ],
)
def test_ship_refuses_and_leaves_nothing(
    run: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    dataset: str | None,
    more: list[str],
    message: str,
) -> None:
    assert ship(run, tmp_path, dataset or f"folder:{folder}", *more) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ship_refuses_a_name_and_a_size(
    run: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (
        main(
            [
                "ship",
                str(run),
                "../up",
                "--dataset",
                f"folder:{folder}",
                "--weights-root",
                str(tmp_path / "w"),
                "--quiet",
            ]
        )
        == 2
    )
    assert "small letters, digits and hyphens" in capsys.readouterr().err
    monkeypatch.setattr(pretrained, "MAX_BYTES", 10_000)
    assert ship(run, tmp_path / "w", f"folder:{folder}") == 2
    assert "more than the 10000" in capsys.readouterr().err
    assert not list((tmp_path / "w").iterdir())


# ---- where a run is expected


def test_commands_take_a_shipped_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert (
        main(
            [
                "evaluate",
                "photos32-wavelet",
                "--dataset",
                "photos",
                "--images",
                "2",
                "--repeats",
                "2",
                "--times",
                "1",
                "--quiet",
                "--out",
                str(tmp_path / "a.json"),
            ]
        )
        == 0
    )
    assert "base, details1 trained on: photos32" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "a.json").read_text())["training"][0]["data"]["train_sha256"]
        == pretrained.card("photos32-wavelet")["data"]["train_sha256"]
    )
    assert (
        main(
            [
                "sample",
                "photos32-wavelet",
                "--out",
                str(tmp_path / "s"),
                "--count",
                "1",
                "--steps",
                "2",
                "--quiet",
            ]
        )
        == 0
    )
    assert len(list((tmp_path / "s").iterdir())) == 2
    assert (
        main(["evaluate", "photos32-wavelet", "--weights", "raw", "--dataset", "photos", "--quiet"])
        == 2
    )
    assert "EMA weights only" in capsys.readouterr().err
    assert main(["card"]) == 0
    assert capsys.readouterr().out.split() == pretrained.names()
    assert main(["card", "photos32-wavelet"]) == 0
    assert capsys.readouterr().out.startswith("# photos32-wavelet\n")


def test_a_folder_of_that_name_goes_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "photos32-wavelet")
    monkeypatch.chdir(tmp_path)
    _, headers = pretrained.open_model(["photos32-wavelet"])
    assert headers[0]["step"] == 4


def test_a_run_is_known_by_one_of_its_checkpoints_too(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    assert ship(checkpoints.newest_checkpoint(run), tmp_path, f"folder:{folder}") == 0
    facts = pretrained.card("mine", root=tmp_path)
    assert facts["commands"][0].startswith("python -m pcdm_lib train runs/tiny ") and facts[
        "training"
    ][0]["sessions"][0]["budget"] == {"steps": 4}
    assert facts["training"][0]["data"]["folder"] == str(folder.resolve())


def test_scales_of_two_runs_make_one_model(folder: Path, tmp_path: Path) -> None:
    runs = []
    for scale in ("base", "details1"):
        runs.append(tmp_path / f"run-{scale}")
        assert (
            main(
                [
                    "train",
                    str(runs[-1]),
                    "--preset",
                    "tiny",
                    "--dataset",
                    f"folder:{folder}",
                    "--steps",
                    "1",
                    "--scales",
                    scale,
                    "--quiet",
                ]
            )
            == 0
        )
    assert (
        main(
            [
                "ship",
                *map(str, runs),
                "both",
                "--dataset",
                f"folder:{folder}",
                "--repeats",
                "1",
                "--times",
                "1",
                "--weights-root",
                str(tmp_path / "w"),
                "--quiet",
            ]
        )
        == 0
    )
    facts = pretrained.card("both", root=tmp_path / "w")
    assert [t["scales"] for t in facts["training"]] == [
        ["base"],
        ["details1"],
    ] and "--scales details1" in facts["commands"][1]
    assert pretrained.load_pretrained("both", root=tmp_path / "w").map.names() == (
        "base",
        "details1",
    )
