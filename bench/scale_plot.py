"""Draws how cost grows: small SVG figures of a few log-log panels, by hand. It measures nothing.

Each panel has the measured points of some series and a dashed line on which cost would grow exactly as the size does, through
the middle one of the points: what lies above it at the right grows faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 420
_HEIGHT: Final = 300
_LEFT, _TOP, _RIGHT, _BOTTOM = 66, 40, 16, 46
_COLUMNS: Final = 2
_HEAD: Final = 52
_COLOURS: Final = ("#1b6ca8", "#c8553d", "#4d8b31", "#7a4ea3")
_TEXT: Final = "#333"
_GRID: Final = "#ddd"


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity against size. ``series`` maps a name to its values, in the order of ``sizes``; all are above zero."""

    title: str
    unit: str
    size_label: str
    sizes: Sequence[float]
    series: dict[str, Sequence[float]]


def figure(title: str, subtitle: str, panels: Sequence[Panel]) -> str:
    """Return an SVG document with the panels side by side, two in a row."""
    rows = -(-len(panels) // _COLUMNS)
    width, height = _WIDTH * min(_COLUMNS, len(panels)), _HEAD + _HEIGHT * rows
    drawn = [
        f'<g transform="translate({number % _COLUMNS * _WIDTH},{_HEAD + number // _COLUMNS * _HEIGHT})">{_panel(panel)}</g>'
        for number, panel in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11" fill="{_TEXT}"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="16" y="22" font-size="15" font-weight="bold">{escape(title)}</text>'
        f'<text x="16" y="40">{escape(subtitle)}</text>{"".join(drawn)}</svg>\n'
    )


def _panel(panel: Panel) -> str:
    x = _axis(panel.sizes, _LEFT, _WIDTH - _RIGHT, margin=1.3)
    middle = (len(panel.sizes) - 1) // 2
    growth = [size / panel.sizes[middle] for size in panel.sizes]
    # The dashed lines have to fit too.
    ideal = {name: (values[middle] * growth[0], values[middle] * growth[-1]) for name, values in panel.series.items()}
    everything = [value for name, values in panel.series.items() for value in (*values, *ideal[name])]
    y = _axis(everything, _HEIGHT - _BOTTOM, _TOP, margin=1.6)
    parts = [f'<text x="{_LEFT}" y="24" font-weight="bold">{escape(panel.title)}, {escape(panel.unit)}</text>']
    for size in panel.sizes:
        parts.append(_line(x(size), _TOP, x(size), _HEIGHT - _BOTTOM, _GRID))
        parts.append(f'<text x="{x(size):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{size:,g}</text>')
    for mark in _decades(everything):
        parts.append(_line(_LEFT, y(mark), _WIDTH - _RIGHT, y(mark), _GRID))
        parts.append(f'<text x="{_LEFT - 6}" y="{y(mark) + 4:.1f}" text-anchor="end">{_spelled(mark)}</text>')
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{centre:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(panel.size_label)}</text>')
    for number, (name, values) in enumerate(panel.series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        ends = (x(panel.sizes[0]), y(ideal[name][0]), x(panel.sizes[-1]), y(ideal[name][1]))
        parts.append(_line(*ends, colour, ' stroke-dasharray="3 4" opacity="0.6"'))
        points = [(x(size), y(value)) for size, value in zip(panel.sizes, values, strict=True)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>' for px, py in points]
        parts.append(f'<text x="{_LEFT + 8}" y="{_TOP + 14 + 14 * number}" fill="{colour}">{escape(name)}</text>')
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class _axis:  # noqa: N801  called like the function it is
    values: Sequence[float]
    start: float
    end: float
    margin: float

    def __call__(self, value: float) -> float:
        low, high = math.log(min(self.values) / self.margin), math.log(max(self.values) * self.margin)
        return self.start + (math.log(value) - low) / (high - low) * (self.end - self.start)


def _decades(values: Sequence[float]) -> list[float]:
    low, high = math.floor(math.log10(min(values) / 1.6)), math.ceil(math.log10(max(values) * 1.6))
    marks = [10.0**power for power in range(low, high + 1)]
    return [mark for mark in marks if min(values) / 1.6 <= mark <= max(values) * 1.6]


def _spelled(mark: float) -> str:
    for name, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if mark >= unit:
            return f"{mark / unit:g}{name}"
    return f"{mark:g}"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'
