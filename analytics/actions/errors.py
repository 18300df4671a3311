"""How a control plane can fail us. A class exists because the executor then does something else.

::

    PlaneError
    ├── PlaneUnavailableError   nothing was asked or answered: try again later, the action stays as it is
    ├── PlaneTimeoutError       asked, not answered: it may have happened, so only a reading tells
    └── PlaneRefusedError       answered no: recorded with its words, then a reading tells
"""

from __future__ import annotations


class PlaneError(Exception):
    """A control plane did not do what it was asked."""


class PlaneUnavailableError(PlaneError):
    """The plane cannot be reached; nothing happened."""


class PlaneTimeoutError(PlaneError):
    """The plane did not answer in time; what was asked may have happened all the same."""


class PlaneRefusedError(PlaneError):
    """The plane answered that it will not."""
