"""Plots as inline SVG, with text and lines in the colours of the page."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

from abc_rag.errors import MissingExtraError
from abc_rag.evaluation.results import Plot

__all__ = ["draw"]

# Colours that are legible on light and dark backgrounds.
_COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#a855f7", "#ef4444", "#64748b", "#06b6d4", "#84cc16")
# Placeholders: matplotlib does not support CSS variables, so these colours are replaced in its output.
_INK, _LINE = "#010203", "#040506"
_MOST_UPRIGHT = 6
_LONGEST_LABEL = 36


def draw(plot: Plot) -> str:
    """The plot as an ``<svg>`` element.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'abc-rag[evaluate]'") from error

    labels = [_shortened(label) for label in plot.labels]
    lying = plot.kind == "bars" and len(labels) > _MOST_UPRIGHT
    settings = {
        "svg.hashsalt": "abc-rag",  # equal plots give equal text
        "svg.fonttype": "path",
        "text.parse_math": False,  # a label may contain a dollar sign
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.edgecolor": _LINE,
        "font.size": 10,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # matplotlib draws a box instead
        height = 1.2 + 0.24 * len(labels) * max(1, len(plot.series)) if lying else 3.6
        figure = Figure(figsize=(6.4, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        axes.grid(axis="x" if lying else "y", color=_LINE, linewidth=0.7)
        for side in ("top", "right", "bottom" if lying else "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        if plot.kind == "lines":
            _lines(axes, plot, labels)
        else:
            _bars(axes, plot, labels, lying)
        _scale(axes, plot, lying)
        if len(plot.series) > 1:
            figure.legend(loc="outside lower center", ncols=min(3, len(plot.series)), frameon=False)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "var(--ink)").replace(_LINE, "var(--line)")


def _shortened(label: str) -> str:
    plain = " ".join(str(label).split())
    return plain if len(plain) <= _LONGEST_LABEL else plain[: _LONGEST_LABEL - 1] + "…"


def _scale(axes: Any, plot: Plot, lying: bool) -> None:  # noqa: ANN401
    """Start the axis at zero, and leave room for the numbers beside the bars."""
    values = [value for series in plot.series.values() for value in series if math.isfinite(value)]
    top = 100.0 if plot.unit == "%" else max(values, default=1.0)
    (axes.set_xlim if lying else axes.set_ylim)(min(0.0, *values, 0.0), 1.1 * top or 1.0)
    if plot.unit == "%":
        (axes.set_xticks if lying else axes.set_yticks)([0, 20, 40, 60, 80, 100])
    (axes.set_xlabel if lying else axes.set_ylabel)(plot.unit)


def _lines(axes: Any, plot: Plot, labels: Sequence[str]) -> None:  # noqa: ANN401
    places = range(len(labels))
    for number, (name, values) in enumerate(plot.series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(places, values, marker="o", color=colour, linewidth=2, label=name)
    for place in places:
        # Only the highest value: the numbers of lines that are close together would overlap.
        value = max((series[place] for series in plot.series.values() if math.isfinite(series[place])), default=None)
        if value is not None:
            axes.annotate(_figure(value), (place, value), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(places, labels)
    axes.set_xlim(-0.4, len(labels) - 0.6)


def _bars(axes: Any, plot: Plot, labels: Sequence[str], lying: bool) -> None:  # noqa: ANN401
    width = 0.8 / max(1, len(plot.series))
    draw_bars = axes.barh if lying else axes.bar
    for number, (name, values) in enumerate(plot.series.items()):
        places = [place - 0.4 + width * (number + 0.5) for place in range(len(labels))]
        drawn = [(place, value) for place, value in zip(places, values, strict=True) if math.isfinite(value)]
        colour = _COLOURS[number % len(_COLOURS)]
        bars = draw_bars([p for p, _ in drawn], [v for _, v in drawn], 0.92 * width, color=colour, label=name)
        axes.bar_label(bars, [_figure(value) for _, value in drawn], padding=3 if lying else 2, fontsize=9)
    if lying:
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)  # the first label on top
    else:
        axes.set_xticks(range(len(labels)), labels)


def _figure(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"
