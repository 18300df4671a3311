"""Kinds of parameters that several commands take: text files, tenant paths, durations, pairs, amounts. A bad one is a usage error."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import click

STDIN: Final = "-"
MAX_TEXT_BYTES: Final = 4 << 20
_MJ_PER_KWH: Final = 3_600_000_000
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Text:
    """A file's content and the name to call it by in messages."""

    name: str
    content: str


class TextFile(click.ParamType[Text]):
    """A UTF-8 file, or `-` for standard input, read at once."""

    name = "file"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Text:
        if isinstance(value, Text):
            return value
        path = str(value)
        try:
            raw = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1) if path == STDIN else _head(Path(path))
        except OSError as error:
            self.fail(f"cannot read {path}: {error.strerror}", param, ctx)
        if len(raw) > MAX_TEXT_BYTES:
            self.fail(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB; is it the right file?", param, ctx)
        try:
            return Text("standard input" if path == STDIN else path, raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            self.fail(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8", param, ctx)


class TenantPath(click.ParamType[str]):
    """A tenant path like acme/research."""

    name = "path"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ingest.store.tenancy import TenantPathError, checked_path

        try:
            return checked_path(str(value))
        except TenantPathError as error:
            self.fail(str(error), param, ctx)


class Duration(click.ParamType[timedelta]):
    """A positive length of time with its unit: 15m, 1h, 1d."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"([1-9]\d{0,5})([smhd])", str(value))
        if match is None:
            self.fail(f"{value!r} is no duration; write 15m, 1h or 1d", param, ctx)
        return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


class Pair(click.ParamType[tuple[str, str]]):
    """OURS=THEIRS."""

    name = "ours=theirs"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        ours, equals, theirs = str(value).partition("=")
        if not (ours.strip() and equals and theirs.strip()):
            self.fail(f"{value!r} must look like ours=theirs, e.g. start=init_start_ms", param, ctx)
        return ours.strip(), theirs.strip()


class Percent(click.ParamType[int]):
    """A percentage as parts per million: 0.5 is 5,000."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,4}))?", str(value))
        if match is None:
            self.fail(f"{value!r} is no percentage; write it like 2 or 0.5", param, ctx)
        return int(match[1]) * 10_000 + int((match[2] or "").ljust(4, "0"))


class Kwh(click.ParamType[int]):
    """Energy in kWh as whole millijoules."""

    name = "kwh"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,9})(?:\.(\d{1,9}))?", str(value))
        if match is None or not int(match[1] + (match[2] or "")):
            self.fail(f"{value!r} is no energy above 0 in kWh; write it like 1000000 or 4294.967296", param, ctx)
        billionths = int(match[1]) * 10**9 + int((match[2] or "").ljust(9, "0"))
        return billionths * _MJ_PER_KWH // 10**9


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MAX_TEXT_BYTES + 1)
