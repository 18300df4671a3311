"""Node power by IPMI DCMI: both commands' texts, and commands that misbehave."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import pytest

from collector.source.command import CommandError, output_of
from collector.source.ipmi import IpmiSource, parse_power_mw
from collector.wire import Stream

FREEIPMI = """\
Current Power                        : 286 Watts
Minimum Power over sampling duration : 10 watts
Maximum Power over sampling duration : 478 watts
Average Power over sampling duration : 183 watts
Time Stamp                           : 11/03/2025 - 08:36:29
Statistics reporting time period     : 1000 milliseconds
Power Measurement                    : Active
"""
IPMITOOL = """

    Instantaneous power reading:                   220 Watts
    Minimum during sampling period:                 18 Watts
    Maximum during sampling period:                436 Watts
    Average power reading over sample period:      224 Watts
    IPMI timestamp:                           Thu Jan 30 11:04:32 2025
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   activated


"""


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "power_mw"),
    [
        (FREEIPMI, 286_000),
        (IPMITOOL, 220_000),
        (FREEIPMI.replace(": Active", ": Not Available"), None),
        (IPMITOOL.replace("activated", "deactivated"), None),
        (IPMITOOL.replace("220 Watts", "0 Watts"), None),
        (FREEIPMI.split("\n", 1)[1], None),  # without the line that matters; minimum and average are not the present
        ("", None),
    ],
)
def test_both_commands_say_the_power_of_now(text: str, power_mw: int | None) -> None:
    assert parse_power_mw(text) == power_mw


class Tool:
    """Plays the command; a text or a failure at a time."""

    def __init__(self, *answers: str | CommandError) -> None:
        self.answers = list(answers)
        self.commands: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str], _limit_s: float) -> str:
        self.commands.append(command)
        answer = self.answers.pop(0)
        if isinstance(answer, CommandError):
            raise answer
        return answer


@pytest.mark.unit
def test_a_reading_is_a_row_of_the_meter() -> None:
    now_s = [0.0]
    source = IpmiSource(run=Tool(FREEIPMI, FREEIPMI), monotonic=lambda: now_s[0])
    assert source.read().rows[Stream.NODE] == ({"meter": "ipmi", "span_us": 0, "power_mw": 286_000},)
    now_s[0] = 60.5
    assert source.read().rows[Stream.NODE][0]["span_us"] == 60_500_000


@pytest.mark.unit
def test_a_controller_that_does_not_answer_is_left_alone_for_a_while() -> None:
    now_s = [0.0]
    tool = Tool(CommandError("timeout", "it hung"), "no reading here", FREEIPMI)
    source = IpmiSource(run=tool, monotonic=lambda: now_s[0])
    assert source.read().errors == {"ipmi:timeout": 1}
    assert source.sights()[0].detail == "timeout: it hung"
    for at_s, errors in ((119.0, {}), (120.0, {"ipmi:no_reading": 1}), (359.0, {})):  # 2 x 60 s, then 4 x 60 s
        now_s[0] = at_s
        assert source.read().errors == errors
    now_s[0] = 360.0
    assert source.read().rows[Stream.NODE][0]["power_mw"] == 286_000
    assert source.sights()[0].seen


@pytest.mark.unit
def test_without_a_command_it_is_silent_and_says_what_to_install() -> None:
    source = IpmiSource(commands=(("no-such-command-anywhere",),), period_s=1.0)
    assert (source.read().rows, source.read().errors, source.period_s) == ({}, {}, 30.0)
    assert "freeipmi-tools" in str(source.sights()[0].remedy)


@pytest.mark.contract
def test_a_command_gives_its_output_and_nothing_of_our_environment() -> None:
    script = "import os; print(sorted(k for k in os.environ if k != 'LC_CTYPE'))"
    assert output_of([sys.executable, "-c", script], timeout_s=20) == "['LC_ALL', 'PATH']\n"


@pytest.mark.contract
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("import time; time.sleep(60)", "timeout"),
        ("import os, time; os.close(1); os.close(2); time.sleep(60)", "timeout"),
        ("import os, time; os.fork() or time.sleep(60)", "timeout"),
        ("print('x' * 100_000)", "too_large"),
        ("import sys; sys.exit(3)", "exit_3"),
    ],
)
def test_a_command_that_misbehaves_ends_in_time(script: str, kind: str) -> None:
    began = time.monotonic()
    with pytest.raises(CommandError) as failure:
        output_of([sys.executable, "-S", "-c", script], timeout_s=0.5 if kind == "timeout" else 20, max_bytes=50_000)
    assert failure.value.kind == kind
    assert time.monotonic() - began < 19


@pytest.mark.unit
def test_a_command_that_is_missing_or_no_program_says_so() -> None:
    with pytest.raises(CommandError, match="missing"):
        output_of(["/no/such/program"], timeout_s=1)
    with pytest.raises(CommandError, match="denied"):
        output_of(["/etc/passwd"], timeout_s=1)
