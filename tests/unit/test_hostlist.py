"""Node names folded as schedulers write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.model.hostlist import fold

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([], ""),
        (["login"], "login"),
        (["node001"], "node001"),
        ([f"node{number:03d}" for number in range(1, 129)], "node[001-128]"),
        (["node001", "node002", "node007"], "node[001-002,007]"),
        (["n9", "n10", "n11"], "n[9-11]"),
        (["n09", "n10", "n11"], "n[09-11]"),
        (["n9", "n09"], "n09,n9"),
        (["gpu-1.fra", "gpu-2.fra", "gpu-2.ams"], "gpu-2.ams,gpu-[1-2].fra"),
        (["a0", "a1"], "a[0-1]"),
        (["b", "a1", "a1"], "a1,b"),
    ],
)
def test_runs_of_numbers_become_one_bracket(names: list[str], folded: str) -> None:
    assert fold(reversed(names)) == folded


@given(st.sets(st.from_regex(r"(a|b-)[0-9]{1,4}(|x)", fullmatch=True)))
def test_whatever_is_folded_unfolds_to_the_same_names(names: set[str]) -> None:
    assert _unfolded(fold(names)) == names


def _unfolded(text: str) -> set[str]:
    names: set[str] = set()
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?[^,]*", text):
        match = re.fullmatch(r"(.*)\[(.*)\](.*)", part)
        if match is None:
            names.add(part)
            continue
        for run in match[2].split(","):
            first, _, last = run.partition("-")
            width = len(first)
            numbers = range(int(first), int(last or first) + 1)
            names |= {f"{match[1]}{number:0{width}d}{match[3]}" for number in numbers}
    return names
