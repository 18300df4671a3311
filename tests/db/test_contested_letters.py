"""Rows of a device that two agents name are in no 200 without being kept; and what waits as dead letters has a bound."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from ingest.errors import TooManyError
from ingest.replay import Clock, replayer
from ingest.settings import Settings
from ingest.store import dead_letter_list
from ingest.store.dead_letters import DeadLetter, LetterBox, Room, bury
from ingest.store.engine import Database
from tests.db.ingest_harness import batch_meta, body_of, device, device_row, make_site, now_us, run, send

pytestmark = pytest.mark.db

OTHER_SPOOL = "00000000-0000-4000-8000-000000000002"


def query(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with database.connect("admin") as conn:
        return conn.execute(statement.encode()).fetchall()


def test_refused_rows_wait_as_a_dead_letter_and_only_they_are_taken_when_it_is_replayed(db: Database) -> None:
    site = make_site(db)
    at = now_us()
    ours = batch_meta(devices=(device("a"),))
    theirs = batch_meta(node="node-2", spool=OTHER_SPOOL, devices=(device("a"), device("b")))

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await send(client, body_of(ours, device_row(at)), site.node_tokens["node-1"])).json()[
            "accepted_rows"
        ] == 1
        body = body_of(theirs, device_row(at), device_row(at, 1))
        answer = (await send(client, body, site.node_tokens["node-2"])).json()
        assert (answer["accepted_rows"], answer["refused"][0]["reason"]) == (1, "device_on_two_nodes")
        again = (await send(client, body, site.node_tokens["node-2"])).json()
        assert again["duplicate"]

    run(Settings(db), scenario)
    assert query(db, "SELECT reason, nodes.name FROM dead_letters JOIN nodes ON nodes.id = node_id") == [
        ("device_on_two_nodes", "node-2")
    ]
    engine = db.create_engine("worker", pool_size=1)
    with engine.connect() as conn:
        (letter_id,) = dead_letter_list.ids(conn)
        letter = dead_letter_list.letter(conn, letter_id)
    engine.dispose()
    assert letter is not None
    with replayer(db, timedelta(hours=48)) as sender:
        outcome = sender.replay(letter, Clock.AS_SENT)
        again = sender.replay(letter, Clock.AS_SENT)  # the process before was killed, or somebody else did it too
    assert (outcome.accepted_rows, outcome.refusals, outcome.duplicate) == (1, (), False)
    assert (again.refusals, again.duplicate) == ((), True)
    rows = query(
        db,
        "SELECT nodes.name, devices.uuid FROM device_samples JOIN epochs ON epochs.id = epoch_id "
        "JOIN nodes ON nodes.id = epochs.node_id JOIN devices ON devices.id = device_id ORDER BY 1, 2",
    )
    assert rows == [("node-1", "GPU-a"), ("node-2", "GPU-a"), ("node-2", "GPU-b")]


def test_letters_of_a_node_end_at_its_bound_and_the_sender_keeps_the_rest(db: Database) -> None:
    site = make_site(db)
    old = str(now_us() - 400_000_000)
    body = body_of(batch_meta(), device_row(now_us()))

    (node_id,) = query(db, "SELECT id FROM nodes WHERE name = 'node-1'")[0]
    engine = db.create_engine("writer", pool_size=1)
    nearly = b"x" * (1024 * 1024 - 2 * len(body))
    bury(engine, DeadLetter(site.site_id, node_id, "clock_skew", "off", nearly, {}))
    engine.dispose()

    async def scenario(client: httpx.AsyncClient) -> None:
        codes = [await send(client, body, site.node_tokens["node-1"], Wattledger_Sent_At=old) for _ in range(3)]
        assert [answer.status_code for answer in codes] == [202, 202, 429]
        assert codes[2].json()["type"].endswith("dead_letters_full")
        assert codes[2].headers["retry-after"] == "300"
        other = await send(
            client,
            body_of(batch_meta(node="node-2", spool=OTHER_SPOOL), device_row(now_us())),
            site.node_tokens["node-2"],
            Wattledger_Sent_At=old,
        )
        assert other.status_code == 202

    run(Settings(db, node_letters_mib=1), scenario)
    assert query(db, "SELECT count(*) FROM dead_letters") == [(4,)]
    assert query(db, "SELECT kind FROM findings") == [("dead_letters_full",)]


def test_letters_of_a_site_end_at_its_bound_and_those_replayed_count_no_more(db: Database) -> None:
    site = make_site(db)
    engine = db.create_engine("writer", pool_size=1)
    letter = DeadLetter(site.site_id, None, "clock_skew", "off", b"x" * 100, {})
    box = LetterBox(engine, Room(site_bytes=250))
    box.bury(letter)
    box.bury(replace(letter, node_id=None))
    with pytest.raises(TooManyError, match="200 bytes of this site's bodies"):
        box.bury(letter)
    with pytest.raises(TooManyError):
        LetterBox(engine, Room(site_bytes=250)).bury(letter)  # another replica, or this one started anew
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE dead_letters SET replayed_at = now()"))
    LetterBox(engine, Room(site_bytes=250)).bury(letter)
    engine.dispose()
