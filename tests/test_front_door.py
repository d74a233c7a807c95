"""`import pcdm_lib`: few names, loaded when they are asked for, and README's ten lines."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pcdm_lib

ROOT = Path(__file__).parent.parent


def test_about_25_names_each_at_home_in_a_package() -> None:
    assert 20 <= len(pcdm_lib.__all__) <= 30
    assert pcdm_lib.__all__ == sorted(pcdm_lib.__all__) and {*pcdm_lib.__all__} <= {*dir(pcdm_lib)}
    for name in pcdm_lib.__all__:
        value = getattr(pcdm_lib, name)
        assert value.__module__.startswith("pcdm_lib.") and value.__doc__, name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(pcdm_lib.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == {*pcdm_lib.__all__}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'HaarWavelets'"):
        pcdm_lib.HaarWavelets  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    """So `import pcdm_lib` and `pcdm --help` answer at once."""
    code = "import sys, pcdm_lib; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {"torch", "numpy", "scipy", "matplotlib", "PIL", "constriction", "papermill", "tqdm"}
    assert not heavy & {*done.stdout.split()}


def readme_code() -> str:
    """The first block of Python in README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found, "README shows no Python"
    return found[1]


def test_readme_takes_a_reader_from_an_image_to_its_bits() -> None:
    """Ten lines or so, run as they stand."""
    code = readme_code()
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 14 and "import pcdm_lib as pcdm" in lines
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), {})
    assert re.search(r"\b[345]\.\d{4} bpd", printed.getvalue())
