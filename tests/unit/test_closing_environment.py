"""A closing process starts with settings for its allocators; nobody else has them, and what an operator says comes first."""

from __future__ import annotations

import os

import pytest

from analytics.closing.pool import _environment


def test_what_a_child_starts_with_is_gone_once_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    with _environment({"MALLOC_TRIM_THRESHOLD_": "256000000"}):
        assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "256000000"
    assert "MALLOC_TRIM_THRESHOLD_" not in os.environ


def test_an_operators_own_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARS_MAX_THREADS", "4")
    with _environment({"POLARS_MAX_THREADS": "1"}):
        assert os.environ["POLARS_MAX_THREADS"] == "4"
    assert os.environ["POLARS_MAX_THREADS"] == "4"
