"""Charts as SVG, drawn by matplotlib in the page's own colors, dark or light."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from swinv2_tasks.callbacks.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the color of the page's text."""

SERIES = ("#3b73b9", "#d9822b", "#2f9e62", "#b5485d", "#7a5fb0", "#8a6d3b", "#3a9ca6", "#8c8c8c")
"""Colors of curves, told apart on white and on black."""


def draw(plot: Callable[[Sequence[Axes]], object], width: float = 5.2, height: float = 3.3, columns: int = 1) -> str:
    """A chart as an SVG element, without an XML head; texts stay texts.

    Args:
        plot: draws on the axes it is given, with ``INK`` and ``SERIES``; names through ``text.label``.
        width: in inches of 72 pixels; the page scales it to its room.
        height: likewise.
        columns: how many axes there are, side by side.
    """
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.prop_cycle": cycler(color=SERIES),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = [*figure.subplots(1, columns, squeeze=False)[0]]
        for panel in axes:
            panel.patch.set_alpha(0)
        plot(axes)
        stream = io.StringIO()
        save_figure(figure, stream, "svg")
    return _as_element(stream.getvalue())


def _as_element(text: str) -> str:
    """The SVG element of a file, whose ids are its own on a page of several, in the colors of the page."""
    element = text[text.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = element.replace(INK, "currentColor")
    salt = f"c{zlib.crc32(element.encode()):08x}"
    element = re.sub(r'\bid="([^"]+)"', rf'id="{salt}-\1"', element)
    element = re.sub(r"url\(#([^)]+)\)", rf"url(#{salt}-\1)", element)
    return re.sub(r'href="#([^"]+)"', rf'href="#{salt}-\1"', element)
