"""The shell commands end to end on small data, and what they say to bad input."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image, ImageOps
from typer.testing import CliRunner

from pcdm_lib import __version__, records
from pcdm_lib.__main__ import main
from pcdm_lib.coding import archive, chunks
from pcdm_lib.commands import files, options, tables
from pcdm_lib.commands.app import app
from pcdm_lib.models import presets, pretrained
from pcdm_lib.models import settings as described
from pcdm_lib.models.config import ModelConfig, TrainingConfig
from pcdm_lib.training import distributed

ROOT = Path(__file__).resolve().parents[1]
GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)


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


@pytest.mark.parametrize("command", ["evaluate", "likelihoods"])
@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "dangling link"])
def test_a_name_that_cannot_be_written_is_refused_before_the_data(
    command, kind, tmp_path, monkeypatch, capsys
):
    """Nothing is loaded, and what has the name stays as it was."""
    out = tmp_path / "figures.json"
    make = {
        "file": lambda: out.write_text("mine"),
        "folder": out.mkdir,
        "pipe": lambda: os.mkfifo(out),
        "dangling link": lambda: out.symlink_to(tmp_path / "nothing"),
    }
    make[kind]()
    before = os.lstat(out)
    identity = (before.st_ino, before.st_mode, before.st_size, before.st_mtime_ns)
    monkeypatch.setattr("pcdm_lib.data.sets.load_data", lambda *_, **__: pytest.fail("loaded"))
    assert main([command, "photos32-wavelet", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "figures.json" in message and len(message.strip().splitlines()) == 1
    after = os.lstat(out)  # (reading a link may move its access time)
    assert (after.st_ino, after.st_mode, after.st_size, after.st_mtime_ns) == identity
    assert kind != "file" or ("--force" in message and out.read_text() == "mine")


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
    assert main([*arguments, "--force"]) == 0  # same seed, same figures
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
                    "--force",
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
    for name, colour in (("a", "black"), ("b", "white")):
        Image.new("RGB", (16, 16), colour).save(small / f"{name}.png")
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
    evaluation = ["evaluate", str(tmp_path / "r"), "--dataset", f"folder:{copy}", "--quiet"]
    shutil.copy(copy / "0.png", copy / "8.png")  # a repeat moves nothing
    assert main(evaluation) == 0
    with Image.open(copy / "0.png") as image:
        ImageOps.invert(image.convert("RGB")).save(copy / "9.png")
    assert main(evaluation) == 2
    assert "has changed since training" in capsys.readouterr().err


def test_steps_must_be_positive(folder, run, capsys):
    for steps in ("0", "-1"):
        assert (
            main(
                ["evaluate", str(run), "--dataset", f"folder:{folder}", "--steps", steps, "--quiet"]
            )
            == 2
        )
        assert "'--steps': expected a whole number from 1" in capsys.readouterr().err


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
        (["--set", "batch_size=x"], "batch_size='x' cannot be read as a whole number"),
        (["--set", "batch_size"], "KEY=VALUE"),
        (["--scales", "bass"], r"unknown scales \['bass'\]"),
        (["--set", "lr_decay=cosin"], "lr_decay='cosin': expected one of none, cosine"),
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
        (["--tolerance", "0"], "'--tolerance': expected a number from 1e-14"),
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


# ---------------------------------------------------------------- reading a command line


def parse(words: list[str]) -> dict:
    """The parameters that a command line gives a command, without running it."""
    name, rest = words[0], words[1:]
    return GROUP.commands[name].make_context(f"pcdm {name}", list(rest)).params


@pytest.mark.parametrize(
    "words, found",
    [
        (["x", "--model", "A", "B", "-o", "f"], ["A", "B"]),
        (["x", "--model", "A", "--model", "B", "-o", "f"], ["A", "B"]),
        (["--model=A", "x", "-o", "f", "--model", "B"], ["A", "B"]),
        (["x", "-o", "f", "--model", "A,B"], ["A", "B"]),
        (["x", "-o", "f"], []),
    ],
)
def test_several_models_in_every_form(words, found):
    params = parse(["compress", *words])
    assert options.sources(params["model"]) == found
    assert params["images"] == [Path("x")] and params["out"] == Path("f")


def test_options_that_take_several_words():
    params = parse(["evaluate", "A", "B", "--against", "C", "D", "--images", "3"])
    assert (params["runs"], params["against"], params["images"]) == (["A", "B"], ["C", "D"], 3)
    words = ["tables", "--minutes", "1", "-p", "a", "1", "--parameter", "b=2=3", "-p", "c", "-1"]
    assert options.pairs(parse(words)["parameter"], "-p") == {"a": "1", "b": "2=3", "c": "-1"}
    params = parse(["ship", "A", "B", "name", "--dataset", "photos"])
    assert (params["runs"], params["name"]) == (["A", "B"], "name")
    # "--" ends the options, and a path that exists may hold a comma
    assert options.spread(["--model", "A", "--", "--model", "B", "C"], {"--model"}, set()) == [
        "--model",
        "A",
        "--",
        "--model",
        "B",
        "C",
    ]


def test_a_comma_in_a_path_that_exists(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert options.sources([str(tmp_path / "a,b"), "c,d"]) == [str(tmp_path / "a,b"), "c", "d"]


def example_lines(text: str) -> list[list[str]]:
    """The words after `pcdm` of every command line in a text."""
    start = re.compile(
        r"^\s*(?:\$ )?(?:torchrun [^`]*?-m pcdm_lib|python -m pcdm_lib|pcdm) (?=[a-z])(.*)$"
    )
    found = [start.match(line) for line in text.splitlines()]
    lines = [match[1].partition("  #")[0].partition(" && ")[0] for match in found if match]
    return [shlex.split(line) for line in lines if "..." not in line]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_that_work(name):
    """At least two, none of another command, and each can be read."""
    text = re.sub(r"\[/?[a-z]+\]", "", GROUP.commands[name].epilog)
    lines = example_lines(text)
    assert len(lines) >= 2 and len(lines) == text.count("\n\n")
    for words in lines:
        assert words[0] == name
        parse(words)


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_command_lines_of_the_text_can_be_read(page):
    for words in example_lines((ROOT / page).read_text(encoding="utf-8")):
        parse(words)


def test_stored_command_lines_can_be_read():
    """Those of the shipped models' cards, written before the command had its name."""
    for name in pretrained.names():
        for line in pretrained.card(name)["commands"]:
            (words,) = example_lines(line)
            parse(words)


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_with_its_default(name):
    """Each option has a text and a group of its own, and says its default."""
    command = GROUP.commands[name]
    assert command.help and command.rich_help_panel
    for param in command.params:
        assert param.help and param.help.endswith("."), param.name
        if param.name == "help" or isinstance(param, typer.core.TyperArgument):
            continue
        assert param.rich_help_panel, param.name
        if param.default is None and not param.required and not getattr(param, "multiple", False):
            assert re.search(r"[Dd]efault|Give|Write the figures|Folder", param.help), param.name
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "100"})
    assert done.exit_code == 0 and "Examples" in done.output
    if any(param.name == "device" for param in command.params):
        assert "[default: auto]" in done.output


def test_help_and_completion_need_no_torch():
    """Nor any other library that takes a second to import."""
    code = (
        "import sys; from pcdm_lib.__main__ import main; "
        "codes = [main(['--help']), main(['train', '--help']), main(['--version'])]; "
        "heavy = {'torch', 'numpy', 'scipy', 'PIL'} & set(sys.modules); "
        "sys.exit(f'{codes} {heavy}' if any(codes) or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"pcdm-lib {__version__}\n")


@pytest.mark.parametrize(
    "line, found",
    [
        ("pcdm tr", "train"),
        ("pcdm evaluate photos32-w", "photos32-wavelet"),
        ("pcdm train --preset ti", "tiny"),
        ("pcdm train --system st", "standard"),
        ("pcdm compress --veri", ""),
        ("pcdm compress --no-veri", "--no-verify"),
    ],
)
def test_shells_complete(line, found):
    asked = {
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "_PCDM_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pcdm_lib"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | asked,
    )
    assert done.stdout.split() == found.split()


def test_what_the_shell_repeats_is_the_librarys():
    """Names and numbers that stand in the options, so that help needs no torch."""
    assert options.PRESETS == presets.PRESETS and tuple(presets.EVERY_SYSTEM) == options.SYSTEMS
    assert options.model_names("") == pretrained.names()
    assert files.DEFAULT_MODEL in pretrained.names()
    defaults = {p.name: p.default for p in GROUP.commands["compress"].params}
    assert (defaults["steps"], defaults["batch"], defaults["chunk"]) == (
        chunks.STEPS,
        chunks.BATCH,
        chunks.CHUNK_TILES,
    )
    assert defaults["precision"] == chunks.Settings().precision
    defaults = {p.name: p.default for p in GROUP.commands["train"].params}
    assert defaults["timeout"] == distributed.TIMEOUT
    assert defaults["groups"] == distributed.GROUPS[0]


# ---------------------------------------------------------------- settings and dry runs


def test_settings_lists_what_set_may_change(capsys):
    """Every key with its type, its value in the preset and its meaning; the printed value is what
    --set reads."""
    fields = [*ModelConfig.__dataclass_fields__, *TrainingConfig.__dataclass_fields__]
    assert list(described.MEANINGS) == fields
    assert main(["settings", "--preset", "tiny", "--system", "vdm"]) == 0
    rows = re.findall(r"^  (\w+) \((\S+)\) = (\S+) +(\S.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in rows] == fields
    config = presets.preset("tiny", "vdm")
    texts = {key: "" if text == "(empty)" else text for key, _, text, _ in rows}
    assert config.override(texts) == config
    assert {row[0]: row[1] for row in rows}["channels"] == "int,..."
    assert main(["settings", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["key"] for rows in found.values() for row in rows} == set(fields)


def test_a_dry_run_says_what_the_run_would_be(folder, tmp_path, capsys):
    """The configuration that a training writes, all of it, and nothing is left behind."""
    words = ["train", str(tmp_path / "r"), "--preset", "tiny", "--system", "laplacian"]
    words += ["--dataset", f"folder:{folder}", "--steps", "1", "--seed", "3", "--scales", "base"]
    words += ["--set", "batch_size=4", "--set", "ema=0.9", "--quiet"]
    assert main([*words, "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "r").exists()
    assert main(words) == 0
    written = json.loads((tmp_path / "r" / "config.json").read_text())
    for key in ("preset", "system", "model", "training"):
        assert found[key] == written["config"][key]
    assert found["training"]["batch_size"] == 4
    assert list(found["scales"]) == written["scales"] == ["base"]
    assert found["seed"] == written["seed"] and found["budget"] == {"steps": 1}
    assert found["data"]["label"] == written["data"]["label"]
    assert found["device"] == "cuda" if torch.cuda.is_available() else "cpu"
    assert found["output"] == str(tmp_path / "r")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--set", "widht=3"], "unknown setting 'widht'"),
        (["--scales", "bass"], "unknown scales"),
        (["--minutes", "3"], "--minutes or --steps, not both"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(folder, tmp_path, capsys, words, message):
    command = ["train", str(tmp_path / "r"), "--dataset", f"folder:{folder}", "--steps", "1"]
    assert main([*command, *words, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_dry_runs_of_files_and_tables(folder, tmp_path, capsys):
    out = tmp_path / "a.pcdm"
    words = ["--model", "photos32-vdm", "--steps", "10", "--dry-run"]
    assert main(["compress", str(folder), "-o", str(out), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    # 6 images of 2x2 tiles, 10 steps, one scale, coded and decoded
    assert found["images"] == 6 and found["evaluations"] == 6 * 4 * 10 * 2
    assert found["model"]["name"] == "photos32-vdm" and found["settings"]["side"] == 32
    assert main(["compress", str(folder), "-o", str(out), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["name"] == files.DEFAULT_MODEL
    words = ["compress", str(folder), "-o", str(out), "--steps", "10", "--tile", "8", "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "note: --steps, --tile change nothing: photos-direct is a direct cascade" in said
    assert not out.exists()
    words = ["tables", "--minutes", "2", "--only", "vdm", "--out", str(tmp_path / "t")]
    assert main([*words, "-p", "heldout_images", "7", "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [part["part"] for part in found["parts"]] == ["vdm", "tables"]
    assert found["parts"][0]["parameters"]["heldout_images"] == 7
    assert found["parts"][0]["parameters"]["minutes"] == 2 and not (tmp_path / "t").exists()


# ---------------------------------------------------------------- errors and exit statuses


@pytest.mark.parametrize(
    "words, meant",
    [
        (["trian", "r"], "train"),
        (["train", "r", "--presett", "tiny"], "--preset"),
        (["train", "r", "--preset", "smal"], "small"),
        (["train", "r", "--preset", "paper-cifar"], "paper-cifar10"),
        (["train", "r", "--system", "wavlet"], "wavelet"),
        (["train", "r", "--groups", "scale"], "scales"),
        (["card", "photos32-wavelt"], "photos32-wavelet"),
        (["sample", "photos32-wavelt", "--out", "x"], "photos32-wavelet"),
        (["compress", "FOLDER", "-o", "x", "--model", "photos32-vmd"], "photos32-vdm"),
        (
            ["train", "r", "--dataset", "folder:FOLDER", "--steps", "1", "--set", "chanels=8"],
            "channels",
        ),
    ],
)
def test_did_you_mean(folder, tmp_path, monkeypatch, capsys, words, meant):
    """One line on stderr that names what was probably meant, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("FOLDER", str(folder)) for word in words]) == 2
    said = capsys.readouterr()
    assert f"did you mean {meant!r}?" in said.err and len(said.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, message",
    [
        ([], ""),
        (["train"], "Missing argument 'RUN'"),
        (["train", "r", "--minutes", "x"], "--minutes"),
        (["evaluate", "r", "--weights", "xyz"], "one of ema, raw"),
        (["tables", "--minutes", "1", "-p", "x"], "KEY=VALUE"),
    ],
)
def test_a_command_line_that_cannot_be_read(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == bool(words)


@pytest.mark.parametrize(
    "error, status, said",
    [
        (KeyboardInterrupt(), 130, "stopped; a training run continues with --resume"),
        (distributed.ProcessFailed("process 1 is gone"), 1, "pcdm card: process 1 is gone"),
        (archive.NotVerified("a.pcdm was not written"), 1, "pcdm card: a.pcdm was not written"),
        (OSError("disk full"), 2, "pcdm card: disk full"),
    ],
)
def test_exit_statuses(error, status, said, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(pretrained, "names", fail)
    assert main(["card"]) == status
    printed = capsys.readouterr().err
    assert said in printed and len(printed.splitlines()) == 1
    monkeypatch.setenv("RANK", "3")  # of several processes, it says which one speaks
    assert main(["card"]) == status
    assert "process 3: " in capsys.readouterr().err
    # as a script the same
    assert CliRunner().invoke(app, ["card"]).exit_code == status


def test_a_bug_is_not_taken_for_bad_input(monkeypatch):
    def fail():
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(pretrained, "names", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main(["card"])


def test_auto_takes_a_gpu_for_every_process_or_none(monkeypatch):
    monkeypatch.setattr(records, "check_device", torch.device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert records.find_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert records.find_device("auto") == torch.device("cuda")
    assert records.find_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert records.find_device() == torch.device("cpu")


def test_every_command_finds_its_device_itself():
    """`--device auto` is the default wherever there is a device."""
    found = {
        name: param.default
        for name, command in GROUP.commands.items()
        for param in command.params
        if param.name == "device"
    }
    assert set(found) == set(COMMANDS) - {"card", "settings"} and set(found.values()) == {"auto"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,5,20", "1,5,20"), ("3", 3), ("0.5", 0.5), ("None", None), ("a,b", "a,b")],
)
def test_a_list_with_commas_stays_text(text, value, capsys):
    """As papermill reads `-p`: notebooks take such lists as text. What a notebook does not take is
    refused before the first part."""
    assert tables._literal(text) == value
    words = ["tables", "--minutes", "1", "--only", "ood", "--dry-run", "-p", "draws", text]
    fits = text in ("1,5,20", "3")
    assert main(words) == (0 if fits else 2)
    said = capsys.readouterr()
    if fits:
        assert json.loads(said.out)["parts"][0]["parameters"]["draws"] == value
    else:
        assert "part ood: draws takes whole numbers with commas" in said.err
