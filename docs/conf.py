"""Sphinx configuration of the book: `make docs`, or `sphinx-build -W docs docs/_build/html`.

The book is the pages of this folder, the notebooks as they are executed, and an API reference from
the docstrings. Notebooks and API pages are copied or written into ignored folders before anything
is read. Nothing is downloaded. Mathematics is set by a MathJax that is installed as a package, and
by the one on the network only where that is missing.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]

import apipages  # noqa: E402

import pcdm_lib  # noqa: E402

project = "PCDM"
author = "The PCDM reproduction authors"
copyright = "the PCDM reproduction authors, MIT licence"
release = version = pcdm_lib.__version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_copybutton",
    "docstrings",
]
exclude_patterns = ["_build", "diagrams"]
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed executed
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables that a notebook prints
nb_ipywidgets_js = {}
suppress_warnings = [
    # ipywidgets need a kernel, which a page has not; their text and pictures are shown instead
    "mystnb.unknown_mime_type",
    # a public name stands on two pages, its package's and the front one; a link leads to either
    "ref.python",
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "PCDM"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field of the side bar is enough
    "navbar_end": [],
}
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def copy_notebooks() -> None:
    """The notebooks, as they are executed, where Sphinx looks for pages."""
    for name in ("notebooks", "reproduce"):
        (HERE / name).mkdir(exist_ok=True)
        for old in (HERE / name).glob("*.ipynb"):
            old.unlink()
        for notebook in (ROOT / name).glob("*.ipynb"):
            shutil.copy(notebook, HERE / name)


def copy_mathjax() -> str | None:
    """MathJax's files beside the pages, if the package that holds them is installed; their path."""
    spec = importlib.util.find_spec("mathjax")
    if spec is None or not spec.submodule_search_locations:
        return None
    source = Path(spec.submodule_search_locations[0]) / "static" / "mathjax" / "es5"
    target = HERE / "_static" / "mathjax"
    target.mkdir(exist_ok=True)
    shutil.copy(source / "tex-mml-chtml.js", target)
    fonts = Path("output", "chtml", "fonts")
    shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)
    return "mathjax/tex-mml-chtml.js"


def from_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """Links of the pages are those of the repository; and no line ends within a figure's error."""
    source[0] = source[0].replace(" ± ", "\u00a0±\u00a0")
    source[0] = re.sub(r"\]\(\.\./(notebooks|reproduce)/", r"](\1/", source[0])
    source[0] = source[0].replace("](../CONTRIBUTING.md)", "](contributing.md)")
    source[0] = source[0].replace("](../benchmarks/README.md)", "](benchmarks.md)")
    if name == "index":
        for folder in ("notebooks", "reproduce"):
            source[0] = source[0].replace(f"\n{folder}/*\n", f"\n{short_titles(folder)}\n")


def short_titles(folder: str) -> str:
    """Entries of a table of contents: each notebook with its number and the start of its title."""
    entries = []
    for path in sorted((HERE / folder).glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "markdown"))
        title = re.split(r"[:(]", first.splitlines()[0].lstrip("# "))[0].strip()
        number = path.stem.split("_")[0]
        prefix = f"{number} " if number.isdigit() else ""
        entries.append(f"{prefix}{title} <{folder}/{path.stem}>")
    return "\n".join(entries)


def only_ours(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out what a class borrows from another library, and fields that only have a number."""
    if str(getattr(obj, "__doc__", "")).startswith("Alias for field number"):
        return True
    module = getattr(obj, "__module__", None) or "pcdm_lib"
    return True if not str(module).startswith(("pcdm_lib", "builtins")) else None


def setup(app: Sphinx) -> None:
    """Write what the book is made of, before Sphinx looks for pages."""
    apipages.write(HERE / "api")
    app.connect("source-read", from_repository)
    app.connect("autodoc-skip-member", only_ours)


copy_notebooks()
if (path := copy_mathjax()) is not None:
    mathjax_path = path
