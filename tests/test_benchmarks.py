"""The benchmark command on tiny budgets: what the report holds. No time is asserted."""

import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import learning, parts, report
from benchmarks.__main__ import main
from benchmarks.steps import Autocast, LibraryStep, PlainStep
from benchmarks.timing import Clock, Stages, interleave, quartiles, ratios
from pcdm_lib.models import Cascade, build, preset
from pcdm_lib.training import Trainer

CPU = torch.device("cpu")
CONFIG = preset("tiny", "wavelet").override({"batch_size": 4})


def noise_images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            path / f"{i}.png"
        )
    return path


@pytest.fixture
def settings():
    return parts.Settings(CPU, 1e-3, ("tiny",), ("wavelet",), noise_images(32), noise_images(8, 1))


# ---------------------------------------------------------------- the command


def test_one_command_writes_one_report(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "report.json"
    threads = torch.get_num_threads()
    assert (
        main(
            [
                "--parts",
                "throughput,stages,transform,training,peak,evaluation,bf16",
                "--presets",
                "tiny",
                "--systems",
                "wavelet",
                "--seconds",
                "0.001",
                "--threads",
                "1",
                "--dataset",
                f"folder:{folder}",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert torch.get_num_threads() == threads
    found = json.loads(out.read_text())
    assert list(found["parts"]) == [
        "throughput",
        "stages",
        "transform",
        "training",
        "peak",
        "evaluation",
        "bf16",
    ]
    assert found["settings"]["threads"] == 1 and found["settings"]["data"].startswith(
        "folder images"
    )
    for section in found["parts"].values():
        assert section["rows"] and all(
            row.keys() == section["rows"][0].keys() for row in section["rows"]
        )
    (row,) = found["parts"]["stages"]["rows"]
    shares = [
        row[k]
        for k in (
            "data",
            "transform",
            "bound without network",
            "network forward",
            "backward",
            "optimiser and clipping",
            "EMA",
        )
    ]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0
    (row,) = found["parts"]["throughput"]["rows"]
    assert row["training images/s"] > 0 and row["evaluation images/s"] > 0 and row["steps"] >= 3
    (row,) = found["parts"]["evaluation"]["rows"]
    assert row["from"] < row["variance ratio"] < row["to"]
    text = out.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    for fact in (
        found["provenance"]["machine"],
        "Threads: 1",
        f"Commit: {found['provenance']['commit']}",
        "PyTorch",
    ):
        assert fact in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {s['title']}" for s in found["parts"].values()
    ]
    assert sorted(p.name for p in out.parent.iterdir()) == ["report.json", "report.md"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--parts", "speed"], "unknown part 'speed': names separated by commas, of throughput"),
        (["--presets", "huge"], "unknown preset 'huge'"),
        (["--systems", ","], "unknown system ','"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used here"),
        (["--seconds", "0"], "must be positive"),
        (["--threads", "2", "--clock", "processor"], "adds up the time of all threads"),
        (["--out", "report.md"], "must end in .json"),
        (["--dataset", "folder:/nowhere/at/all"], "is not a folder"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and message in error


def test_help_names_the_parts(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in parts.PARTS)


# ---------------------------------------------------------------- clocks


def test_things_take_turns_and_ratios_are_round_by_round():
    order = []
    times = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 1e-9, Clock(CPU)
    )
    assert order == ["a", "b"] * 4  # the first round is not counted
    assert len(times["a"]) == len(times["b"]) == 3
    found = ratios({"a": [1.0, 2.0, 4.0, 8.0, 16.0], "b": [2.0, 4.0, 8.0, 24.0, 64.0]}, "a")
    assert found["a"][:3] == (1.0, 1.0, 1.0)
    assert (
        found["b"].median,
        found["b"].low,
        found["b"].high,
        found["b"].rounds,
        found["b"].seconds,
    ) == (2.0, 2.0, 3.0, 5, 8.0)
    assert quartiles([3.0, 1.0, 2.0]) == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="positive budget"):
        interleave({}, 1.0, Clock(CPU))


def test_stages_tile_a_step(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 10.0, 10.5, 13.5])
    clock = Stages(Clock(CPU))
    monkeypatch.setattr(clock, "_now", lambda: next(now))
    for _ in range(2):
        clock.start()
        clock.mark("a")
        clock.mark("b")
    assert clock.seconds() == {"a": 1.5, "b": 5.0}  # what lies between two steps belongs to none


# ---------------------------------------------------------------- steps


def test_library_step_is_the_trainers(tmp_path):
    """Otherwise the shares and variants would be those of another program: one step from the same
    weights on the same draws."""
    images = noise_images(16)
    trainer = Trainer(CONFIG, images, tmp_path / "r")
    step = LibraryStep(CONFIG, images, CPU)
    for scale, (index, _, _, _, sampler, noise, flips) in zip(trainer.scales, step.scales):
        assert scale.index == index
        sampler.__dict__.update(scale.sampler.__dict__)
        noise.set_state(scale.generator.get_state())
        flips.set_state(scale.flips.get_state())
    logged = []
    trainer.run(steps=1, progress=False, log_every=1, on_log=logged.append)
    for own, theirs in zip(step.cascade.schedules, trainer.cascade.schedules):
        own.load_state_dict(theirs.state_dict())  # fitted before the first step
    losses = step()
    dims = [spec.dims for spec in step.cascade.specs]
    assert sum(float(loss) * d for loss, d in zip(losses, dims)) / sum(dims) / math.log(
        2
    ) == pytest.approx(logged[0]["bpd"], rel=1e-5)


def test_variants_train_to_the_same_losses():
    images = noise_images(16)
    plain = CONFIG.override({"optimiser": "adamw"})
    reference = LibraryStep(plain, images, CPU)
    expected = [reference() for _ in range(2)][1]
    for change in (
        {"threads": 2},
        {"channels_last": False},
        {"adamw": "fused"},
        {"adamw": "loop"},
        {"foreach_ema": False},
    ):
        step = LibraryStep(plain, images, CPU, **change)
        assert torch.allclose(
            torch.stack([step() for _ in range(2)][1]), torch.stack(expected), rtol=1e-3
        ), change
    muon, torchs = (
        LibraryStep(CONFIG, images, CPU),
        LibraryStep(CONFIG, images, CPU, torch_muon=True),
    )
    start = [p.detach().clone() for p in torchs.scales[0][1]]
    losses = [[step() for _ in range(3)][2] for step in (muon, torchs)]
    assert torch.allclose(*map(torch.stack, losses), rtol=0.01) and not torch.equal(
        losses[0][0], losses[1][0]
    )
    assert all(not torch.equal(a, b) for a, b in zip(start, torchs.scales[0][1]))
    assert torch.get_num_threads() == 1
    before = [average[0].clone() for _, _, average, *_ in reference.scales]
    reference()
    assert all(
        not torch.equal(a, average[0]) for a, (_, _, average, *_) in zip(before, reference.scales)
    )


def test_plain_step_learns_and_leaves_the_global_random_state():
    config = preset("tiny", "vdm", (3, 8, 8)).override({"batch_size": 64, "learning_rate": 2e-3})
    images = torch.full((8, 3, 8, 8), 128, dtype=torch.uint8)
    state = torch.random.get_rng_state()
    step = PlainStep(config, images, CPU)
    start = step.generator.get_state()
    before = float(step())
    for _ in range(40):
        step()
    step.generator.set_state(start)  # the same images, times and noise
    assert float(step()) < 0.95 * before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(step.ema.exit.weight, step.net.exit.weight) and bool(
        step.ema.exit.weight.any()
    )


# ---------------------------------------------------------------- parts


def test_scaling_measures_in_child_processes(settings, monkeypatch):
    monkeypatch.setattr(
        parts,
        "growing",
        lambda base: [("batch", 2, {"batch_size": 2}), ("again", 2, {"batch_size": 2})],
    )
    first, again = parts.scaling(settings).rows
    assert first["memory by"] == ("VmHWM" if sys.platform == "linux" else "ru_maxrss")
    assert first["peak MiB"] >= first["MiB before the first step"] > 50
    assert first["parameters"] == sum(p.numel() for p in build(CONFIG.model).parameters())
    assert again["peak MiB"] == first["peak MiB"]  # the same configuration is measured once


def test_every_point_of_scaling_builds():
    for _, _, changes in parts.growing(preset("tiny", "wavelet")):
        config = CONFIG.override({**changes, "batch_size": 1})
        step = LibraryStep(
            config, torch.zeros(1, *config.model.image_shape, dtype=torch.uint8), CPU
        )
        assert all(bool(torch.isfinite(loss)) for loss in step())


def test_child_failure_is_told(settings, monkeypatch):
    monkeypatch.setattr(parts.sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"in a child process failed \(exit 1\)"):
        parts.scaling(settings)


def test_variants_have_the_default_twice(settings, monkeypatch):
    monkeypatch.setattr(
        parts,
        "interleave",
        lambda actions, *_: {name: [1.0 if action() else 0.0] for name, action in actions.items()},
    )
    names = [row["variant"] for row in parts.variants(settings).rows]
    assert (
        names[:2] == ["default", "default again"]
        and "scales side by side" in names
        and "TF32" not in names
    )


def test_failure_to_compile_is_a_finding(settings, monkeypatch):
    monkeypatch.setattr(parts.shutil, "which", lambda name: None)
    (row,) = parts.compiled(settings).rows
    assert row["quartiles"] == "failed: no C++ compiler on the path" and row["seconds"] is None
    assert "| - |" in report.markdown(
        {
            "provenance": {
                "machine": "",
                "device": "",
                "commit": "",
                "versions": {"python": "", "torch": ""},
            },
            "settings": {"threads": 1, "data": "", "seconds": 1.0, "seed": 0, "clock": "wall"},
            "parts": {"compiled": parts.Section("t", "n", [row])._asdict() | {"seconds": 1.0}},
        }
    )


def test_paper_extrapolates_by_the_batch(settings, monkeypatch):
    monkeypatch.setattr(
        parts,
        "preset",
        lambda name, system, shape=(3, 32, 32): (
            preset("tiny", system).override({"batch_size": 16}) if shape == (3, 32, 32) else None
        ),
    )
    monkeypatch.setattr(parts, "measure", lambda action, seconds, clock: [20.0] * 3)
    row = parts.paper(settings).rows[0]  # 10 updates in 20 s
    assert row["seconds an update"] == pytest.approx(2.0) and row[
        "days for 2,000,000"
    ] == pytest.approx(2e6 * 2 / 86400)


def test_bf16_difference_sees_the_networks_alone(settings):
    """The same weights, times and noise: nothing but rounding inside the U-Nets, and exactly
    nothing without bf16 inside."""
    cascade = LibraryStep(CONFIG, settings.images, CPU).cascade
    with torch.no_grad():
        for network in cascade.networks.values():
            network.net.exit.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    found = parts.bf16_difference(cascade, settings.heldout, CPU, repeats=2)
    assert found["bf16 bpd"] - found["float32 bpd"] == pytest.approx(found["difference"])
    assert found["difference"] != 0 and found["its standard error"] > 0
    assert abs(found["difference"]) < 0.05 * found["float32 bpd"]
    # left as it was
    assert isinstance(cascade, Cascade) and not any(
        isinstance(n.net, Autocast) for n in cascade.networks.values()
    )


def test_ptwt_is_reported_as_absent(settings, monkeypatch):
    monkeypatch.setattr(parts.importlib.util, "find_spec", lambda name: None)
    rows = {row["what"]: row for row in parts.transform(settings).rows}
    (absent,) = (row for what, row in rows.items() if "ptwt" in what)
    assert absent["quartiles"] == "not installed" and absent["ratio"] is None
    assert any(re.search("PyWavelets", what) and row["ratio"] > 0 for what, row in rows.items())
    assert "wavelet: synthesise (float32)" in rows and "vdm: decompose (uint8 to int32)" in rows


def test_learning_compares_each_choice_with_the_preset(folder, tmp_path, capsys):
    """Every variant in one table, the preset against itself at exactly 0; bad input in one line."""
    out = tmp_path / "learning.json"
    where = [
        "--preset",
        "tiny",
        "--system",
        "wavelet",
        "--dataset",
        f"folder:{folder}",
        "--steps",
        "2",
        "--out",
        str(out),
    ]
    assert learning.main(where) == 0
    found = json.loads(out.read_text())
    assert [row["variant"] for row in found["rows"]] == list(learning.WITHOUT) and found[
        "scale"
    ] == "details1"
    assert (
        found["rows"][0]["more than the preset"] == 0.0
        and found["rows"][0]["time a step, ratio"] == 1.0
    )
    assert all(row["more than the preset"] != 0.0 for row in found["rows"][1:])
    assert "| AdamW instead of Muon |" in capsys.readouterr().out
    assert learning.main([*where, "--alone", "--set", "channels=8,16", "--force"]) == 0
    found = json.loads(out.read_text())
    assert [row["variant"] for row in found["rows"]] == ["the preset channels=8,16"] and found[
        "config"
    ]["model"]["channels"] == [8, 16]
    assert learning.main([*where, "--scale", "details9"]) == 2
    assert "unknown scale 'details9': wavelet has base, details1" in capsys.readouterr().err
