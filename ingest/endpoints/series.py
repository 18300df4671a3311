"""What the endpoints of named series share: who sends, how often, and the bodies committed before the answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Final

from collector.wire import MAX_CADENCE_US
from ingest.auth import Principal
from ingest.errors import BadBodyError, IngestError, UnavailableError
from ingest.http import Request
from ingest.newcomers import TOO_MANY
from ingest.runtime import Runtime
from ingest.series.intake import Taken
from ingest.series.pods import KubeTold
from ingest.store import kube_pods, series_xids
from ingest.store.group import Outcome
from ingest.store.prepare import Submission
from ingest.store.tokens import Scope

CADENCE_HEADER: Final = b"wattledger-cadence-seconds"
"""A sender may say its spacing; else it is learned from the samples."""
_LONGEST_CADENCE_S: Final = MAX_CADENCE_US // 1_000_000
REFUSED_OUTCOMES: Final = ("no_node", "too_many_new", "too_many_devices", "from_the_future", "before_2000")
"""Outcomes of samples that a sender should hear of: something on its side has to change."""


async def sender(runtime: Runtime, request: Request) -> Principal:
    """Return who sends; raises IngestError unless its token may write."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require_any(Scope.WRITE, Scope.AGENT)  # an agent forwards what its node's programs say
    return principal


def cadence_us(request: Request) -> int | None:
    """Return the spacing the sender states; raises BadBodyError for what is none."""
    text = request.text(CADENCE_HEADER)
    if text is None:
        return None
    if not (text.isdecimal() and text.isascii() and len(text) < 6 and 0 < int(text) <= _LONGEST_CADENCE_S):
        raise BadBodyError("cadence", f"Wattledger-Cadence-Seconds must be 1 to {_LONGEST_CADENCE_S}, got {text!r:.40}")
    return int(text) * 1_000_000


async def keep(runtime: Runtime, principal: Principal, protocol: str, taken: Taken) -> Counter[str]:
    """Commit a request's bodies; return what of it was refused, by reason. Raises IngestError where it must be sent again.

    Of a request that is sent again after a part of it was kept that part is kept twice, and read once.
    """
    bodies = [body for body in taken.bodies if principal.node in (None, body.meta.node)]
    if taken.bodies and not bodies:
        principal.require_node(taken.bodies[0].meta.node)
    foreign_rows = sum(body.rows for body in taken.bodies) - sum(body.rows for body in bodies)
    runtime.metrics.series.add(protocol, taken)
    of_site = principal.node is None
    results = await asyncio.gather(
        *(runtime.keep(Submission(principal.site_id, body, numbered=False, of_site=of_site)) for body in bodies),
        return_exceptions=True,
    )
    refused = Counter(taken.invalid)
    refused["wrong_node"] += foreign_rows
    refused += await _keep_kube(runtime, principal, taken.kube)
    # After the rows, which make the devices: a body that has to be sent again brings its errors with it.
    stood = [one for one in taken.stood if principal.node in (None, one.node)]
    if stood and not any(isinstance(result, UnavailableError) for result in results):
        known = await runtime.in_thread(series_xids.keep, runtime.engine, principal.site_id, stood)
        runtime.series.xids.kept(principal.site_id, known)
    refused += Counter({reason: taken.tally.samples[reason] for reason in REFUSED_OUTCOMES})
    for result in results:
        if isinstance(result, Outcome):
            for refusal in result.refusals:
                refused[refusal.reason] += refusal.rows
        elif isinstance(result, UnavailableError):
            raise result
        elif isinstance(result, IngestError):
            refused[result.reason] += 1
        else:
            raise result
    return refused


async def _keep_kube(runtime: Runtime, principal: Principal, told: KubeTold) -> Counter[str]:
    """Commit what is said of pods and nodes of Kubernetes, as a scheduler's word: the token of one node has none of that."""
    if told.is_empty:
        return Counter()
    if principal.node is not None or not principal.token.allows(Scope.WRITE):
        return Counter({"not_with_this_token": told.samples})
    now = datetime.now(UTC)
    no_room = await runtime.in_thread(_without_room, runtime, principal, told)
    refused = await runtime.in_thread(kube_pods.keep, runtime.engine, principal.site_id, told, now)
    runtime.series.kube.kept(principal.site_id, told, int(now.timestamp() * 1e6))
    return refused + no_room


def _without_room(runtime: Runtime, principal: Principal, told: KubeTold) -> Counter[str]:
    """Take out the pods and nodes that this hour has no room for, as of any scheduler's jobs; a later scrape tells them again."""
    names: list[tuple[str | None, ...]] = [*told.pods, *((node, None, None) for node in told.nodes)]
    found = runtime.newcomers.room(principal.token.id, runtime.settings.jobs(bound=False), [[name] for name in names])
    gone = {name for name, why in zip(names, found, strict=True) if why is not None}
    told.pods = {pod: said for pod, said in told.pods.items() if pod not in gone}
    told.nodes = {node: said for node, said in told.nodes.items() if (node, None, None) not in gone}
    if gone:
        runtime.metrics.refused.add(len(gone), {"stream": "work", "reason": TOO_MANY})
    return Counter({TOO_MANY: len(gone)} if gone else {})


def told(refused: Counter[str]) -> str:
    """Spell what was refused for a person."""
    return "; ".join(f"{count} {reason}" for reason, count in sorted(refused.items()))
