"""Judges whether an order may be carried out here and now. Pure: key, clock and bounds are arguments.

The order of the checks matters: nothing of an order is believed, or told of, before its signature is.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from collector.wire import MAX_CLOCK_SKEW_US, Command

POWER_LIMIT: Final = "power_limit"
ALL_DEVICES: Final = "*"
LONGEST_US: Final = 7 * 24 * 3_600 * 1_000_000
MW_PER_W: Final = 1_000
_NONCE: Final = re.compile(r"[0-9A-Za-z_-]{16,128}")
_DEVICE: Final = re.compile(r"\*|[0-9A-Za-z-]{1,96}")
_KEYS: Final = ("id", "node", "verb", "args", "nonce", "issued_at_us", "expires_at_us", "signature")


class RefusedError(Exception):
    """The order is not carried out; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What this node allows whoever signs."""

    min_w: int
    max_w: int


@dataclass(frozen=True, slots=True)
class PowerOrder:
    """A checked order: a power limit for one device of this node, or for all, until an instant."""

    nonce: str
    device: str
    limit_mw: int
    expires_at_us: int
    issued_at_us: int = 0


def parse(raw: object) -> Command:
    """Make a command of what a server sent. Raises RefusedError where it has not the shape of one."""
    if not isinstance(raw, Mapping) or any(key not in raw for key in _KEYS):
        raise RefusedError(
            "an order lacks " + ", ".join(key for key in _KEYS if not isinstance(raw, Mapping) or key not in raw)
        )
    found: dict[str, Any] = {key: raw[key] for key in _KEYS}
    whole = all(_is_whole(found[key]) for key in ("id", "issued_at_us", "expires_at_us"))
    texts = all(
        isinstance(found[key], str) and len(found[key]) <= 255 for key in ("node", "verb", "nonce", "signature")
    )
    args = found["args"]
    plain = isinstance(args, dict) and len(args) <= 16 and all(
        isinstance(key, str) and (isinstance(value, str) or _is_whole(value)) for key, value in args.items()
    )  # fmt: skip
    if not (whole and texts and plain):
        raise RefusedError("an order has fields of the wrong kind")
    return Command(**found)


def check(
    command: Command, *, key: bytes, node: str, now_us: int, seen: Collection[str], bounds: Bounds
) -> PowerOrder | None:
    """Return what is to be done, None for an order that was seen before. Raises RefusedError."""
    if not hmac.compare_digest(command.sign(key), command.signature):
        raise RefusedError("the signature is not of this node's key")
    if command.node != node:
        raise RefusedError(f"it is for node {command.node!r:.80}")
    if not _NONCE.fullmatch(command.nonce):
        raise RefusedError("its nonce is none")
    if command.nonce in seen:
        return None
    if command.expires_at_us <= now_us:
        raise RefusedError("it has expired")
    if command.issued_at_us > now_us + MAX_CLOCK_SKEW_US:
        raise RefusedError("it was issued in the future; one of the clocks is wrong")
    if command.expires_at_us - command.issued_at_us > LONGEST_US:
        raise RefusedError("it would hold for more than a week")
    if command.verb != POWER_LIMIT:
        raise RefusedError(f"this agent does not know how to {command.verb!r:.40}")
    return _power(command, bounds)


def _power(command: Command, bounds: Bounds) -> PowerOrder:
    device, watts = command.args.get("device"), command.args.get("watts")
    if command.args.keys() != {"device", "watts"} or not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise RefusedError("a power limit needs a device and watts, and nothing else")
    if not isinstance(watts, int) or not bounds.min_w <= watts <= bounds.max_w:
        raise RefusedError(f"{watts!r:.40} W is outside of [{bounds.min_w}, {bounds.max_w}] W, which this node allows")
    return PowerOrder(command.nonce, device, watts * MW_PER_W, command.expires_at_us, command.issued_at_us)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
