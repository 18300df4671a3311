"""The laws that are asked beside the unit tests, made short: a few examples each, the same in every run.

A law that runs the line of a fault judges it as a unit test does. It is asked last, since it takes longer.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

FOLDER: Final = "tests/property"
LAWS: Final = tuple(
    f"{FOLDER}/{name}.py"
    for name in (
        "test_budget_laws",
        "test_explain_laws",
        "test_laws_books",
        "test_laws_overhead",
        "test_laws_truth",
        "test_plain_laws",
    )
)
"""Not those that close large fleets, start processes or need a database."""
EXAMPLES: Final = 4
MANY: Final = 150
"""Of a law that draws arrays instead of sites: an example of it takes milliseconds."""
_QUICK: Final = ("test_plain_laws.py", "test_budget_laws.py")


def is_law(file: str) -> bool:
    """Return whether a test file holds laws."""
    return file.startswith(FOLDER)


def shorten(items: Iterable[pytest.Item]) -> None:
    """Let each law draw few examples, from its own name instead of by chance, keep none and shrink none.

    What hypothesis stores of ``@settings`` is set anew, which it has no public way for: a profile gives way to what a test says itself.
    """
    hypothesis = importlib.import_module("hypothesis")
    for item in items:
        law = getattr(item, "obj", None)
        told = getattr(law, "_hypothesis_internal_use_settings", None)
        if told is not None:
            most = MANY if item.path.name in _QUICK else EXAMPLES
            law._hypothesis_internal_use_settings = hypothesis.settings(  # type: ignore[union-attr]
                told,
                max_examples=min(told.max_examples, most),
                derandomize=True,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
