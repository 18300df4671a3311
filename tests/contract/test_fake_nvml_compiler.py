"""What becomes of the tests of the fake driver where nobody can compile it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.nvml.build import build_or_skip

pytestmark = pytest.mark.contract
REASON = r"no C compiler \(cc\); \.ci/run installs it"


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_without_a_compiler_they_are_skipped_with_the_way_out(
    no_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=REASON):
        build_or_skip(no_compiler)


def test_in_ci_they_fail(no_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=REASON):
        build_or_skip(no_compiler)
