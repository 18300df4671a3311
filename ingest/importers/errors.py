"""Why an import stops as a whole. A single bad row never stops one: it is counted and listed (:mod:`.report`).

ImportFileError
├── TabularError        the bytes are not a table we can read
├── MissingColumnError  a column we need is not there
├── UnitError           units are missing, unknown or mixed
└── OptionError         what was asked for does not fit the file
"""


class ImportFileError(ValueError):
    """The file cannot be imported as asked; nothing was written."""


class TabularError(ImportFileError):
    """The file is empty, cut off, binary, or breaks a bound: ask for a clean export."""


class MissingColumnError(ImportFileError):
    """A required column was not found: name it with ``--map``."""


class UnitError(ImportFileError):
    """A column's unit is unknown, unstated or changes within the file: state it with ``--unit`` or split the file."""


class OptionError(ImportFileError):
    """An option is missing, unknown or contradicts the file."""


class RowError(ValueError):
    """One row cannot be taken. ``reason`` is from a small closed set, so that rows can be counted by it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
