"""Work is first checked, then done: what can be refused is refused before the first evaluation of a
network, for all inputs at once; and what fails in the middle keeps what was finished."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from pcdm_lib.__main__ import main
from pcdm_lib.likelihood import evaluation
from pcdm_lib.models import presets, pretrained
from pcdm_lib.models.direct import Trunk
from pcdm_lib.models.unet import UNet
from pcdm_lib.training.trainer import Trainer


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on the folder's images. Not to be changed: copy it."""
    path = tmp_path_factory.mktemp("runs") / "a"
    words = ["train", str(path), "--preset", "tiny", "--dataset", f"folder:{folder}"]
    assert main([*words, "--steps", "1", "--set", "batch_size=2", "--quiet"]) == 0
    return path


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network may be evaluated; the current folder is an empty one."""
    for network in (UNet, Trunk):
        monkeypatch.setattr(network, "forward", lambda *_, **__: pytest.fail("evaluated"))
    monkeypatch.chdir(tmp_path)


def refused(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(words) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert len(error) == 1 and message in error[0]


def small_run(path: Path) -> Path:
    """A run on images of another size."""
    config = presets.preset("tiny", image_shape=(3, 8, 8)).override({"batch_size": 2})
    images = torch.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).to(torch.uint8)
    with torch.random.fork_rng():
        Trainer(config, images, path, data={"label": "lines"}).run(steps=1, progress=False)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "holds no checkpoint"),
        ("misspelt", "did you mean 'photos32-vdm'"),
        ("damaged", "config.json is not valid JSON"),
        ("another size", "takes integer images (N, 3, 8, 8)"),
        ("cut weights", "cannot be read"),
    ],
)
@pytest.mark.parametrize("place", ("first", "against"))
def test_evaluate_opens_all_models_first(
    place: str,
    kind: str,
    message: str,
    run: Path,
    other: Path,
    folder: Path,
    idle: None,
    capsys: pytest.CaptureFixture,
) -> None:
    copy = Path("copy")
    shutil.copytree(run, copy)
    newest = copy / "checkpoints/step-00000001"
    name = str(copy)
    if kind == "missing":
        name = "nosuch"
    elif kind == "misspelt":
        name = "photos32-vmd"
    elif kind == "damaged":
        (newest / "config.json").write_text("{")
    elif kind == "another size":
        name = str(other)
    else:
        file = newest / "ema.details1.safetensors"
        file.write_bytes(file.read_bytes()[:900])
    models = [name, str(run)] if place == "first" else [str(run), name]
    words = ["evaluate", models[0], "--against", models[1], "--dataset", f"folder:{folder}"]
    refused([*words, "--quiet", "--out", "figures.json"], message, capsys)
    assert not Path("figures.json").exists()


def test_what_was_scored_is_kept_where_the_second_model_fails(
    run: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    calls: list[int] = []
    real = evaluation.evaluate

    def once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise FloatingPointError("the bound is not finite")
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluation, "evaluate", once)
    out = tmp_path / "figures.json"
    words = ["evaluate", str(run), "--against", str(run), "--dataset", f"folder:{folder}"]
    words += ["--images", "2", "--repeats", "1", "--times", "1", "--quiet", "--out", str(out)]
    assert main(words) == 2
    assert "the bound is not finite" in capsys.readouterr().err
    facts = json.loads(out.read_text())
    assert facts["evaluation"]["images"] == 2 and "against" not in facts


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "4,x"], "whole numbers with commas"),
        (["--steps", "4,0"], "from 1 to"),
        (["--out", "nowhere/link/x.json"], "link"),
        (["--dataset", "folder:nowhere"], "is not a folder"),
    ],
)
def test_likelihoods(
    more: list[str],
    message: str,
    run: Path,
    folder: Path,
    idle: None,
    capsys: pytest.CaptureFixture,
) -> None:
    Path("nowhere").mkdir()
    os.symlink("gone", "nowhere/link")
    if "--dataset" in more:
        shutil.rmtree("nowhere")
    refused(["likelihoods", str(run), "--dataset", f"folder:{folder}", *more], message, capsys)


def test_likelihoods_of_another_size(
    other: Path, folder: Path, idle: None, capsys: pytest.CaptureFixture
) -> None:
    words = ["likelihoods", str(other), "--dataset", f"folder:{folder}", "--images", "2"]
    refused(words, "takes integer images (N, 3, 8, 8)", capsys)


@pytest.mark.parametrize("model", ("photos-direct", "photos32-vdm"))
@pytest.mark.parametrize("kind", ("bmp", "gif", "tif", "cut", "name", "pipe", "folder of none"))
def test_compress_looks_at_every_image_first(
    kind: str, model: str, folder: Path, idle: None, capsys: pytest.CaptureFixture
) -> None:
    """The good ones come first; nothing is coded."""
    shutil.copytree(folder, "in")
    last = f"in/zz.{kind}"
    with Image.open("in/0.png") as image:
        if kind in ("bmp", "gif", "tif"):
            image.save(last)
    if kind == "cut":
        last = "in/zz.png"
        Path(last).write_bytes(Path("in/0.png").read_bytes()[:900])
    elif kind == "name":
        last = os.fsdecode(b"in/zz-\xff.png")
        shutil.copy("in/0.png", last)
    elif kind == "pipe":
        last = "in/zz.png"
        os.mkfifo(last)
    elif kind == "folder of none":
        last = "in/none"
        os.mkdir(last)
    names = sorted(str(path) for path in Path("in").glob("?.png"))
    refused(
        ["compress", *names, last, "-o", "a.pcdm", "--model", model],
        "zz" if "zz" in last else "none",
        capsys,
    )
    assert not Path("a.pcdm").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-p", "draws", "x"], "part ood: draws takes whole numbers"),
        (["-p", "reference", "1"], "part ood: reference=1"),
        (["-p", "codec_steps", "1"], "part compression: codec_steps"),
        (["-p", "heldout_images", "few"], "part vdm: heldout_images='few'"),
        (["-p", "flow_images", "1"], "part vdm: flow_images=1"),
        (["-p", "colour", "red"], "no notebook has the parameters"),
        (["--only", "vdm,wavlet"], "unknown parts ['wavlet']"),
        (["--dataset", "folder:nowhere"], "is not a folder"),
        (["--dataset", "nosuch"], "unknown dataset"),
        (["--out", "file"], "is no folder"),
        (["--minutes", "inf"], "expected a number of minutes"),
        (["--device", "tpu9"], "cannot be used here"),
    ],
)
def test_tables_check_every_part_first(
    more: list[str],
    message: str,
    idle: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """No notebook is begun, and no folder is made."""
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("begun"))
    Path("file").write_text("mine")
    words = ["tables", "--minutes", "1", "--preset", "tiny", "--only", "vdm,ood,compression"]
    refused([*words, "--dataset", "photos", "--out", "out", *more], message, capsys)
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("kind", ("other seed", "other images", "damaged"))
def test_tables_look_at_older_runs_first(
    kind: str,
    run: Path,
    folder: Path,
    idle: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("begun"))
    shutil.copytree(run, "out/runs/wavelet")
    words = ["tables", "--minutes", "1", "--preset", "tiny", "--only", "vdm,wavelet"]
    words += ["--dataset", "photos" if kind == "other images" else f"folder:{folder}"]
    words += ["--out", "out", "--seed", "7" if kind == "other seed" else "0"]
    message = f"part wavelet would continue .* with other {kind.removeprefix('other ')}"
    if kind == "damaged":
        Path("out/runs/wavelet/checkpoints/step-00000001/config.json").write_text("{}")
        message = "lacks the key"
    assert main(words) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message.partition(" .* ")[0] in error and message.partition(" .* ")[2] in error


def test_train_refuses_settings_before_the_data(
    idle: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pcdm_lib.data.sets.load_data", lambda *_, **__: pytest.fail("loaded"))
    for words, message in (
        (["--set", "widht=3"], "unknown setting"),
        (["--set", "channels=65536"], "GiB of memory"),
        (["--device", "tpu9"], "cannot be used here"),
        (["--set", "batch_size=1000000", "--set", "blocks=256"], "batch_size"),
    ):
        monkeypatch.setattr("pcdm_lib.models.memory.machine_bytes", lambda: 2**36)
        refused(["train", "r", "--preset", "tiny", "--steps", "1", *words], message, capsys)
    assert os.listdir() == []


def test_decompress_opens_the_model_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Another model, an unknown name, a file in the way: nothing is decoded or written."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "navy").save("a.png")
    assert main(["compress", "a.png", "-o", "a.pcdm", "--quiet"]) == 0
    capsys.readouterr()
    Path("there").mkdir()
    Path("there/a.png").write_text("mine")
    for network in (UNet, Trunk):
        monkeypatch.setattr(network, "forward", lambda *_, **__: pytest.fail("evaluated"))
    for words, message in (
        (["-o", "out", "--model", str(run)], "was written with the model"),
        (["-o", "out", "--model", "photos32-vmd"], "did you mean"),
        (["-o", "out", "--only", "b.png"], "holds no image called"),
        (["-o", "there"], "--force"),
        (["-o", "a.png"], "is no folder"),
        ([], "by -o"),
    ):
        refused(["decompress", "a.pcdm", "--quiet", *words], message, capsys)
    assert not Path("out").exists() and Path("there/a.png").read_text() == "mine"


def test_nothing_is_opened_where_the_output_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "open_model", lambda *_, **__: pytest.fail("opened"))
    monkeypatch.setattr("pcdm_lib.data.sets.load_data", lambda *_, **__: pytest.fail("loaded"))
    Path("file").write_text("mine")
    Image.new("RGB", (32, 32)).save("a.png")
    for words in (
        ["evaluate", "photos32-vdm", "--out", "file"],
        ["likelihoods", "photos32-vdm", "--out", "file/x"],
        ["compress", "a.png", "-o", "file"],
        ["compress", "a.png", "-o", "a.png", "--force"],
    ):
        refused(words, "file" if "file" in words[-1] else "a.png", capsys)
