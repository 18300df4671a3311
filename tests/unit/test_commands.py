"""Orders: believed only when signed, carried out within bounds, and undone whatever happens in between."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from collector.commands.channel import CommandChannel, read_key
from collector.commands.check import Bounds, PowerOrder, RefusedError, check, parse
from collector.commands.expiry import Expiry
from collector.commands.journal import Journal
from collector.commands.orders import Orders
from collector.commands.power import PowerError, PowerLimit
from collector.errors import AgentError, JournalError
from collector.spool import Spool
from collector.wire import Command

pytestmark = pytest.mark.unit

KEY = b"k" * 32
NOW = 1_800_000_000_000_000
HOUR = 3_600_000_000
BOUNDS = Bounds(200, 700)


def command(**changes: Any) -> Command:
    made = Command(
        id=1,
        node="gpu-01",
        verb="power_limit",
        args={"device": "GPU-0", "watts": 400},
        nonce="0123456789abcdef",
        issued_at_us=NOW,
        expires_at_us=NOW + HOUR,
    )
    made = replace(made, **changes)
    return replace(made, signature=made.sign(KEY))


def verdict(order: Command, *, seen: frozenset[str] = frozenset(), key: bytes = KEY) -> str:
    try:
        found = check(order, key=key, node="gpu-01", now_us=NOW, seen=seen, bounds=BOUNDS)
    except RefusedError as refused:
        return str(refused)
    return "seen" if found is None else f"{found.device} {found.limit_mw} mW"


class Boards:
    """Two boards of 200 to 700 W, their limits, and what was asked of them."""

    def __init__(self) -> None:
        self.limits = {"GPU-0": 700_000, "GPU-1": 650_000}
        self.default_mw: int | None = 690_000
        self.failing = ""
        self.sets: list[tuple[str, int]] = []

    def devices(self) -> tuple[str, ...]:
        return tuple(self.limits)

    def limit(self, device_uuid: str) -> PowerLimit:
        self._fail("get")
        return PowerLimit(self.limits[device_uuid], 200_000, 700_000, self.default_mw)

    def set_limit(self, device_uuid: str, limit_mw: int) -> None:
        self._fail("set")
        self.sets.append((device_uuid, limit_mw))
        self.limits[device_uuid] = limit_mw

    def _fail(self, what: str) -> None:
        if self.failing == what:
            raise PowerError("Insufficient Permissions")
        if self.failing == f"die in {what}":
            raise KeyboardInterrupt  # as good as a kill: nothing here may catch it


class Stand:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boards = Boards()
        self.now_us = NOW
        self.told: list[tuple[str, str | None, int | None]] = []
        self.start()

    def start(self) -> None:
        self.spool = Spool(self.folder / "spool.db", max_bytes=1 << 20)
        self.journal = Journal(self.spool)
        self.orders = Orders(self.journal, self.boards, self.tell, lambda: self.now_us)

    def crash(self) -> None:
        self.spool.close()
        self.start()

    def tell(
        self, kind: str, subject: str | None = None, *, code: int | None = None, detail: str | None = None
    ) -> None:
        del detail  # words are for people
        self.told.append((kind, subject, code))

    def lose_the_journal(self) -> None:
        self.lose_the_spool()
        self.journal.path.unlink()
        self.journal.path.with_name("spool.db.orders.copy").unlink()
        self.start()

    def lose_the_spool(self) -> None:
        self.spool.close()
        (self.folder / "spool.db").unlink()
        self.start()

    def carry_out(self, watts: int, device: str = "GPU-0", nonce: str = "n1", until_us: int = NOW + HOUR) -> None:
        self.orders.carry_out(PowerOrder(nonce, device, watts * 1_000, until_us, NOW))


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    yield stand
    stand.spool.close()


def test_a_good_order_is_a_power_limit_in_milliwatts_and_is_seen_once() -> None:
    assert verdict(command()) == "GPU-0 400000 mW"
    assert verdict(command(), seen=frozenset({"0123456789abcdef"})) == "seen"


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (command(node="gpu-02"), "for node 'gpu-02'"),
        (command(expires_at_us=NOW), "has expired"),
        (command(issued_at_us=NOW + 400_000_000), "issued in the future"),
        (command(expires_at_us=NOW + 200 * HOUR), "more than a week"),
        (command(verb="reboot"), "does not know how to 'reboot'"),
        (command(nonce="short"), "nonce is none"),
        (command(args={"device": "GPU-0", "watts": 701}), "outside of [200, 700] W"),
        (command(args={"device": "GPU-0", "watts": 199}), "outside of [200, 700] W"),
        (command(args={"device": "GPU-0", "watts": "400"}), "outside of"),
        (command(args={"device": "../x", "watts": 400}), "needs a device and watts"),
        (command(args={"device": "GPU-0", "watts": 400, "force": 1}), "needs a device and watts"),
        (command(args={}), "needs a device and watts"),
        (replace(command(), args={"device": "GPU-0", "watts": 500}), "signature is not of this node's key"),
        (replace(command(), expires_at_us=NOW + 2 * HOUR), "signature is not of this node's key"),
        (replace(command(), nonce="fedcba9876543210"), "signature is not of this node's key"),
        (replace(command(), signature=""), "signature is not of this node's key"),
    ],
)
def test_any_other_order_is_refused_with_the_reason(order: Command, why: str) -> None:
    assert why in verdict(order)


def test_an_order_signed_for_another_node_s_key_says_nothing_here() -> None:
    assert "signature" in verdict(command(), key=b"x" * 32)


@pytest.mark.parametrize("raw", [None, [], {}, {"id": 1}, asdict(command()) | {"id": "1"}, asdict(command()) | {"args": [1]}, asdict(command()) | {"args": {"a": 1.5}}, asdict(command()) | {"nonce": "n" * 300}])  # fmt: skip
def test_what_has_not_the_shape_of_an_order_is_none(raw: object) -> None:
    with pytest.raises(RefusedError):
        parse(raw)


def test_a_limit_is_set_and_put_back_at_its_expiry(stand: Stand) -> None:
    stand.carry_out(400)
    assert stand.boards.limits["GPU-0"] == 400_000
    stand.orders.undo_due()
    assert stand.boards.limits["GPU-0"] == 400_000
    stand.now_us += HOUR
    stand.orders.undo_due()
    assert stand.boards.limits == {"GPU-0": 700_000, "GPU-1": 650_000}
    assert stand.told == [("order_applied", "GPU-0", 400_000), ("order_undone", "GPU-0", 700_000)]
    assert stand.journal.changes() == {}


def test_all_devices_are_limited_and_each_gets_its_own_back(stand: Stand) -> None:
    stand.carry_out(300, device="*")
    assert stand.boards.limits == {"GPU-0": 300_000, "GPU-1": 300_000}
    stand.orders.undo_all("the agent stops")
    assert stand.boards.limits == {"GPU-0": 700_000, "GPU-1": 650_000}


def test_after_a_crash_the_next_start_puts_back_what_was_there(stand: Stand) -> None:
    stand.carry_out(400)
    stand.crash()
    stand.orders.undo_all("found after a restart")
    assert stand.boards.limits["GPU-0"] == 700_000


@pytest.mark.parametrize("when", ["die in set", "die in get"])
def test_a_crash_at_any_point_of_an_order_leaves_the_limit_as_it_was_found(stand: Stand, when: str) -> None:
    if when == "die in get":  # after it was set: reading it back
        real = stand.boards.set_limit

        def set_and_die(device_uuid: str, limit_mw: int) -> None:
            real(device_uuid, limit_mw)
            stand.boards.failing = when

        stand.boards.set_limit = set_and_die  # type: ignore[method-assign]
    else:
        stand.boards.failing = when
    with pytest.raises(KeyboardInterrupt):
        stand.carry_out(400)
    stand.boards.failing = ""
    stand.crash()
    stand.orders.undo_all("found after a restart")
    assert stand.boards.limits["GPU-0"] == 700_000
    assert stand.journal.changes() == {}


def test_the_value_found_is_on_the_disk_before_anything_is_set(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_change: object) -> None:
        raise JournalError("disk full")

    monkeypatch.setattr(stand.journal, "note", full)
    with pytest.raises(JournalError):
        stand.carry_out(400)
    assert stand.boards.sets == []


def test_what_somebody_else_changed_meanwhile_is_left_and_told(stand: Stand) -> None:
    stand.carry_out(400)
    stand.boards.limits["GPU-0"] = 500_000
    stand.orders.undo_all("the agent stops")
    assert stand.boards.limits["GPU-0"] == 500_000
    assert stand.told[-1] == ("order_contested", "GPU-0", 500_000)
    assert stand.journal.changes() == {}


def test_an_order_on_top_of_another_gives_back_what_was_there_before_both(stand: Stand) -> None:
    stand.carry_out(400)
    stand.carry_out(300, nonce="n2")
    stand.orders.undo_all("the agent stops")
    assert stand.boards.limits["GPU-0"] == 700_000
    # But where somebody else set it in between, that is what was there before.
    stand.carry_out(400, nonce="n3")
    stand.boards.limits["GPU-0"] = 600_000
    stand.carry_out(300, nonce="n4")
    stand.orders.undo_all("the agent stops")
    assert stand.boards.limits["GPU-0"] == 600_000


def test_what_cannot_be_set_is_refused_and_what_cannot_be_undone_is_tried_again(stand: Stand) -> None:
    stand.boards.failing = "set"
    with pytest.raises(RefusedError, match="Insufficient Permissions"):
        stand.carry_out(400)
    assert stand.journal.changes() == {}
    with pytest.raises(RefusedError, match="no device GPU-9"):
        stand.carry_out(400, device="GPU-9")
    with pytest.raises(RefusedError, match=r"its board allows \[200, 700\] W"):
        stand.carry_out(150)
    stand.boards.failing = ""
    stand.carry_out(400)
    stand.boards.failing = "get"
    stand.now_us += HOUR
    stand.orders.undo_due()
    assert stand.told[-1][0] == "order_not_undone"
    stand.boards.failing = ""
    stand.orders.undo_due()
    assert stand.boards.limits["GPU-0"] == 700_000


def test_after_the_spool_was_lost_with_a_crash_the_limit_is_put_back_all_the_same(stand: Stand) -> None:
    stand.carry_out(400)
    stand.journal.see("n1", NOW + HOUR)
    stand.lose_the_spool()
    assert stand.journal.seen() == {"n1"}
    stand.orders.undo_all("found after a restart")
    assert stand.boards.limits["GPU-0"] == 700_000


def test_a_spool_that_is_damaged_under_the_agent_takes_no_order_with_it(stand: Stand) -> None:
    stand.carry_out(400)
    stand.spool.close()
    (stand.folder / "spool.db").write_bytes(b"no database at all " * 400)
    stand.start()
    assert stand.spool.damaged_files
    stand.orders.undo_all("found after a restart")
    assert stand.boards.limits["GPU-0"] == 700_000


def test_what_a_release_before_kept_in_the_spool_is_taken_over_once(stand: Stand) -> None:
    change = {
        "device_uuid": "GPU-0",
        "nonce": "n1",
        "previous_mw": 650_000,
        "applied_mw": 400_000,
        "expires_at_us": NOW,
    }
    stand.boards.limits["GPU-0"] = 400_000
    stand.spool.remember("power:GPU-0", json.dumps(change))
    stand.spool.remember("power:GPU-1", "garbage")
    stand.spool.remember("nonce:n1", str(NOW))
    stand.spool.remember("journal_since_us", str(NOW - HOUR))
    assert stand.journal.knew(NOW - HOUR)
    assert stand.journal.seen() == {"n1"}
    assert list(stand.journal.changes()) == ["GPU-0"]
    assert stand.spool.facts("power:") == stand.spool.facts("nonce:") == {}
    stand.lose_the_spool()
    stand.orders.undo_all("found after a restart")
    assert stand.boards.limits["GPU-0"] == 650_000


def test_a_crash_while_it_is_taken_over_takes_it_over_again(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.spool.remember("nonce:n1", str(NOW))
    with monkeypatch.context() as patched:
        patched.setattr(stand.spool, "forget", lambda _name: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stand.journal.seen()
    stand.journal.path.with_name(stand.journal.path.name + ".new").write_bytes(b"half of")
    stand.crash()
    assert stand.journal.seen() == {"n1"}
    assert stand.spool.facts("nonce:") == {}


def test_a_damaged_journal_is_kept_told_of_and_begun_anew(stand: Stand) -> None:
    stand.carry_out(400)
    text = stand.journal.path.read_text()
    flipped = text.replace("700000", "200000")  # a flipped bit must not become a limit
    stand.journal.path.write_text(flipped)
    stand.journal.path.with_name("spool.db.orders.copy").write_text(flipped)
    stand.now_us += 60_000_000
    stand.crash()
    stand.orders.undo_due()
    assert stand.boards.limits["GPU-0"] == 400_000
    (kept,) = stand.folder.glob("spool.db.orders.damaged-*")
    assert ("orders_journal_damaged", str(kept), None) in stand.told
    stand.carry_out(400)  # the server hands it out until it expires
    assert ("order_previous_unknown", "GPU-0", 690_000) in stand.told


@pytest.mark.parametrize("damage", [b"", b"\xff" * 4_096, None], ids=["emptied", "a block of nonsense", "removed"])
def test_a_journal_that_cannot_be_read_costs_nothing_while_its_copy_can(damage: bytes | None, stand: Stand) -> None:
    stand.carry_out(400)
    if damage is None:
        stand.journal.path.unlink()
    else:
        stand.journal.path.write_bytes(damage)
    stand.crash()
    stand.orders.undo_all("found after a restart")
    assert stand.boards.limits["GPU-0"] == 700_000
    assert len(list(stand.folder.glob("spool.db.orders.damaged-*"))) == (damage is not None)
    stand.carry_out(300, nonce="n2")
    stand.journal.path.with_name("spool.db.orders.copy").write_bytes(b"nonsense")
    stand.crash()
    stand.orders.undo_all("found after a restart")  # nor does the copy cost anything
    assert stand.boards.limits["GPU-0"] == 700_000


def test_a_copy_that_cannot_be_written_is_none_rather_than_one_of_before(stand: Stand) -> None:
    stand.carry_out(400)
    copy = stand.folder / "spool.db.orders.copy"
    assert copy.read_bytes() == stand.journal.path.read_bytes()
    (stand.folder / "spool.db.orders.copy.new").mkdir()
    stand.carry_out(300, nonce="n2")
    assert not copy.exists()
    assert [change.applied_mw for change in stand.journal.changes().values()] == [300_000]


def test_the_journal_is_its_user_s_alone(stand: Stand) -> None:
    stand.journal.see("n1", NOW)
    assert stand.journal.path.stat().st_mode & 0o777 == 0o600


def test_a_disk_that_takes_no_journal_sets_no_limit(stand: Stand) -> None:
    (stand.folder / "spool.db.orders.new").mkdir()
    with pytest.raises(JournalError, match=r"cannot write the journal of orders"):
        stand.carry_out(400)
    assert stand.boards.sets == []
    (stand.folder / "spool.db.orders.new").rmdir()
    stand.carry_out(400)
    assert stand.boards.limits["GPU-0"] == 400_000


def test_an_order_replayed_after_the_journal_was_lost_gives_back_the_board_s_default(stand: Stand) -> None:
    stand.carry_out(400)
    stand.now_us += 60_000_000
    stand.lose_the_journal()
    stand.orders.undo_all("found after a restart")
    stand.orders.undo_due()
    stand.carry_out(400)  # the server hands it out until it expires
    assert ("order_previous_unknown", "GPU-0", 690_000) in stand.told
    stand.now_us += HOUR
    stand.orders.undo_due()
    assert stand.boards.limits["GPU-0"] == 690_000


def test_a_board_without_a_default_keeps_its_limit_and_that_is_told(stand: Stand) -> None:
    stand.boards.limits["GPU-0"] = 400_000
    stand.boards.default_mw = None
    stand.carry_out(400)
    assert stand.told[0] == ("order_previous_unknown", "GPU-0", 400_000)


def test_a_limit_that_was_there_before_a_new_order_of_the_same_is_put_back(stand: Stand) -> None:
    stand.boards.limits["GPU-0"] = 400_000  # an operator's
    stand.orders.undo_due()  # the journal begins at NOW, when the order is issued
    stand.carry_out(400)
    stand.orders.undo_all("the agent stops")
    assert stand.boards.limits["GPU-0"] == 400_000
    assert [kind for kind, _, _ in stand.told] == ["order_applied", "order_undone"]


def test_nonces_are_kept_a_week_longer_than_their_orders_as_the_clock_may_be_set_back(stand: Stand) -> None:
    week = 7 * 24 * HOUR
    stand.journal.see("n1", NOW + 5)
    stand.now_us = NOW + 5
    stand.orders.undo_due()
    assert stand.journal.seen() == {"n1"}
    stand.now_us = NOW + 4 + week
    stand.orders.undo_due()
    assert stand.journal.seen() == {"n1"}
    stand.now_us = NOW + 5 + week
    stand.orders.undo_due()
    assert stand.journal.seen() == frozenset()


class Server:
    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def channel(stand: Stand, server: Server, period_s: float = 0.01) -> CommandChannel:
    client = httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test")
    return CommandChannel(
        client,
        stand.journal,
        stand.orders,
        Expiry(stand.orders, stand.tell, tick_s=0.01, retry_s=0.05),
        stand.tell,
        lambda: stand.now_us,
        node="gpu-01",
        key=KEY,
        token=lambda: "s3cret",
        bounds=BOUNDS,
        period_s=period_s,
    )


def run_until(polling: CommandChannel, server: Server, asked: int) -> None:
    polling.start()
    until_s = time.monotonic() + 5
    while len(server.asked) < asked and time.monotonic() < until_s:
        time.sleep(0.005)
    polling.close()


def test_an_order_is_fetched_carried_out_once_and_undone_at_the_stop(stand: Stand) -> None:
    server = Server(httpx.Response(200, json=[asdict(command()), asdict(command(node="gpu-02", nonce="f" * 16))]))
    polling = channel(stand, server)
    run_until(polling, server, asked=4)
    assert stand.boards.sets == [("GPU-0", 400_000), ("GPU-0", 700_000)]
    assert [kind for kind, _, _ in stand.told] == ["order_applied", "order_refused", "order_undone"]
    assert (server.asked[0].url.path, server.asked[0].headers["Authorization"]) == (
        "/v1/agent/commands",
        "Bearer s3cret",
    )
    # The agent that starts next is given the same order again, and has seen it.
    stand.crash()
    again = Server(httpx.Response(200, json=[asdict(command())]))
    run_until(channel(stand, again), again, asked=2)
    assert len(stand.boards.sets) == 2


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(403, text="no"),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"not": "a list"}),
        httpx.Response(200, text="[]", headers={"Content-Encoding": "identity, x-odd"}),
        httpx.Response(200, content=b"[" * 300_000),
        httpx.Response(200, json=[17, {"id": 1}]),
    ],
)
def test_a_server_that_answers_nonsense_changes_nothing_and_is_asked_again(
    answer: httpx.Response, stand: Stand
) -> None:
    server = Server(answer)
    run_until(channel(stand, server), server, asked=3)
    assert stand.boards.sets == []
    assert len({kind for kind, _, _ in stand.told}) == 1


def test_what_a_crash_left_is_undone_at_the_start_even_while_the_server_is_away(stand: Stand) -> None:
    stand.carry_out(400)
    stand.crash()
    server = Server(httpx.Response(503))
    run_until(channel(stand, server), server, asked=1)
    assert stand.boards.limits["GPU-0"] == 700_000


def test_closing_does_not_wait_for_a_server_that_never_answers(stand: Stand) -> None:
    gate = threading.Event()
    server = Server(httpx.Response(200, json=[asdict(command())]))
    polling = channel(stand, server)
    polling.start()
    until_s = time.monotonic() + 5
    while not stand.boards.sets and time.monotonic() < until_s:
        time.sleep(0.005)
    began_s = time.monotonic()
    polling.close()
    gate.set()
    assert time.monotonic() - began_s < 2
    assert stand.boards.limits["GPU-0"] == 700_000


def test_an_order_is_undone_at_its_expiry_whatever_the_server_does_meanwhile(stand: Stand) -> None:
    gate = threading.Event()

    class Slow(Server):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if self.asked:
                gate.wait(10)
            return super().__call__(request)

    server = Slow(httpx.Response(200, json=[asdict(command())]))
    polling = channel(stand, server)
    polling.start()
    until_s = time.monotonic() + 5
    while not stand.boards.sets and time.monotonic() < until_s:
        time.sleep(0.005)
    assert stand.boards.limits["GPU-0"] == 400_000
    stand.now_us += HOUR
    while len(stand.boards.sets) < 2 and time.monotonic() < until_s:
        time.sleep(0.005)
    gate_was_shut = not gate.is_set()
    limit_mw = stand.boards.limits["GPU-0"]
    gate.set()
    polling.close()
    assert (gate_was_shut, limit_mw) == (True, 700_000)
    assert stand.told[-1] == ("order_undone", "GPU-0", 700_000)


def test_what_could_not_be_undone_after_a_crash_is_told_once_and_undone_when_it_can_be(stand: Stand) -> None:
    stand.carry_out(400)
    stand.crash()
    stand.boards.failing = "get"
    stand.orders.undo_all("found after a restart")
    for _ in range(3):
        stand.orders.undo_due()
    stand.boards.failing = ""
    stand.orders.undo_due(again=False)
    assert stand.boards.limits["GPU-0"] == 400_000
    stand.orders.undo_due()  # long before the order's expiry
    assert stand.boards.limits["GPU-0"] == 700_000
    assert [kind for kind, _, _ in stand.told] == ["order_applied", "order_not_undone", "order_undone"]


def test_an_order_on_a_device_whose_last_one_could_not_be_undone_is_its_own(stand: Stand) -> None:
    stand.carry_out(400)
    stand.boards.failing = "get"
    stand.orders.undo_all("found after a restart")
    stand.boards.failing = ""
    stand.carry_out(300, nonce="n2")
    stand.orders.undo_due()
    assert stand.boards.limits["GPU-0"] == 300_000
    stand.now_us += HOUR
    stand.orders.undo_due()
    assert stand.boards.limits["GPU-0"] == 700_000


def test_a_key_is_hexadecimal_long_enough_and_its_owner_s_alone(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY.hex() + "\n")
    file.chmod(0o600)
    assert read_key(file) == KEY
    file.chmod(0o640)
    with pytest.raises(AgentError, match="others may read"):
        read_key(file)
    file.chmod(0o600)
    for text in ("k" * 64, "abcd", ""):
        file.write_text(text)
        with pytest.raises(AgentError, match="holds no key of 32 bytes") as caught:
            read_key(file)
        assert text == "" or text not in str(caught.value)
    with pytest.raises(AgentError, match="cannot read the key"):
        read_key(tmp_path / "none")


def test_the_signature_is_the_server_s_own(tmp_path: Path) -> None:
    # What travels is JSON; the signature must survive the way there.
    travelled = parse(json.loads(json.dumps(asdict(command()))))
    assert verdict(travelled) == "GPU-0 400000 mW"
