"""What an ingest process holds while it runs: engine, registry, authenticator, writer, metrics; and how a body is kept.

Made by :func:`ingest.app.create_app`, started and stopped with it. It is the only place where the event loop and the
writer's threads meet: a body's future is resolved once its group is committed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import psycopg
import sqlalchemy as sa

from ingest.accept import clock_skew_us
from ingest.admission import DiskGuard, RateLimits
from ingest.auth import Authenticator, Principal
from ingest.errors import BadBodyError, UnavailableError
from ingest.metrics import IngestMetrics
from ingest.newcomers import Newcomers
from ingest.readiness import Standing, Watch
from ingest.receivers.native import Body, Reader
from ingest.series.intake import Intake
from ingest.settings import Settings
from ingest.store import partitions
from ingest.store.dead_letters import DeadLetter, LetterBox, Room
from ingest.store.group import GroupWriter, Outcome, Result
from ingest.store.prepare import Submission
from ingest.store.registry import Registry
from ingest.store.series_nodes import Spacings
from ingest.store.writer import Writer
from ingest.trace_writer import TraceWriter

_LOG = logging.getLogger(__name__)
_LARGE_BODY_BYTES: Final = 128 * 1024
"""Bodies above this are read in a thread: decompressing 10,000 rows takes a millisecond, during which others wait."""
_COLLECT_AFTER: Final = (10_000, 20, 50)
"""Allocations, then young collections, then middle ones before the cyclic collector looks at a generation. A body in
flight is some hundred objects in no cycle; with Python's 700 the collector took a seventh of this process's CPU, measured."""
_MIB: Final = 1024 * 1024
_STOPPING_RETRY_S: Final = 2
_T = TypeVar("_T")


class Runtime:
    """Everything of one running ingest. Nothing is opened before :meth:`start`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine: sa.Engine = settings.database.create_engine("writer", pool_size=3, application="wattledger-ingest")
        # Of its own: a thousand agents that all reconnect must not keep the registry waiting for a connection.
        self._registry_engine = settings.database.create_engine(
            "writer", pool_size=1, application="wattledger-registry"
        )
        self.registry = Registry(self._registry_engine)
        self.authenticator = Authenticator(self.engine, settings.token_cache_s)
        room = Room(settings.node_letters_mib * _MIB, settings.site_letters_mib * _MIB)
        self.letters = LetterBox(self.engine, room)
        sinks = [
            GroupWriter(settings.database, self.registry, hot_retention=settings.hot_retention, letters=self.letters)
            for _ in range(settings.writers)
        ]
        self.writer = Writer(sinks, settings.limits, self._settled)
        self.traces = TraceWriter(settings.database, self.registry)
        self.metrics = IngestMetrics(lambda: self.writer.queued_bytes)
        self.disk = DiskGuard(settings.data_paths, settings.min_free_mib * 1024 * 1024)
        self._rates = RateLimits()
        self.newcomers = Newcomers()
        self.series = Intake(settings.series_node_labels, Spacings(self.engine))
        self._probe = sinks[0]
        self._reader = Reader()
        self._local = threading.local()
        self._threads = ThreadPoolExecutor(3, "ingest")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._renewal: asyncio.Future[None] | None = None
        self._collected_after = gc.get_threshold()
        self._draining = False
        self._standing = Standing()
        self.watches: list[Watch] = []
        """What else is to be told of when somebody asks whether this process is ready."""

    async def start(self) -> None:
        """Check the schema if the database answers, and begin to write. An absent database is waited for, not an error."""
        self._loop = asyncio.get_running_loop()
        # What is loaded by now stays: walking it stops every thread for tens of milliseconds, which senders see as latency.
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)
        try:
            await self.in_thread(self._probe.ping)
            await self.in_thread(self.ensure_partitions)
        except UnavailableError as error:
            _LOG.warning("ingest starts without its database: %s", error)
        self.writer.start()
        if self.settings.token_cache_s:
            self._refreshing = asyncio.create_task(self._refresh_tokens())

    async def stop(self) -> None:
        """Write what waits, then let go of everything."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self.in_thread(self.series.close)
        await self.in_thread(self.writer.stop)
        await self.in_thread(self.traces.close)
        self._threads.shutdown(wait=True)
        self.engine.dispose()
        self._registry_engine.dispose()
        self.metrics.close()
        gc.set_threshold(*self._collected_after)
        gc.unfreeze()

    async def in_thread(self, work: Callable[..., _T], *args: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *args)

    async def principal(self, header: bytes | None) -> Principal:
        known = self.authenticator.recall(header)
        if known is None and self.authenticator.may_be_renewed(header):
            await self._renewed()
            known = self.authenticator.recall(header)
        return known if known is not None else await self.in_thread(self.authenticator.verify, header)

    async def admit(self, header: bytes | None, size: int) -> None:
        """Say whether a body of ``size`` bytes may be looked at now; raises IngestError, 429 or 503 where it may not."""
        if self._draining:
            raise UnavailableError("stopping", "this server is stopping; send it again", _STOPPING_RETRY_S)
        self.disk.check()
        token = (await self.principal(header)).token
        rate = self.settings.site_rate if token.node_id is None else self.settings.node_rate
        self._rates.take(token.id, rate, size)

    async def read(self, body: bytes) -> Body:
        """Check a body, a large one in a thread."""
        return (
            self._reader.read(body) if len(body) <= _LARGE_BODY_BYTES else await self.in_thread(self._read_large, body)
        )

    def skew_us(self, sent_at: bytes | None) -> int | None:
        """Return how wrong the sender's clock is, None if right enough or not stated; raises BadBodyError."""
        if sent_at is None:
            return None
        if not sent_at.isdigit() or len(sent_at) > 18:
            raise BadBodyError("malformed", "Wattledger-Sent-At must be microseconds since the Unix epoch")
        return clock_skew_us(int(sent_at), time.time_ns() // 1_000)

    async def keep(self, submission: Submission) -> Outcome:
        """Return once the body is committed; raises IngestError when it is not."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.writer.submit(future, submission)
        result = await future
        if isinstance(result, Outcome):
            return result
        raise result

    async def bury(self, letter: DeadLetter) -> None:
        await self.in_thread(self.letters.bury, letter)

    def ensure_partitions(self) -> None:
        """Make the partitions of the hot days up to the day after tomorrow."""
        today = datetime.now(UTC).date()
        try:
            with self.engine.begin() as conn:
                partitions.ensure(conn, today - timedelta(days=1), today + timedelta(days=3))
        except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
            raise UnavailableError("database_unavailable", "the database does not answer") from error

    def drain(self) -> None:
        """Say no to what comes from now on, and that this process is not ready; what is in hand is finished."""
        self._draining = True

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Return status and body for who asks whether this process takes data: :meth:`ingest.readiness.Standing.told`."""
        degraded = {name: fault for watch in self.watches for name, fault in watch().items()}
        return self._standing.told(self._faults(), degraded)

    def _faults(self) -> dict[str, str]:
        if self._draining:
            return {"process": "it is stopping"}
        faults = {}
        short = self.disk.fault()
        if short is not None:
            faults["disk"] = short
        try:
            if self.writer.is_down:
                return faults | {"database": "the database does not answer, or takes no writes"}
            today = datetime.now(UTC).date()
            with self.engine.begin() as conn:
                days = partitions.missing(conn, "device_samples", (today, today + timedelta(days=1)))
        except (sa.exc.DBAPIError, sa.exc.TimeoutError, psycopg.Error) as error:
            return faults | {"database": f"the database does not answer: {type(error).__name__}"}
        if days:
            faults["partitions"] = f"no partition for {', '.join(map(str, days))}"
        return faults

    async def _renewed(self) -> None:
        """Verify again, in one question for all that wait: after a pause the time of a thousand senders is up at once."""
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.ensure_future(self.in_thread(self.authenticator.refresh))
        try:
            await asyncio.shield(self._renewal)
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            # Nobody is believed for it: each is then verified by itself, and told what the database says.
            _LOG.warning("tokens whose time is up could not be verified together: %s", type(error).__name__)

    async def _refresh_tokens(self) -> None:
        """Keep the tokens in use verified; the outermost loop of its task."""
        while True:
            await asyncio.sleep(self.settings.token_cache_s / 3)
            try:
                await self.in_thread(self.authenticator.refresh)
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
                _LOG.warning("tokens in use could not be verified again: %s", type(error).__name__)

    def _read_large(self, body: bytes) -> Body:
        reader: Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = Reader()
        return reader.read(body)

    def _settled(self, results: Sequence[tuple[asyncio.Future[Result], Result]], duration_s: float) -> None:
        """Hand a group's results to the event loop in one call; runs in a writer's thread."""
        accepted = sum(result.accepted_rows for _, result in results if isinstance(result, Outcome))
        if accepted:
            self.metrics.group_duration.record(duration_s)
            self.metrics.rows.add(accepted, {"outcome": "accepted"})
        for _, result in results:
            if isinstance(result, Outcome):
                for refusal in result.refusals:
                    self.metrics.refused.add(refusal.rows, {"stream": refusal.stream.value, "reason": refusal.reason})
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, results)


def _resolve(results: Sequence[tuple[asyncio.Future[Result], Result]]) -> None:
    for future, result in results:
        if not future.done():  # a sender that hung up cancelled it; its batch is committed all the same
            future.set_result(result)
