"""Sphinx configuration: python -m sphinx docs docs/_build (extra ``docs``)."""

project = "lrlm-sim"
author = "The lrlm-sim authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
exclude_patterns = ["_build"]
