"""User text on its way into html, into json inside a script element, and into plotly's labels.

Image names are file names: they may hold markup, quotes, or bytes that were no UTF-8 (lone surrogates in Python).
"""

from __future__ import annotations

import html
import json
from typing import Any


def writable(text: str) -> str:
    """The text with every character that UTF-8 cannot encode replaced by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def for_html(text: object) -> str:
    """Text for an element or a quoted attribute."""
    return html.escape(writable(str(text)))


def for_plotly(text: str) -> str:
    """Text for a plotly label, which understands a few tags and entities."""
    return html.escape(writable(text), quote=False)


def for_script(value: Any) -> str:
    """Json that cannot end the script element it stands in: pure ASCII, without <, > and &."""
    dumped = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
