"""Several processes under torchrun: joining the group, agreeing on facts, dividing ranks among
scales, starting it from Python.

torchrun starts the processes and ends the others when one fails; here is what one process does with
it. Without torchrun every function behaves as one process alone. Facts travel as small CPU tensors
(gloo), so that agreeing on them never waits for a GPU.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from pcdm_lib.models.checkpoints import read_log

TIMEOUT = 120.0  # seconds that a process waits for the others before it gives up

_announced = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_state: dict[str, Any] = {"interrupted": False, "parent": 0, "timeout": timedelta(seconds=TIMEOUT)}


class ProcessFailed(RuntimeError):
    """Another process of the job failed; its own message says why."""


# ---------------------------------------------------------------- joining


@contextlib.contextmanager
def processes(
    device: torch.device | str = "cpu", timeout: float = TIMEOUT
) -> Iterator[torch.device]:
    """Join the processes that torchrun started, and leave them at the end. Nothing to do without
    torchrun.

    Inside, an interrupt (SIGINT) is not raised: `stopping` tells of it, and training ends after the
    step under way, in all processes.

    Args:
        device: "cpu" (gloo), or "cuda" (NCCL), where each process takes the GPU of its LOCAL_RANK.
        timeout: seconds that a process waits for the others, at the start and in every exchange,
            before it fails.

    Yields:
        This process's device.

    Raises:
        ValueError: where torchrun's announcement is not whole, or the device is not there.
        ProcessFailed: where not all processes came within the timeout.
    """
    device = torch.device(device)
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        yield device
        return
    missing = [name for name in _announced if name not in os.environ]
    if missing:
        raise ValueError(
            f"RANK or WORLD_SIZE is set but not {', '.join(missing)}: start the processes by "
            f"torchrun, or unset them"
        )
    if not timeout > 0:
        raise ValueError(f"the timeout must be a positive number of seconds, got {timeout}")
    device = _own_device(device)
    expected, wait = int(os.environ["WORLD_SIZE"]), timedelta(seconds=timeout)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=wait
        )
        came = int(total([1.0])[0])
    except RuntimeError as error:  # DistStoreError and gloo's own
        raise ProcessFailed(
            f"the {expected} processes that torchrun announced did not all come within "
            f"{timeout:g} s "
            f"({str(error).splitlines()[0]})"
        ) from error
    if came != expected:
        raise ProcessFailed(f"torchrun announced {expected} processes, {came} came")
    _state.update(interrupted=False, parent=os.getppid(), timeout=wait)
    previous = signal.signal(signal.SIGINT, lambda *_: _state.update(interrupted=True))
    failed = True
    try:
        yield device
        total([0.0])  # nobody leaves while another still needs an answer
        failed = False
    finally:
        signal.signal(signal.SIGINT, previous)
        # there NCCL would wait for processes that are gone; this one ends anyway
        if not (failed and device.type == "cuda"):
            dist.destroy_process_group()


def end(status: int) -> NoReturn:
    """End this process with an exit status; its last words are written.

    One that torchrun started ends without taking Python down: while that happens, a thread of gloo
    may still let go of a tensor, and is ended for asking Python; that aborts a process whose work
    is done ("terminate called without an active exception"), and torchrun reports the job as
    failed.

    Args:
        status: 0 where all went well.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if all(name in os.environ for name in _announced):
        os._exit(status)
    sys.exit(status)


def _own_device(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    local = int(os.environ["LOCAL_RANK"])
    if device.index is not None:
        raise ValueError(
            f"under torchrun every process takes its own GPU: give --device cuda, not {device}"
        )
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"this machine has {torch.cuda.device_count()} GPUs for local rank {local}: lower "
            f"--nproc-per-node"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def rank() -> int:
    """This process's number, 0 for one process alone.

    Returns:
        From 0 to `size() - 1`.
    """
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are.

    Returns:
        At least 1.
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def stopping() -> bool:
    """Whether this process was asked to stop, or torchrun is gone (then nobody would end a worker
    that hangs).

    Returns:
        False without torchrun.
    """
    return dist.is_initialized() and (_state["interrupted"] or os.getppid() != _state["parent"])


# ---------------------------------------------------------------- agreeing


def total(figures: Sequence[float]) -> list[float]:
    """The sum of each figure over all processes, the same in all of them; also a barrier.

    Args:
        figures: of this process, as many in each.

    Returns:
        The sums, in the same order.

    Raises:
        ProcessFailed: where another process does not answer.
    """
    if not dist.is_initialized():
        return list(figures)
    tensor = torch.tensor(list(figures), dtype=torch.float64)
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        raise ProcessFailed(
            f"an exchange with the other processes failed ({str(error).splitlines()[0]})"
        ) from error
    return tensor.tolist()


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in process 0, in all processes; an error there is raised there, and a
    ProcessFailed in the others.

    Args:
        make: called in process 0 alone; what it returns is pickled.

    Returns:
        The same value in all processes.

    Raises:
        ProcessFailed: where `make` failed in process 0, in the others.
    """
    if not dist.is_initialized():
        return make()
    answer: list[Any] = [None, None]
    error = None
    if rank() == 0:
        try:
            answer[0] = make()
        except Exception as caught:  # told to the others first: they wait for the answer
            error, answer[1] = caught, f"{type(caught).__name__}: {caught}"
    dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    if error is not None:
        raise error
    if answer[1] is not None:
        raise ProcessFailed(f"process 0 failed: {answer[1]}")
    return answer[0]


def everywhere(fact: Any) -> list[Any]:
    """The `fact` of every process, by rank.

    Args:
        fact: what can be pickled.

    Returns:
        One a process.
    """
    if not dist.is_initialized():
        return [fact]
    facts: list[Any] = [None] * size()
    dist.all_gather_object(facts, fact)
    return facts


def in_turn(make: Callable[[], Any]) -> Any:
    """What `make` returns, made first by one process of each machine and then by the others.

    Args:
        make: for instance a function that downloads a file where it is not there.

    Returns:
        Each process's own.
    """
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    made = make() if first else None
    total([0.0])
    return made if first else make()


# ---------------------------------------------------------------- groups


@dataclass(frozen=True)
class Group:
    """The processes that train one scale together.

    Args:
        ranks: their numbers.
        handle: torch's group; None for one process alone.
    """

    ranks: tuple[int, ...] = (0,)
    handle: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.ranks)

    @property
    def place(self) -> int:
        """This process's number within the group; ValueError where it is no member."""
        return self.ranks.index(rank())

    @property
    def leads(self) -> bool:
        """Whether this process writes the group's files."""
        return self.ranks[0] == rank()

    def everywhere(self, tensor: Tensor) -> list[Tensor]:
        """A CPU tensor of every process of the group, by place.

        Args:
            tensor: on the CPU, of one shape in all.

        Returns:
            One tensor a process.
        """
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in self.ranks]
        dist.all_gather(parts, tensor, group=self.handle)
        return parts

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all its elements and all processes of the group; no gradient
        flows through it.

        Args:
            tensor: of any shape.

        Returns:
            A scalar.
        """
        mean = tensor.detach().mean()
        if self.size > 1:
            dist.all_reduce(mean, group=self.handle)
            mean /= self.size
        return mean

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the group, in one exchange.

        Args:
            tensors: of one type and device; changed in place.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat, group=self.handle)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors])):
            tensor.copy_(part.view_as(tensor))


GROUPS = ("together", "scales")


def divide(costs: Sequence[float], processes: int, how: str = "together") -> list[tuple[int, ...]]:
    """The ranks of each scale. `together`: all of them train every scale. `scales`: each trains
    one, neighbours the same one; every scale has a process, and the next one goes to the scale with
    the greatest cost a process.

    Args:
        costs: of a step of each scale, in any unit.
        processes: how many there are.
        how: "together" or "scales".

    Returns:
        One tuple of ranks a scale.

    Raises:
        ValueError: for an unknown `how`, or fewer processes than scales.

    Example:
        >>> from pcdm_lib.training.distributed import divide
        >>> divide([1.0, 3.0], processes=4, how="scales")
        [(0,), (1, 2, 3)]
    """
    if how not in GROUPS:
        raise ValueError(f"unknown groups {how!r}: one of {', '.join(GROUPS)}")
    if how == "together":
        return [tuple(range(processes))] * len(costs)
    if processes < len(costs):
        raise ValueError(
            f"groups by scale need a process for each of the {len(costs)} scales, there are "
            f"{processes}: "
            f"give torchrun --nproc-per-node {len(costs)} or more, or --groups together"
        )
    counts = [1] * len(costs)
    for _ in range(processes - len(costs)):
        neediest = max(range(len(costs)), key=lambda i: costs[i] / counts[i])
        counts[neediest] += 1
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [tuple(range(end - count, end)) for end, count in zip(ends, counts)]


def make_groups(ranks: Sequence[tuple[int, ...]], batch_size: int) -> list[Group]:
    """The groups of `divide`; every process calls this, member or not.

    Args:
        ranks: of each scale, from `divide`.
        batch_size: images a step, of all processes together.

    Returns:
        One group a scale.

    Raises:
        ValueError: where a group does not divide the batch.
    """
    for members in ranks:
        if batch_size % len(members):
            raise ValueError(
                f"batch_size={batch_size} is the batch of all processes together and does not "
                f"divide among {len(members)}: "
                f"set batch_size to a multiple of {len(members)}, or start another number of "
                f"processes"
            )
    if not dist.is_initialized():
        return [Group() for _ in ranks]
    made = {
        members: Group(members, dist.new_group(members, timeout=_state["timeout"]))
        for members in dict.fromkeys(ranks)
    }
    return [made[members] for members in ranks]


# ---------------------------------------------------------------- starting torchrun from Python


class Job:
    """Processes that `launch` started. As a context manager it leaves none behind, whatever ends
    the block.

    Args:
        command: its words.
        environment: variables of the processes.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]):
        self.command = list(command)
        # `__exit__` closes it
        self._log = tempfile.NamedTemporaryFile(prefix="torchrun-", suffix=".log")
        # its own session: an interrupt of the notebook's kernel, which goes to the kernel's process
        # group, must come by way of `stop`
        self.process = subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def output(self) -> str:
        """What the processes have printed so far.

        Returns:
            Standard output and standard error together.
        """
        return Path(self._log.name).read_text(errors="replace")

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the processes end.

        Args:
            timeout: seconds, or None for as long as it takes.

        Returns:
            torchrun's exit status, 0 where all processes ended well.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds.
        """
        return self.process.wait(timeout)

    def follow(
        self, run_dir: Path | str, after: int = 0, every: float = 0.2
    ) -> Iterator[dict[str, Any]]:
        """The lines of the run's log as they are written, of steps later than `after`, until the
        processes end.

        Args:
            run_dir: the run's folder.
            after: step that is known already.
            every: seconds between two looks.

        Yields:
            One dictionary a line.
        """
        seen = after
        while True:
            ended = self.process.poll() is not None
            rows = [r for r in read_log(run_dir) if r["step"] > seen]
            yield from rows
            seen = rows[-1]["step"] if rows else seen
            if ended:
                return
            time.sleep(every)

    def stop(self, grace: float = 30.0) -> None:
        """End the processes: by an interrupt, upon which they save a checkpoint, and after `grace`
        seconds by force.

        Args:
            grace: seconds.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(grace)
            except subprocess.TimeoutExpired:
                self.process.terminate()  # torchrun ends its workers, and after 30 s kills them
                try:
                    self.process.wait(40)
                except subprocess.TimeoutExpired:
                    self.process.kill()  # its workers see that it is gone and end themselves


def launch(arguments: Sequence[str], processes: int, threads: int = 1) -> Job:
    """Start `python -m pcdm_lib ARGUMENTS` in several processes of this machine by torchrun, with
    this interpreter and this package.

    Args:
        arguments: as on the command line, for instance ["train", "runs/a", "--steps", "100",
            "--quiet"].
        processes: how many.
        threads: a process.

    Returns:
        The job, which runs.

    Raises:
        ValueError: for fewer than one process or thread.
    """
    if processes < 1 or threads < 1:
        raise ValueError(
            f"launch needs at least one process and one thread, got {processes} and {threads}"
        )
    package = str(Path(__file__).resolve().parent.parent.parent)
    paths = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH")) if p)
    environment = {k: v for k, v in os.environ.items() if k not in _announced}
    environment |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "pcdm_lib",
    ]
    return Job([*command, *map(str, arguments)], environment)
