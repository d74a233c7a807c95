"""Files that are whole or absent, and the facts that every result carries: versions, commit,
machine."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pcdm_lib import outputs

try:
    import fcntl
except ImportError:  # Windows has no flock; there two processes in one folder are not told apart
    fcntl = None  # type: ignore[assignment]

_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "pillow",
    "imagecodecs",
    "scikit-image",
    "PyWavelets",
    "scipy",
    "scikit-learn",
    "torchdiffeq",
    "constriction",
    "torch-fidelity",
)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file that is whole or absent, see `outputs.whole_file`."""
    with outputs.whole_file(path) as file:
        file.write(data)


def write_json(path: Path | str, data: Any) -> None:
    """`data` as indented JSON, atomically. NaN and infinities are refused: they are not JSON
    (`finite` makes them null)."""
    write_bytes(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def finite(value: Any) -> Any:
    """The same with None for every figure that does not exist, such as the standard error of one
    image."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_device(name: str) -> torch.device:
    """The device of that name; ValueError where torch does not know it or cannot reach it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}): try cpu"
        ) from error
    return device


def find_device(name: str = "auto") -> torch.device:
    """The device of that name, usable; "auto" is a GPU where there is one, else the CPU.

    Under torchrun "auto" is a GPU only where this machine has one for each of its processes.

    Raises:
        ValueError: where torch does not know the name or cannot reach the device.
    """
    if name == "auto":
        wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        name = (
            "cuda" if torch.cuda.is_available() and torch.cuda.device_count() >= wanted else "cpu"
        )
    return check_device(name)


def read_json(path: Path | str) -> Any:
    """A JSON file; ValueError naming the file where it is missing, cut short or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): it was cut short or edited"
        ) from error


@contextlib.contextmanager
def lock(folder: Path | str) -> Iterator[None]:
    """Hold a folder for one process; BlockingIOError where another has it. A lock ends with its
    process, however that ends."""
    handle = os.open(Path(folder) / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BlockingIOError(
                    f"another process is training in {folder}: wait for it, or give another folder"
                ) from None
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder beside `path` that gets its name when the block ends well, and is removed
    when it does not."""
    path = outputs.check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:40]}."))
    try:
        yield work
        for file in work.iterdir():
            os.chmod(file, 0o666 & ~_umask())
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        os.chmod(work, 0o777 & ~_umask())
        if path.exists():
            shutil.rmtree(path)
        os.rename(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:

        def git(*words: str) -> str:
            return subprocess.run(
                ["git", "-C", str(here), *words],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()

        # only the checkout that holds this package counts, not one that happens to lie around an
        # installed copy
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here.parent:
            return None
        # shipped weights are results: that one was replaced does not make the next one's code
        # another
        changed = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ":/",
            ":(top,exclude)pcdm_lib/weights",
        )
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform module knows less, but something
    return platform.processor() or platform.machine()


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, commit (None outside a checkout) and machine, for a results file."""
    device = torch.device(device)
    machine = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{_processor()}, {torch.get_num_threads()} threads"
    )
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"commit": _commit(), "versions": versions, "device": str(device), "machine": machine}
