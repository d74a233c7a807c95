"""The docstrings: every name of the front door shows how it is called, sections name parameters
that exist, and what stands under `Example:` works."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import pcdm_lib as pcdm

LIBRARY = Path(pcdm.__file__).parent
# the packages that hold the mathematics of the paper
CORE = ("maps", "diffusion", "models", "likelihood", "transport", "training")
HEADS = ("Args", "Attributes", "Example", "Raises", "Returns", "Yields")
HEAD = re.compile(rf"({'|'.join(HEADS)}):\s*$")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Thing(NamedTuple):
    """A public class, function or method: where it stands, its docstring, the names that its
    sections may explain."""

    where: str
    doc: str
    parameters: tuple[str, ...]
    fields: tuple[str, ...] = ()


def sections(doc: str) -> dict[str, list[str]]:
    """The lines of every section of a docstring, without the section's own indent."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in doc.splitlines():
        head = HEAD.match(line)
        if head:
            lines = found.setdefault(head[1], [])
        elif line.strip() and not line.startswith(" "):
            lines = None
        elif lines is not None:
            lines.append(line[4:])
    return found


def named(lines: list[str]) -> list[str]:
    """What the entries of a section are called: `name: text`, one a line."""
    return [line.partition(":")[0] for line in lines if line and not line.startswith(" ")]


def parameters(function: ast.FunctionDef, of_class: bool) -> tuple[str, ...]:
    """The names of a function's parameters, without `self` and `cls`."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    decorators = {d.id for d in function.decorator_list if isinstance(d, ast.Name)}
    names = names[1:] if of_class and "staticmethod" not in decorators else names
    names += [arguments.vararg.arg] if arguments.vararg else []
    names += [a.arg for a in arguments.kwonlyargs]
    return (*names, arguments.kwarg.arg) if arguments.kwarg else tuple(names)


def things(path: Path) -> Iterator[Thing]:
    """The public classes, functions and methods of a file."""
    where = path.relative_to(LIBRARY).as_posix()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            doc = ast.get_docstring(node) or ""
            yield Thing(f"{where} {node.name}", doc, parameters(node, of_class=False))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from of_class(node, where)


def of_class(node: ast.ClassDef, where: str) -> Iterator[Thing]:
    """A class, whose docstring explains what makes it, and its public methods."""
    methods = {m.name: m for m in node.body if isinstance(m, ast.FunctionDef)}
    targets = [a.target for a in node.body if isinstance(a, ast.AnnAssign)]
    fields = tuple(t.id for t in targets if isinstance(t, ast.Name) and not t.id.startswith("_"))
    made = parameters(methods["__init__"], of_class=True) if "__init__" in methods else ()
    yield Thing(f"{where} {node.name}", ast.get_docstring(node) or "", made, fields)
    for name, method in methods.items():
        # one that says nothing is explained where it is first defined
        doc = ast.get_docstring(method)
        if doc and not name.startswith("_"):
            yield Thing(f"{where} {node.name}.{name}", doc, parameters(method, of_class=True))


PUBLIC = [
    t for part in CORE for path in sorted((LIBRARY / part).glob("*.py")) for t in things(path)
]
SHOWN = [t for t in PUBLIC if "Example" in sections(t.doc)]
DOOR = {inspect.getdoc(getattr(pcdm, name)) for name in pcdm.__all__}


def test_the_search_finds_what_there_is() -> None:
    """Otherwise the laws below would hold of nothing."""
    found = {thing.where for thing in PUBLIC}
    assert {"maps/lattice.py allowed", "models/cascade.py Cascade.bound"} <= found
    assert len(PUBLIC) > 200 and len(SHOWN) > 40


@pytest.mark.parametrize("name", pcdm.__all__)
def test_front_door_is_explained(name: str) -> None:
    """Every public name says what goes in, and shows it."""
    thing = getattr(pcdm, name)
    doc = inspect.getdoc(thing) or ""
    found = sections(doc)
    assert "Example" in found, f"{name}: no Example"
    assert {"Args", "Attributes"} & set(found), f"{name}: neither Args nor Attributes"
    if inspect.isfunction(thing):
        assert "Returns" in found, f"{name}: no Returns"
    assert named(found.get("Args", [])) in ([], list(inspect.signature(thing).parameters)), name


def test_public_things_have_docstrings() -> None:
    assert [t.where for t in PUBLIC if not t.doc] == []


def test_args_name_every_parameter_and_no_other() -> None:
    """Where there is an Args section it has one entry a parameter, one a line, in their order."""
    wrong = []
    for thing in PUBLIC:
        listed = sections(thing.doc).get("Args")
        # a class without `__init__` of its own takes its fields, or what its parent takes
        if listed is not None and (thing.parameters or "." in thing.where.partition(" ")[2]):
            names = named(listed)
            wrong += [f"{thing.where}: {names}"] if names != list(thing.parameters) else []
        elif listed is not None and thing.fields:
            wrong += [f"{thing.where}: {n}" for n in named(listed) if n not in thing.fields]
    assert not wrong, "\n".join(wrong)


def test_functions_of_several_parameters_have_args() -> None:
    """One parameter may be explained by the sentence; several are a list."""
    bare = [t for t in PUBLIC if len(t.parameters) > 1 and t.doc and "Args" not in sections(t.doc)]
    assert [t.where for t in bare] == []


def run(name: str, doc: str) -> None:
    """Run the lines under `Example:`, with `pcdm`, `torch` and `np` imported."""
    names = {"pcdm": pcdm, "torch": torch, "np": np}
    text = "\n".join(sections(doc)["Example"]) + "\n"
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    assert test.examples, f"{name}: the Example shows nothing"
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("name", pcdm.__all__)
def test_examples_of_the_front_door_work(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(name, inspect.getdoc(getattr(pcdm, name)) or "")


@pytest.mark.parametrize("thing", [t for t in SHOWN if t.doc not in DOOR], ids=lambda t: t.where)
def test_examples_of_the_core_work(thing: Thing, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(thing.where, thing.doc)
