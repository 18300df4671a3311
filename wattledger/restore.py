"""`wattledger restore`: a backup into an empty home and an empty database, checked before, and again after.

Checksums of all of it come first, the database last and in one transaction, so that a restore that fails leaves an empty
database, and the next one goes on with the sealed files that are there. It overwrites nothing, and refuses a schema that this
version does not know.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final

from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from analytics.actions.pause import pause, paused
from analytics.io.health import ledger_facts, server_facts
from analytics.io.restored import SETTLE, ledger_totals
from ingest.store.engine import ROLE_NAMES, Database
from ingest.store.migrate import MINIMUM_SERVER_VERSION, current, migration_config, pending, upgrade
from ingest.store.segments import SegmentError, SegmentFile, Segments, sync
from wattledger import diagnosis
from wattledger.backup_manifest import (
    DUMP,
    SEGMENTS,
    BackedFile,
    BackupError,
    Manifest,
    chosen,
    hex_digest,
    read_manifest,
)
from wattledger.backup_programs import Programs, find_programs, reach
from wattledger.diagnosis import Check, broken, fine

Say = Callable[[str], None]
LONGEST_AGO: Final = timedelta(days=1)
"""A backup that is to stand for what is dropped now."""
_CHUNK_BYTES: Final = 1 << 20
_EVERY_FILES: Final = 500
_SERVER: Final = """
SELECT current_setting('server_version_num')::int / 10000, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
        AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e'))
"""
_CREATE_ROLE: Final = """
DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
    CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS; END IF; END $$
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A backup whose manifest was read."""

    folder: Path
    manifest: Manifest

    @property
    def segments(self) -> Path:
        """Where its sealed files lie: beside the folder of all backups of its target."""
        return self.folder.parent.parent / SEGMENTS


def open_source(path: Path) -> Source:
    """Return a backup by its folder, or the newest of a target; raises BackupError, also for a schema newer than ours."""
    folder = chosen(path.resolve())
    manifest = read_manifest(folder)
    try:
        known = ScriptDirectory.from_config(migration_config()).get_revision(manifest.schema)
    except CommandError:
        known = None
    if known is None:
        raise BackupError(
            f"{folder.name} has schema {manifest.schema}, which this version does not know; restore it with Wattledger "
            f"{manifest.wattledger} or newer"
        )
    return Source(folder, manifest)


def verify(source: Source, say: Say) -> None:
    """Compare every file of a backup with its checksum; raises BackupError naming all that are wrong."""
    manifest = source.manifest
    faults = _faults(source.folder / DUMP, manifest.dump_size_bytes, manifest.dump_sha256)
    for number, file in enumerate(manifest.segments, 1):
        faults += _faults(source.segments / file.path, file.size_bytes, file.sha256)
        if number % _EVERY_FILES == 0:
            say(f"checked {number:,} of {len(manifest.segments):,} sealed files")
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise BackupError(f"{source.folder.name} is damaged, nothing was restored: {shown}; restore another backup")
    say(f"checked: the dump and {len(manifest.segments):,} sealed files are as they were written")


def backed_up(target: Path, schema: str | None, now: datetime, say: Say) -> str:
    """Say which backup there is of a database as it stands; raises BackupError unless it is whole, of its schema and of today.

    ``schema``: the database's. What was written since the backup is with nobody but the database.
    """
    source = open_source(target)
    verify(source, say)
    manifest = source.manifest
    age = now - _instant(manifest.taken_at)
    if manifest.schema != schema:
        raise BackupError(
            f"{source.folder.name} is of schema {manifest.schema}, the database is at {schema}; make one now"
        )
    if age > LONGEST_AGO:
        raise BackupError(f"{source.folder.name} is {age.days} days old, and a day is the limit; make one now")
    return f"backup: {source.folder}, taken {manifest.taken_at}"


def restore(
    source: Source, database: Database, segments: Segments, home: Path, *, env: Mapping[str, str], say: Say
) -> list[Check]:
    """Restore a verified backup; return what was checked afterwards. Raises BackupError, having changed nothing of a database."""
    programs = _check_empty(database, env)
    _put_segments(source, segments, say)
    brake = source.manifest.actions_paused
    if brake is not None and paused(home) is None:
        # Before the database: from then on a worker may start.
        pause(home, by=brake["by"], reason=brake["reason"], now=_instant(brake["at"], source.manifest.taken_at))
        say(f"actions are paused, as they were: {brake['reason']}")
    _put_database(source, database, programs, say)
    with database.connect("admin", application="wattledger-restore") as connection:
        books = ledger_totals(connection)
    behind = pending(database.url)
    if behind:
        say(f"schema {source.manifest.schema} is brought up to date: {len(behind)} migrations")
        upgrade(database.url)
    return [_same_books(source, books), *_checks(source, database, segments)]


def _check_empty(database: Database, env: Mapping[str, str]) -> Programs:
    with database.connect("admin", autocommit=True, application="wattledger-restore") as connection:
        row = connection.execute(_SERVER).fetchone()
        if row is None:
            raise AssertionError("a query without FROM has one row")
        major, is_superuser, relations = row
        if int(str(major)) < MINIMUM_SERVER_VERSION:
            raise BackupError(f"the server is PostgreSQL {major}; Wattledger needs {MINIMUM_SERVER_VERSION} or newer")
        if relations or current(database.url) is not None:
            raise BackupError(
                f"{database.display_url} is not empty ({relations} tables and views); restore into a new home or database"
            )
        if not is_superuser:
            raise BackupError(
                "rows of all tenants go in past row-level security, and objects to their owners: restore as a superuser"
            )
        for role in ROLE_NAMES.values():
            connection.execute(_CREATE_ROLE.replace("{role}", role).encode())
    return find_programs(int(str(major)), env)


def _put_segments(source: Source, segments: Segments, say: Say) -> None:
    """Publish the sealed files; one that is there and whole is left, any other file there is a reason to stop."""
    wanted = {file.path: file for file in source.manifest.segments}
    there = {path for path, _ in segments.listed("")}
    strange = sorted(path for path in there - wanted.keys() if path.endswith(".parquet"))
    if strange:
        raise BackupError(
            f"{segments.shown_as} has {len(strange)} sealed files that are not of this backup ({strange[0]} first); restore into "
            "a new home, or move them away"
        )
    for number, file in enumerate(source.manifest.segments, 1):
        if file.path not in there or not _is_whole(segments, file):
            scratch = segments.scratch("restored")
            shutil.copyfile(source.segments / file.path, scratch)
            sync(scratch)
            segments.publish(scratch, file.path)
        if number % _EVERY_FILES == 0:
            say(f"sealed files: {number:,} of {len(source.manifest.segments):,}")
    say(f"sealed files: {len(wanted):,} in {segments.shown_as}")


def _is_whole(segments: Segments, file: BackedFile) -> bool:
    try:
        segments.checked(_sealed(file))
    except SegmentError:
        return False
    return True


def _sealed(file: BackedFile) -> SegmentFile:
    return SegmentFile(file.path, file.rows, file.size_bytes, bytes.fromhex(file.sha256))


def _put_database(source: Source, database: Database, programs: Programs, say: Say) -> None:
    """Have psql run what pg_restore writes, and what the books must forget, in one transaction."""
    target, env = reach(database)
    say(f"database: restoring {source.manifest.dump_size_bytes / _CHUNK_BYTES:,.1f} MiB")
    reading = [programs["pg_restore"], "--file=-", str(source.folder / DUMP)]
    writing = [programs["psql"], "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "--no-password", "-d", target]
    with (
        _extension_restoring(database, source.manifest.timescaledb),
        tempfile.TemporaryFile() as read_faults,
        tempfile.TemporaryFile() as write_faults,
        subprocess.Popen(reading, stdout=subprocess.PIPE, stderr=read_faults, env=env) as reader,
        subprocess.Popen(
            writing, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=write_faults, env=env
        ) as writer,
    ):
        try:
            is_whole = _pour(reader, writer)
        except BaseException:
            reader.kill()
            writer.kill()
            raise
        faults = [(name, _words(file)) for name, file in (("psql", write_faults), ("pg_restore", read_faults))]
    if not is_whole:
        words = "; ".join(f"{name} says: {said}" for name, said in faults if said) or "its log says why"
        raise BackupError(f"the database was not restored and is empty as before; {words}")


def _pour(reader: subprocess.Popen[bytes], writer: subprocess.Popen[bytes]) -> bool:
    """Hand a restore's SQL on, without a setting older servers do not know; say whether all of it was committed.

    The transaction is ended only when the reader is known to have ended well: what psql had until then goes with it.
    """
    if reader.stdout is None or writer.stdin is None:
        raise AssertionError("both were asked for")
    try:
        for line in reader.stdout:
            if line.startswith(b"SET transaction_timeout"):
                continue
            writer.stdin.write(line)
            if line.startswith(b"SET row_security"):  # the last of the settings at the top
                break
        shutil.copyfileobj(reader.stdout, writer.stdin, _CHUNK_BYTES)
        if reader.wait() != 0:
            writer.kill()
            return False
        writer.stdin.write(f"\nSET search_path = public;\n{SETTLE}".encode())
        writer.stdin.close()
    except BrokenPipeError:  # psql met an error and ended; its words say which
        reader.kill()
        return False
    return writer.wait() == 0


def _words(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip()[-1000:]


@contextmanager
def _extension_restoring(database: Database, version: str | None) -> Iterator[None]:
    """Make TimescaleDB, of the version the dump is of, hold still while its tables come in."""
    if version is None:
        yield
        return
    with database.connect("admin", autocommit=True) as connection:
        connection.execute(f"CREATE EXTENSION IF NOT EXISTS timescaledb VERSION '{version}'".encode())
        connection.execute("SELECT timescaledb_pre_restore()")
    try:
        yield
    finally:
        with database.connect("admin", autocommit=True) as connection:
            connection.execute("SELECT timescaledb_post_restore()")


def _checks(source: Source, database: Database, segments: Segments) -> list[Check]:
    """Look at what was restored as `wattledger doctor` does, and at every sealed file."""
    now = datetime.now().astimezone()
    with database.connect("admin", autocommit=True, application="wattledger-restore") as connection:
        server = server_facts(connection, list(ROLE_NAMES.values()), now)
    with database.connect("worker", autocommit=True, application="wattledger-restore") as connection:
        facts = ledger_facts(connection, now, diagnosis.OVERDUE_AFTER)
    bad = [file.path for file in source.manifest.segments if not _is_whole(segments, file)]
    return [
        *diagnosis.check_server(server, MINIMUM_SERVER_VERSION),
        diagnosis.check_schema(current(database.url), pending(database.url)),
        diagnosis.check_roles(server, ROLE_NAMES.values(), facts.unguarded_tables),
        diagnosis.check_layout(facts.layout),
        broken("sealed hours", f"{len(bad)} files are not whole, {bad[0]} first", "restore again into a new home")
        if bad
        else fine("sealed hours", f"{len(source.manifest.segments):,} files, each with its checksum"),
    ]


def _same_books(source: Source, found: Any) -> Check:
    wanted = source.manifest.ledger
    if found != wanted:
        return broken(
            "books", f"{found} instead of {wanted}", "do not use this database; restore again, or another backup"
        )
    return fine(
        "books",
        f"{found.lines:,} ledger lines of {found.hours:,} hours, effective cost {found.effective_cost}, as backed up",
    )


def _faults(path: Path, size_bytes: int, sha256: str) -> list[str]:
    try:
        found_bytes = path.stat().st_size
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    if found_bytes != size_bytes:
        return [f"{path.name} has {found_bytes} bytes instead of {size_bytes}"]
    return [] if hex_digest(path) == sha256 else [f"{path.name} is not what was written"]


def _instant(*texts: str) -> datetime:
    """Return the first of these that is an instant; a brake made by hand has none."""
    for text in texts:
        with suppress(ValueError):
            return datetime.fromisoformat(text)
    raise BackupError(f"none of {texts} is an instant; the manifest was not written by `wattledger backup`")
