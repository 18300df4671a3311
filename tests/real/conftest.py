"""Deployments of this folder: one per data set and module, since loading one takes seconds."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from tests.real.stand import Stand, deployed


@pytest.fixture(scope="module")
def deploy(
    server: EmbeddedServer, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Stand]]:
    """Make deployments by name, ``sealed`` with a folder for sealed hours; they are gone when the module is done."""
    with ExitStack() as stack:

        def make(name: str, *, sealed: bool = False) -> Stand:
            folder = tmp_path_factory.mktemp(name) if sealed else None
            return stack.enter_context(deployed(server, database, f"wattledger_real_{name}", folder))

        yield make
