"""Fixtures of this folder's tests."""

from __future__ import annotations

from tests.fakes.nvml.harness import nvml, nvml_library

__all__ = ["nvml", "nvml_library"]
