"""papermill with live progress: the progress bars of a notebook that runs, in the terminal.

In a kernel, tqdm draws widgets. papermill stores them and shows nothing of them, so a terminal says
0 % while a cell trains for minutes. The engine `pcdm` follows the widgets' messages and prints the
bar that moved last:

    papermill --engine pcdm --log-output reproduce/cifar_wavelet.ipynb out.ipynb

On a terminal it is one line that is written over; in a log, a line every few seconds. The notebook
that is written is the same as papermill's own engine writes.
"""

from __future__ import annotations

import html
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

ENGINE = "pcdm"
LOG_SECONDS = 10.0  # between two lines of one bar where there is no terminal
TERMINAL_SECONDS = 0.2


class Line:
    """A line of progress that is replaced by the next one.

    Args:
        stream: stderr by default; a terminal's line is written over, elsewhere lines follow each
            other, seldom.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown, self._text, self._when = "", "", 0.0

    def show(self, text: str) -> None:
        """Show this text, unless the last one is too recent."""
        self._text = text
        every = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
        if text != self._shown and time.monotonic() - self._when >= every:
            self._write()

    def end(self) -> None:
        """Show the last text if it was held back, and leave it standing."""
        if self._text != self._shown:
            self._write()
        if self._text and self._terminal:
            self._stream.write("\n")
        self._shown = self._text = ""
        self._when = 0.0

    def _write(self) -> None:
        clear, after = ("\r\x1b[K", "") if self._terminal else ("", "\n")
        self._stream.write(f"{clear}{self._text}{after}")
        self._stream.flush()
        self._shown, self._when = self._text, time.monotonic()


def bar_text(widgets: Mapping[str, Mapping[str, Any]], changed: str) -> str | None:
    """The text of the tqdm bar that a widget belongs to, such as
    `training wavelet:  12% 37/300 [00:37<04:23, 1.00s/s, loss 4.213 bpd]`.

    Args:
        widgets: the state of every widget by its id, as the kernel sent them.
        changed: id of the widget that changed.
    Returns:
        None where it belongs to no tqdm bar, or the bar says nothing yet.
    """
    for state in widgets.values():
        children = [str(c).removeprefix("IPY_MODEL_") for c in state.get("children") or ()]
        if changed in children and len(children) == 3:
            left, right = (str(widgets.get(children[i], {}).get("value", "")) for i in (0, 2))
            text = html.unescape(f"{left.strip()} {right.strip()}").replace("\u2007", " ")
            return text.strip() or None
    return None


class _Client(PapermillNotebookClient):
    """papermill's client, which passes on what the notebook's bars say."""

    line: Line

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        kind = msg["msg_type"]
        if kind in ("stream", "error", "display_data", "execute_result"):
            self.line.end()
        output = super().process_message(msg, cell, cell_index)
        if kind == "comm_msg":
            text = bar_text(self.widget_state, msg["content"]["comm_id"])
            if text:
                self.line.show(f"cell {cell_index + 1} of {len(self.nb.cells)}: {text}")
        return output

    def execute_cell(self, *args: Any, **kwargs: Any) -> Any:
        """As nbclient; a cell's last line stands before papermill says that the cell has ended."""
        try:
            return super().execute_cell(*args, **kwargs)
        finally:
            self.line.end()

    def log_output_message(self, output: Any) -> None:
        """As papermill, without the text that stands for a widget: the line says it better."""
        if "application/vnd.jupyter.widget-view+json" not in output.get("data", {}):
            super().log_output_message(output)


class Engine(NBClientEngine):
    """papermill's own engine with a line of progress on stderr."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        **kwargs: Any,
    ) -> Any:
        for name in ("input_path", "timeout", "startup_timeout"):
            kwargs.pop(name, None)
        client = _Client(
            nb_man,
            **kwargs,
            timeout=execution_timeout,
            startup_timeout=start_timeout,
            kernel_name=kernel_name,
            log=logging.getLogger("papermill"),
            log_output=log_output,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
        )
        client.line = Line()
        try:
            return client.execute()
        finally:
            client.line.end()


def register() -> str:
    """Make the engine known to papermill in this process; returns its name."""
    papermill_engines.register(ENGINE, Engine)
    return ENGINE
