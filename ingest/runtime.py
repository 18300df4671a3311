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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from ingest.accept import clock_skew_us
from ingest.admission import DiskGuard, RateLimits
from ingest.auth import Authenticator, Principal, check_bearer
from ingest.body_budget import BodyBudget
from ingest.errors import BadBodyError, UnavailableError
from ingest.lanes import Awaited, Lane
from ingest.metrics import IngestMetrics
from ingest.newcomers import Newcomers
from ingest.readiness import Standing, Watch
from ingest.receivers.native import Body, Reader
from ingest.series.intake import Intake
from ingest.settings import Settings
from ingest.store import partitions
from ingest.store.database_room import DatabaseRoom
from ingest.store.dead_letters import DeadLetter, LetterBox, Room
from ingest.store.group import GroupWriter, Outcome, Result
from ingest.store.prepare import Submission
from ingest.store.pulse import Beat, Pulse
from ingest.store.registry import Registry
from ingest.store.series_nodes import Spacings
from ingest.store.tokens import Token
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
_SILENT_RETRY_S: Final = 5
_POOL_TIMEOUT_S: Final = 5
_HEED_EVERY_S: Final = 0.25
_PROBE_WITHIN_S: Final = 1.5
"""How long who asks whether this process is ready waits for the database; probes themselves give up after a second or more."""
_MEASURE_EVERY_S: Final = 5.0
"""The fastest that was measured writes 60 MB a second, of which the room that is always left holds 17 s."""
_MEASURE_UNBOUND_EVERY_S: Final = 60.0
"""Where only the metric wants it: it looks at each file of the database."""
_LANE_BYTES: Final = 32 * _MIB
"""Bodies as sent that may be in hand or wait, of each kind that has a lane."""
_LANES: Final = {
    "tokens": 2,
    "others": 2,
    "samples": 2,
    "series": 1,
    "traces": 2,
    "lineage": 1,
    "outcomes": 1,
    "jobs": 1,
}
"""Kinds of work and their threads. Each but ``tokens`` and ``samples`` may want one of ``engine``'s connections."""
_T = TypeVar("_T")


class Runtime:
    """Everything of one running ingest. Nothing is opened before :meth:`start`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine: sa.Engine = settings.database.create_engine(
            "writer", pool_size=3, application="wattledger-ingest", pool_timeout_s=_POOL_TIMEOUT_S
        )
        # Of its own: who may send is asked before anything is taken in, whatever else keeps the others busy.
        self.tokens_engine = settings.database.create_engine(
            "writer", pool_size=2, application="wattledger-tokens", pool_timeout_s=_POOL_TIMEOUT_S
        )
        # Of its own: a thousand agents that all reconnect must not keep the registry waiting for a connection.
        self._registry_engine = settings.database.create_engine(
            "writer", pool_size=1, application="wattledger-registry", pool_timeout_s=_POOL_TIMEOUT_S
        )
        self.registry = Registry(self._registry_engine)
        self.authenticator = Authenticator(self.tokens_engine, settings.token_cache_s)
        self.awaited = Awaited()
        self.budget = BodyBudget(settings.bodies_mib * _MIB)
        self._lanes = {name: Lane(name, threads, _LANE_BYTES, self.awaited) for name, threads in _LANES.items()}
        self._pulse = Pulse(settings.database, settings.database_silent_s)
        room = Room(settings.node_letters_mib * _MIB, settings.site_letters_mib * _MIB)
        self.letters = LetterBox(self.engine, room)
        sinks = [
            GroupWriter(settings.database, self.registry, hot_retention=settings.hot_retention, letters=self.letters)
            for _ in range(settings.writers)
        ]
        self.writer = Writer(sinks, settings.limits, self._settled)
        self.traces = TraceWriter(settings.database, self.awaited)
        self.database_room = DatabaseRoom(self.engine, settings.database_max_mib * _MIB)
        self.disk = DiskGuard(settings.watched_paths, settings.min_free_mib * _MIB, room=self.database_room)
        self.metrics = IngestMetrics(
            lambda: self.writer.queued_bytes, lambda: self.budget.held_bytes, self.disk, self.database_room
        )
        self._rates = RateLimits()
        self.newcomers = Newcomers()
        self.series = Intake(settings.series_node_labels, Spacings(self.engine))
        self._probe = sinks[0]
        self._reader = Reader()
        self._local = threading.local()
        # For those who ask how this process is; none of them asks the database.
        self._probes = ThreadPoolExecutor(3, "probes")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._renewal: asyncio.Future[None] | None = None
        self._collected_after = gc.get_threshold()
        self._draining = False
        self._standing = Standing()
        self._readiness: asyncio.Future[tuple[int, dict[str, Any]]] | None = None
        self._looking: asyncio.Future[None] | None = None
        self._degraded: dict[str, str] = {}
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
        self._pulse.start()
        self.writer.start()
        self._tasks.append(asyncio.create_task(self._heed_silence()))
        self._tasks.append(asyncio.create_task(self._measure_database()))
        if self.settings.token_cache_s:
            self._tasks.append(asyncio.create_task(self._refresh_tokens()))

    async def stop(self) -> None:
        """Write what waits, then let go of everything."""
        for task in self._tasks:
            task.cancel()
        for close in (self.writer.stop, self.traces.close, self._pulse.stop):
            await self.in_thread(close)
        for lane in self._lanes.values():
            lane.close()
        self._probes.shutdown(wait=False)
        self.engine.dispose()
        self.tokens_engine.dispose()
        self._registry_engine.dispose()
        self.metrics.close()
        gc.set_threshold(*self._collected_after)
        gc.unfreeze()

    async def in_thread(self, work: Callable[..., _T], *args: Any) -> _T:
        """Return what ``work`` returns in a thread for what has no lane of its own."""
        return await self._lanes["others"].run(0, work, *args)

    async def in_lane(self, lane: str, size_bytes: int, work: Callable[..., _T], *args: Any) -> _T:
        """Return what ``work`` returns in a thread for this kind of work (``_LANES``), of a body of so many bytes as sent.

        Raises UnavailableError where too much waits, or the database turns silent meanwhile.
        """
        return await self._lanes[lane].run(size_bytes, work, *args)

    async def principal(self, header: bytes | None) -> Principal:
        known = self.authenticator.recall(header)
        if known is None and self.authenticator.may_be_renewed(header):
            await self._renewed()
            known = self.authenticator.recall(header)
        if known is None:
            check_bearer(header)  # nobody waits, and nothing is asked, for who shows no token at all
            known = await self.in_lane("tokens", 0, self.authenticator.verify, header)
        return known

    async def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Say by its headers whether a body may be read now; raises IngestError, 401, 429 or 503 where it may not."""
        if self._draining:
            raise UnavailableError("stopping", "this server is stopping; send it again", _STOPPING_RETRY_S)
        self.disk.check()
        if self._pulse.is_silent:
            raise _silent()
        token = (await self.principal(headers.get(b"authorization"))).token
        claimed = headers.get(b"content-length")
        if claimed is not None and claimed.isdigit():
            self._charge(token, int(claimed))

    async def admit_unclaimed(self, headers: Mapping[bytes, bytes], size: int) -> None:
        """Count a body that did not say its size before it came; raises TooManyError."""
        if b"content-length" not in headers:
            self._charge((await self.principal(headers.get(b"authorization"))).token, size)

    def _charge(self, token: Token, size: int) -> None:
        rate = self.settings.site_rate if token.node_id is None else self.settings.node_rate
        self._rates.take(token.id, rate, size)

    async def read(self, body: bytes) -> Body:
        """Check a body, a large one in a thread."""
        return (
            self._reader.read(body)
            if len(body) <= _LARGE_BODY_BYTES
            else await self.in_lane("samples", len(body), self._read_large, body)
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
        result = await self.awaited.result(future)
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

    async def readiness(self) -> tuple[int, dict[str, Any]]:
        """Return status and body for who asks whether this process takes data: :meth:`ingest.readiness.Standing.told`.

        However many ask, the database is asked once at a time, and waited for a second and a half.
        """
        if self._readiness is None or self._readiness.done():
            self._readiness = asyncio.ensure_future(self._stand())
        return await asyncio.shield(self._readiness)

    async def exposition(self) -> str:
        """Return the process's metrics as Prometheus text; asks nobody."""
        return await asyncio.get_running_loop().run_in_executor(self._probes, self.metrics.exposition)

    async def _stand(self) -> tuple[int, dict[str, Any]]:
        loop = asyncio.get_running_loop()
        if self._looking is None or self._looking.done():
            self._looking = loop.run_in_executor(self._probes, self._look)
        # A watch that does not come back is told as it was last.
        looking = asyncio.wait([self._looking], timeout=_PROBE_WITHIN_S)
        beat, _ = await asyncio.gather(loop.run_in_executor(self._probes, self._pulse.ask, _PROBE_WITHIN_S), looking)
        return self._standing.told(self._faults(beat), self._degraded)

    def _look(self) -> None:
        self._degraded = {name: fault for watch in self.watches for name, fault in watch().items()}

    def _faults(self, beat: Beat) -> dict[str, str]:
        if self._draining:
            return {"process": "it is stopping"}
        faults = {}
        short = self.disk.fault()
        if short is not None:
            faults["disk"] = short
        if self.writer.is_down:
            return faults | {"database": "the database does not answer, or takes no writes"}
        if beat.fault is not None:
            return faults | {"database": beat.fault}
        if beat.missing_days:
            faults["partitions"] = f"no partition for {', '.join(map(str, beat.missing_days))}"
        return faults

    async def _heed_silence(self) -> None:
        """While the database is silent, tell all who wait for it to come again; the outermost loop of its task."""
        while True:
            await asyncio.sleep(_HEED_EVERY_S)
            if self._pulse.is_silent:
                told = self.awaited.end(_silent)
                if told:
                    _LOG.warning("%d requests were told to come again: the database is silent", told)

    async def _renewed(self) -> None:
        """Verify again, in one question for all that wait: after a pause the time of a thousand senders is up at once."""
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.ensure_future(self.in_lane("tokens", 0, self.authenticator.refresh))
        try:
            await asyncio.shield(self._renewal)
        except (sa.exc.DBAPIError, sa.exc.TimeoutError, UnavailableError) as error:
            # Nobody is believed for it: each is then verified by itself, and told what the database says.
            _LOG.warning("tokens whose time is up could not be verified together: %s", type(error).__name__)

    async def _measure_database(self) -> None:
        """Keep what the database's size is known to be recent; the outermost loop of its task."""
        while True:
            try:
                if not self._pulse.is_silent:
                    await self.in_thread(self.database_room.ask)
            except UnavailableError as error:
                _LOG.warning("the size of the database could not be asked for: %s", error)
            await asyncio.sleep(_MEASURE_EVERY_S if self.database_room.max_bytes else _MEASURE_UNBOUND_EVERY_S)

    async def _refresh_tokens(self) -> None:
        """Keep the tokens in use verified; the outermost loop of its task."""
        while True:
            await asyncio.sleep(self.settings.token_cache_s / 3)
            try:
                await self.in_lane("tokens", 0, self.authenticator.refresh)
            except (sa.exc.DBAPIError, sa.exc.TimeoutError, UnavailableError) as error:
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


def _silent() -> UnavailableError:
    return UnavailableError("database_silent", "the database gives no answer; send it again", _SILENT_RETRY_S)


def _resolve(results: Sequence[tuple[asyncio.Future[Result], Result]]) -> None:
    for future, result in results:
        if not future.done():  # a sender that hung up cancelled it; its batch is committed all the same
            future.set_result(result)
