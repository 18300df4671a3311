"""What a backup says of itself: version, schema, the database's dump, the sealed files, each with its SHA-256.

    TARGET/backups/20261121T191500.123456Z/{database.dump,manifest.json,SHA256SUMS}
    TARGET/segments/site=…/date=…/hour=…/….parquet          shared by all backups of TARGET

It reads and writes these files; what is in them is decided by `backup` and `restore`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from analytics.io.restored import LedgerTotals
from wattledger.errors import WattledgerError

FORMAT: Final = 1
BACKUPS: Final = "backups"
SEGMENTS: Final = "segments"
DUMP: Final = "database.dump"
MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"


class BackupError(WattledgerError):
    """A backup could not be made, or is not one that can be restored; the message says what to do."""


@dataclass(frozen=True, slots=True)
class BackedFile:
    """A sealed file; ``path`` is below the folder of segments, ``sha256`` in hex."""

    path: str
    rows: int
    size_bytes: int
    sha256: str

    @property
    def key(self) -> tuple[str, int, str]:
        return (self.path, self.size_bytes, self.sha256)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup. Instants are RFC 3339 in UTC."""

    taken_at: str
    wattledger: str
    schema: str
    layout: str
    server: str
    timescaledb: str | None
    """The extension's version; null where it is not installed."""
    dump_size_bytes: int
    dump_sha256: str
    ledger: LedgerTotals
    actions_paused: dict[str, str] | None
    """The brake as it was: who, why, when; null = not paused."""
    segments: tuple[BackedFile, ...]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write the manifest and the sums that `sha256sum -c` reads; both are on the disk afterwards."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        written(folder / MANIFEST, text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        written(folder / SUMS, f"{digest}  {MANIFEST}\n{self.dump_sha256}  {DUMP}\n")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a backup; raises BackupError when it is missing, damaged or of a newer format."""
    try:
        raw = (folder / MANIFEST).read_bytes()
        pairs = (line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines())
        sums = {name: digest for digest, name in pairs}
    except FileNotFoundError as error:
        raise BackupError(
            f"{folder} is no whole backup: {Path(error.filename).name} is missing; name another"
        ) from error
    except ValueError as error:
        raise BackupError(f"{folder / SUMS} is damaged; restore another backup") from error
    if sums.get(MANIFEST) != hashlib.sha256(raw).hexdigest():
        raise BackupError(f"{folder / MANIFEST} is not what was written; restore another backup")
    told: dict[str, Any] = json.loads(raw)
    if told.get("format") != FORMAT:
        raise BackupError(
            f"{folder} has format {told.get('format')}, this version reads {FORMAT}; use the version that wrote it, "
            f"Wattledger {told.get('wattledger')}"
        )
    ledger, files = LedgerTotals(**told.pop("ledger")), tuple(BackedFile(**file) for file in told.pop("segments"))
    for file in files:  # it is joined to folders we write to
        if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
            raise BackupError(f"{folder / MANIFEST} names {file.path}, which lies outside of a backup")
    return Manifest(**told, ledger=ledger, segments=files)


def backups_in(target: Path) -> list[Path]:
    """Return the whole backups of a target, oldest first."""
    return sorted(path.parent for path in (target / BACKUPS).glob(f"*/{MANIFEST}") if path.parent.name[0] != ".")


def chosen(source: Path) -> Path:
    """Return the backup a person means: the folder itself, or the newest of a target; raises BackupError."""
    if (source / MANIFEST).is_file():
        return source
    found = backups_in(source)
    if not found:
        raise BackupError(f"there is no backup in {source}; name the folder that `wattledger backup` was given")
    return found[-1]


def known_files(target: Path) -> Iterator[BackedFile]:
    """Yield the sealed files that whole backups of this target have; a damaged manifest vouches for nothing."""
    for folder in backups_in(target):
        try:
            yield from read_manifest(folder).segments
        except BackupError:
            continue


def hex_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def written(path: Path, text: str) -> None:
    """Write a file so that it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have what was made or renamed in a folder be there after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
