"""How Sphinx builds the site: Markdown guides, and an API reference made from the docstrings."""

import re
from importlib.metadata import version as installed

project = "abc-rag"
author = "The abc-rag authors"
release = version = installed("abc-rag")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = []
myst_enable_extensions = ["smartquotes"]
myst_heading_anchors = 3

# Docstrings write `name` for code.
default_role = "literal"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
# Off: it reads defaults from the source, and some signatures show options that the source does not spell out.
autodoc_preserve_defaults = False
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Of LangChain's form of a docstring.
napoleon_custom_sections = [
    ("Key init args", "params_style"),
    *("Setup", "Instantiate", "Embed single text", "Embed multiple texts", "Add Documents", "Delete Documents"),
    *("Search", "Search with score", "Async", "Use as Retriever", "Use within a chain", "Usage", "Pictures"),
]
add_module_names = False
python_display_short_literal_types = True
nitpicky = False

html_theme = "furo"
html_title = "abc-rag"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
# Neither fonts nor scripts come from elsewhere: the site is read from disk, without a network.

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def _directive(fence: re.Match[str]) -> str:
    indent, language = fence["indent"], fence["language"] or "text"
    body = "".join(f"    {line}" if line.strip() else line for line in fence["body"].splitlines(keepends=True))
    return f"{indent}.. code-block:: {language}\n\n{body}"


def _convert_fences(app, what, name, obj, options, lines):
    """Make Markdown's fences in a docstring what Sphinx's own markup has for them."""
    lines[:] = _FENCE.sub(_directive, "\n".join(lines)).split("\n")


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _convert_fences)
