"""docs/paper.md: what it names exists, it has every equation of the paper, and its own figures."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


def top_level(path: Path) -> set[str]:
    """Classes and functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


def test_every_name_exists() -> None:
    """Every `file::name` is a class, function or test of that file."""
    assert len(NAMED) > 50
    assert not [f"{file}::{name}" for file, name in NAMED if name not in top_level(ROOT / file)]


def test_methods_exist() -> None:
    """Methods stand after their class: "`file::Class`, method `name`"."""
    found = re.findall(r"`([\w/]+\.py)::(\w+)`, method `(\w+)`", PAGE)
    assert found
    for file, owner, name in found:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        (node,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner)
        assert name in {n.name for n in node.body if isinstance(n, ast.FunctionDef)}, name


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / "docs" / link).is_file()]


def test_every_numbered_equation_has_a_place() -> None:
    """Equations 1 to 44, each in the first column of the first table."""
    table = PAGE.split("## Where it does not hold")[0]
    seen: set[int] = set()
    for row in re.findall(r"^\| ([^|]*) \|", table, flags=re.M):
        for first, last in re.findall(r"Eqs?\. (\d+)(?:-(\d+))?", row):
            seen |= set(range(int(first), int(last or first) + 1))
    assert seen == set(range(1, 45))


@pytest.mark.parametrize(
    ("antialias", "up", "smallest", "largest"),
    [
        (None, "nearest", 1.0, 1.0),
        (None, "bilinear", 0.894, 1.231),
        (True, "bilinear", 0.843, 1.069),
    ],
)
def test_overlapping_resampling_is_no_tight_frame(
    antialias: bool | None, up: str, smallest: float, largest: float
) -> None:
    """Singular values of (d x, x - u d x) on 8x8 pixels: 1 for u = d transposed alone. Bilinear
    downsampling by two without antialiasing is the mean of 2x2 pixels."""
    x = torch.eye(64, dtype=torch.float64).reshape(-1, 1, 8, 8)
    options = {"scale_factor": 0.5, "mode": "bilinear", "align_corners": False}
    if antialias is None:
        low = 2 * avg_pool2d(x, 2)
        assert torch.allclose(low, 2 * interpolate(x, **options))
    else:
        low = 2 * interpolate(x, antialias=antialias, **options)
    residual = x - interpolate(low / 2, scale_factor=2, mode=up)
    values = torch.linalg.svdvals(torch.cat([low.flatten(1), residual.flatten(1)], 1).T)
    assert float(values.min()) == pytest.approx(smallest, abs=5e-4)
    assert float(values.max()) == pytest.approx(largest, abs=5e-4)
