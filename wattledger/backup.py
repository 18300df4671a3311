"""`wattledger backup`: the database and the sealed files its catalog names, at one point in time, while all goes on.

One transaction exports its snapshot: pg_dump dumps what it sees, and the list of sealed files is read in it. A shared
advisory lock keeps files that were replaced meanwhile from being deleted, and a lease on the target keeps other backups of it out. A backup appears under its name when it is whole; files
that an earlier backup of the target has are not copied again. It takes no secrets: tokens are in the database as hashes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg

from analytics.actions.pause import paused
from analytics.io.restored import LedgerTotals, ledger_totals
from ingest.store.catalog import listed_files
from ingest.store.engine import Database
from ingest.store.migrate import current, layout_of
from ingest.store.seal_hours import hold_retired
from ingest.store.segments import SegmentError, SegmentFile, Segments, SegmentUnreachableError, sync
from wattledger.backup_lease import Lease, held
from wattledger.backup_manifest import (
    BACKUPS,
    DUMP,
    SEGMENTS,
    BackedFile,
    BackupError,
    Manifest,
    backups_in,
    hex_digest,
    known_files,
    read_manifest,
    sync_folder,
)
from wattledger.backup_programs import find_programs, reach
from wattledger.runtime import code_version

Say = Callable[[str], None]
_TELL_EVERY_S: Final = 2.0
_MIB: Final = 1 << 20
_ATTEMPTS: Final = 3
_UNFINISHED: Final = ".unfinished-"
_FINISHED_WITHIN_S: Final = 86_400.0
"""A backup that took longer than to the next night is no backup."""
_SERVER: Final = """
SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,
       (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'),
       (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user)
"""
_EVER: Final = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that is whole."""

    folder: Path
    manifest: Manifest
    copied_files: int
    copied_bytes: int
    kept_files: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the snapshot shows."""

    snapshot: str
    files: Sequence[SegmentFile]
    ledger: LedgerTotals


def back_up(
    database: Database,
    segments: Segments,
    home: Path,
    target: Path,
    *,
    env: Mapping[str, str],
    say: Say,
    reread: bool = False,
    keep: int | None = None,
) -> Made:
    """Make a backup in a target folder; ``reread`` has files of earlier backups there compared byte by byte.

    ``keep``: then delete all but the newest so many, as :func:`prune`. Raises BackupError (also while another backup uses the
    target), SegmentError (a sealed file is missing or damaged: nothing is a backup without it), OSError.
    """
    target = target.resolve()
    for folder in (target, target / BACKUPS, target / SEGMENTS):
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    with held(target, "a backup") as lease:
        made = _made(database, segments, home, target, env, say, lease, reread=reread)
        if keep is not None:
            _prune(target, keep, say, lease)
    return made


def _made(
    database: Database,
    segments: Segments,
    home: Path,
    target: Path,
    env: Mapping[str, str],
    say: Say,
    lease: Lease,
    *,
    reread: bool,
) -> Made:
    for attempt in range(_ATTEMPTS):
        try:
            return _attempt(database, segments, home, target, env, say, lease, reread=reread)
        except _GoneError as error:
            if attempt == _ATTEMPTS - 1:
                raise BackupError(f"a table was dropped while it was dumped: {error}; try again") from error
            say("a day's tables were dropped meanwhile; once more")
    raise AssertionError("the last attempt returns or raises")


def prune(target: Path, keep: int, say: Say) -> None:
    """Delete all but the newest ``keep`` backups of a target, then the sealed files none of those left has.

    What is unfinished was begun by somebody dead, or by one who stood still and may go on: for a day sealed files are
    spared for it, then it goes too. Raises BackupError while a backup uses the target.
    """
    with held(target, "`wattledger backup --keep`") as lease:
        _prune(target, keep, say, lease)


def _prune(target: Path, keep: int, say: Say, lease: Lease) -> None:
    found = backups_in(target)
    gone = found[: max(0, len(found) - keep)]
    left = {file.path for folder in found[len(gone) :] for file in read_manifest(folder).segments}
    unfinished = _swept(target / BACKUPS)
    lease.check()
    for folder in gone:
        hidden = folder.with_name(f".deleted-{folder.name}")
        folder.rename(hidden)
        shutil.rmtree(hidden)
        say(f"deleted {folder.name}")
    if unfinished:
        say(f"{unfinished.name} is not a day old: no sealed file is deleted, the next backup does it")
        return
    if gone:
        for path in (target / SEGMENTS).rglob("*.parquet"):
            if path.relative_to(target / SEGMENTS).as_posix() not in left:
                lease.check()
                path.unlink()


def _swept(parent: Path) -> Path | None:
    """Delete backups that nobody finished within a day; return one that is younger, if there is any."""
    young = None
    for folder in parent.glob(f"{_UNFINISHED}*"):
        if time.time() - folder.stat().st_mtime > _FINISHED_WITHIN_S:
            shutil.rmtree(folder)
        else:
            young = folder
    return young


class _GoneError(RuntimeError):
    """What was to be dumped was dropped between the snapshot and the dump's locks."""


def _attempt(
    database: Database,
    segments: Segments,
    home: Path,
    target: Path,
    env: Mapping[str, str],
    say: Say,
    lease: Lease,
    *,
    reread: bool,
) -> Made:
    taken_at = datetime.now(UTC)
    schema = current(database.url)
    if schema is None:
        raise BackupError(f"{database.display_url} was never migrated; there is nothing to back up")
    layout = str(layout_of(database.url).layout)
    with database.connect("admin", application="wattledger-backup") as connection:
        server, major, extension, sees_all = _server(connection)
        if not sees_all:
            raise BackupError(
                f"the login of {database.display_url} sees one tenant at a time; back up as a superuser, or ALTER ROLE … BYPASSRLS"
            )
        programs = find_programs(major, env)
        with _unfinished(target / BACKUPS, taken_at) as folder, hold_retired(connection):
            seen = _snapshot(connection)
            pause = paused(home)
            copied = _copy(segments, seen.files, target, say, reread=reread)
            _dump(programs["pg_dump"], database, seen.snapshot, folder / DUMP, say)
            manifest = Manifest(
                taken_at=taken_at.isoformat().replace("+00:00", "Z"),
                wattledger=code_version(),
                schema=schema,
                layout=layout,
                server=server,
                timescaledb=extension,
                dump_size_bytes=(folder / DUMP).stat().st_size,
                dump_sha256=hex_digest(folder / DUMP),
                ledger=seen.ledger,
                actions_paused=None if pause is None else asdict(pause),
                segments=tuple(_told(file) for file in seen.files),
            )
            manifest.write(folder)
            sync_folder(folder)
            _still_there(manifest, target)
            lease.check()
            whole = folder.rename(target / BACKUPS / folder.name.removeprefix(_UNFINISHED))
            sync_folder(target / BACKUPS)
    return Made(whole, manifest, *copied)


@contextmanager
def _unfinished(parent: Path, at: datetime) -> Iterator[Path]:
    """Make a folder that is no backup yet; it goes with whatever fails."""
    folder = parent / f"{_UNFINISHED}{at:%Y%m%dT%H%M%S.%fZ}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _server(connection: psycopg.Connection[Any]) -> tuple[str, int, str | None, bool]:
    row = connection.execute(_SERVER).fetchone()
    connection.rollback()
    if row is None:
        raise AssertionError("a query without FROM has one row")
    return str(row[0]), int(row[1]), row[2], bool(row[3])


def _snapshot(connection: psycopg.Connection[Any]) -> _Seen:
    """Begin the transaction that everything is seen in; it lasts until its connection is done."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    row = connection.execute("SELECT pg_export_snapshot()").fetchone()
    # Time does not pass for a transaction that only lends its snapshot; a limit on idle ones would take it away.
    connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    connection.execute("SET LOCAL statement_timeout = 0")
    files = [listed.file for listed in listed_files(connection, None, *_EVER, pinned=True)]
    return _Seen("" if row is None else str(row[0]), files, ledger_totals(connection))


def _told(file: SegmentFile) -> BackedFile:
    return BackedFile(file.path, file.rows, file.size_bytes, file.sha256.hex())


def _copy(
    segments: Segments, files: Sequence[SegmentFile], target: Path, say: Say, *, reread: bool
) -> tuple[int, int, int]:
    """Copy the files the target does not have; return files and bytes copied, and files kept."""
    known = set() if reread else {file.key for file in known_files(target)}
    copied = size_bytes = kept = 0
    tell = _Teller(say)
    folders: set[Path] = set()
    for number, file in enumerate(files, 1):
        told, place = _told(file), target / SEGMENTS / file.path
        if _is_there(place, told, known):
            kept += 1
            continue
        tell(f"sealed files: {number - 1:,} of {len(files):,}, {size_bytes / _MIB:,.0f} MiB copied")
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            with segments.fresh(file) as found:
                shutil.copyfile(found, partial)
            if hex_digest(partial) != told.sha256:
                raise BackupError(f"{file.path} did not arrive in {target} as it was; is that disk well?")
            sync(partial)
            partial.replace(place)
        except SegmentUnreachableError as error:
            raise BackupError(f"{error}; a backup without it would not be one") from error
        except SegmentError as error:
            raise BackupError(str(error)) from error
        finally:
            partial.unlink(missing_ok=True)
        folders |= {folder for folder in place.parents if folder.is_relative_to(target / SEGMENTS)}
        copied, size_bytes = copied + 1, size_bytes + file.size_bytes
    for folder in folders:
        sync_folder(folder)
    say(
        f"sealed files: {len(files):,}, of which {copied:,} copied ({size_bytes / _MIB:,.1f} MiB), {kept:,} there already"
    )
    return copied, size_bytes, kept


def _still_there(manifest: Manifest, target: Path) -> None:
    """Raise BackupError where a sealed file is not as it was copied or found: the dump took its time, and the target is a folder."""
    for file in manifest.segments:
        place = target / SEGMENTS / file.path
        if not place.is_file() or place.stat().st_size != file.size_bytes:
            raise BackupError(
                f"{place} was deleted or changed while the database was dumped; see who else writes there, and try again"
            )


def _is_there(place: Path, file: BackedFile, known: set[tuple[str, int, str]]) -> bool:
    """Say whether the target has a file; one of an earlier backup is believed by its size, any other is read."""
    with suppress(FileNotFoundError):
        return place.stat().st_size == file.size_bytes and (file.key in known or hex_digest(place) == file.sha256)
    return False


def _dump(program: str, database: Database, snapshot: str, dump: Path, say: Say) -> None:
    target, env = reach(database)
    command = [program, "--format=custom", "--compress=1", f"--snapshot={snapshot}", f"--dbname={target}"]
    tell = _Teller(say)
    with (
        dump.open("xb") as output,
        subprocess.Popen(
            [*command, "--lock-wait-timeout=60s", "--no-password"],
            stdout=output,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=env,
            cwd="/",
        ) as process,
    ):
        try:
            while True:
                try:
                    _, complaint = process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    tell(f"database: {dump.stat().st_size / _MIB:,.0f} MiB dumped")
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        said = complaint.strip()[-1000:]
        if "does not exist" in said or "could not open relation" in said:
            raise _GoneError(said)
        raise BackupError(f"pg_dump failed: {said}")
    sync(dump)
    say(f"database: {dump.stat().st_size / _MIB:,.1f} MiB dumped")


class _Teller:
    """Says how far something is, every few seconds."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._next_s = time.monotonic() + _TELL_EVERY_S

    def __call__(self, line: str) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _TELL_EVERY_S
            self._say(line)
