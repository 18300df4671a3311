"""Groups what trace exports hold into transactions: calls and spans of all bodies that wait go in together.

While one group is written the next grows by itself; each body is answered after its commit. What waits is bounded, and
fullness is answered at once: exporters keep what they could not send. A group that fails is retried body by body.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from ingest.calls import ApiCall, CallSource
from ingest.errors import BadBodyError, IngestError, UnavailableError
from ingest.lanes import Awaited
from ingest.rows import Rows
from ingest.spans import KeptSpan
from ingest.store import calls as call_store
from ingest.store import spans as span_store
from ingest.store.call_stage import Reports
from ingest.store.days import Days
from ingest.store.engine import Database
from ingest.store.outages import OUTAGES
from ingest.store.partitions import is_missing_partition

_WRITERS: Final = 2
"""Transactions at a time: PostgreSQL works on one while the other's rows are laid out."""
_GROUP_SPANS: Final = 10_000
_WAITING_SPANS: Final = 200_000
_DEADLOCKS: Final = 3


@dataclass(frozen=True, slots=True)
class Traces:
    """What one body holds for one site."""

    site_id: int
    calls: Rows[ApiCall]
    spans: Rows[KeptSpan]

    @property
    def rows(self) -> int:
        return len(self.calls) + len(self.spans)


class TraceWriter:
    """Takes bodies on the event loop, writes them in threads of its own."""

    def __init__(self, database: Database, awaited: Awaited) -> None:
        self._engine = database.create_engine("writer", pool_size=_WRITERS, application="wattledger-traces")
        self._days = Days(self._engine)
        self._awaited = awaited
        self._threads = ThreadPoolExecutor(_WRITERS, "traces")
        self._waiting: deque[tuple[Traces, asyncio.Future[None]]] = deque()
        self._waiting_rows = 0
        self._writing = 0

    async def keep(self, traces: Traces) -> None:
        """Return once the body is committed; raises IngestError when it is not."""
        if not traces.rows:
            return
        if self._waiting_rows + traces.rows > _WAITING_SPANS and self._waiting:
            raise UnavailableError("queue_full", f"{self._waiting_rows} spans wait to be written; send them later", 2)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((traces, done))
        self._waiting_rows += traces.rows
        if self._writing < _WRITERS:
            self._writing += 1
            asyncio.get_running_loop().call_soon(self._next)
        await self._awaited.result(done)

    def close(self) -> None:
        """Wait for what is being written, then let go of the connections."""
        self._threads.shutdown(wait=True)
        self._engine.dispose()

    def _next(self) -> None:
        """Begin the next group; runs on the event loop."""
        group: list[tuple[Traces, asyncio.Future[None]]] = []
        rows = 0
        while self._waiting and (not group or rows + self._waiting[0][0].rows <= 2 * _GROUP_SPANS):
            group.append(self._waiting.popleft())
            rows += group[-1][0].rows
        if not group:
            self._writing -= 1
            return
        self._waiting_rows -= rows
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, self._write, [traces for traces, _ in group])
        work.add_done_callback(lambda results: self._settle(group, results))

    def _settle(
        self, group: list[tuple[Traces, asyncio.Future[None]]], results: asyncio.Future[list[IngestError | None]]
    ) -> None:
        fault = results.exception()
        outcomes: Sequence[BaseException | None] = [fault] * len(group) if fault else results.result()
        for (_, done), outcome in zip(group, outcomes, strict=True):
            if not done.done():  # a sender that hung up cancelled it; its spans are committed all the same
                if outcome is None:
                    done.set_result(None)
                else:
                    done.set_exception(outcome)
        self._next()

    def _write(self, group: Sequence[Traces]) -> list[IngestError | None]:
        """Commit a group; return what became of each body."""
        fault = self._attempt(group)
        if fault is None:
            return [None] * len(group)
        if len(group) == 1 or isinstance(fault, UnavailableError):
            return [fault] * len(group)
        return [self._attempt([traces]) for traces in group]

    def _attempt(self, group: Sequence[Traces]) -> IngestError | None:
        for _ in range(_DEADLOCKS):
            try:
                self._commit(group)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                continue
            except OUTAGES:
                return UnavailableError("database_unavailable", "the spans cannot be kept now; send them again", 2)
            except (sa.exc.DBAPIError, psycopg.Error) as error:
                if is_missing_partition(error):  # dropped since it was made or seen
                    self._days.forget()
                    continue
                return BadBodyError("refused_by_database", f"the database refuses these spans: {type(error).__name__}")
            except BadBodyError as error:
                return error
            return None
        return UnavailableError("deadlock", "others write the same calls, or drop their days; send them again", 1)

    def _commit(self, group: Sequence[Traces]) -> None:
        calls = Rows.joined(ApiCall, (traces.calls for traces in group))
        spans = Rows.joined(KeptSpan, (traces.spans for traces in group))
        sites = [site_id for traces in group for site_id in repeat(traces.site_id, len(traces.calls))]
        reports = Reports(sites, [CallSource.SPAN] * len(calls), [None] * len(calls), calls)
        self._days.ensure("api_calls", call_store.days_of(calls))
        self._days.ensure("spans", span_store.days_of(spans))
        with self._engine.begin() as conn:
            driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
            assert driver is not None  # noqa: S101 - a checked-out connection has one
            written = call_store.keep_calls(driver, reports)
            span_store.keep_spans(
                driver,
                [site_id for traces in group for site_id in repeat(traces.site_id, len(traces.spans))],
                spans,
                seem_new=0 < written.counted == len(reports),
            )
