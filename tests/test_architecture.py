"""The layout of the library: every module has a package, and imports point one way."""

from __future__ import annotations

import ast
import re
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


# ---------------------------------------------------------------- who writes files

SOURCES = [*MODULES.items()] + [
    (f"benchmarks.{path.stem}", path)
    for path in sorted((LIBRARY.parent / "benchmarks").glob("*.py"))
]
# What else may, and why.
MAY_WRITE = {
    ("commands.messages", "os.open"): "the null device, for output that nobody reads any more",
    ("data.imagenet_files", "tempfile.TemporaryFile"): "a copy without a name",
    (
        "training.distributed",
        "tempfile.NamedTemporaryFile",
    ): "in the system's folder for such files",
    ("training.saving", "part.unlink"): "in a hidden folder that the same block made",
    ("experiments.suite", "step.marker.unlink"): "its own file, which `_check_places` looked at",
}
# Methods and functions that make, replace or remove files, whatever they are given...
CHANGE = {
    *("write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "rename", "renames"),
    *("unlink", "rmdir", "removedirs", "rmtree", "link", "symlink", "truncate", "mkfifo"),
    *("copy2", "copyfile", "copytree", "move", "tofile", "open_memmap", "save_file", "imsave"),
    *("NamedTemporaryFile", "TemporaryFile", "mkstemp", "mkdtemp"),
}
# ... and those that may write into memory, or into the file that `whole_file` gives.
SAVE = {"save", "savez", "savez_compressed", "savetxt", "savefig"}


def in_memory(tree: ast.AST) -> set[str]:
    """Names that a file gives to buffers, and to what `whole_file` yields."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and "BytesIO()" in ast.unparse(node.value):
            found |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.withitem) and "whole_file(" in ast.unparse(node.context_expr):
            found.add(ast.unparse(node.optional_vars or node.context_expr))
    return found


def opens_for_writing(call: ast.Call, what: str) -> bool:
    """Whether a call of something named `open` has a mode that writes, or one that cannot be
    read here."""
    if what == "os.open":
        return True
    modes = [k.value for k in call.keywords if k.arg == "mode"]
    modes += call.args[1:2] if what == "open" or "." in what else []
    modes += call.args[:1] if what.endswith(".open") else []
    for mode in modes:
        if not isinstance(mode, ast.Constant):
            if what == "open":
                return True
        elif re.fullmatch(r"[rwxabt+|:gz]+", str(mode.value)) and set("wxa+") & set(mode.value):
            return True
    return False


def writes(source: str) -> list[str]:
    """What of a source makes, replaces or removes files, as it is written there."""
    tree = ast.parse(source)
    buffers, found = in_memory(tree), []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        what = ast.unparse(call.func)
        name, owner = what.split(".")[-1], what.rpartition(".")[0]
        given = [ast.unparse(arg) for arg in call.args]
        if name in ("open", "fdopen"):
            wrong = opens_for_writing(call, what)
        elif name == "replace":  # of a path, or of os; text takes two, a dataclass keywords
            wrong = owner == "os" or (owner != "" and len(given) == 1 and not call.keywords)
        elif what == "safetensors.torch.save":  # gives bytes
            wrong = False
        elif name in SAVE:
            wrong = bool(given) and not buffers & {*given}
        else:
            owned = name in CHANGE and owner not in ("", "records")  # records asks outputs
            wrong = owned or name == "save_file" or what == "os.remove"
        if wrong:
            found.append(what)
    return found


@pytest.mark.parametrize("name, path", SOURCES, ids=[name for name, _ in SOURCES])
def test_one_module_writes_files(name: str, path: Path) -> None:
    """All others ask `outputs`, so that no output is an input, a link or a device, and every file
    is whole or absent."""
    if name == "outputs":
        return
    found = {*writes(path.read_text(encoding="utf-8"))}
    beyond = found - {what for module, what in MAY_WRITE if module == name}
    assert not beyond, f"{name} calls {', '.join(sorted(beyond))}: let outputs.py do it"


def test_who_may_write_does() -> None:
    """No permission outlives its use."""
    for module, what in MAY_WRITE:
        assert what in writes(MODULES[module].read_text(encoding="utf-8")), (module, what)


@pytest.mark.parametrize(
    "source",
    (
        'open(path, "w")',
        'open(path, mode="ab")',
        "open(path, mode)",
        'path.open("xb")',
        'gzip.open(path, "wb")',
        'tarfile.open(path, "w:gz")',
        'os.fdopen(handle, "r+b")',
        "os.open(path, flags)",
        "os.replace(a, b)",
        "a.rename(b)",
        "(folder / name).replace(b)",
        "path.write_text(text)",
        "path.unlink()",
        "shutil.rmtree(folder)",
        "shutil.copyfile(a, b)",
        "np.savez(path, a=a)",
        "torch.save(state, folder / name)",
        "os.remove(path)",
        "safetensors.torch.save_file(tensors, path)",
        "save_file(tensors, path)",
        "image.save(path, 'PNG')",
        "figure.savefig(path)",
        "tempfile.mkstemp()",
    ),
)
def test_a_writer_is_found(source: str) -> None:
    assert len(writes(source)) == 1


@pytest.mark.parametrize(
    "source",
    (
        "open(path)",
        'path.open("rb")',
        'tarfile.open(path, "r:gz")',
        'Image.open(file, formats=("PNG",))',
        'text.replace("a", "b")',
        "dataclasses.replace(config, a=1)",
        "trainer.save()",
        "buffer = io.BytesIO()\nnp.savez(buffer, a=a)",
        "with outputs.whole_file(path) as file:\n    torch.save(state, file)",
        "records.write_bytes(path, data)",
    ),
)
def test_a_reader_is_none(source: str) -> None:
    assert writes(source) == []
