"""A tenant, its budget, its jobs and a Slurm made of scripts: what the tests of actions act in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from analytics.actions.executor import Executor
from analytics.actions.plan import plan
from analytics.actions.settings import ActionSettings
from analytics.io import action_log, budgets
from analytics.io.action_log import Action
from ingest.store.engine import Database
from ingest.store.tables import control
from tests.fakes.books import Books, hour, usage
from tests.fakes.slurm import FakeSlurm

POLICY = """\
version: 1
webhooks:
  ops: {url: "${OPS_URL}", secret: "${OPS_SECRET}"}
budgets:
  - name: nlp
    tenant: acme/nlp
    period: day
    currency: USD
    limits: {cost: 100}
    armed: true
    ladder:
      - {at: 80%, do: warn, webhook: ops}
      - {at: 100%, do: cancel, approval: AUTOMATIC, grace: 10m, webhook: ops}
"""
NOW = datetime(2026, 11, 11, 2, 20, tzinfo=UTC)
AFTER_GRACE = NOW + timedelta(minutes=10)


@dataclass
class World:
    """A tenant over budget with one running job, in the books and in Slurm."""

    database: Database
    books: Books
    engine: sa.Engine
    slurm: FakeSlurm
    settings: ActionSettings
    now: datetime = NOW

    def job(self, native_id: str, **values: Any) -> int:
        job_id = self.books.job("acme/nlp", native_id, **values)
        self.slurm.job(native_id, values.get("started_at", hour(0)))
        return job_id

    def spend(self, amount: str, job_id: int, number: int = 1, **values: Any) -> None:
        tenant_id = self.books.tenant("acme/nlp")
        rows = [usage(job_id=job_id, tenant_id=tenant_id, devices={self.books.device_ids[0]: 1}, cost=amount, **values)]
        self.books.close(number, rows)

    def policy(self, text: str = POLICY, at: datetime | None = None) -> None:
        """Apply a policy as who may: the owner."""
        owner = self.database.create_engine("owner", pool_size=1)
        with owner.begin() as conn:
            budgets.apply(conn, text, hour(0) if at is None else at, actor="test")
        owner.dispose()

    def evaluate(self) -> tuple[int, ...]:
        with self.engine.begin() as conn:
            return plan(conn, budgets.evaluate(conn, self.now), self.settings, {"lab"}, self.now)

    def executor(self, **changes: Any) -> Executor:
        made = Executor(self.engine, {"lab": self.slurm.plane(timeout_s=2)}, self.settings, lambda: self.now)
        return replace(made, **changes)

    def act(self, at: datetime = AFTER_GRACE) -> tuple[Action, ...]:
        self.now = at
        self.evaluate()
        return self.executor().run_once()

    def log(self) -> list[Action]:
        with self.engine.connect() as conn:
            return list(reversed(action_log.find(conn)))

    def messages(self) -> list[str]:
        with self.engine.connect() as conn:
            return list(conn.execute(sa.select(control.outbox.c.kind).order_by(control.outbox.c.id)).scalars())


@contextmanager
def opened(db: Database, folder: Path) -> Iterator[World]:
    """Yield the world in a database; Slurm and the state folder lie below the given folder."""
    admin, worker = db.create_engine("admin"), db.create_engine("worker", pool_size=6)
    state = folder / "state"
    state.mkdir()
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        made = World(
            db, Books.open(conn), worker, FakeSlurm.create(folder / "slurm"), ActionSettings(state, enforced=True)
        )
        yield made
    worker.dispose()
    admin.dispose()
