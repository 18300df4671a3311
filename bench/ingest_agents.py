"""ingest.agents: 1,250 senders over kept-alive connections, auth on, each body of 80 or of 480 rows.

The senders are paced at 5 % above the target: rows per second say whether it was kept, the 99th percentile of latency,
counted from when a body was due, at what price. A sender that goes as fast as it can would only measure its own queue; so
what the server takes at most is measured after it, and is no part of either.
"""

from __future__ import annotations

import statistics
import time
from typing import Final

import uvloop

from bench import load
from bench.bodies import Node, columns
from bench.cpu import Spent
from bench.report import Result
from bench.stand import Stand, agent_tokens, empty_samples, ingest_process, stand

SENDERS: Final = 1_250
P99_LIMIT_S: Final = 0.25
DURATION_S: Final = 15.0
MARGIN: Final = 1.05
FLAT_OUT_TURNS: Final = 4
CASES: Final = ((80, 100_000), (480, 200_000))
"""Rows of a body, and the rows per second to be reached with them."""


def run() -> list[Result]:
    results: list[Result] = []
    with stand() as on:
        nodes = [Node(number) for number in range(SENDERS)]
        tokens = agent_tokens(on.database, [node.name for node in nodes])
        with ingest_process(on) as ingest_pid:
            for rows, target in CASES:
                empty_samples(on.database)
                results += _case(on, nodes, tokens, rows, target, Spent(on, ingest_pid))
    return results


def _case(on: Stand, nodes: list[Node], tokens: dict[str, str], rows: int, target: int, spent: Spent) -> list[Result]:
    interval_s = SENDERS * rows / (target * MARGIN)
    turns = max(2, round(DURATION_S / interval_s))
    now_us = time.time_ns() // 1_000
    data = [columns(rows, now_us + turn * 1_000, seed=turn) for turn in range(turns + 1)]
    bodies = [[node.body(data[turn]) for turn in range(turns + 1)] for node in nodes]
    more = [[node.body(data[turn % len(data)]) for turn in range(FLAT_OUT_TURNS)] for node in nodes]

    async def main() -> tuple[list[load.Answered], list[load.Answered]]:
        connections = await load.connect(on.port, [tokens[node.name] for node in nodes])
        # The first body of a node makes its ids; nodes do not all join in the second that is measured.
        await load.paced(connections, [sender[:1] for sender in bodies], 6.0)
        with spent.during():
            answers = await load.paced(connections, [sender[1:] for sender in bodies], interval_s)
        unpaced = await load.flat_out(connections, more)
        for connection in connections:
            connection.close()
        return answers, unpaced

    answers, unpaced = uvloop.run(main())
    failed = [answer for answer in (*answers, *unpaced) if answer.status != 200 or b'"duplicate":true' in answer.body]
    if failed:
        raise RuntimeError(f"{len(failed)} bodies not committed, first: {failed[0].status} {failed[0].body[:200]!r}")
    latencies_s = sorted(answer.latency_s for answer in answers)
    p99_s = latencies_s[int(0.99 * len(latencies_s))]
    # Paced work ends one interval after the last body was due, or when the last answer came, whichever is later.
    elapsed_s = max(_lasted_s(answers), turns * interval_s)
    rate = len(answers) * rows / elapsed_s
    detail = {
        "senders": SENDERS,
        "rows_per_body": rows,
        "bodies": len(answers),
        "flat_out_rows_per_s": round(len(unpaced) * rows / _lasted_s(unpaced)),
        "cpu_us_per_row": spent.us_per_row(len(answers) * rows),
        "latency_ms": {
            "median": round(statistics.median(latencies_s) * 1e3, 1),
            "p99": round(p99_s * 1e3, 1),
            "max": round(latencies_s[-1] * 1e3, 1),
        },
    }
    name = f"ingest.agents.{rows}"
    return [
        Result(f"{name}.rate", rate, "rows/s", f">= {target:,} rows/s", rate >= target, detail=detail),
        Result(f"{name}.p99", p99_s * 1e3, "ms", "<= 250 ms", p99_s <= P99_LIMIT_S, detail=detail),
    ]


def _lasted_s(answers: list[load.Answered]) -> float:
    """Return the time from when the first request was due to the last answer."""
    return max(answer.at_s for answer in answers) - min(answer.at_s - answer.latency_s for answer in answers)
