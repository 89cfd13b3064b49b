"""The site of `make docs`: every page, and the reference from the docstrings of the public names.

Its sources begin at the repository's root, so that the pages' relative links hold both on GitHub and here.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from swinv2_tasks import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "backbone",
    "weights",
    "heads",
    "inference",
    "evaluation",
    "datamodules",
    "training",
    "tasks",
    "callbacks",
    "batches",
    "errors",
)
"""The modules with a page under docs/reference, which shows all that ``__all__`` names."""

HOME = "README"
CONTENTS = """
```{toctree}
:hidden:
:caption: Tasks
docs/classification
docs/segmentation
docs/detection
docs/video
docs/simmim
```
```{toctree}
:hidden:
:caption: Guides
docs/command-line
docs/data
docs/augmentation
docs/training
docs/scaling
docs/memory
docs/weights
docs/sweep
docs/streaming
docs/embedding
docs/extending
data/README
```
```{toctree}
:hidden:
:caption: Figures
docs/benchmarks
docs/studies
```
```{toctree}
:hidden:
:caption: Reference
docs/reference/index
docs/architecture
docs/glossary
```
```{toctree}
:hidden:
:caption: Project
CONTRIBUTING
CHANGELOG
SECURITY
```
"""
"""The navigation, which GitHub would show as text if it stood in the README."""

project = "swinv2_tasks"
author = "the authors of swinv2_tasks"
version = release = __version__
html_title = f"{project} {release}"
html_theme = "furo"
html_show_copyright = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
root_doc = HOME

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Whatever else lies in the checkout (datasets, runs, environments) is not even walked through.
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in ("docs", "data") and path.suffix != ".md"]
exclude_patterns += [f"data/{path.name}" for path in (ROOT / "data").iterdir() if path.name != "README.md"]

myst_heading_anchors = 3
highlight_language = "text"
default_role = "py:obj"

autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False  # Lightning's own texts are Lightning's
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 100
napoleon_numpy_docstring = False


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    if name == HOME:
        source[0] += CONTENTS


def keep_sentences(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Keeps napoleon from taking what an attribute's first line says before a colon for its type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def link_names(app: Sphinx, tree: nodes.document) -> None:
    """Makes a public name that a page has in backticks a link to its reference."""
    for literal in list(tree.findall(nodes.literal)):
        target = PUBLIC_NAMES.get(literal.astext().removesuffix("(…)"))
        if target and not isinstance(literal.parent, nodes.reference | addnodes.pending_xref):
            link = addnodes.pending_xref(refdomain="py", reftype="obj", reftarget=target, refdoc=app.env.docname)
            literal.replace_self(link)
            link += literal


def public_names() -> dict[str, str]:
    modules = {name: importlib.import_module(f"swinv2_tasks.{name}") for name in PACKAGES}
    return {name: f"{module.__name__}.{name}" for module in modules.values() for name in module.__all__}


PUBLIC_NAMES = public_names()


def write_index(app: Sphinx, error: Exception | None) -> None:
    """The home page by the name that servers look for."""
    if error is None:
        shutil.copyfile(Path(app.outdir) / f"{HOME}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", keep_sentences, priority=400)
    app.connect("doctree-read", link_names)
    app.connect("build-finished", write_index)
