"""Training: resume bit for bit (also after kill -9), the NaN guard, checkpoints that are whole or
refused."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pcdm_lib import outputs, records
from pcdm_lib.models import checkpoints, presets
from pcdm_lib.models.checkpoints import CheckpointMismatch
from pcdm_lib.training import Trainer, TrainingDiverged

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(40, 3, 8, 8, generator=generator).cumsum(2).cumsum(3) * 12 + 128
    return smooth.clamp(0, 255).to(torch.uint8)


def config(system="wavelet", **changes):
    base = presets.preset("tiny", system, (3, 8, 8))
    return base.override({"batch_size": 8, "dropout": 0.1, "warmup_steps": 4, **changes})


def weights(run_dir):
    folder = checkpoints.newest_checkpoint(run_dir)
    return {
        (f.name, k): v
        for f in sorted(folder.glob("*.safetensors"))
        for k, v in safetensors.torch.load_file(f).items()
    }


def assert_same_weights(a, b, only=""):
    first, second = ({k: v for k, v in weights(r).items() if only in k[0]} for r in (a, b))
    assert first.keys() == second.keys() and first
    for key in first:
        assert torch.equal(first[key], second[key]), key


def train(run_dir, images, steps, conf=None, **options):
    trainer = Trainer(conf or config(), images, run_dir, **options)
    trainer.run(steps=steps, progress=False, log_every=5)
    return trainer


def change_losses(monkeypatch, trainer, change):
    """Each scale's loss becomes change(index, loss, *arguments)."""
    for index, scale in enumerate(trainer.cascade.scales):
        monkeypatch.setattr(scale, "forward", functools.partial(change, index, scale.forward))


def test_learns(tmp_path, images):
    """One grey level an image: the preconditioning knows the spread of the levels, only training
    can know that they agree."""
    flat = (
        torch.randint(40, 216, (64, 3, 1, 1), generator=torch.Generator().manual_seed(1))
        .to(torch.uint8)
        .expand(-1, -1, 8, 8)
    )
    train(
        tmp_path / "run",
        flat.contiguous(),
        100,
        config(dropout=0.0, learning_rate=5e-3, batch_size=32),
    )
    rows = checkpoints.read_log(tmp_path / "run")
    assert [r["step"] for r in rows] == list(range(5, 101, 5))
    base = [r["scales"]["base"] for r in rows]
    assert sum(base[-5:]) < 0.93 * sum(base[:5])
    assert set(rows[0]["scales"]) == {"base", "details1"}
    assert sum(rows[0]["scales"].values()) == pytest.approx(rows[0]["bpd"])


def test_interrupted_run_continues_bit_for_bit(tmp_path, images, monkeypatch):
    """An interrupt in the middle of a step, a new process's worth of state, and the same weights as
    without it."""
    train(tmp_path / "whole", images, 20)
    first = Trainer(config(), images, tmp_path / "cut")

    def interrupted(index, loss, *rest):
        if first.step == 11 and index == 1:
            raise KeyboardInterrupt
        return loss(*rest)

    change_losses(monkeypatch, first, interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.run(steps=20, progress=False)
    assert checkpoints.newest_checkpoint(tmp_path / "cut").name == "step-00000011"
    train(tmp_path / "cut", images, 20, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("scale", ["base", "details1"])
def test_scales_trained_apart_are_those_trained_together(tmp_path, images, scale):
    train(tmp_path / "together", images, 6)
    train(tmp_path / scale, images, 6, scales=[scale])
    assert_same_weights(tmp_path / "together", tmp_path / scale, only=scale)


def test_scales_trained_apart_make_a_cascade(tmp_path, images):
    for scale in ("base", "details1"):
        train(tmp_path / scale, images, 4, scales=[scale])
    cascade, _ = checkpoints.load_cascade(tmp_path / "base", tmp_path / "details1")
    assert bool((cascade.bound(images, torch.Generator().manual_seed(0)).total > 0).all())
    with pytest.raises(CheckpointMismatch, match="details1"):
        checkpoints.load_cascade(tmp_path / "base")
    with pytest.raises(CheckpointMismatch, match="two of these runs"):
        checkpoints.load_cascade(tmp_path / "base", tmp_path / "base")


CHILD = """
import sys, torch
from pcdm_lib.models import preset
from pcdm_lib.training import Trainer
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
waves = torch.randn(40, 3, 8, 8, generator=generator).cumsum(2).cumsum(3)
images = (waves * 12 + 128).clamp(0, 255).to(torch.uint8)
config = preset("tiny", "wavelet", (3, 8, 8)).override({"batch_size": 8, "dropout": 0.1})
trainer = Trainer(config, images, sys.argv[1], resume=True)
trainer.run(steps=int(sys.argv[2]), progress=False, checkpoint_minutes=float(sys.argv[3]))
"""


def child(run_dir, steps, checkpoint_minutes):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(run_dir), str(steps), str(checkpoint_minutes)],
        env=environment,
    )


def test_resume_after_kill_9_is_bit_for_bit(tmp_path):
    """`kill -9` at some moment, perhaps while a checkpoint is being written; the resumed run ends
    where the unbroken one does."""
    steps = 120
    assert child(tmp_path / "whole", steps, 60).wait(timeout=120) == 0
    victim = child(tmp_path / "killed", steps, 0)  # a checkpoint every step
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        newest = checkpoints.newest_checkpoint(tmp_path / "killed")
        if newest is not None and int(newest.name[5:]) >= 10:
            break
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait(timeout=10) == -signal.SIGKILL
    reached = int(checkpoints.newest_checkpoint(tmp_path / "killed").name[5:])
    assert 10 <= reached < steps
    assert child(tmp_path / "killed", steps, 60).wait(timeout=120) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    # what the kill left is cleared away
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    assert [r["step"] for r in checkpoints.read_log(tmp_path / "killed")] == list(
        range(10, steps + 1, 10)
    )


@pytest.mark.parametrize("index", [0, 1])
def test_nan_guard_keeps_the_last_good_state(tmp_path, images, monkeypatch, index):
    """A loss that is not finite, in either scale, stops before any weight of that step has
    moved."""
    train(tmp_path / "good", images, 7)
    trainer = Trainer(config(), images, tmp_path / "bad")
    change_losses(
        monkeypatch,
        trainer,
        lambda i, loss, *rest: (
            loss(*rest) * (float("nan") if trainer.step == 7 and i == index else 1)
        ),
    )
    with pytest.raises(
        TrainingDiverged, match=f"step 7, scale {trainer.cascade.specs[index].name}"
    ):
        trainer.run(steps=20, progress=False)
    monkeypatch.undo()
    assert checkpoints.newest_checkpoint(tmp_path / "bad").name == "step-00000007"
    # cosine decay depends on the budget, so the comparison runs both to 20 steps from here
    train(tmp_path / "bad", images, 20, resume=True)
    train(tmp_path / "whole", images, 20)
    assert_same_weights(tmp_path / "whole", tmp_path / "bad")


def test_global_random_state_is_left_alone(tmp_path, images):
    before = torch.get_rng_state()
    train(tmp_path / "run", images, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_is_not_overwritten(tmp_path, images):
    train(tmp_path / "run", images, 2)
    with pytest.raises(FileExistsError, match="resume it, or give another folder"):
        Trainer(config(), images, tmp_path / "run")


@pytest.mark.parametrize(
    "change, line",
    [
        (
            lambda: {"conf": config(channels="16,16")},
            r"config.model.channels: expected \[16, 16\], found \[8, 8\]",
        ),
        (lambda: {"seed": 3}, "seed: expected 3, found 0"),
        (
            lambda: {"data": {"train_sha256": "other"}},
            "data.train_sha256: expected 'other', found None",
        ),
        (
            lambda: {"scales": ["base"]},
            r"scales: expected \['base'\], found \['base', 'details1'\]",
        ),
    ],
)
def test_another_configuration_is_refused_with_the_difference(tmp_path, images, change, line):
    train(tmp_path / "run", images, 2)
    options = change()
    with pytest.raises(CheckpointMismatch, match=line):
        Trainer(options.pop("conf", config()), images, tmp_path / "run", resume=True, **options)


def checkpoint(tmp_path, images):
    train(tmp_path / "run", images, 2)
    return checkpoints.newest_checkpoint(tmp_path / "run")


def test_two_processes_in_one_folder_are_refused(tmp_path, images):
    trainer = train(tmp_path / "run", images, 2)
    with (
        outputs.lock(tmp_path / "run"),
        pytest.raises(BlockingIOError, match="another process is training"),
    ):
        trainer.run(steps=4, progress=False)
    trainer.run(steps=4, progress=False)
    assert trainer.step == 4


@pytest.mark.parametrize("side_by_side", [False, True])
def test_interrupt_between_two_updates(tmp_path, images, monkeypatch, side_by_side):
    """The torn state is neither saved nor trained on; the run continues from its last
    checkpoint."""
    conf = config(dropout=0.0 if side_by_side else 0.1)
    trainer = train(tmp_path / "run", images, 3, conf, side_by_side=side_by_side)
    monkeypatch.setattr(
        trainer.scales[1].optimiser, "step", lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.run(steps=6, progress=False)
    with pytest.raises(RuntimeError, match="resume=True"):
        trainer.run(steps=6, progress=False)
    assert checkpoints.newest_checkpoint(tmp_path / "run").name == "step-00000003"
    assert train(tmp_path / "run", images, 6, conf, resume=True).step == 6


def test_sessions_are_recorded(tmp_path, images):
    train(tmp_path / "run", images, 2)
    train(tmp_path / "run", images, 4, resume=True)
    sessions = records.read_json(tmp_path / "run" / "config.json")["provenance"]
    assert [s["from_step"] for s in sessions] == [0, 2] and all(
        s["versions"]["torch"] == torch.__version__ for s in sessions
    )


def test_other_held_out_images_do_not_hinder_a_resume(tmp_path, images):
    facts = {"train_sha256": "a", "train_count": 40}
    train(tmp_path / "run", images, 2, data=facts | {"heldout_count": 5, "folder": "here"})
    assert (
        train(
            tmp_path / "run",
            images,
            3,
            data=facts | {"heldout_count": 9, "folder": "there"},
            resume=True,
        ).step
        == 3
    )


def test_scales_of_different_data_are_not_joined(tmp_path, images):
    for scale in ("base", "details1"):
        train(
            tmp_path / scale,
            images,
            2,
            scales=[scale],
            data={"train_sha256": scale, "label": f"data of {scale}"},
        )
    with pytest.raises(CheckpointMismatch, match="data of base and data of details1"):
        checkpoints.load_cascade(tmp_path / "base", tmp_path / "details1")


@pytest.mark.parametrize("keep", [0, 1000])
def test_damaged_state_is_refused(tmp_path, images, keep):
    file = checkpoint(tmp_path, images) / "state.pt"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"state.pt cannot be read.*Remove .*step-00000002"):
        Trainer(config(), images, tmp_path / "run", resume=True)


def test_truncated_weights_are_refused(tmp_path, images):
    file = checkpoint(tmp_path, images) / "ema.base.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"ema.base.safetensors cannot be read"):
        checkpoints.load_cascade(tmp_path / "run")


@pytest.mark.parametrize("other", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_weights_of_another_type_are_refused_not_cast(tmp_path, other):
    network, path = torch.nn.Linear(2, 2), tmp_path / "w.safetensors"
    converted = {name: value.to(other) for name, value in network.state_dict().items()}
    safetensors.torch.save_file(converted, path)
    with pytest.raises(ValueError, match=f"w.safetensors holds {other}.*Restore the file"):
        checkpoints.load_weights(network, path)
    if other == torch.float16:  # shipped models are rounded so, and say it
        checkpoints.load_weights(network, path, rounded=True)


def test_missing_weights_are_refused(tmp_path, images):
    (checkpoint(tmp_path, images) / "ema.details1.safetensors").unlink()
    with pytest.raises(ValueError, match="ema.details1.safetensors is missing"):
        checkpoints.load_cascade(tmp_path / "run")


def test_missing_and_broken_tensors_are_refused(tmp_path, images):
    file = checkpoint(tmp_path, images) / "ema.base.safetensors"
    tensors = safetensors.torch.load_file(file)
    name = "network.net.entry.weight"
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k != name}, file)
    with pytest.raises(ValueError, match=f"does not fit this network.*{name}"):
        checkpoints.load_cascade(tmp_path / "run")
    safetensors.torch.save_file(tensors | {name: tensors[name] * float("nan")}, file)
    with pytest.raises(ValueError, match=f"not finite, in {name}"):
        checkpoints.load_cascade(tmp_path / "run")


def test_other_format_and_broken_header_are_refused(tmp_path, images):
    header = checkpoint(tmp_path, images) / "config.json"
    data = json.loads(header.read_text())
    header.write_text(json.dumps(data | {"format": 99}))
    with pytest.raises(CheckpointMismatch, match="format 99"):
        checkpoints.load_cascade(tmp_path / "run")
    header.write_text(json.dumps(data)[:50])
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        checkpoints.load_cascade(tmp_path / "run")


def test_bad_arguments(tmp_path, images):
    trainer = Trainer(config(), images, tmp_path / "run")
    for budget in ({}, {"steps": 3, "minutes": 1}, {"steps": 0}, {"minutes": -1}):
        with pytest.raises(ValueError, match="budget"):
            trainer.run(progress=False, **budget)
    with pytest.raises(ValueError, match="unknown scales"):
        Trainer(config(), images, tmp_path / "other", scales=["details7"])
    with pytest.raises(TypeError, match="integers wanted"):
        Trainer(config(), images.float(), tmp_path / "other")
    with pytest.raises(ValueError, match="takes integer images"):
        Trainer(config(), images[..., :4], tmp_path / "other")
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoints.load_cascade(tmp_path / "nothing")
    with pytest.raises(ValueError, match="'ema' or 'raw'"):
        checkpoints.load_cascade(tmp_path / "run", weights="best")
    assert not (tmp_path / "other").exists()


def test_minutes_end_a_run(tmp_path, images):
    trainer = Trainer(config(), images, tmp_path / "run")
    trainer.run(minutes=0.02, progress=False)
    assert trainer.step >= 1 and trainer.seconds >= 1.2
    before = trainer.step
    resumed = Trainer(config(), images, tmp_path / "run", resume=True)
    resumed.run(minutes=0.02, progress=False)  # the budget counts earlier sessions
    assert resumed.step == before


def test_ema_is_the_running_average_of_the_weights(tmp_path, images):
    trainer = Trainer(config(ema=0.5), images, tmp_path / "run")
    average = {k: v.clone() for k, v in trainer.scales[0].module.named_parameters()}
    for step in range(3):
        trainer.run(steps=step + 1, progress=False)
        keep = min(0.5, (step + 1) / (step + 10))
        average = {
            k: keep * average[k] + (1 - keep) * v
            for k, v in trainer.scales[0].module.named_parameters()
        }
    for name, value in trainer.scales[0].ema.named_parameters():
        torch.testing.assert_close(value, average[name])
    cascade, _ = checkpoints.load_cascade(tmp_path / "run", weights="ema")
    torch.testing.assert_close(
        cascade.networks["base"].net.entry.weight, average["network.net.entry.weight"]
    )


def test_shared_schedule_sees_every_scale(tmp_path, images, monkeypatch):
    """Law: the gradient of a shared learned schedule is the sum of the scales', applied once; every
    scale's file holds the same one."""
    trainer = Trainer(
        config(schedule="learned_linear", shared_schedule=True, clip=1e9), images, tmp_path / "run"
    )
    trainer.run(steps=2, progress=False)
    schedule = trainer.cascade.schedules[0]
    parts = []
    for scale in trainer.scales:
        streams = scale.streams()
        schedule.zero_grad()
        trainer._gradient(scale)
        parts.append(schedule.start.grad.clone())
        scale.load_streams(streams)
    trainer.budget = {"steps": 9}  # a learning rate that is not zero
    before, applied = schedule.start.item(), []
    trainer._gradients()
    torch.testing.assert_close(schedule.start.grad, sum(parts))
    assert all(float(p) != 0 for p in parts)
    step = trainer.shared.optimiser.step
    monkeypatch.setattr(trainer.shared.optimiser, "step", lambda: applied.append(1) or step())
    trainer._apply([0.0, 0.0])
    assert applied == [1] and schedule.start.item() != before
    train(tmp_path / "run", images, 4, trainer.config, resume=True)
    files = weights(tmp_path / "run")
    for kind in ("raw", "ema"):
        assert torch.equal(
            *(files[f"{kind}.{s}.safetensors", "schedule.start"] for s in ("base", "details1"))
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "monotone", "learn_endpoints": True},
        {"schedule": "learned_linear"},
        {"schedule": "learned_linear", "shared_schedule": True},
    ],
)
def test_learned_schedules_move_and_keep_their_order(tmp_path, images, changes):
    trainer = train(tmp_path / "run", images, 10, config(**changes))
    fresh = presets.build(trainer.config.model)
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(trainer.cascade.schedules.parameters(), fresh.schedules.parameters())
    ]
    assert moved and min(moved) > 0
    t = torch.linspace(0, 1, 50)
    for schedule in trainer.cascade.schedules:
        assert bool((schedule(t).diff() > 0).all())


@pytest.mark.parametrize("system", ["wavelet", "laplacian"])
def test_side_by_side_is_in_turn_bit_for_bit(tmp_path, images, system, monkeypatch):
    """With one torch thread a scale both ways. Also: the scales' threads are there during a run and
    gone after it."""
    train(tmp_path / "turn", images, 6, config(system, dropout=0.0), side_by_side=False)
    trainer = Trainer(config(system, dropout=0.0), images, tmp_path / "side", side_by_side=True)
    seen, gradient, threads = set(), trainer._gradient, torch.get_num_threads()
    monkeypatch.setattr(
        trainer,
        "_gradient",
        lambda scale: seen.add((threading.get_ident(), torch.get_num_threads())) or gradient(scale),
    )
    trainer.run(steps=6, progress=False, log_every=5)
    assert_same_weights(tmp_path / "turn", tmp_path / "side")
    assert threading.get_ident() not in {ident for ident, _ in seen} and {
        count for _, count in seen
    } == {1}
    assert torch.get_num_threads() == threads and not [
        t for t in threading.enumerate() if t.ident in {ident for ident, _ in seen}
    ]
    assert (
        checkpoints.read_log(tmp_path / "turn")[0]["scales"]
        == checkpoints.read_log(tmp_path / "side")[0]["scales"]
    )


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, TrainingDiverged, MemoryError])
@pytest.mark.parametrize("index", [0, 1])
def test_side_by_side_puts_the_streams_back(tmp_path, images, monkeypatch, trouble, index):
    """Trouble in one scale's thread waits for the other's, whose random streams are put back
    too."""
    train(tmp_path / "whole", images, 8, config(dropout=0.0))
    trainer = Trainer(config(dropout=0.0), images, tmp_path / "cut", side_by_side=True)

    def broken(i, loss, *rest):
        if trainer.step == 4 and i == index:
            if trouble is TrainingDiverged:
                return loss(*rest) * float("nan")
            raise trouble
        # the other scale is still at work when this one fails
        time.sleep(0.05 if trainer.step == 4 else 0)
        return loss(*rest)

    change_losses(monkeypatch, trainer, broken)
    with pytest.raises(trouble):
        trainer.run(steps=8, progress=False)
    monkeypatch.undo()
    assert checkpoints.newest_checkpoint(tmp_path / "cut").name == "step-00000004"
    trainer.run(steps=8, progress=False)  # the same trainer goes on where it was
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_second_interrupt_while_threads_end_is_torn(tmp_path, images, monkeypatch):
    """Nobody knows then how far the other scale's streams have come: its state is not saved."""
    trainer = train(tmp_path / "run", images, 3, config(dropout=0.0), side_by_side=True)
    change_losses(monkeypatch, trainer, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(
        "pcdm_lib.training.trainer.wait",
        lambda jobs: (_ for _ in ()).throw(KeyboardInterrupt) if trainer._pool else wait(jobs),
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.run(steps=6, progress=False)
    assert trainer.torn


def test_side_by_side_where_it_applies(tmp_path, images):
    """In turn unless it is asked for; refused where it cannot be."""

    def chosen(name, system="wavelet", **changes):
        wanted = changes.pop("wanted", True)
        return Trainer(
            config(system, **{"dropout": 0.0, **changes}),
            images,
            tmp_path / name,
            side_by_side=wanted,
        ).side_by_side

    assert chosen("asked") and not chosen("not asked", wanted=False)
    for system, changes in (
        ("vdm", {}),
        ("wavelet", {"dropout": 0.1}),
        ("wavelet", {"schedule": "learned_linear", "shared_schedule": True}),
    ):
        with pytest.raises(ValueError, match="side_by_side takes two scales or more"):
            chosen("refused", system, **changes)


def test_weights_that_are_not_finite_are_never_saved(tmp_path, images):
    """The last guard, also where losses are looked at only every few steps."""
    trainer = train(tmp_path / "run", images, 3)
    with torch.no_grad():
        next(iter(trainer.scales[1].module.parameters())).fill_(float("nan"))
    trainer.step += 1
    with pytest.raises(
        TrainingDiverged,
        match="scale details1: the weights are not finite.*last checkpoint is kept",
    ):
        trainer.save()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]


def test_without_waiting_for_each_step(tmp_path, images, monkeypatch):
    """As on a GPU: the same weights; a loss that is not finite is seen when losses are logged, and
    the last checkpoint counts."""
    train(tmp_path / "whole", images, 10)
    trainer = Trainer(config(), images, tmp_path / "run")
    trainer.waits = False
    trainer.run(steps=10, progress=False, log_every=5)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    change_losses(
        monkeypatch,
        trainer,
        lambda i, loss, *rest: loss(*rest) * (float("nan") if trainer.step == 12 and i == 1 else 1),
    )
    with pytest.raises(
        TrainingDiverged, match="last steps before 15.*'details1': nan.*last checkpoint is kept"
    ):
        trainer.run(steps=20, progress=False, log_every=5)
    assert checkpoints.newest_checkpoint(tmp_path / "run").name == "step-00000010"
    with pytest.raises(RuntimeError, match="resume=True"):
        trainer.run(steps=20, progress=False)


def test_schedules_follow_the_loss(tmp_path, images):
    """Fitted at the start and before step 16, in raw and averaged copies alike; a run resumed in
    between goes the same way."""
    steady = config(lr_decay="none")  # a decay would depend on the budget
    train(tmp_path / "whole", images, 18, steady)
    train(tmp_path / "parts", images, 9, steady)
    train(tmp_path / "parts", images, 18, steady, resume=True)
    early = train(tmp_path / "early", images, 12, steady)
    cascade, _ = checkpoints.load_cascade(tmp_path / "whole")
    resumed, _ = checkpoints.load_cascade(tmp_path / "parts", weights="raw")
    for a, b, c in zip(cascade.schedules, resumed.schedules, early.cascade.schedules):
        assert torch.equal(a.nodes, b.nodes) and not torch.equal(a.nodes, c.nodes)
        assert not torch.allclose(a.nodes, torch.linspace(0, 1, a.bins + 1), atol=0.05)


def test_bf16_is_for_training_alone(tmp_path, images):
    """The networks run in bfloat16, so the loss moves a little; weights stay float32, and what is
    scored knows nothing of it."""
    dtypes, rows = [], {}
    for precision in ("float32", "bf16"):
        trainer = Trainer(
            config(dropout=0.0, precision=precision, optimiser="adamw"),
            images,
            tmp_path / precision,
        )
        net = trainer.scales[0].module.network.net
        net.exit.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        trainer.run(steps=10, progress=False, log_every=5)
        rows[precision] = [r["bpd"] for r in checkpoints.read_log(tmp_path / precision)]
    assert set(dtypes) == {torch.float32, torch.bfloat16}
    assert rows["bf16"] != rows["float32"] and rows["bf16"] == pytest.approx(
        rows["float32"], rel=0.02
    )
    assert all(v.dtype == torch.float32 for v in weights(tmp_path / "bf16").values())
    cascade, _ = checkpoints.load_cascade(tmp_path / "bf16")
    assert all(network.autocast is None for network in cascade.networks.values())


def test_compiled_networks_keep_their_names(tmp_path, images, monkeypatch):
    """torch.compile (here without a compiler behind it, which would take minutes) changes neither
    weights nor files."""
    calls, compile_ = [], torch.compile

    def eager(function, **options):
        calls.append(function)
        return compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    train(tmp_path / "plain", images, 3, config(dropout=0.0))
    assert not calls
    train(tmp_path / "compiled", images, 3, config(dropout=0.0, compile=True))
    assert len(calls) == 2
    first, second = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert first.keys() == second.keys() and all(
        torch.allclose(first[k], second[k], atol=1e-3) for k in first
    )


def test_a_broken_network_is_reported_by_its_gradient(tmp_path, images):
    """Also before a step at which the schedules are fitted."""
    train(tmp_path / "run", images, 16, config(lr_decay="none"))
    trainer = Trainer(config(lr_decay="none"), images, tmp_path / "run", resume=True)
    with torch.no_grad():
        trainer.scales[0].module.network.net.exit.bias.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="step 16"):
        trainer.run(steps=20, progress=False)
    assert checkpoints.newest_checkpoint(tmp_path / "run").name == "step-00000016"
