"""The parts of a call's tokens are disjoint: they add up to the total its sender states, whatever overlaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.importers.litellm import token_parts
from ingest.receivers.gen_ai_tokens import Parts, parts_of

pytestmark = pytest.mark.property

COUNTS = st.integers(0, 1_000)
SOME = st.none() | COUNTS
BESIDE = st.tuples(st.integers(0, 1), st.integers(0, 1))
"""Whether a sender counts cached tokens beside the input, and reasoning beside the output."""


def summed(parts: Parts) -> int:
    told = [getattr(parts, name) for name in parts.__slots__ if name != "known"]
    assert all(part is None or part >= 0 for part in told)
    return sum(part or 0 for part in told)


def told(**counts: int | None) -> dict[str, str | int | float | bool]:
    return {name: count for name, count in counts.items() if count is not None}


def test_cached_audio_is_counted_once() -> None:
    parts = parts_of(told(input=1_000, cache_read=600, audio_in=500, output=10, total=1_010), "openai")
    assert (parts.input_uncached, parts.cache_read, parts.audio_in, parts.output_text) == (0, 600, 400, 10)
    parts = parts_of(told(input=1_000, output=300, reasoning=200, audio_out=150), "openai")
    assert (parts.input_uncached, parts.output_text, parts.reasoning, parts.audio_out) == (1_000, 0, 200, 100)


def test_cached_tokens_beside_a_total_that_has_no_room_for_them_give_way_but_anthropics_do_not() -> None:
    usage = told(input=100, cache_read=80, cache_write=70, output=10, total=110)
    parts = parts_of(usage, "openai")
    assert (parts.input_uncached, parts.cache_read, parts.cache_write, parts.output_text) == (0, 80, 20, 10)
    parts = parts_of(usage, "anthropic")
    assert (parts.input_uncached, parts.cache_read, parts.cache_write, parts.output_text) == (100, 80, 70, 10)


@given(COUNTS, COUNTS, SOME, SOME, SOME, SOME, SOME, BESIDE)
def test_parts_add_up_to_the_stated_total(
    input_: int,
    output: int,
    read: int | None,
    write: int | None,
    reasoning: int | None,
    audio_in: int | None,
    audio_out: int | None,
    beside: tuple[int, int],
) -> None:
    cached = (read or 0) + (write or 0)
    total = input_ + output + beside[0] * cached + beside[1] * (reasoning or 0)
    usage = told(
        input=input_,
        output=output,
        cache_read=read,
        cache_write=write,
        reasoning=reasoning,
        audio_in=audio_in,
        audio_out=audio_out,
        total=total,
    )
    assert summed(parts_of(usage, "openai")) == total


@given(COUNTS, COUNTS, SOME, SOME, SOME, SOME, st.integers(0, 4_000))
def test_parts_never_add_up_to_more_than_a_total_that_has_room_for_input_and_output(
    input_: int,
    output: int,
    read: int | None,
    reasoning: int | None,
    audio_in: int | None,
    audio_out: int | None,
    more: int,
) -> None:
    usage = told(
        input=input_, output=output, cache_read=read, reasoning=reasoning, audio_in=audio_in, audio_out=audio_out
    )
    total = input_ + output + more
    assert input_ + output <= summed(parts_of(usage | {"total": total}, "openai")) <= total


@given(st.integers(1, 1_000), st.integers(1, 1_000), SOME, SOME, SOME, SOME)
def test_the_parts_of_a_litellm_row_add_up_to_its_totals(
    prompt: int, completion: int, cached: int | None, reasoning: int | None, audio_in: int | None, audio_out: int | None
) -> None:
    usage = {
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": audio_in},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": audio_out},
    }
    parts = token_parts({"prompt": prompt, "completion": completion, "metadata": {"usage_object": usage}})
    # What is larger than its whole was never in it; all else is.
    beside = sum(part for part, whole in ((cached or 0, prompt), (reasoning or 0, completion)) if part > whole)
    assert sum(parts.values()) == prompt + completion + beside
