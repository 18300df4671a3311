"""A short run of ``make fuzz`` over every decoder; the long one draws other inputs each time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import harness
from tests.fuzz.harness import attempt, fuzz, kept, watch_time
from tests.fuzz.targets import Target, all_targets

pytestmark = pytest.mark.property
SEED = 4
SECONDS_EACH = 0.25


@pytest.fixture(scope="module")
def found(shared: Path) -> list[Target]:
    assert (shared / "captures").is_dir()
    return all_targets()


@pytest.fixture(autouse=True)
def timer() -> Iterator[None]:
    before = signal.getsignal(signal.SIGPROF)
    watch_time()
    yield
    signal.signal(signal.SIGPROF, before)


def test_every_decoder_reads_what_it_is_seeded_with(found: list[Target]) -> None:
    names = [target.name for target in found]
    assert len(set(names)) == len(names)
    for target in found:
        ends = [attempt(target, data) for data in target.seeds]
        assert "read" in [kind for kind, _ in ends], f"{target.name}: {ends}"
        assert [fault for _, fault in ends if fault] == []


def test_spoiled_inputs_are_read_or_refused_in_time_and_in_bounded_memory(found: list[Target], tmp_path: Path) -> None:
    for target in found:
        outcome = fuzz(target, tmp_path, SECONDS_EACH, SEED)
        faults = [path.with_suffix(".txt").read_text() for path in outcome.failures]
        assert not faults, f"{target.name}: {faults[0]}"
        assert outcome.inputs


def test_what_panics_hangs_or_hoards_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicError(BaseException):
        pass

    def decode(data: bytes) -> None:
        if len(data) % 3 == 0:
            raise PanicError
        if len(data) % 3 == 1:
            while True:
                pass
        hoard.append(bytearray(64 * 1024 * 1024))

    hoard: list[bytearray] = []
    monkeypatch.setattr(harness, "CPU_LIMIT_S", 0.05)
    outcome = fuzz(Target("bad", [b"seed"], decode, (ValueError,), grows_mib=16), tmp_path, 20, SEED, most_failures=3)
    hoard.clear()
    told = {
        path.with_suffix(".txt").read_text().strip().splitlines()[-1].partition(":")[0] for path in outcome.failures
    }
    assert any("PanicError" in line for line in told)
    assert any("TooLongError" in line for line in told)
    assert any("memory grew" in line for line in told)
    assert all(
        attempt(Target("bad", [], lambda _: None, ()), kept(path)) == ("read", None) for path in outcome.failures
    )
