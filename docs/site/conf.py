"""Sphinx's settings: ``python3 dev.py docs`` builds the pages of this folder's parent into ``site/``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

project = "diskmill"
author = "The diskmill developers"
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
root_doc = "index"
exclude_patterns = ["example-driver", "examples", "schemas", "site"]

html_theme = "furo"
html_title = "diskmill"
html_show_sourcelink = False
html_theme_options = {"source_edit_link": ""}
copybutton_prompt_text = "$ "
copybutton_copy_empty_lines = False
copybutton_exclude = ".go, .gp"
highlight_language = "console"

myst_heading_anchors = 3
myst_links_external_new_tab = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88

nitpicky = True
# Names of other projects stand in signatures too. There is nothing of them here to lead to; ours must lead there.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!diskmill).*"),
    (r"py:.*", r".*\._[A-Za-z]\w*"),
    (r"py:.*", r"diskmill\.sizes.*"),
    # Private classes, and what stands for any class, are shown in signatures and have no place of their own.
    (r"py:.*", r"diskmill\.storages\..*|diskmill\.contract\.threads\.Space"),
]


def complain(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A public name without a sentence about it fails the build."""
    del options
    if what in ("attribute", "property") or lines or any(part.startswith("_") for part in name.split(".")):
        return
    if getattr(thing, "__module__", "").startswith("diskmill") and thing.__name__ != "<lambda>":  # that is a field
        from sphinx.util import logging

        logging.getLogger(__name__).warning("%s %s is public and has no docstring", what, name)


def lead_out(app: Any, docname: str, source: list[str]) -> None:
    """What a page names outside this folder (a package's source) is in the tree, but is no page: its words stay."""
    folder = os.path.dirname(os.path.join(app.srcdir, f"{docname}.md"))

    def words(match: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(folder, match["path"]))
        inside = os.path.commonpath([path, os.path.abspath(app.srcdir)]) == os.path.abspath(app.srcdir)
        if inside and not os.path.isdir(path) and not path.endswith(".json"):
            return match[0]
        if not os.path.exists(path):
            return match[0]  # a broken link: it is told as one
        text = match["text"]
        return text if text.startswith("`") else f"{text} (`{os.path.relpath(path, os.path.dirname(app.srcdir))}`)"

    source[0] = re.sub(r"(?<!!)\[(?P<text>[^]]*)\]\((?P<path>[^)#:\s]+)(#[^)]*)?\)", words, source[0])


def setup(app: Any) -> Mapping[str, Any]:
    app.connect("autodoc-process-docstring", complain)
    app.connect("source-read", lead_out)
    return {"parallel_read_safe": True}
