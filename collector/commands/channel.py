"""Asks the server for orders and has them carried out; the thread, the key and the counts of the command channel.

The server only carries orders: one whose signature is not of this node's key is refused, whoever sent it. However long it takes to
answer, orders are undone in time: by the thread of :mod:`collector.commands.expiry`, not by this one.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from collector.commands.check import Bounds, RefusedError, check, parse
from collector.commands.expiry import Expiry
from collector.commands.journal import Journal
from collector.commands.orders import Orders, Tell
from collector.errors import AgentError
from collector.exchange import Exchange
from collector.http import httpx
from collector.wire import COMMANDS_PATH

_LOG = logging.getLogger(__name__)

KEY_BYTES: Final = 32
_LIMIT_S: Final = 60.0
_MAX_ANSWER_BYTES: Final = 262_144
_MAX_ORDERS: Final = 100
_JOIN_S: Final = 0.2


class CommandChannel:
    """Polls until closed. What goes wrong is told as an event of the node once, and counted."""

    def __init__(  # noqa: PLR0913  what the channel is made of
        self,
        opened: AbstractContextManager[httpx.Client],
        journal: Journal,
        orders: Orders,
        expiry: Expiry,
        tell: Tell,
        now_us: Callable[[], int],
        *,
        node: str,
        key: bytes,
        token: Callable[[], str | None],
        bounds: Bounds,
        period_s: float,
    ) -> None:
        """Start nothing yet; ``opened`` is entered by the thread that asks, and left when it ends."""
        self.counts: Counter[str] = Counter()
        self._expiry = expiry
        self._opened = opened
        self._journal = journal
        self._orders = orders
        self._tell = tell
        self._now_us = now_us
        self._node = node
        self._key = key
        self._token = token
        self._bounds = bounds
        self._period_s = period_s
        self._refused: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commands", daemon=True)

    def start(self) -> None:
        """Undo what a crash left, then begin to ask."""
        self._expiry.start()
        self._thread.start()

    def close(self) -> None:
        """Stop asking and undo every order; what cannot be undone in time is undone by the next start."""
        self._stop.set()
        self._expiry.close()
        self._thread.join(_JOIN_S)

    def turn(self, exchange: Exchange) -> None:
        """Undo what is due and ask once."""
        self._expiry.turn()
        for raw in self._fetch(exchange):
            if self._stop.is_set():
                return
            with self._expiry.working:
                if not self._stop.is_set():  # else it was undone already, and would stay
                    self._take(raw)

    def _run(self) -> None:
        with self._opened as client:
            self._poll(Exchange(client, limit_s=_LIMIT_S, max_bytes=_MAX_ANSWER_BYTES))

    def _poll(self, exchange: Exchange) -> None:
        while not self._stop.is_set():
            try:
                self.turn(exchange)
            except AgentError as error:
                self._expiry.failed(type(error).__name__, str(error))
            except Exception as error:  # noqa: BLE001  the outermost loop of the thread
                _LOG.exception("the command channel failed in a way nobody foresaw; it goes on")
                self._expiry.failed(type(error).__name__, str(error))
            self._stop.wait(self._period_s * (0.5 + random.random()))  # noqa: S311  only spreads the fleet's requests

    def _fetch(self, exchange: Exchange) -> list[object]:
        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = exchange.whole("GET", COMMANDS_PATH, headers=headers)
        if answer.code != 200:
            raise AgentError(f"HTTP {answer.code}: {answer.body[:200].decode('utf-8', 'replace')}")
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise AgentError(f"the answer is not JSON: {error}") from error
        if not isinstance(found, list):
            raise AgentError("the answer is not a list")
        return found[:_MAX_ORDERS]

    def _take(self, raw: object) -> None:
        try:
            command = parse(raw)
        except RefusedError as refused:
            self._refuse("shapeless", str(refused))
            return
        try:
            order = check(
                command,
                key=self._key,
                node=self._node,
                now_us=self._now_us(),
                seen=self._journal.seen(),
                bounds=self._bounds,
            )
            if order is None:
                return  # the server hands each order out until it expires
            # Before it is carried out: an order is carried out once, whatever happens in the middle of it.
            self._journal.see(order.nonce, order.expires_at_us)
            self._orders.carry_out(order)
            self.counts["applied"] += 1
        except RefusedError as refused:
            self._refuse(f"{command.id}:{command.nonce}", str(refused))

    def _refuse(self, which: str, why: str) -> None:
        self.counts["refused"] += 1
        if which not in self._refused and len(self._refused) < _MAX_TOLD:
            self._refused.add(which)
            self._tell("order_refused", which, detail=why)


_MAX_TOLD: Final = 1_000


def read_key(path: Path) -> bytes:
    """Read a node's key as ``wattledger fleet key`` prints it, hexadecimal. Raises AgentError naming the file, not the key."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(f"cannot read the key of orders: {error}") from error
    if mode & 0o077:
        raise AgentError(f"others may read {path}, so anybody could sign orders; chmod 600 it")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise AgentError(f"{path} holds no key of {KEY_BYTES} bytes in hexadecimal; see `wattledger fleet key --help`")
    return key
