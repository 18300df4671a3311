"""Asks one device for a group of fields or calls, and remembers what it does not give.

A column that is refused for what the device, its driver or our rights are is left out from then on, with the code that
said why, until it is forgotten (:mod:`collector.probe.nvml_device` does so each hour). A column that merely failed is
counted and asked again. What concerns the whole device or driver is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import pynvml

from collector.probe import Values
from collector.probe.nvml_codes import FATAL_CODES, LOST_CODES, UNSUPPORTED_CODES
from collector.probe.nvml_fields import Field, FieldBatch

_NO_FIELDS: Final = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
"""A device or driver too old for fields at all. Other codes may be the answer to a handle of a driver that was reloaded."""


class Call(NamedTuple):
    """A driver call that is not a field: the columns it fills, in order, and what to ask instead where it is unknown."""

    columns: tuple[str, ...]
    ask: Callable[[Any], tuple[int | None, ...]]
    instead: Call | None = None


class Fields:
    """A group of fields, read in one call. Several fields of one column are added up."""

    def __init__(self, handle: Any, fields: Sequence[Field]) -> None:
        """Assume that all of them are supported."""
        self.unsupported: dict[str, int] = {}
        self._handle = handle
        self._all = tuple(fields)
        self._batch = FieldBatch(self._all)

    def forget(self) -> None:
        """Ask for all of them again."""
        if self.unsupported or len(self._batch.fields) < len(self._all):
            self.unsupported = {}
            self._batch = FieldBatch(self._all)

    def read(self, values: Values, errors: Counter[str]) -> None:
        """Add what the device gives. Raises pynvml.NVMLError where the call as a whole fails."""
        if not self._batch.fields:
            return
        code = self._batch.read(self._handle)
        if code in _NO_FIELDS:
            self.unsupported |= {entry.column: code for entry in self._batch.fields}
            self._batch = FieldBatch(())
            return
        if code != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        refused: dict[Field, int] = {}
        for entry, field_code, value in self._batch.answers():
            if value is not None:
                earlier = values.get(entry.column)
                values[entry.column] = value if earlier is None else earlier + value
            elif field_code in UNSUPPORTED_CODES:
                refused[entry] = field_code
            elif field_code in LOST_CODES:
                raise pynvml.NVMLError(field_code)
            elif field_code != pynvml.NVML_SUCCESS:
                errors[f"field:{field_code}"] += 1
        if refused:
            kept = tuple(entry for entry in self._batch.fields if entry not in refused)
            columns = {entry.column for entry in kept}
            self.unsupported |= {entry.column: code for entry, code in refused.items() if entry.column not in columns}
            self._batch = FieldBatch(kept)

    def is_narrow(self, column: str) -> bool:
        """Say whether the driver answered this column with a 32-bit number."""
        return self._batch.is_narrow(column)


class Calls:
    """A group of calls, made one after the other."""

    def __init__(self, handle: Any, calls: Sequence[Call]) -> None:
        """Assume that all of them are supported."""
        self.unsupported: dict[str, int] = {}
        self._handle = handle
        self._all = tuple(calls)
        self._calls = list(self._all)

    @property
    def columns(self) -> set[str]:
        """The columns these calls fill where they can."""
        return {column for call in self._all for column in call.columns}

    def forget(self) -> None:
        """Ask for all of them again."""
        self.unsupported = {}
        self._calls = list(self._all)

    def read(self, values: Values, errors: Counter[str]) -> None:
        """Add what the device gives. Raises pynvml.NVMLError for a lost device or driver."""
        for call in tuple(self._calls):
            try:
                answer = call.ask(self._handle)
            except pynvml.NVMLError as error:
                self._failed(call, error, values, errors)
            else:
                values.update(zip(call.columns, answer, strict=True))

    def _failed(self, call: Call, error: Any, values: Values, errors: Counter[str]) -> None:
        if error.value in FATAL_CODES:
            raise error
        if error.value not in UNSUPPORTED_CODES:
            errors[f"{call.columns[0]}:{error.value}"] += 1
            return
        self._calls.remove(call)
        if call.instead is None:
            self.unsupported |= dict.fromkeys(call.columns, error.value)
            return
        self._calls.append(call.instead)
        try:
            values.update(zip(call.columns, call.instead.ask(self._handle), strict=True))
        except pynvml.NVMLError as second:
            self._failed(call.instead, second, values, errors)
