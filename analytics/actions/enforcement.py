"""One round of budgets for the worker: decide, plan, act, tell. Put together at the top, called every round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from analytics.actions.executor import Executor
from analytics.actions.plan import plan
from analytics.actions.webhooks import Deliverer
from analytics.io import budgets


@dataclass(frozen=True, slots=True)
class EnforcementRound:
    """What one round did."""

    decisions: int
    planned: int
    acted: int
    delivered: int
    undelivered: int


@dataclass(frozen=True, slots=True)
class Enforcement:
    """``engine`` connects as the worker role. Any number may run: rows, not this object, keep them apart."""

    engine: sa.Engine
    executor: Executor
    deliverer: Deliverer
    clock: Callable[[], datetime]

    def run(self) -> EnforcementRound:
        """Do one round; what a round leaves undone the next one takes up."""
        now = self.clock()
        with self.engine.begin() as conn:
            recorded = budgets.evaluate(conn, now)
            planned = plan(conn, recorded, self.executor.settings, self.executor.planes.keys(), now)
        acted = self.executor.run_once()
        delivered, undelivered = self.deliverer.deliver_due()
        return EnforcementRound(len(recorded), len(planned), len(acted), delivered, undelivered)
