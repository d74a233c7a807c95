"""What installs this project says the same thing everywhere, and installs all of it."""

import ast
import configparser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import pcdm_lib
from pcdm_lib import advice

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

# Where conda-forge's name of a distribution, or the name a distribution is imported
# under, is not its name on PyPI.
# not known to be on conda-forge: pip brings them with this checkout
PIP_ONLY = {"constriction"}
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
IMPORT_NAMES = {
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "pywt": "pywavelets",
    "yaml": "pyyaml",
    "IPython": "ipython",
    "ot": "pot",
}
# what belongs to an extra as a whole, and may import it at the top
OF_AN_EXTRA = {
    "figures": "notebooks",
    "experiments/runner.py": "notebooks",
    "experiments/_engine.py": "notebooks",
}
SCRIPTS = ("pcdm_lib", "tests", "benchmarks", "notebooks", "reproduce")


def requirements(lines: list[str]) -> dict[str, SpecifierSet]:
    """Specifiers by canonical name; a name said twice is an error."""
    found: dict[str, SpecifierSet] = {}
    for line in lines:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} stands twice"
        found[name] = requirement.specifier
    return found


def unfolded(extra: str) -> list[str]:
    """The lines of an extra, with those of the extras of this project that it names."""
    found = []
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found += [inner for name in sorted(requirement.extras) for inner in unfolded(name)]
        else:
            found.append(line)
    return found


RUNTIME = requirements(PROJECT["dependencies"])
EXTRAS = {extra: requirements(unfolded(extra)) for extra in PROJECT["optional-dependencies"]}
TESTED = RUNTIME | EXTRAS["test"]


def pins() -> dict[str, Version]:
    """The versions of constraints.txt by canonical name; anything but `name==version` is an
    error."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert match, f"constraints.txt: {line!r} is not name==version without a local tag"
        name = canonicalize_name(match[1])
        assert name not in found, f"constraints.txt pins {name} twice"
        found[name] = Version(match[2])
    return found


# -- versions ----------------------------------------------------------------------------


def test_conda_environment_states_the_ranges_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "pcdm"
    assert environment["channels"] == ["conda-forge"]
    plain = [line for line in environment["dependencies"] if isinstance(line, str)]
    conda = requirements(plain)
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert conda.pop("pip") == SpecifierSet()
    assert conda == {
        CONDA_NAMES.get(name, name): ranges
        for name, ranges in TESTED.items()
        if name not in PIP_ONLY
    }
    # Through pip comes this checkout and nothing else.
    assert [line for line in environment["dependencies"] if line not in plain] == [
        {"pip": ["-e .[coding]"]}  # constriction, and nothing else, comes with it
    ]


@pytest.mark.parametrize("name", sorted(set(TESTED).union(*EXTRAS.values())))
def test_declared_dependency_is_pinned_inside_its_range(name):
    ranges = [table[name] for table in (RUNTIME, *EXTRAS.values()) if name in table]
    for specifier in ranges:
        assert any(part.operator in (">=", "~=", ">") for part in specifier), (
            f"{name} has no lower bound"
        )
        assert pins()[name] in specifier


def test_constraints_cover_all_that_is_installed_with_the_project():
    """In the environment that the constraints make, nothing that the project needs is left free."""
    pinned = pins()
    installed = {name: Version(importlib.metadata.version(name)).public for name in TESTED}
    if installed != {name: str(pinned[name]) for name in TESTED}:
        pytest.skip("this environment was not made with constraints.txt")
    seen: set[str] = set()
    todo = [(name, frozenset()) for name in TESTED]
    while todo:
        name, extras = todo.pop()
        if name in seen and not extras:
            continue
        seen.add(name)
        for line in importlib.metadata.requires(name) or []:
            need = Requirement(line)
            wanted = need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in extras or {""}
            )
            if wanted:
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    # What only some builds of torch, platforms or Pythons need stays free (its header says so).
    accelerator = re.compile(r"(nvidia|cuda|triton|pytorch-triton|intel|rocm)\b")
    free = {name for name in seen - set(pinned) if not accelerator.match(name)}
    if sys.platform == "linux" and sys.version_info[:2] == (3, 11):
        assert not free
    assert len(seen & set(pinned)) > len(TESTED) + 50  # the walk did go into what they need


# -- imports -----------------------------------------------------------------------------


def python_source(path: Path) -> str:
    """A file's Python; of a notebook, its code cells without IPython's % and ! lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(cell["source"]) for cell in cells).split("\n")
    return "\n".join(re.sub(r"^(\s*)[%!].*$", r"\1pass", line) for line in lines)


def imported(source: str) -> tuple[set[str], set[str]]:
    """Top-level names of what a source imports: always, and only inside a function, `try` or
    `if`."""

    def names(node: ast.AST) -> set[str]:
        if isinstance(node, ast.Import):
            return {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            return {node.module.split(".")[0]}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "pytest.importorskip",
            "importlib.import_module",
        ):
            return {
                str(arg.value).split(".")[0]
                for arg in node.args[:1]
                if isinstance(arg, ast.Constant)
            }
        return set()

    tree = ast.parse(source)
    always = set().union(*map(names, tree.body))
    return always, set().union(*map(names, ast.walk(tree))) - always


def test_imported_sees_every_form():
    source = (
        "import torch.nn as nn, os\nfrom PIL import Image\nfrom . import maps\n"
        "def f():\n    import ot\ntry:\n    from scipy.stats import norm\nexcept ImportError:\n   "
        " pass\n"
        "x = pytest.importorskip('constriction')\n"
    )
    assert imported(source) == ({"torch", "os", "PIL"}, {"ot", "scipy", "constriction"})


def sources() -> list[Path]:
    found = [
        p
        for top in SCRIPTS
        for suffix in ("py", "ipynb")
        for p in sorted((ROOT / top).rglob(f"*.{suffix}"))
    ]
    return [p for p in found if ".ipynb_checkpoints" not in p.parts]


def names_of(path: Path) -> tuple[set[str], set[str]]:
    """The distributions that a file always imports, and those that it imports on demand."""
    own = {"pcdm_lib", *(p.stem for p in path.parent.iterdir()), *SCRIPTS}
    always, on_demand = (
        {
            canonicalize_name(IMPORT_NAMES.get(name, name))
            for name in names - own - set(sys.stdlib_module_names)
        }
        for names in imported(python_source(path))
    )
    return always, on_demand


def extra_of(path: Path) -> str | None:
    """The extra that a file of the library belongs to as a whole."""
    inner = path.relative_to(ROOT / "pcdm_lib").as_posix()
    return next((extra for part, extra in OF_AN_EXTRA.items() if inner.startswith(part)), None)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_declared(path):
    """What a file of the library always imports is in the core, or in the extra that the file
    belongs to; what it imports on demand is in some extra. All else is tested with `test`."""
    top = path.relative_to(ROOT).parts[0]
    always, on_demand = names_of(path)
    declared = set(TESTED)
    if top == "pcdm_lib":
        extra = extra_of(path)
        declared = set(RUNTIME).union(EXTRAS[extra] if extra else ())
    assert always <= declared, f"declare in pyproject.toml and environment.yml: {always - declared}"
    optional = declared.union(*EXTRAS.values())
    assert on_demand <= optional, (
        f"declare in pyproject.toml, in an extra at least: {on_demand - optional}"
    )


def test_the_core_is_what_the_library_always_imports():
    """Nothing stands in the core that no core module needs, and no module of the library imports
    one of an extra, directly or through another module, before it is used."""
    used = set()
    for path in sorted((ROOT / "pcdm_lib").rglob("*.py")):
        if extra_of(path) is None:
            used |= set().union(*names_of(path))
    assert set(RUNTIME) <= used, f"no core module imports {set(RUNTIME) - used}"
    modules = ["pcdm_lib.commands.app", "pcdm_lib.experiments.tables", "pcdm_lib.experiments.suite"]
    packages = ["coding", "data", "likelihood", "maps", "models", "training", "transport"]
    modules += [f"pcdm_lib.{name}" for name in packages]
    code = (
        "import sys\n"
        f"for name in {sorted(advice.EXTRAS)!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: __import__(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", sorted(advice.EXTRAS))
def test_a_missing_extra_says_what_to_install(module, monkeypatch):
    """One line with the command, and the extra that it names does bring the module."""
    extra = advice.EXTRAS[module]
    distribution = canonicalize_name(IMPORT_NAMES.get(module, module).replace("_", "-"))
    assert distribution in EXTRAS[extra] and distribution not in RUNTIME
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(advice.MissingExtra) as caught:
        advice.need(module)
    assert str(caught.value) == f'needs {module}: pip install "pcdm-lib[{extra}]"'
    with pytest.raises(advice.MissingExtra):
        _ = advice.Later(module).anything


def test_extras_name_no_module_that_is_not_theirs():
    with pytest.raises(ValueError, match="belongs to no extra"):
        advice.need("torch")
    assert set(EXTRAS["all"]) == set().union(*EXTRAS.values())


# -- what is installed -------------------------------------------------------------------


def test_wheel_holds_every_file_of_the_package(tmp_path):
    """An editable install hides a file that a real one would lack."""
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "pcdm_lib", tmp_path / "pcdm_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    files = {
        p.relative_to(tmp_path).as_posix()
        for p in (tmp_path / "pcdm_lib").rglob("*")
        if p.is_file()
    }
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    (wheel,) = (tmp_path / "dist").glob("pcdm_lib-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        scripts = next(name for name in held if name.endswith("/entry_points.txt"))
        points = configparser.ConfigParser()
        points.read_string(archive.read(scripts).decode())
    assert {name for name in held if ".dist-info/" not in name} == files
    assert any(name.endswith("/LICENSE") for name in held)
    assert points["console_scripts"]["pcdm"] == "pcdm_lib.commands.app:run"
    assert points["papermill.engine"]["pcdm"] == "pcdm_lib.experiments._engine:Engine"


def test_one_version_everywhere():
    assert pcdm_lib.__version__ == PROJECT["version"]


def test_licence_is_mit():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License\n\nCopyright (c) 2026 The PCDM reproduction authors\n")
    flat = " ".join(text.split())
    assert "Permission is hereby granted, free of charge, to any person obtaining a copy" in flat
    assert 'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND' in flat
    assert PROJECT["license"] == "MIT"


# -- commands ----------------------------------------------------------------------------


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run make as a user would, not as a child of the `make test` that may be running this."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    ours = (
        "MAKEFLAGS",
        "MFLAGS",
        "MAKEOVERRIDES",
        "MAKELEVEL",
        "VENV",
        "PYTHON",
        "NOTEBOOK",
        "OUT",
        "PARAMS",
    )
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in (*ours, "WORKERS", "PYTEST_ARGS", "LAB_ARGS", "HOLD")
    }
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=clean, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "arguments, command",
    [
        (
            ["reproduce"],
            '".venv/bin/python" -m papermill --engine pcdm --log-output --no-progress-bar '
            "reproduce/cifar_wavelet.ipynb out.ipynb",
        ),
        (
            ["reproduce", "VENV=v", "OUT=a.ipynb", "PARAMS=-p minutes 2 -p dataset photos"],
            '"v/bin/python" -m papermill --engine pcdm --log-output --no-progress-bar '
            "reproduce/cifar_wavelet.ipynb a.ipynb -p "
            "minutes 2 -p dataset photos",
        ),
        (
            ["test", "WORKERS=3", "PYTEST_ARGS=-k maps"],
            'OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ".venv/bin/python" -m pytest --nbval -n 3 '
            "--dist loadfile --no-loadscope-reorder -k maps",
        ),
        (["docs"], '".venv/bin/python" -m sphinx -W --keep-going -b html docs docs/_build/html'),
        (["lint"], '".venv/bin/python" -m mypy'),
        (["lab", "LAB_ARGS=--no-browser"], '".venv/bin/python" -m jupyterlab --no-browser'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_make_runs(arguments, command, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    lines = [line.strip() for line in make("-n", *arguments, cwd=tmp_path).stdout.splitlines()]
    assert lines[-1] == command
    # Without an environment there, it is made first.
    assert any('-m pip install -e ".[test]" -c constraints.txt' in line for line in lines[:-1])


def test_environment_is_made_once_and_never_half(tmp_path):
    """With a stand-in for python that only notes what it was asked to do."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(
        f'#!/bin/sh\necho "$*" >> "{log}"\n'
        '[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"\n'
        f'[ "$2" = pip ] && [ -e "{tmp_path}/broken" ] && exit 1\nexit 0\n'
    )
    python.chmod(0o755)

    def run() -> tuple[int, int]:
        """make's exit status, and how many times pip was asked to install."""
        log.write_text("")
        status = make("test", "VENV=v", "PYTHON=./python", cwd=tmp_path).returncode
        return status, log.read_text().count("-m pip install")

    (tmp_path / "broken").touch()
    assert run() == (2, 1)
    assert run() == (2, 1)  # what failed half-way is not taken for made
    (tmp_path / "broken").unlink()
    assert run() == (0, 1)
    assert run() == (0, 0)
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(tmp_path / name, (later := log.stat().st_mtime + 100, later))
        assert run() == (0, 1)
        os.utime(tmp_path / name, (0, 0))
        assert run() == (0, 0)
    (tmp_path / "v" / ".pcdm-installed").write_text("/another/checkout\n")
    assert run() == (0, 1)


def test_make_asks_for_the_python_that_pyproject_asks_for():
    major, minor = re.search(
        r"version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text()
    ).groups()
    assert PROJECT["requires-python"] == f">={major}.{minor}"


def test_make_help_lists_the_targets_for_users():
    listed = set(re.findall(r"make (\w+)", make("help").stdout))
    assert {"reproduce", "test", "lint", "docs", "lab", "clean", "constraints"} <= listed


def test_ci_calls_make_test_in_a_new_environment():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 == 0o111
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text
    assert "work=$(mktemp -d)" in text
    assert re.search(r'^timeout \d+ make test VENV="\$work/venv"', text, re.MULTILINE)


def test_commits_are_checked_by_the_ruff_that_is_installed():
    """Without a download: hooks of the environment, no repositories of others."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} == {"system"}
    assert {"ruff", "mypy", "pre-commit"} <= set(EXTRAS["dev"])


def test_no_package_index_is_hard_coded():
    for name in ("Makefile", ".ci/run", "pyproject.toml", "constraints.txt", "environment.yml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"index-url|find-links|https?://|file://", text), name


def test_readme_gives_the_commands():
    lines = {
        line.strip().removeprefix("$ ")
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    }
    commands = {line.split("  #")[0].rstrip() for line in lines}
    assert {
        "make reproduce",
        "make test",
        "make lab",
        "python3 -m venv .venv",
        ". .venv/bin/activate",
        'pip install -e ".[test]" -c constraints.txt',
        "papermill reproduce/cifar_wavelet.ipynb out.ipynb",
        "pytest --nbval",
        "jupyter lab",
    } <= commands


# -- notebooks ---------------------------------------------------------------------------


def test_pytest_runs_the_notebooks_in_its_own_python(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["notebooks", "tests"]
    assert pytestconfig.option.nbval_current_env
    assert pytestconfig.option.nbval_cell_timeout <= 300


def test_sanitizer_hides_addresses_and_process_ids_only():
    rules = configparser.ConfigParser(interpolation=None)
    rules.read(ROOT / "tests" / "nbval_sanitize.cfg")
    text = "<object at 0x7f3a5c001d90> /tmp/ipykernel_123/456.py 3.87 bpd 0x10"
    for section in rules.sections():
        text = re.sub(rules[section]["regex"], rules[section]["replace"], text)
    assert text == "<object at 0xADDRESS> /tmp/ipykernel_PID/CELL.py 3.87 bpd 0x10"


@pytest.mark.parametrize(
    "path",
    [p for p in sources() if p.suffix == ".ipynb"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_notebook_names_no_kernel_of_its_author(path):
    """papermill starts the kernel that a notebook names; python3 is every environment's own."""
    assert (
        json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"
    )
