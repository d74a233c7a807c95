"""Several processes under torchrun: the number of processes changes nothing; lost processes, NaN
and stops end all of them, and it resumes.

`torchrun tests/test_distributed.py FOLDER` is what each of two processes does for most tests here:
starting processes is what costs time.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pcdm_lib import outputs, records
from pcdm_lib.__main__ import main
from pcdm_lib.models import checkpoints, presets
from pcdm_lib.training import Trainer, TrainingDiverged, distributed

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS, CUT = 4, 2
STEPS_SHELL = 30  # of the runs that are ended before
SETTINGS = {
    "plain": {},
    "monotone": {"schedule": "monotone", "learn_endpoints": True},
    "learned": {"schedule": "learned_linear", "system": "standard"},
    "shared": {"schedule": "learned_linear", "shared_schedule": True},
    "pyramid": {"system": "laplacian"},
    "muon": {"optimiser": "muon"},
}
WAYS = {
    "together": {},
    "scales": {"groups": "scales"},
    "shard": {"shard": True},
    "shard, scales": {"shard": True, "groups": "scales"},
}
CASES = [
    ("plain", "together"),
    ("monotone", "together"),
    ("learned", "together"),
    ("shared", "together"),
    ("plain", "scales"),
    ("shared", "scales"),
    ("pyramid", "scales"),
    ("muon", "together"),
    ("monotone", "shard"),
    ("shared", "shard, scales"),
]


def config(system="wavelet", **changes):
    base = presets.preset("tiny", system, (3, 8, 8))
    # clipped at every step, so that a wrong norm would show
    return base.override(
        {
            "batch_size": 8,
            "warmup_steps": 2,
            "clip": 0.05,
            "lr_decay": "none",
            "optimiser": "adamw",
            **changes,
        }
    )


def images():
    smooth = (
        torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3)
        * 12
        + 128
    )
    return smooth.clamp(0, 255).to(torch.uint8)


def train(run_dir, settings, steps=STEPS, **options):
    trainer = Trainer(config(**settings), images(), run_dir, **options)
    trainer.run(steps=steps, progress=False, log_every=2)
    return trainer


def weights(run_dir):
    folder = checkpoints.newest_checkpoint(run_dir)
    return {
        (f.name, k): v
        for f in sorted(folder.glob("*.safetensors"))
        for k, v in safetensors.torch.load_file(f).items()
    }


def assert_close_weights(found, expected):
    """Within float error, which AdamW makes larger where a gradient is near zero: a twentieth of
    one of its steps is allowed."""
    first, second = weights(found), weights(expected)
    assert first.keys() == second.keys() and first
    for key in first:
        torch.testing.assert_close(
            first[key], second[key], rtol=2e-4, atol=2.5e-4, msg=lambda m, key=key: f"{key}: {m}"
        )


# ---------------------------------------------------------------- what each process does


def worker(folder):
    torch.set_num_threads(1)
    outcomes = {}
    with distributed.processes("cpu", timeout=60):
        assert distributed.size() == 2, "torchrun was asked for two processes"
        for settings, way in CASES:
            train(folder / f"{settings}, {way}", SETTINGS[settings], **WAYS[way])
        for way in ("together", "scales", "shard"):
            train(folder / f"resumed {way}", {}, resume=True, **WAYS[way])
        train(folder / "half a run, shard", {}, CUT, shard=True)
        train(folder / "dropout", {"dropout": 0.1})
        train(folder / "dropout, cut", {"dropout": 0.1}, CUT)
        train(folder / "dropout, cut", {"dropout": 0.1}, resume=True)
        for way in ("together", "scales"):
            outcomes[f"nan {way}"] = diverge(folder / f"nan {way}", **WAYS[way])
        outcomes["refused"] = refused(folder)
    records.write_json(folder / f"outcomes-{os.environ['RANK']}.json", outcomes)


def diverge(run_dir, **options):
    """One process's loss is infinite at step 2 and its gradient is not: nobody else can see it in
    the numbers."""
    trainer = Trainer(config(), images(), run_dir, **options)
    scale = trainer.cascade.scales[1]
    loss = scale.forward

    def broken(*rest):
        apart = trainer.step == 2 and distributed.rank() == 1
        return loss(*rest) + (float("inf") if apart else 0.0)

    scale.forward = broken
    try:
        trainer.run(steps=STEPS, progress=False)
    except TrainingDiverged as error:
        return str(error)
    return "went on"


def refused(folder):
    """What all processes say to bad input, each in its own words."""
    attempts = {
        "batch": lambda: train(folder / "x", {"batch_size": 7}),
        "exists": lambda: train(folder / "plain, together", {}),
        "muon": lambda: train(folder / "z", {"optimiser": "muon"}, shard=True),
        "differ": lambda: train(folder / "y", {}, seed=distributed.rank()),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except (ValueError, OSError, distributed.ProcessFailed) as error:
            said[name] = f"{type(error).__name__}: {error}"
    with outputs.lock(folder / "plain, together") if distributed.rank() == 0 else nullcontext():
        try:
            train(folder / "plain, together", {}, STEPS + 2, resume=True)
        except (OSError, distributed.ProcessFailed) as error:
            said["locked"] = f"{type(error).__name__}: {error}"
    return said


# ---------------------------------------------------------------- tests of one job of two processes


def environment():
    return {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    } | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The folder in which two processes have done what `worker` says, and the runs of one process
    to compare with."""
    folder = tmp_path_factory.mktemp("two processes")
    for way in ("together", "scales", "shard"):
        train(folder / f"resumed {way}", {}, CUT)
    for settings, changes in SETTINGS.items():
        train(folder / f"one process, {settings}", changes)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
        str(folder),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return folder


@pytest.mark.parametrize("settings, way", CASES)
def test_two_processes_train_as_one(job, settings, way):
    found, expected = job / f"{settings}, {way}", job / f"one process, {settings}"
    assert_close_weights(found, expected)
    rows, wanted = checkpoints.read_log(found), checkpoints.read_log(expected)
    assert [r["step"] for r in rows] == [r["step"] for r in wanted] == [2, 4]
    for row, want in zip(rows, wanted):
        assert row["scales"] == pytest.approx(want["scales"], rel=1e-4) and row[
            "bpd"
        ] == pytest.approx(want["bpd"], rel=1e-4)
    session = records.read_json(found / "config.json")["provenance"][0]
    assert [p["rank"] for p in session["processes"]] == [0, 1]
    assert [p["scales"] for p in session["processes"]] == (
        [[n] for n in want["scales"]] if "scales" in way else [[*want["scales"]]] * 2
    )


def test_runs_differ_by_more_than_the_tolerance(job):
    """The comparison above could fail: training moves the weights far more than float error does,
    and a schedule learns."""
    start = presets.build(config(**SETTINGS["shared"]).model)
    trained = weights(job / "one process, shared")
    moved = abs(trained["raw.base.safetensors", "schedule.start"] - start.schedules[0].start)
    assert moved > 1e-3
    kernel = (
        trained["raw.base.safetensors", "network.net.entry.weight"]
        - start.networks["base"].net.entry.weight
    )
    assert kernel.abs().max() > 1e-3


@pytest.mark.parametrize("way", ["together", "scales", "shard"])
def test_resume_in_more_processes(job, way):
    assert_close_weights(job / f"resumed {way}", job / "one process, plain")
    sessions = records.read_json(job / f"resumed {way}" / "config.json")["provenance"]
    assert [(len(s["processes"]), s["from_step"]) for s in sessions] == [(1, 0), (2, CUT)]


def test_sharded_checkpoint_resumes_in_one_process(job):
    train(job / "half a run, shard", {}, resume=True)
    assert_close_weights(job / "half a run, shard", job / "one process, plain")


@pytest.mark.parametrize("settings, way", [("plain", "scales"), ("monotone", "shard")])
def test_checkpoint_loads(job, settings, way):
    cascade, headers = checkpoints.load_cascade(job / f"{settings}, {way}")
    one, _ = checkpoints.load_cascade(job / f"one process, {settings}")
    scores = [c.bound(images(), torch.Generator().manual_seed(0)).total for c in (cascade, one)]
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-2)
    assert headers[0]["scales"] == ["base", "details1"]
    files = [
        sorted(f.name for f in checkpoints.newest_checkpoint(job / r).iterdir())
        for r in (f"{settings}, {way}", f"one process, {settings}")
    ]
    assert files[0] == files[1]


def test_dropout_is_resumed_bit_for_bit_in_as_many_processes(job):
    """Each process has a dropout stream of its own, and gets it back."""
    whole, cut = weights(job / "dropout"), weights(job / "dropout, cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[k], cut[k]) for k in whole)
    state = torch.load(
        checkpoints.newest_checkpoint(job / "dropout") / "state.pt", weights_only=True
    )
    first, second = state["base"]["streams"]["dropout"]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("way", ["together", "scales"])
def test_divergence_of_one_process_ends_all_with_the_last_good_state(job, way):
    said = [json.loads((job / f"outcomes-{r}.json").read_text())[f"nan {way}"] for r in (0, 1)]
    assert "another process" in said[0] and "scale details1: loss inf" in said[1]
    assert all(s.startswith("step 2, ") and "The state before this step is kept" in s for s in said)
    assert checkpoints.newest_checkpoint(job / f"nan {way}").name == "step-00000002"
    train(job / f"nan {way}", {}, resume=True)
    assert_close_weights(job / f"nan {way}", job / "one process, plain")


def test_bad_input_is_refused_by_all(job):
    first, second = (
        json.loads((job / f"outcomes-{r}.json").read_text())["refused"] for r in (0, 1)
    )
    assert all(
        "does not divide among 2: set batch_size to a multiple of 2" in said["batch"]
        for said in (first, second)
    )
    assert all("sharding takes AdamW" in said["muon"] for said in (first, second))
    assert first["exists"].startswith("FileExistsError") and "resume it" in first["exists"]
    assert second["exists"].startswith("ProcessFailed: process 0 failed: FileExistsError")
    assert (
        "seed: expected 0, found 1" in second["differ"]
        and "processes of this job differ" in first["differ"]
    )
    assert first["locked"].startswith("BlockingIOError") and second["locked"].startswith(
        "ProcessFailed: process 0 failed"
    )


# ---------------------------------------------------------------- tests of jobs that end early


def arguments(run_dir, folder, checkpoint_minutes=60):
    return [
        "train",
        str(run_dir),
        "--preset",
        "tiny",
        "--dataset",
        f"folder:{folder}",
        "--set",
        "batch_size=2",
        "--steps",
        str(STEPS_SHELL),
        "--checkpoint-minutes",
        str(checkpoint_minutes),
        "--timeout",
        "40",
        "--quiet",
    ]


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(arguments(run_dir, folder)) == 0
    return run_dir


def alive(marker):
    """Processes whose command line holds the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if (
                str(marker).encode() in path.read_bytes()
                and "State:\tZ" not in path.with_name("status").read_text()
            ):
                found.append(int(path.parent.name))
    return found


def wait_until(condition, seconds, job=None):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, job.output() if job else "timed out"
        assert job is None or job.process.poll() is None, job.output()
        time.sleep(0.02)


def started(job, run_dir, step):
    """Wait for a checkpoint; the processes' ids by rank."""
    wait_until(
        lambda: (
            len(checkpoints.list_checkpoints(run_dir))
            and int(checkpoints.newest_checkpoint(run_dir).name[5:]) >= step
        ),
        120,
        job,
    )
    return [
        p["pid"] for p in records.read_json(run_dir / "config.json")["provenance"][-1]["processes"]
    ]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc"
)


@needs_proc
@pytest.mark.parametrize("victim, then", [(0, "interrupted"), (1, "torchrun killed")])
def test_a_killed_process_ends_the_job_and_it_resumes(victim, then, folder, unbroken, tmp_path):
    """kill -9 of either process: torchrun ends within the timeout and names it, and nothing is left
    alive. The run continues in two processes. An interrupt, or the loss of torchrun itself, which
    would otherwise leave its processes alone, ends them after a step and a checkpoint. Finished in
    one process, the run has the weights of the one that nothing happened to."""
    run_dir = tmp_path / "run"
    with distributed.launch(arguments(run_dir, folder, 0), processes=2) as job:
        os.kill(started(job, run_dir, 2)[victim], signal.SIGKILL)
        assert job.wait(timeout=60) != 0
        wait_until(lambda: not alive(run_dir), 10)
        said = job.output()
    assert (
        f"rank      : {victim} (local_rank: {victim})\n  exitcode  : -9" in said
        and "SIGKILL" in said
    ), said
    assert "the same command with --resume continues it" in said
    reached = int(checkpoints.newest_checkpoint(run_dir).name[5:])
    assert 2 <= reached < STEPS_SHELL
    with distributed.launch(
        [*arguments(run_dir, folder, 0), "--resume", "--groups", "scales"], processes=2
    ) as job:
        started(job, run_dir, reached + 1)
        if then == "interrupted":
            job.stop()
        else:
            job.process.kill()
        wait_until(lambda: not alive(run_dir), 30)
        assert job.wait(1) != 0
        said = job.output()
    newest = checkpoints.newest_checkpoint(run_dir)
    at = checkpoints.step_of(newest)
    assert f"process 0: stopped, saved at step {at} in {run_dir}: run again" in said, said
    assert reached < at < STEPS_SHELL and records.read_json(newest / "config.json")["scales"] == [
        "base",
        "details1",
    ]
    assert main([*arguments(run_dir, folder), "--resume"]) == 0
    assert_close_weights(run_dir, unbroken)
    assert [r["step"] for r in checkpoints.read_log(run_dir)] == list(
        range(10, STEPS_SHELL + 1, 10)
    )
    assert not list((run_dir / "checkpoints").glob(".*"))


# ---------------------------------------------------------------- one process


def test_a_process_that_does_not_come_is_missed_in_time(tmp_path):
    """A world of two of which one starts: no silent run of one process, no hang."""
    code = "import sys; from pcdm_lib.__main__ import main; sys.exit(main(sys.argv[1:]))"
    alone = environment() | {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "train",
            str(tmp_path / "run"),
            "--steps",
            "2",
            "--timeout",
            "2",
        ],
        env=alone,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert "the 2 processes that torchrun announced did not all come within 2 s" in done.stderr


@pytest.mark.parametrize("announced", [True, False])
def test_a_process_of_torchrun_ends_without_taking_python_down(announced):
    """With its status and its last words; alone it ends as any other. (Threads that outlive the
    work would abort it while Python is taken down.)"""
    code = (
        "import atexit, sys; from pcdm_lib.training import distributed; "
        "atexit.register(print, 'taken down'); sys.stdout.write('last words'); "
        "sys.stderr.write('and errors'); distributed.end(3)"
    )
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if announced else ()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment() | dict.fromkeys(names, "0"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (3, "and errors")
    assert done.stdout == "last words" + ("" if announced else "taken down\n")


def test_half_an_announcement_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(
            ValueError,
            match="not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start the processes by "
            "torchrun",
        ),
        distributed.processes(),
    ):
        pass


def test_torchrun_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="start them by torchrun"):
        Trainer(config(), images(), tmp_path / "run", shard=True)
    with pytest.raises(ValueError, match="a process for each of the 2 scales, there are 1"):
        Trainer(config(), images(), tmp_path / "run", groups="scales")
    assert not (tmp_path / "run").exists()


def test_ranks_are_divided_by_cost():
    assert distributed.divide([1.0, 3.0], 4, "together") == [(0, 1, 2, 3)] * 2
    assert distributed.divide([1.0, 3.0], 2, "scales") == [(0,), (1,)]
    assert distributed.divide([1.0, 3.0], 4, "scales") == [(0,), (1, 2, 3)]
    assert distributed.divide([5.0, 1.0, 1.0], 5, "scales") == [(0, 1, 2), (3,), (4,)]
    with pytest.raises(ValueError, match="a process for each of the 3 scales, there are 2"):
        distributed.divide([1.0] * 3, 2, "scales")
    with pytest.raises(ValueError, match="unknown groups 'apart'"):
        distributed.divide([1.0], 1, "apart")


@pytest.mark.parametrize("schedule", [{}, {"schedule": "learned_linear"}])
def test_parts_of_a_batch_make_the_loss_of_the_whole(schedule):
    """Law: times and noise do not depend on the number of parts; parts differ from one another."""
    cascade, x = presets.build(config(**schedule).model), images()[:8]
    for index, (z, coarse) in enumerate(cascade.decompose(x)):
        whole = cascade.scales[index](z, coarse, torch.Generator().manual_seed(1))
        parts = [
            cascade.scales[index](
                z[rows],
                None if coarse is None else coarse[rows],
                torch.Generator().manual_seed(1),
                part=(k, 4),
            )
            for k, rows in enumerate(torch.arange(8).chunk(4))
        ]
        torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-5, atol=0)
        assert len({p.item() for p in parts}) == 4


@pytest.mark.parametrize("name", ["tiny", "small"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"schedule": "learned_linear"}, {"schedule": "monotone", "learn_endpoints": True}],
)
def test_every_parameter_gets_a_gradient(name, settings, tmp_path):
    """DistributedDataParallel waits for all of them."""
    trainer = Trainer(
        presets.preset(name, "wavelet", (3, 8, 8)).override({"batch_size": 4, **settings}),
        images(),
        tmp_path / "run",
    )
    trainer._gradients()
    for scale in trainer.scales:
        assert [n for n, p in scale.module.named_parameters() if p.grad is None] == []


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
    distributed.end(0)
