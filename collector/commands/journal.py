"""Remembers what an order changed and what was there before, durably and before it is changed.

In a file of its own beside the spool: an undo must not depend on a spool that was lost, damaged or set aside. It is small and written
anew at each change, to the disk before it takes the name, so after a crash there is the one state or the other. A copy lies beside it,
written after it, for the day a block of the disk does not give back what was written. It carries out nothing.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from collector.commands.check import LONGEST_US
from collector.commands.left import CHANGE_FACT, COPY_SUFFIX, SUFFIX
from collector.errors import JournalError
from collector.spool import Spool

_LOG = logging.getLogger(__name__)

VERSION: Final = 1
NONCES_KEPT_US: Final = LONGEST_US
"""How long after its order's expiry a nonce is kept: so far may the clock be set back and no order be carried out twice."""
_MAX_FILE_BYTES: Final = 16 << 20
# Where releases before this kept it: facts of the spool.
_NONCE: Final = "nonce:"
_SINCE: Final = "journal_since_us"


@dataclass(frozen=True, slots=True)
class Change:
    """One device's power limit, as an order set it and as it was before any order."""

    device_uuid: str
    nonce: str
    previous_mw: int
    applied_mw: int
    expires_at_us: int


@dataclass(frozen=True, slots=True)
class _State:
    since_us: int | None = None
    changes: dict[str, Change] = field(default_factory=dict)
    nonces: dict[str, int] = field(default_factory=dict)


class _DamagedError(Exception):
    """The file is not as it was written."""


class Journal:
    """The changes in force, one a device, and the orders seen. For one thread at a time; any method may raise JournalError."""

    def __init__(self, spool: Spool) -> None:
        """Keep them in a file beside this spool's; nothing is opened yet. What an older release kept in the spool is taken over."""
        self.path = spool.path.with_name(spool.path.name + SUFFIX)
        self._spool = spool
        self._loaded: _State | None = None
        self._copy = spool.path.with_name(spool.path.name + COPY_SUFFIX)
        self._damaged: list[tuple[Path, bool]] = []

    def begin(self, now_us: int) -> None:
        """Note since when there is this journal, where that is not noted yet."""
        if self._state.since_us is None:
            self._keep(replace(self._state, since_us=now_us))

    def knew(self, at_us: int) -> bool:
        """Say whether there was this journal at an instant already: what was changed since then is in it."""
        since_us = self._state.since_us
        return since_us is not None and since_us <= at_us

    def changes(self) -> dict[str, Change]:
        """Return what is to be undone some time, by device."""
        return dict(self._state.changes)

    def note(self, change: Change) -> None:
        """Remember a change; on the disk when this returns."""
        self._keep(replace(self._state, changes={**self._state.changes, change.device_uuid: change}))

    def close(self, device_uuid: str) -> None:
        """Forget a change: it was undone, or is no longer ours to undo."""
        left = {uuid: change for uuid, change in self._state.changes.items() if uuid != device_uuid}
        self._keep(replace(self._state, changes=left))

    def seen(self) -> frozenset[str]:
        """Return the nonces of orders that were carried out or refused, until long after they have expired."""
        return frozenset(self._state.nonces)

    def see(self, nonce: str, expires_at_us: int) -> None:
        """Remember an order's nonce; on the disk when this returns."""
        self._keep(replace(self._state, nonces={**self._state.nonces, nonce: expires_at_us}))

    def forget_expired(self, now_us: int) -> None:
        """Let go of nonces of orders that would be refused as expired even by a clock that was set back since."""
        kept = {nonce: until_us for nonce, until_us in self._state.nonces.items() if until_us + NONCES_KEPT_US > now_us}
        if len(kept) < len(self._state.nonces):
            self._keep(replace(self._state, nonces=kept))

    def take_damaged(self) -> list[tuple[Path, bool]]:
        """Return where damaged journals went since the last call, and whether a copy told the same: else it is not undone."""
        damaged, self._damaged = self._damaged, []
        return damaged

    @property
    def _state(self) -> _State:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> _State:
        try:
            text = _read(self.path)
            state = None if text is None else _parse(text)
        except _DamagedError:
            target = self.path.with_name(f"{self.path.name}.damaged-{uuid.uuid4().hex[:8]}")
            try:
                self.path.rename(target)
            except OSError as error:
                raise JournalError(
                    f"the journal of orders {self.path} is damaged and cannot be set aside: {error}"
                ) from error
            _LOG.error("the journal of orders was damaged; it is kept as %s", target)
            state = self._read_copy()
            self._damaged.append((target, state is not None))
            state = state or _State()
            self._write(state)
        except OSError as error:
            raise JournalError(f"cannot read the journal of orders {self.path}: {error}") from error
        state = state or self._read_copy()
        facts = self._facts()
        if state is None:
            state = _of_facts(facts)
            if facts:
                self._write(state)
        # Only now: after a crash in between they are taken over again, or found to be in the file already.
        for name in facts:
            self._spool.forget(name)
        return state

    def _read_copy(self) -> _State | None:
        try:
            text = _read(self._copy)
            return None if text is None else _parse(text)
        except (OSError, _DamagedError):
            _LOG.error("the copy %s of the journal of orders cannot be read", self._copy)
            return None

    def _facts(self) -> dict[str, str]:
        found = {
            prefix + name: text for prefix in (CHANGE_FACT, _NONCE) for name, text in self._spool.facts(prefix).items()
        }
        since = self._spool.recall(_SINCE)
        return found if since is None else {**found, _SINCE: since}

    def _keep(self, state: _State) -> None:
        self._write(state)
        self._loaded = state

    def _write(self, state: _State) -> None:
        body = json.dumps(
            {
                "version": VERSION,
                "since_us": state.since_us,
                "changes": [asdict(change) for change in state.changes.values()],
                "nonces": state.nonces,
            },
            sort_keys=True,
        )
        data = f"{zlib.crc32(body.encode()):08x}\n{body}\n".encode()
        try:
            _replace(self.path, data)
        except OSError as error:
            self._loaded = None  # which of the two states the disk has is looked up
            raise JournalError(f"cannot write the journal of orders {self.path}: {error}") from error
        try:
            _replace(self._copy, data)
        except OSError as error:
            _LOG.error("the journal of orders has no copy now: %s", error)
            with suppress(OSError):
                self._copy.unlink(missing_ok=True)  # a state of before must not be taken for that of now


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that there is the old one or the new one, on the disk when this returns. Raises OSError."""
    beside = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(path)
        _sync_folder(path.parent)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > _MAX_FILE_BYTES:
        raise _DamagedError
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _DamagedError from error


def _parse(text: str) -> _State:
    checksum, _, body = text.rstrip("\n").partition("\n")
    try:
        if int(checksum, 16) != zlib.crc32(body.encode()):
            raise _DamagedError
        raw: dict[str, Any] = json.loads(body)
        if raw["version"] != VERSION:
            raise _DamagedError
        changes = [Change(**entry) for entry in raw["changes"]]
        return _State(raw["since_us"], {change.device_uuid: change for change in changes}, dict(raw["nonces"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _DamagedError from error


def _of_facts(facts: dict[str, str]) -> _State:
    """Return what a release before this kept in the spool; what cannot be read is left out: to undo a guess would be worse."""
    since_us: int | None = None
    changes: dict[str, Change] = {}
    nonces: dict[str, int] = {}
    for name, text in facts.items():
        try:
            if name == _SINCE:
                since_us = int(text)
            elif name.startswith(CHANGE_FACT):
                change = Change(**json.loads(text))
                changes[change.device_uuid] = change
            else:
                nonces[name.removeprefix(_NONCE)] = int(text)
        except (ValueError, TypeError):
            _LOG.warning("a fact %s of the journal of orders cannot be read and is dropped", name)
    return _State(since_us, changes, nonces)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
