"""``--once --pretty``: what this node shows and hides, and what would add more, on one page of 80 columns.

Text only: what is seen is :mod:`collector.look`'s business. Colours where there is a terminal that wants them.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Final, TextIO

from collector.look import Device, Looked, Section
from collector.probe import Sight

WIDTH: Final = 80
_SUBJECT: Final = 32
_ALIKE: Final = 4
"""So many things that are seen with the same words are told as one."""
_SIGNS: Final = "✓✗→·\u2013°"
_NO_BREAK: Final = "\u00a0"
_PLAIN_SIGNS: Final = "+->*- "
_MW_PER_W: Final = 1_000
_MJ_PER_J: Final = 1_000
_BYTES_PER_GIB: Final = 2**30
_BOLD, _DIM, _GREEN, _RED, _CYAN = "1", "2", "32", "31", "36"


class Style:
    """How to write on one output: which signs it can show, and whether in colour."""

    def __init__(self, output: TextIO, environ: Mapping[str, str]) -> None:
        """Look at the output; NO_COLOR in the environment is respected."""
        self.colour = output.isatty() and "NO_COLOR" not in environ and environ.get("TERM") != "dumb"
        try:
            _SIGNS.encode(output.encoding or "ascii")
            signs = _SIGNS
        except (UnicodeEncodeError, LookupError):
            signs = _PLAIN_SIGNS
        self.yes, self.no, self.arrow, self.dot, self.dash, self.degree = tuple(signs)

    def paint(self, text: str, code: str) -> str:
        """Return the text in a colour, if there are any."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


def pretty(seen: Looked, style: Style) -> str:
    """Return the page."""
    parts = [_head(seen, style)]
    if seen.devices:
        parts.append(_devices(seen, style))
    parts += [_section(section, style) for section in seen.sections if section.sights or section.errors]
    if seen.events:
        parts.append("\n".join([style.paint("Events while looking", _BOLD), *(f"  {event}" for event in seen.events)]))
    if seen.offers:
        parts.append(_offers(seen, style))
    parts.append(_verdict(seen, style))
    return "\n\n".join(parts)


def _head(seen: Looked, style: Style) -> str:
    what = f"wattledger-agent {seen.version} on {seen.node}"
    how = f"as {seen.user}, {seen.duration_s:g} s; nothing is kept or sent"
    return f"{style.paint(what, _BOLD)}\n{style.paint(how, _DIM)}"


def _devices(seen: Looked, style: Style) -> str:
    dash = style.dash
    header = f"{'Devices':<28}{'power':>8}{f'min{dash}max':>12}{'energy':>9}{'gpu':>6}{'SM':>6}{'temp':>7}"
    lines = [style.paint(header.rstrip(), _BOLD)]
    for device in seen.devices:
        row = device.row
        spread = dash.join(_scaled(row.get(name), _MW_PER_W) for name in ("power_min_mw", "power_max_mw"))
        cells = (
            f"  {device.ref.model[:25]:<26}"
            f"{_with(_scaled(row.get('power_average_mw'), _MW_PER_W), ' W', dash):>8}"
            f"{spread if row.get('power_min_mw') is not None else dash:>12}"
            f"{_with(_scaled(device.used_mj, _MJ_PER_J), ' J', dash):>9}"
            f"{_with(_scaled(row.get('gpu_util_percent'), 1), ' %', dash):>6}"
            f"{_scaled(row.get('sm_active_ratio'), 1, places=2) or dash:>6}"
            f"{_with(_scaled(row.get('temp_c'), 1), f' {style.degree}C', dash):>7}"
        )
        lines += [cells, style.paint(f"    {_identity(device)}", _DIM)]
    return "\n".join(lines)


def _identity(device: Device) -> str:
    used, total = device.row.get("memory_used_bytes"), device.ref.memory_bytes
    memory = f"  {_scaled(used, _BYTES_PER_GIB, places=1)} of {_scaled(total, _BYTES_PER_GIB)} GiB"
    return device.ref.uuid + (memory if used is not None and total is not None else "")


def _section(section: Section, style: Style) -> str:
    seen = sum(sight.seen for sight in section.sights)
    count = f"{seen} of {len(section.sights)} seen"
    title = f"{style.paint(section.title, _BOLD)}{count:>{WIDTH - len(section.title)}}"
    # What is there first, in the prober's order; what is missing, with what to do, below it.
    lines = [title]
    alike = Counter(sight.detail for sight in section.sights if sight.seen and not sight.remedy)
    told: set[str] = set()
    for sight in sorted(section.sights, key=lambda sight: not sight.seen):
        if not sight.seen or sight.remedy or alike[sight.detail] < _ALIKE:
            lines += _sight(sight, style)
        elif sight.detail not in told:
            told.add(sight.detail)
            subjects = [other.subject for other in section.sights if other.seen and other.detail == sight.detail]
            lines += _sight(Sight(sight.detail, seen=True, detail=_listed(subjects, style)), style)
    if section.errors:
        failed = ", ".join(f"{kind} x{count}" for kind, count in sorted(section.errors.items()))
        lines += _wrapped(f"  {style.dot} ", f"failed reads: {failed}", 4)
    return "\n".join(lines)


def _listed(subjects: list[str], style: Style) -> str:
    """Join names so that a line is broken between two of them only: spaces inside are no places to break."""
    kept = [subject.replace(" ", _NO_BREAK) for subject in subjects]
    return f"{_NO_BREAK}{style.dot} ".join(kept)


def _sight(sight: Sight, style: Style) -> list[str]:
    mark = style.paint(style.yes, _GREEN) if sight.seen else style.paint(style.no, _RED)
    indent = 4 + _SUBJECT
    wrapped = textwrap.wrap(sight.detail, WIDTH - indent, break_on_hyphens=False) or [""]
    detail = [line.replace(_NO_BREAK, " ") for line in wrapped]
    if len(sight.subject) < _SUBJECT:
        lines = [f"  {mark} {sight.subject:<{_SUBJECT}}{detail[0]}".rstrip()]
        lines += [" " * indent + line for line in detail[1:]]
    else:
        lines = [f"  {mark} {line}" if at == 0 else f"    {line}" for at, line in enumerate(textwrap.wrap(sight.subject, WIDTH - 4))]  # fmt: skip
        lines += [" " * indent + line for line in detail]
    if sight.remedy:
        first, *rest = textwrap.wrap(sight.remedy, WIDTH - indent - 2)
        lines.append(" " * indent + style.paint(f"{style.arrow} {first}", _CYAN))
        lines += [" " * (indent + 2) + style.paint(line, _CYAN) for line in rest]
    return lines


def _offers(seen: Looked, style: Style) -> str:
    lines = [style.paint("Not switched on", _BOLD)]
    for name, adds in seen.offers:
        lines += _wrapped(f"  {style.dot} {name:<{_SUBJECT}}", adds, 4 + _SUBJECT)
    return "\n".join(lines)


def _verdict(seen: Looked, style: Style) -> str:
    sights = [sight for section in seen.sections for sight in section.sights]
    missing = [sight for sight in sights if not sight.seen and sight.remedy]
    if not seen.measurable:
        text = "Nothing here can be metered: no device answers, and no meter of the node."
        return style.paint(text, _RED)
    # A MIG instance has use of its own, but neither power nor a counter: its board is what is metered.
    instances = sum(device.ref.kind == "mig" for device in seen.devices)
    text = f"{len(seen.devices) - instances} devices can be metered"
    text += f", {instances} MIG instances on them are seen" if instances else ""
    text += f"; {sum(sight.seen for sight in sights)} of {len(sights)} things seen"
    text += f", {len(missing)} could be added as marked {style.arrow}." if missing else "."
    return "\n".join(style.paint(line, _GREEN) for line in textwrap.wrap(text, WIDTH))


def _wrapped(begin: str, text: str, indent: int) -> list[str]:
    first, *rest = textwrap.wrap(text, WIDTH - indent) or [""]
    return [begin + first, *(" " * indent + line for line in rest)]


def _with(text: str, unit: str, absent: str) -> str:
    return text + unit if text else absent


def _scaled(value: object, divisor: int, *, places: int = 0) -> str:
    return f"{value / divisor:.{places}f}" if isinstance(value, int | float) else ""
