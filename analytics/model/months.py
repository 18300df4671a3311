"""Gives each hour of a month its part of an amount of the whole month, so that the hours add up to it to the last digit.

An hour's part hangs on the amount and its place alone, not on other hours' parts: hours can be computed in any order, alone, and again.
It knows no calendar: which hours a month has is ``model.month``'s.
"""

from __future__ import annotations

from fractions import Fraction

from analytics.units import NANO


def hour_part(total: Fraction, index: int, of: int) -> int:
    """Return the part of hour ``index`` (from 0) of ``of`` hours, in billionths: what the month came to by its end, less by its beginning.

    Each of the two is rounded half to even, so all hours together are the rounded total. Raises ValueError for an hour the month has not.
    """
    if not 0 <= index < of:
        raise ValueError(f"a month of {of} hours has no hour {index}; they are counted from 0")
    by_end, by_beginning = (round(total * NANO * hours / of) for hours in (index + 1, index))
    return by_end - by_beginning
