"""The command line as a shell sees it: arguments in, exit code and both outputs back, against a database of the test."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ingest.store.engine import URL_VARIABLE, Database
from wattledger.cli import main


@dataclass(frozen=True, slots=True)
class Ran:
    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Terminal:
    """Runs `wattledger` in this process, through its real entry point."""

    home: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    @classmethod
    def on(
        cls, database: Database, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Terminal:
        monkeypatch.setenv(URL_VARIABLE, database.url)
        return cls(home, monkeypatch, capsys)

    def run(self, *arguments: str | Path) -> Ran:
        words = ["wattledger", "--home", str(self.home), *map(str, arguments)]
        self.monkeypatch.setattr(sys, "argv", words)
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        printed = self.capsys.readouterr()
        return Ran(int(left.value.code or 0), printed.out, printed.err)
