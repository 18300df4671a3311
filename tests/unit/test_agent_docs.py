"""The operator's guide names every setting, signal and event there is. ``python -m tests.unit.test_agent_docs`` renews its table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from collector import agent, config, run
from collector.commands import channel, orders

pytestmark = pytest.mark.unit

GUIDE = Path(__file__).resolve().parents[2] / "docs/agent.md"
_TABLE = re.compile(r"(<!-- settings: begin[^\n]*-->\n).*(<!-- settings: end -->)", re.DOTALL)


def settings_table() -> str:
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, entry in config.FIELDS.items():
        default = str(entry.default).lower() if isinstance(entry.default, bool) else entry.default
        shown = f"`{default}`" if default != "" else ""
        lines.append(f"| `{name}` | {shown} | {entry.metadata['help']} |")
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    return _TABLE.sub(lambda found: found[1] + settings_table() + found[2], text)


def test_the_table_of_settings_is_what_the_agent_has() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert _TABLE.search(text)
    assert text == renewed(text), "run `python -m tests.unit.test_agent_docs`"


def test_every_event_the_agent_tells_is_in_the_guide() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    sources = "".join(
        Path(str(module.__file__)).read_text(encoding="utf-8") for module in (agent, run, channel, orders)
    )
    told = set(re.findall(r'\btell\(\s*"([a-z_]+)"', sources)) | set(re.findall(r'kind = "([a-z_]+)"', sources))
    assert len(told) >= 8
    assert {kind for kind in told if not kind.startswith(("order", "commands"))} <= set(
        re.findall(r"`([a-z_]+)`", guide)
    )


if __name__ == "__main__":
    GUIDE.write_text(renewed(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
