"""Deployments of this folder: one per data set and module, since loading one takes seconds."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from tests.real.stand import Stand, deployed


@pytest.fixture(scope="module")
def deploy(server: EmbeddedServer, database: Database) -> Iterator[Callable[[str], Stand]]:
    """Make deployments by name; they are gone when the module is done."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(deployed(server, database, f"wattledger_real_{name}"))
