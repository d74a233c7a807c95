"""A notebook's progress bars in the terminal while papermill runs it."""

import io
import json
import subprocess
import sys

import papermill
import pytest

from pcdm_lib.experiments import _engine, runner
from pcdm_lib.experiments.runner import Line, bar_text

WIDGETS = {
    "left": {"_model_name": "HTMLModel", "value": "training\u2007wavelet:\u2007\u200712%"},
    "bar": {"_model_name": "FloatProgressModel", "value": 37.0},
    "right": {"_model_name": "HTMLModel", "value": "\u200737/300 [00:37&lt;04:23, loss 4.2 bpd]"},
    "box": {"children": ["IPY_MODEL_left", "IPY_MODEL_bar", "IPY_MODEL_right"]},
    "slider": {"value": 3},
}


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("changed", ["left", "bar", "right"])
def test_the_text_of_a_bar(changed):
    text = bar_text(WIDGETS, changed)
    assert text == "training wavelet:  12% 37/300 [00:37<04:23, loss 4.2 bpd]"
    assert bar_text(WIDGETS, "slider") is None and bar_text({"box": WIDGETS["box"]}, "bar") is None


def test_a_terminals_line_is_written_over(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(_engine.time, "monotonic", lambda: now[0])
    screen, line = Screen(), None
    line = Line(screen)
    line.show("a")
    line.show("b")  # too soon
    now[0] += 1
    line.show("c")
    line.show("d")  # too soon, but the last
    line.end()
    line.end()
    assert screen.getvalue() == "\r\x1b[Ka\r\x1b[Kc\r\x1b[Kd\n"


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(_engine.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    line = Line(log)
    for second in range(25):
        line.show(f"{second} s")
        now[0] += 1
    line.end()
    assert log.getvalue() == "0 s\n10 s\n20 s\n24 s\n"


def test_a_notebook_shows_its_bars_while_it_runs(tmp_path, capsys, monkeypatch):
    """The bar's steps come one by one, from the kernel's widgets; the notebook that is written
    holds what papermill's own engine writes."""
    monkeypatch.setattr(_engine, "LOG_SECONDS", 0.0)
    code = (
        "import time\nfrom tqdm.auto import tqdm\n"
        "for _ in tqdm(range(4), desc='training', mininterval=0): time.sleep(0.05)\nprint('done')"
    )
    cell = {"cell_type": "code", "source": code, "metadata": {}, "outputs": [], "id": "a"}
    notebook = {
        "cells": [cell | {"execution_count": None}],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    outputs = {}
    for engine in (None, runner.register()):
        out = tmp_path / f"{engine}.ipynb"
        papermill.execute_notebook(
            tmp_path / "a.ipynb",
            out,
            engine_name=engine,
            progress_bar=False,
            kernel_name="python3",
        )
        (cell,) = json.loads(out.read_text())["cells"]
        outputs[engine] = [(o["output_type"], o.get("text")) for o in cell["outputs"]]
        shown = capsys.readouterr().err
        if engine is None:
            assert "training" not in shown
    assert outputs[None] == outputs[runner.ENGINE] and outputs[None][-1] == ("stream", ["done\n"])
    for step in ("25% 1/4", "50% 2/4", "100% 4/4"):
        assert f"cell 1 of 1: training:  {step}" in shown or f"training: {step}" in shown, shown


def test_the_runner_can_be_imported_first():
    """papermill loads the engine while it is being imported itself."""
    code = "from pcdm_lib.experiments import runner; print(runner.Engine.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Engine\n"
