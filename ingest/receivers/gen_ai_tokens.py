"""Splits the usage a span reports into disjoint token parts, which never add up to more than the total it states. Pure.

Almost all senders count what was read from the cache in the input, and reasoning in the output, as the convention says.
Some pass on what the provider counted, and Anthropic counts cached tokens beside the input. Three things tell, in this
order: the dialect (Vercel AI SDK before version 6 passes Anthropic's figures on), the reported total where there is one,
and arithmetic: a part larger than its whole was never in it. Otherwise the convention holds. Parts may overlap, too: cached
audio is told as cached and as audio. Then audio gives way; where a stated total leaves no room for what was cached or
reasoned, that does, what was written to the cache first. What was written for an hour is part of what was written. Anthropic's own figures are the exception: input and output added
up are a total without the cache. A total that is less than input and output is none (0 is how some say they have none).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ingest.calls import MAX_TOKENS, disjoint, written
from ingest.receivers import gen_ai_names as names
from ingest.receivers.otlp_attributes import Attribute

_VERCEL_MAJOR: Final = re.compile(r"\bai/(\d+)\.")
_VERCEL_INCLUDES_SINCE: Final = 6


@dataclass(slots=True)
class Parts:
    """Disjoint counts; None = not reported. ``known``: the span says anything of its usage."""

    input_uncached: int | None
    cache_read: int | None
    cache_write: int | None
    output_text: int | None
    reasoning: int | None
    cache_write_1h: int | None
    audio_in: int | None
    audio_out: int | None
    known: bool


def parts_of(attributes: Mapping[str, Attribute], provider: str) -> Parts:
    """Return the parts of one call."""
    given, produced = number(attributes, "input"), number(attributes, "output")
    if given is None and produced is None:
        return Parts(None, None, None, None, None, None, None, None, known=False)
    cache_read, cache_write = number(attributes, "cache_read"), number(attributes, "cache_write")
    reasoning = number(attributes, "reasoning")
    audio_in, audio_out = number(attributes, "audio_in"), number(attributes, "audio_out")
    hour = number(attributes, "cache_write_1h")
    if cache_write is None:
        cache_write = hour
    cached = (cache_read or 0) + (cache_write or 0)
    beside_input, beside_output = _beside(attributes, provider, given or 0, produced or 0, cached, reasoning or 0)
    if not beside_input and cached > (given or 0):
        cache_read = None if cache_read is None else min(cache_read, given or 0)
        cache_write = None if cache_write is None else (given or 0) - (cache_read or 0)
        cached = (cache_read or 0) + (cache_write or 0)
    if not beside_output and reasoning is not None:
        reasoning = min(reasoning, produced or 0)
    uncached, audio_in = disjoint(given, 0 if beside_input else cached, audio_in)
    cache_write, hour = written(cache_write, hour)
    text, audio_out = disjoint(produced, 0 if beside_output else reasoning or 0, audio_out)
    return Parts(
        uncached,
        cache_read,
        cache_write,
        text,
        reasoning,
        hour,
        audio_in,
        audio_out,
        known=True,
    )


def number(attributes: Mapping[str, Attribute], name: str) -> int | None:
    """Return this count of tokens, None where there is none. JavaScript has no integers: 62.0 is one, NaN is not."""
    value = attributes.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS:
        return value
    return None


def _beside(
    attributes: Mapping[str, Attribute], provider: str, given: int, produced: int, cached: int, reasoning: int
) -> tuple[bool, bool]:
    """Return whether cached tokens are beside the input, and reasoning beside the output."""
    if cached == 0 and reasoning == 0:
        return False, False
    total = number(attributes, "total")
    passed_on = passes_on(attributes, provider)
    if total is None or total < given + produced:
        return cached > given or passed_on, reasoning > produced
    if total == given + produced:
        return passed_on or (cached > given and provider.startswith("anthropic")), False
    for input_apart, output_apart in ((True, False), (False, True), (True, True)):
        if total == given + produced + input_apart * cached + output_apart * reasoning:
            return input_apart, output_apart
    # No way to add up to it: whatever is beside must have room in it.
    apart = passed_on or cached > given
    room = total - given - produced
    input_apart = apart and cached <= room
    return input_apart, reasoning > produced and reasoning <= room - input_apart * cached


def passes_on(attributes: Mapping[str, Attribute], provider: str) -> bool:
    """Return whether the sender passes on what Anthropic counted: cached tokens beside the input."""
    if names.VERCEL_OPERATION not in attributes or not provider.startswith("anthropic"):
        return False
    version = _VERCEL_MAJOR.search(str(attributes.get(names.VERCEL_USER_AGENT, "")))
    return version is not None and int(version[1]) < _VERCEL_INCLUDES_SINCE
