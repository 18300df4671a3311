"""Feeds mutated bytes to decoders and holds them to four promises: a refusal of the declared kinds or an answer, in bounded
CPU time, with bounded memory, and never a crash of the process.

Inputs whose answer is of a new kind join the corpus: a decoder's refusals say how far it came. Coverage of lines would say
more (atheris), but needs its instrumented interpreter; the decoders here name their refusals finely. The input at hand lies
in a file that survives the process, so that a crash of C or Rust code names its input too.
"""

from __future__ import annotations

import hashlib
import mmap
import random
import re
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from tests.fuzz.mutate import MAX_INPUT_BYTES, mutated
from tests.fuzz.targets import Target

CPU_LIMIT_S: Final = 5.0
"""For one input of at most 256 KiB; the slowest honest one takes a tenth."""
MAX_CORPUS: Final = 400
_CHECKED_EVERY: Final = 50
_FROM_GOOD: Final = 0.75
_GOOD_KEPT: Final = 0.05
_HEADER_BYTES: Final = 8


class TooLongError(BaseException):
    """An input took more CPU time than :data:`CPU_LIMIT_S`. Nothing that is tested catches it."""


@dataclass
class Outcome:
    """What one target's run came to."""

    target: str
    inputs: int = 0
    read: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[Path] = field(default_factory=list)
    slowest_s: float = 0.0


def fuzz(target: Target, folder: Path, seconds: float, seed: int, *, most_failures: int = 5) -> Outcome:
    """Run one target for so long; each failing input is kept in ``folder`` beside its traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(f"{target.name}/{seed}")
    outcome = Outcome(target.name)
    corpus = list(target.seeds)
    seen: set[str] = set()
    told: set[str] = set()
    with _kept_input(folder / f"{target.name}.current") as keep:
        good = [data for data in corpus if attempt(target, data)[0] == "read"]
        ceiling_kib = _high_water_kib() + target.grows_mib * 1024
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and len(outcome.failures) < most_failures:
            for _ in range(_CHECKED_EVERY):
                # What was refused is refused again, mostly: a decoder's depths are beside what it reads.
                parent = chance.choice(good if good and chance.random() < _FROM_GOOD else corpus)
                data = mutated(parent, chance, corpus, target.words)
                keep(data)
                began_s = time.process_time()
                kind, fault = attempt(target, data)
                outcome.slowest_s = max(outcome.slowest_s, time.process_time() - began_s)
                outcome.inputs += 1
                if kind == "read":
                    outcome.read += 1
                    if chance.random() < _GOOD_KEPT and len(good) < MAX_CORPUS:
                        good.append(data)
                outcome.kinds[kind.partition(":")[0]] += 1
                if _high_water_kib() > ceiling_kib:
                    fault = f"memory grew by more than {target.grows_mib} MiB beyond what the seeds need"
                    ceiling_kib = _high_water_kib() + target.grows_mib * 1024
                    kind = "memory"
                if fault is not None and kind not in told:
                    told.add(kind)
                    outcome.failures.append(_saved(folder, target, data, fault))
                if kind not in seen:
                    seen.add(kind)
                    corpus.append(data)
                    if len(corpus) > MAX_CORPUS:
                        del corpus[len(target.seeds) + chance.randrange(MAX_CORPUS - len(target.seeds))]
    (folder / f"{target.name}.current").unlink()
    return outcome


def attempt(target: Target, data: bytes) -> tuple[str, str | None]:
    """Decode once; return what kind of end it came to, and what is wrong with that."""
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    try:
        target.decode(data)
    except target.refusals as refusal:
        return f"{type(refusal).__name__}:{_shape(str(refusal))}", None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of Rust code is none of Exception's
        frames = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__}:{frames[-1].filename}:{frames[-1].lineno}", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "read", None


def watch_time() -> None:
    """Have the timer of :func:`attempt` raise; once per process, in its main thread."""
    signal.signal(signal.SIGPROF, _out_of_time)


def _out_of_time(_: int, __: FrameType | None) -> None:
    raise TooLongError(f"more than {CPU_LIMIT_S} s of CPU time")


def _shape(message: str) -> str:
    """Return a refusal without what it quotes."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+|\(char.*", "#", message)[:80]


def _high_water_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _saved(folder: Path, target: Target, data: bytes, fault: str) -> Path:
    path = folder / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(fault, encoding="utf-8", errors="backslashreplace")
    return path


class _Kept:
    """Writes the input at hand where it outlives this process, for the price of a copy."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def __call__(self, data: bytes) -> None:
        self._memory[:_HEADER_BYTES] = len(data).to_bytes(_HEADER_BYTES, "big")
        self._memory[_HEADER_BYTES : _HEADER_BYTES + len(data)] = data


@contextmanager
def _kept_input(path: Path) -> Iterator[_Kept]:
    with path.open("w+b") as file:
        file.truncate(_HEADER_BYTES + MAX_INPUT_BYTES)
        with mmap.mmap(file.fileno(), 0) as memory:
            yield _Kept(memory)


def kept(path: Path) -> bytes:
    """Return an input from a file: one that was saved, or the one at hand when a process died."""
    data = path.read_bytes()
    return (
        data[_HEADER_BYTES : _HEADER_BYTES + int.from_bytes(data[:_HEADER_BYTES], "big")]
        if path.suffix == ".current"
        else data
    )
