"""Checks the texts of one Arrow column, a whole buffer at a time: lengths, control characters, UTF-8.

A text that PostgreSQL refuses (NUL, bytes that are no UTF-8) would fail the COPY of everybody in its group; here it is
refused for itself, before any decoder or database sees it. It decodes no values and knows no stream.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np

from collector.wire import CONTROL_BYTES, MAX_STRING_BYTES
from ingest.errors import BadBodyError, malformed

_CONTROL: Final = re.compile(b"[" + re.escape(CONTROL_BYTES) + b"]")


def check_texts(where: str, offsets: np.ndarray[Any, Any], data: bytes) -> None:
    """Raise BadBodyError unless all texts are within ``data``, short enough, UTF-8, and free of control characters.

    ``where`` names the column in the refusal; ``offsets`` are rows + 1 positions in ``data``, as Arrow lays them out.
    """
    lengths = np.diff(offsets)
    if offsets[0] < 0 or offsets[-1] > len(data) or (len(lengths) and int(lengths.min()) < 0):
        raise malformed(f"column {where}: text offsets leave their buffer")
    if len(lengths) and int(lengths.max()) > MAX_STRING_BYTES:
        row = int(lengths.argmax())
        raise _refused(where, row, f"{int(lengths[row])} bytes long; at most {MAX_STRING_BYTES} are taken")
    first, last = int(offsets[0]), int(offsets[-1])
    found = _CONTROL.search(data, first, last)
    if found is not None:
        fault = f"holding the control character U+{found[0][0]:04X}; replace it before sending"
        raise _refused(where, _row_at(offsets, found.start()), fault)
    used = data[first:last]
    if used.isascii():
        return
    try:
        used.decode()
    except UnicodeDecodeError as error:
        raise _refused(where, _row_at(offsets, first + error.start), "not UTF-8") from None
    # Together they are UTF-8; a text that begins inside a character is not, nor is the one before it.
    starts = np.frombuffer(data, np.uint8)[offsets[:-1][lengths > 0]]
    torn = np.flatnonzero((starts & 0xC0) == 0x80)
    if len(torn):
        raise _refused(where, int(np.flatnonzero(lengths > 0)[torn[0]]), "not UTF-8")


def _row_at(offsets: np.ndarray[Any, Any], position: int) -> int:
    return int(np.searchsorted(offsets, position, side="right")) - 1


def _refused(where: str, row: int, fault: str) -> BadBodyError:
    return BadBodyError("bad_text", f"column {where}: the text of row {row} of its batch is {fault}")
