"""What analytics refuses, and how a caller should treat it.

::

    AnalyticsError
    ├── InputError      the caller gave frames or a window the model cannot explain: fix the caller, never retry
    │   └── CloseError  the same of closing a month: a person reads it
    └── BooksError      a law of the books would be broken: nothing may be written for this hour
        └── AmountError a sum leaves the range in which integer arithmetic is exact
"""

from __future__ import annotations


class AnalyticsError(Exception):
    """Base of everything analytics raises on purpose."""


class InputError(AnalyticsError, ValueError):
    """The caller gave frames or a window the model cannot explain."""


class CloseError(InputError):
    """What was asked of closing a month, of its key or of its document cannot be done; the message says what to do instead."""


class BooksError(AnalyticsError):
    """A law of the books would be broken; nothing may be written for this hour."""


class AmountError(BooksError):
    """A sum leaves the range in which integer arithmetic is exact."""
