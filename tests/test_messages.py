"""No traceback for a user's mistake: what every command says of numbers without sense, too little
memory, a full disk, a narrow terminal, a reader that has gone, and Ctrl-C."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pcdm_lib import advice
from pcdm_lib.__main__ import main
from pcdm_lib.commands import messages
from pcdm_lib.models import presets, pretrained
from pcdm_lib.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


def one_line(capsys: pytest.CaptureFixture) -> str:
    """What was said on stderr: one line."""
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1 and "Traceback" not in text
    return text


# ---------------------------------------------------------------- numbers

WHOLE = ("0", "-1", "99999999999999999999", "1.5", "nan", "x", "")
REAL = ("-1", "nan", "inf", "-inf", "1e300", "x", "")
OPTIONS = {
    "train r --dataset nosuch": {
        "--steps": WHOLE,
        "--minutes": ("0", *REAL),
        "--seed": WHOLE[1:],
        "--size": WHOLE,
        "--checkpoint-minutes": REAL,
        "--timeout": ("0", *REAL),
    },
    "tables --minutes 1": {"--minutes": ("0", *REAL), "--seed": WHOLE[1:]},
    "evaluate nosuch": {
        **dict.fromkeys(("--images", "--repeats", "--times", "--steps", "--size"), WHOLE),
        "--seed": WHOLE[1:],
    },
    "likelihoods nosuch": {
        **dict.fromkeys(("--images", "--probes"), WHOLE),
        "--steps": (*WHOLE, "10,0", "1,,2", "²", "5, 6"),
        "--tolerance": ("0", "2", *REAL),
        "--seed": WHOLE[1:],
    },
    "sample nosuch --out s": {
        **dict.fromkeys(("--count", "--steps"), WHOLE),
        "--seed": WHOLE[1:],
    },
    "compress a.png -o a.pcdm": dict.fromkeys(("--steps", "--batch", "--chunk", "--tile"), WHOLE),
    "ship nosuch x": {
        **dict.fromkeys(("--images", "--repeats", "--times"), WHOLE),
        "--seed": WHOLE[1:],
    },
    "settings": {"--size": WHOLE},
}


@pytest.mark.parametrize(
    ("command", "option"), [(c, o) for c, options in OPTIONS.items() for o in options]
)
def test_every_number_has_a_range(
    command: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """One line that names the option, before anything is opened; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pcdm_lib.data.sets.load_data", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(pretrained, "open_model", lambda *_, **__: pytest.fail("opened"))
    for value in OPTIONS[command][option]:
        assert main([*command.split(), f"{option}={value}"]) == 2, value
        assert option in one_line(capsys), value
    assert os.listdir() == []


@pytest.mark.parametrize(
    "change",
    ("channels=0", "channels=99999999", "batch_size=0", "learning_rate=nan", "blocks=1e9", "ema=2"),
)
def test_settings_are_refused_before_the_data(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pcdm_lib.data.sets.load_data", lambda *_, **__: pytest.fail("loaded"))
    words = ["train", str(tmp_path / "r"), "--preset", "tiny", "--steps", "1", "--set", change]
    for more in ([], ["--dry-run"]):
        assert main([*words, *more]) == 2
        assert change.partition("=")[0] in one_line(capsys)
    assert not (tmp_path / "r").exists()


# ---------------------------------------------------------------- errors from below


def allocate() -> None:
    """More than any machine has."""
    torch.empty(2**60, dtype=torch.uint8)


def overflow() -> None:
    torch.empty(2**62, 2**62)


def end_by(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "fail",
    (
        lambda: bytearray(2**62),
        lambda: end_by(MemoryError()),
        lambda: end_by(OSError(errno.ENOMEM, "Cannot allocate memory")),
        lambda: end_by(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")),
        lambda: end_by(RuntimeError("CUDA error: out of memory")),
        allocate,
        overflow,
    ),
)
def test_too_little_memory_is_one_line(
    fail, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(pretrained, "names", fail)
    assert main(["card"]) == 2
    assert "pcdm card: not enough memory" in one_line(capsys)


def test_each_command_says_what_takes_less() -> None:
    for command, word in (("train", "batch_size"), ("sample", "--count"), ("compress", "--batch")):
        assert word in messages.said(MemoryError(), command).text


def wrapped() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "a/log.jsonl")
    except OSError as error:
        raise RuntimeError("unexpected pos 128 vs 22") from error


@pytest.mark.parametrize(
    ("fail", "name"),
    (
        (lambda: end_by(OSError(errno.ENOSPC, "No space left on device", "a.json")), "a.json"),
        (lambda: end_by(OSError(errno.EDQUOT, "Disk quota exceeded", "b.json")), "b.json"),
        (lambda: end_by(OSError(errno.ENOSPC, "No space left on device")), ""),
        (lambda: end_by(RuntimeError("IoError(Os { code: 28, kind: StorageFull })")), ""),
        (wrapped, "a/log.jsonl"),
    ),
)
def test_a_full_disk_is_one_line(
    fail, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(pretrained, "names", fail)
    assert main(["card"]) == 2
    said = one_line(capsys)
    assert "disk is full: free some space and give the same command again" in said and name in said


@pytest.mark.parametrize(
    ("error", "text"),
    (
        (KeyError("config"), "what was read lacks 'config'"),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "a.json: permission denied"),
        (ValueError("two differ:\n  a: 1\n  b: 2"), "two differ: a: 1; b: 2"),
        (ValueError("name \x1b[31mred"), r"name \x1b[31mred"),
        (RuntimeError("Could not determine home directory."), "a path begins with ~"),
        (ValueError(), "ValueError without a word"),
        (FloatingPointError("the bound is not finite"), "the bound is not finite"),
    ),
)
def test_errors_are_one_line_for_a_reader(error: Exception, text: str) -> None:
    said = messages.said(error)
    assert said is not None and said.status == 2 and said.text.startswith(text)
    assert "\n" not in said.text and "[Errno" not in said.text


def test_a_bug_keeps_its_traceback() -> None:
    for error in (RuntimeError("shapes do not fit"), AssertionError(), AttributeError("x")):
        assert messages.said(error) is None


# ---------------------------------------------------------------- terminals and pipes


def test_a_terminal_that_cannot_show_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """ASCII, and names of files that are no text: escaped, where print would fail."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(pretrained, "names", lambda: ["Bücher", "猫", "a\udcff"])
    assert main(["card"]) == 0
    assert out.buffer.getvalue() == b"B\\xfccher\n\\u732b\na\\udcff\n"  # type: ignore[attr-defined]


class Gone(io.StringIO):
    """A pipe that nobody reads any more."""

    def __init__(self, number: int = errno.EPIPE) -> None:
        super().__init__()
        self.number = number

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


def test_a_reader_that_has_gone_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["card"]) == 1
    assert capsys.readouterr().err == ""


def test_stdout_on_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdout", Gone(errno.ENOSPC))
    assert main(["card"]) == 2
    assert "the disk is full" in one_line(capsys)


def test_as_a_process_of_its_own() -> None:
    """A narrow terminal, a reader that stops after a line, a closed stdout: no traceback, also at
    the very end."""
    command = f"{sys.executable} -m pcdm_lib"
    lines = (
        f"LC_ALL=C PYTHONIOENCODING=ascii {command} --help >/dev/null",
        f"{command} --help | true",
        f"{command} card >&-",
    )
    for line in lines:
        done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True)
        assert done.stderr == "" and done.returncode in (0, 1), line


# ---------------------------------------------------------------- Ctrl-C


def trainer(folder: Path) -> Trainer:
    config = presets.preset("tiny", image_shape=(3, 8, 8)).override({"batch_size": 2})
    images = torch.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).to(torch.uint8)
    return Trainer(config, images, folder, resume=True)


def test_an_interrupt_says_where_the_run_is(tmp_path: Path) -> None:
    """One line in place of a traceback, and the run goes on from there."""
    run = trainer(tmp_path / "r")

    def stop(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(advice.Interrupted) as caught:
        run.run(steps=9, progress=False, log_every=3, on_log=stop)
    text = str(caught.value)
    assert f"saved at step 3 in {tmp_path / 'r'}: run again to continue" in text
    assert caught.value._render_traceback_() == [text] and "\n" not in text
    assert messages.said(caught.value) == (130, text)
    again = trainer(tmp_path / "r")
    assert again.step == 3
    again.run(steps=4, progress=False)


def test_what_ipython_shows_of_it(capsys: pytest.CaptureFixture) -> None:
    """A notebook's cell ends with the line alone."""
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell
    done = shell().run_cell(
        "from pcdm_lib.advice import Interrupted\nraise Interrupted('saved at step 3')"
    )
    assert isinstance(done.error_in_exec, advice.Interrupted)
    assert capsys.readouterr().out.strip() == "saved at step 3"


@pytest.mark.parametrize(
    ("command", "text"),
    (("train", "--resume"), ("decompress", "are whole"), ("tables", "same command")),
)
def test_an_interrupt_elsewhere(command: str, text: str) -> None:
    said = messages.said(KeyboardInterrupt(), command)
    assert said is not None and said.status == 130 and text in said.text
