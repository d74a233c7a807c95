"""The layout of the library: every module has a package, and imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "pcdm_lib"
TOP_LEVEL = {"__init__", "__main__", "records", "advice", "outputs"}

# What each package may import besides itself and the three modules that everybody may: files and
# provenance (`records`), what is written where (`outputs`), and what errors advise (`advice`).
# `likelihood`, `transport`, `coding` and `training` do not know each other; the shell needs no
# figures.
BASE = {"records", "advice", "outputs"}
MIDDLE = {"models", "diffusion", "maps", "data"} | BASE
UPPER = {"likelihood", "transport", "coding", "training"} | MIDDLE
BELOW = {
    "advice": set(),
    "outputs": {"advice"},
    "records": {"advice", "outputs"},
    "maps": BASE,
    "data": BASE,
    "diffusion": {"maps"} | BASE,
    "models": {"diffusion", "maps"} | BASE,
    "likelihood": MIDDLE,
    "transport": MIDDLE,
    "coding": MIDDLE,
    "training": MIDDLE,
    "experiments": UPPER,
    "figures": {"experiments"} | UPPER,
    "commands": {"experiments"} | UPPER,
    "__main__": {"commands"},
}


def modules() -> dict[str, Path]:
    """Dotted name below `pcdm_lib` of every module; a package's `__init__` has the package's."""
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
        found[".".join(parts)] = path
    return found


def imported(path: Path, known: set[str]) -> set[str]:
    """Modules of the library that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("pcdm_lib.")
                for a in node.names
                if a.name.startswith("pcdm_lib.")
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pcdm_lib":
            base = node.module.partition(".")[2]
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                found.add(full if full in known else base or "__init__")
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative imports hide the package they point to")
    return found


MODULES = modules()
IMPORTS = {name: imported(path, set(MODULES)) for name, path in MODULES.items()}


def test_every_module_has_a_package() -> None:
    """Beside the two doors and the three modules that everybody may import, none stands alone."""
    assert {p.stem for p in LIBRARY.glob("*.py")} == TOP_LEVEL
    packages = {p.parent.name for p in LIBRARY.glob("*/__init__.py")}
    assert packages == set(BELOW) - BASE - {"__main__"}
    for path in LIBRARY.rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} is no package"


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_imports_point_one_way(name: str) -> None:
    """A module imports its own package and those below it, and never a package above."""
    package = name.split(".")[0]
    beyond = {
        i for i in IMPORTS[name] if i.split(".")[0] not in BELOW[package] | {package, "__init__"}
    }
    assert not beyond, f"{name} imports {', '.join(sorted(beyond))}, which lies beside or above it"


def test_no_two_modules_need_each_other() -> None:
    """No cycle of imports between files; a package's `__init__` only hands on what its files
    hold."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(IMPORTS[name] - {name, "__init__"}):
            if other in MODULES and MODULES[other].name != "__init__.py":
                visit(other, (*path, name))
        done.add(name)

    for name in MODULES:
        if MODULES[name].name != "__init__.py":
            visit(name, ())
