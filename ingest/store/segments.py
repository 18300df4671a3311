"""Where the files of sealed hours lie: a folder, or a bucket by URL; published so that a file is there whole or not at all.

Whatever is read is checked first: size and SHA-256 as the catalog has them, once per process and file. Buckets are reached
through obstore (ADR 0014); of these, copies of files in use are kept beside (``ingest.store.segment_cache``), and whether a file
still is in the bucket no copy answers. It knows no hour and no catalog.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ingest.store.segment_cache import Cache

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_CHUNK_BYTES: Final = 1 << 20
MARKER: Final = "wattledger-segments"
"""A file in the root by which it is known: an empty mount point has none (``ingest.store.segment_place``)."""


class SegmentError(RuntimeError):
    """A sealed hour cannot be read: its file is missing or not what was sealed. Says which, and what to do."""


class SegmentExpiredError(SegmentError):
    """An hour's samples are past retention and gone for good: whoever needs them is refused, and need not try again."""


class SegmentUnreachableError(RuntimeError):
    """The bucket does not answer, or the folder's disk is away: nothing is known of the file, so nothing is said of it."""


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A file as the catalog knows it; ``path`` is below the root."""

    path: str
    rows: int
    size_bytes: int
    sha256: bytes


class Place(Protocol):
    """Where files lie. A file, once published, never changes."""

    def publish(self, scratch: Path, path: str) -> None:
        """Make a complete, synced file of ours durable under its path; nobody ever sees half of it."""

    def local(self, file: SegmentFile) -> Path:
        """Return a local file with the bytes of this one, or a copy of it, unchecked; raises FileNotFoundError."""

    def fetched(self, file: SegmentFile) -> AbstractContextManager[Path]:
        """Give the bytes that lie in the place now, unchecked, as a local file for a block; raises FileNotFoundError."""

    def keep(self, file: SegmentFile, fetched: Path) -> None:
        """Have what was fetched, and found good, answer :meth:`local` from now on."""

    def let_go(self, file: SegmentFile) -> bool:
        """Delete a copy of a file that answers for it here; False = what is read here is the file itself, or there is none."""

    def delete(self, path: str) -> None:
        """Take a file away; one that is not there is no error."""

    def listed(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Yield path and age in seconds of every file below a folder, unfinished ones included."""

    def mark(self) -> str | None:
        """Return what the marker in the root says; None = there is none. Raises SegmentUnreachableError."""

    def set_mark(self, mark: str) -> None:
        """Write the marker for good."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine, or one that all workers mount."""

    root: Path

    def publish(self, scratch: Path, path: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.replace(target)
        folder = target.parent
        while True:  # every folder that may be new
            _sync_folder(folder)
            if folder == self.root:
                return
            folder = folder.parent

    def local(self, file: SegmentFile) -> Path:
        return self.root / file.path

    def fetched(self, file: SegmentFile) -> AbstractContextManager[Path]:
        return nullcontext(self.root / file.path)

    def keep(self, file: SegmentFile, fetched: Path) -> None:
        """Nothing: the file itself was looked at."""

    def let_go(self, file: SegmentFile) -> bool:  # noqa: ARG002 - a folder has no copies
        return False

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    def listed(self, prefix: str) -> Iterator[tuple[str, float]]:
        now_s = time.time()
        for found in sorted((self.root / prefix).rglob("*")):
            if found.is_file():
                yield found.relative_to(self.root).as_posix(), now_s - found.stat().st_mtime

    def mark(self) -> str | None:
        try:
            return (self.root / MARKER).read_text().strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SegmentUnreachableError(f"{self.root} cannot be read: {error}") from error

    def set_mark(self, mark: str) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = self.root / f".{MARKER}.{os.getpid()}.{threading.get_ident()}"
        scratch.write_text(f"{mark}\n")
        sync(scratch)
        scratch.replace(self.root / MARKER)
        _sync_folder(self.root)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Object storage, and copies of its files that are in use."""

    store: ObjectStore
    cache: Cache

    def publish(self, scratch: Path, path: str) -> None:
        import obstore  # noqa: PLC0415 - who keeps segments in a folder never loads it

        obstore.put(self.store, path, scratch)
        scratch.unlink()

    def local(self, file: SegmentFile) -> Path:
        kept = self.cache.find(_copy_name(file))
        if kept is not None:
            return kept
        with self.fetched(file) as partial:
            return self.cache.keep(partial, _copy_name(file))

    @contextmanager
    def fetched(self, file: SegmentFile) -> Iterator[Path]:
        import obstore  # noqa: PLC0415

        try:
            pieces = obstore.get(self.store, file.path).stream(_CHUNK_BYTES)
        except (FileNotFoundError, obstore.exceptions.NotFoundError) as error:
            raise FileNotFoundError(file.path) from error
        except obstore.exceptions.BaseError as error:
            raise SegmentUnreachableError(f"segment {file.path} cannot be fetched: {error}") from error
        with ExitStack() as made:
            try:
                path = made.enter_context(self.cache.made(_copy_name(file), file.size_bytes, pieces))
            except (obstore.exceptions.BaseError, OSError) as error:  # the way from there, or the disk here
                raise SegmentUnreachableError(f"segment {file.path} cannot be fetched: {error}") from error
            yield path

    def keep(self, file: SegmentFile, fetched: Path) -> None:
        self.cache.keep(fetched, _copy_name(file))

    def let_go(self, file: SegmentFile) -> bool:
        return self.cache.drop(_copy_name(file))

    def delete(self, path: str) -> None:
        import obstore  # noqa: PLC0415

        with suppress(FileNotFoundError, obstore.exceptions.NotFoundError):
            obstore.delete(self.store, path)

    def listed(self, prefix: str) -> Iterator[tuple[str, float]]:
        import obstore  # noqa: PLC0415

        now_s = time.time()
        for page in obstore.list(self.store, prefix):
            for entry in page:
                yield entry["path"], now_s - entry["last_modified"].timestamp()

    def mark(self) -> str | None:
        import obstore  # noqa: PLC0415

        try:
            return bytes(obstore.get(self.store, MARKER).bytes()).decode().strip()
        except (FileNotFoundError, obstore.exceptions.NotFoundError):
            return None
        except obstore.exceptions.BaseError as error:
            raise SegmentUnreachableError(f"the bucket does not answer: {error}") from error

    def set_mark(self, mark: str) -> None:
        import obstore  # noqa: PLC0415

        obstore.put(self.store, MARKER, f"{mark}\n".encode())


class Segments:
    """Files of sealed hours below one root. For several threads."""

    def __init__(
        self, place: Place, scratch: Path, shown_as: str, made_of: tuple[str, Path | None] | None = None
    ) -> None:
        """``scratch``: a folder for files being made; for :class:`Folder` on the same file system.

        ``made_of``: what :meth:`at` was told, by which another process makes the same; null = they stay in this one.
        """
        self._place = place
        self._scratch = scratch
        self.shown_as = shown_as
        self._checked: set[tuple[str, int, int, bytes]] = set()
        self._made_of = made_of

    def __reduce__(self) -> tuple[object, ...]:
        """Travel to another process as the place it names; what was checked here is checked there anew."""
        if self._made_of is None:
            raise TypeError(f"segments in {self.shown_as} were not made by Segments.at, and stay in their process")
        return Segments.at, self._made_of

    @classmethod
    def at(cls, where: str | Path, cache: Path | None = None) -> Segments:
        """Return the segments in a folder, or in a bucket by URL (s3://, gs://, az://); opens nothing.

        Credentials of a bucket come from the environment, as its provider's own tools read them.
        """
        text = str(where)
        if "://" not in text:
            root = Path(where)
            return cls(Folder(root), root / ".unfinished", text, (text, None))
        from obstore.store import from_url  # noqa: PLC0415

        copies = Cache(cache or Path("/var/tmp/wattledger-segments"))  # noqa: S108 - only where nobody names another
        return cls(Bucket(from_url(text), copies), copies.unfinished, text, (text, cache))

    def scratch(self, name: str) -> Path:
        """Return a path for a file to be made; nobody else is given the same."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch / f"{name}.{os.getpid()}.{time.monotonic_ns():x}"

    def publish(self, scratch: Path, path: str) -> None:
        """Put a synced scratch file in its place for good."""
        self._place.publish(scratch, path)

    def checked(self, file: SegmentFile) -> Path:
        """Return a local path of the file's bytes, which are those that were sealed; raises SegmentError.

        Where the whole place is away, SegmentUnreachableError: that is no fault of the file. Looked at once per process and
        version of the file: damage that comes later is found by ``segments verify``. A copy that is not what was sealed is
        fetched once more, since it says nothing of the file.
        """
        try:
            path, fault = self._looked_at(file)
            if fault and self._place.let_go(file):
                path, fault = self._looked_at(file)
        except FileNotFoundError:
            raise self._missing(file) from None
        if fault:
            raise self._faulty(file, fault)
        return path

    @contextmanager
    def fresh(self, file: SegmentFile, *, keep: bool = False) -> Iterator[Path]:
        """Give the file's bytes as they lie in the place now, checked, for a block; no copy of it here answers. Raises as above.

        ``keep``: it is about to be read, so a copy stays.
        """
        with ExitStack() as opened:
            try:
                path = opened.enter_context(self._place.fetched(file))
                fault = _fault(path, path.stat(), file)
            except FileNotFoundError:
                raise self._missing(file) from None
            if fault:
                raise self._faulty(file, fault)
            yield path
            if keep:
                self._place.keep(file, path)

    def _looked_at(self, file: SegmentFile) -> tuple[Path, str | None]:
        """Return what answers for the file here, and its fault; raises FileNotFoundError."""
        path = self._place.local(file)
        stat = path.stat()
        known = (file.path, stat.st_size, stat.st_mtime_ns, file.sha256)
        if known in self._checked:
            return path, None
        fault = _fault(path, stat, file)
        if fault is None:
            self._checked.add(known)
        return path, fault

    def _missing(self, file: SegmentFile) -> SegmentError | SegmentUnreachableError:
        if self._place.mark() is None:
            return SegmentUnreachableError(
                f"{self.shown_as} has no file {MARKER!r}: its disk is not mounted, or it is another folder"
            )
        return self._faulty(file, "is missing")

    def _faulty(self, file: SegmentFile, fault: str) -> SegmentError:
        return SegmentError(
            f"segment {file.path} in {self.shown_as} {fault}; restore it from a backup, or if its hour is still hot "
            "make it anew with `wattledger segments rebuild`"
        )

    def forget(self) -> None:
        """Have every file looked at again."""
        self._checked.clear()

    def delete(self, path: str) -> None:
        self._place.delete(path)

    def listed(self, prefix: str) -> Iterator[tuple[str, float]]:
        return ((path, age_s) for path, age_s in self._place.listed(prefix) if path != MARKER)

    def mark(self) -> str | None:
        """Return what the marker in the root says; None = there is none."""
        return self._place.mark()

    def set_mark(self, mark: str) -> None:
        """Write the marker: this is the place from now on."""
        self._place.set_mark(mark)

    def clear_scratch(self, older_than_s: float) -> int:
        """Delete files somebody began to make and never finished; return how many."""
        if not self._scratch.is_dir():
            return 0
        # Copies of a bucket's files were once made beside the folder of unfinished ones.
        begun = [*self._scratch.iterdir(), *self._scratch.parent.glob("*.parquet.*.partial")]
        old = [path for path in begun if time.time() - path.stat().st_mtime > older_than_s]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


def _copy_name(file: SegmentFile) -> str:
    return f"{file.sha256.hex()}.parquet"


def _fault(path: Path, stat: os.stat_result, file: SegmentFile) -> str | None:
    """Return what is wrong with a file's bytes; raises FileNotFoundError."""
    if stat.st_size != file.size_bytes:
        return f"has {stat.st_size} bytes instead of {file.size_bytes}"
    if digest(path) != file.sha256:
        return "has another SHA-256 than when it was sealed"
    return None


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def sync(path: Path) -> None:
    """Have the kernel put a file's bytes on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
