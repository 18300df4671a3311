"""ingest.native: rows/s from HTTP body to commit, 10,000 rows a body, against COPY of the same rows prepared as bytes.

The baseline is what PostgreSQL can take from anybody: ready-made binary COPY data, as many connections, rows per
transaction and indexes, fsync on. Best of three rounds each, taken in turns.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Final

import polars as pl
import uvloop

from bench import load
from bench.bodies import Node, columns
from bench.cpu import Spent
from bench.report import Result
from bench.stand import Stand, agent_tokens, empty_samples, ingest_process, stand
from collector.wire import Stream
from ingest.accept import BodyFacts, accept, with_body
from ingest.receivers.native import Reader, decode
from ingest.settings import Settings
from ingest.store.copy import copy_statement, encode
from ingest.store.sample_tables import TARGETS

ROWS: Final = 10_000
BODIES: Final = 96
SENDERS: Final = 8
"""Enough that a body waits while two are written; more would only wait longer."""
ROUNDS: Final = 3
TARGET: Final = 0.75


def run() -> list[Result]:
    with stand() as on:
        nodes = [Node(number) for number in range(SENDERS)]
        tokens = agent_tokens(on.database, [node.name for node in nodes])
        settings = Settings.from_env(os.environ, on.database)
        connections, bodies_each = settings.writers, max(1, settings.group_rows // ROWS)
        ours: list[float] = []
        baseline: list[float] = []
        with ingest_process(on) as ingest_pid:
            spent, spent_on_copy = Spent(on, ingest_pid), Spent(on, None)
            _send_rate(on, nodes, tokens, 1, Spent(on, ingest_pid))  # partitions, ids and caches of both sides
            prepared = _prepared_copy(nodes[0], bodies_each)
            for _ in range(ROUNDS):
                empty_samples(on.database)
                baseline.append(_copy_rate(on, prepared, connections, bodies_each, spent_on_copy))
                empty_samples(on.database)
                ours.append(_send_rate(on, nodes, tokens, BODIES // SENDERS, spent))
    value, limit = max(ours), max(baseline)
    detail: dict[str, Any] = {
        "rows_per_body": ROWS,
        "connections": connections,
        "rows_per_transaction": bodies_each * ROWS,
        "rounds": [round(rate) for rate in ours],
    }
    detail["baseline_rounds"] = [round(rate) for rate in baseline]
    sent_rows = ROUNDS * (BODIES // SENDERS) * SENDERS * ROWS
    detail["cpu_us_per_row"] = spent.us_per_row(sent_rows)
    detail["baseline_cpu_us_per_row"] = spent_on_copy.us_per_row(sent_rows)
    return [Result("ingest.native", value, "rows/s", f">= {TARGET} x baseline", value >= TARGET * limit, limit, detail)]


def _send_rate(on: Stand, nodes: list[Node], tokens: dict[str, str], each: int, spent: Spent) -> float:
    """Send ``each`` bodies per sender flat out; return committed rows per second."""
    rows = columns(ROWS, time.time_ns() // 1_000)
    bodies = [[node.body(rows) for _ in range(each)] for node in nodes]

    async def main() -> float:
        connections = await load.connect(on.port, [tokens[node.name] for node in nodes])
        with spent.during():
            started_s = time.perf_counter()
            answers = await load.flat_out(connections, bodies)
            elapsed_s = time.perf_counter() - started_s
        for connection in connections:
            connection.close()
        failed = [answer for answer in answers if answer.status != 200 or b'"duplicate":true' in answer.body]
        if failed:
            raise RuntimeError(
                f"{len(failed)} bodies not committed, first: {failed[0].status} {failed[0].body[:200]!r}"
            )
        return len(answers) * ROWS / elapsed_s

    return uvloop.run(main())


def _prepared_copy(node: Node, bodies: int) -> bytes:
    """Return the binary COPY data of a transaction: the rows of so many bodies."""
    body = Reader().read(node.body(columns(ROWS, time.time_ns() // 1_000)))
    frame = with_body([decode(body.streams)], [[(0, ROWS)]])
    taken = accept(Stream.DEVICE, frame, [BodyFacts(1, tuple(range(1, 9)))], time.time_ns() // 1_000)
    rows = pl.concat([TARGETS[Stream.DEVICE].rows(taken.rows)] * bodies, rechunk=True)
    return b"".join(bytes(piece) for piece in encode(rows))


def _copy_rate(on: Stand, prepared: bytes, connections: int, bodies_each: int, spent: Spent) -> float:
    target = TARGETS[Stream.DEVICE]
    statement = copy_statement(target.table, list(target.schema))
    transactions = BODIES // bodies_each // connections
    opened = [on.database.connect("writer") for _ in range(connections)]

    def worker(number: int) -> None:
        with opened[number] as conn:
            for _ in range(transactions):
                with conn.cursor().copy(statement) as copy:
                    for at in range(0, len(prepared), 65_536):
                        copy.write(prepared[at : at + 65_536])
                conn.commit()

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(connections)]
    with spent.during():
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed_s = time.perf_counter() - started_s
    return transactions * connections * bodies_each * ROWS / elapsed_s
