"""Asks the cloud's metadata service which instance this node is, and whether it is about to be taken away.

Off unless a provider is named: the address is link-local, but on other networks something else may answer there. Tokens and
credentials the service also offers are never asked for. The identity is told once and when it changes; a notice of
interruption at once, each only once. A service that does not answer is asked ever less often.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from collector.clock import US_PER_S
from collector.probe import Observation, Row, Sight
from collector.source.fetch import Fetcher, FetchError
from collector.source.rows import fitted
from collector.wire import Stream

if TYPE_CHECKING:
    from collector.http import httpx

Provider = Literal["aws", "gcp", "azure"]
IDENTITY: Final = "instance_identity"
INTERRUPTION: Final = "interruption"

_DEFAULT_BASES: Final[dict[Provider, str]] = {
    "aws": "http://169.254.169.254",
    "gcp": "http://169.254.169.254",  # metadata.google.internal, without asking a name server
    "azure": "http://169.254.169.254",
}
_TIMEOUT_S: Final = 1.0
_MAX_BYTES: Final = 65_536
_IDENTITY_AGAIN_S: Final = 3_600.0
_LONGEST_PAUSE_S: Final = 900.0
_TOKEN_LIFE_S: Final = 21_600
_TOKEN_RENEW_S: Final = 300.0
_MAX_NOTICES: Final = 64
_TEXT: Final = re.compile(r"[!-~][ -~]{0,254}")


class Identity(NamedTuple):
    """Which instance a node is; null = the service does not say."""

    instance_id: str | None
    instance_type: str | None
    zone: str | None
    lifecycle: Literal["spot", "on-demand"] | None
    """GCP's preemptible counts as spot."""


class Notice(NamedTuple):
    """An announced end or pause of the instance."""

    action: str
    """As the provider calls it: terminate, stop, hibernate, rebalance, Preempt, Terminate, Reboot, ..."""
    at: str | None
    """When, as the provider writes it; null = at once, or not said."""


class CloudSource:
    """The node as its cloud sees it."""

    def __init__(
        self,
        provider: Provider | None = None,
        *,
        period_s: float = 5.0,
        base_url: str | None = None,
        transport: httpx.BaseTransport | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open nothing yet; None is off. The notices come at most two minutes before the end, on GCP and Azure 30 s."""
        if provider is not None and provider not in get_args(Provider):
            raise ValueError(f"the cloud must be one of {', '.join(get_args(Provider))}, got {provider!r}")
        self.name = "cloud"
        self.period_s = period_s
        self._provider = provider
        self._base = (base_url or (_DEFAULT_BASES[provider] if provider is not None else "")).rstrip("/")
        self._fetcher = Fetcher(timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES, transport=transport)
        self._monotonic = monotonic
        self._token: str | None = None
        self._token_until_s = 0.0
        self._identity: Identity | None = None
        self._identity_at_s: float | None = None
        self._told: frozenset[Notice] = frozenset()
        self._azure_name: str | None = None
        self._not_before_s = float("-inf")
        self._failures = 0
        self._failure: str | None = None

    def read(self) -> Observation:
        """Return an identity that is new, and notices not told before."""
        now_s = self._monotonic()
        if self._provider is None or now_s < self._not_before_s:
            return Observation()
        errors: Counter[str] = Counter()
        rows: list[Row] = []
        try:
            if self._identity_at_s is None or now_s - self._identity_at_s >= _IDENTITY_AGAIN_S:
                identity = self._read_identity(self._provider)
                if identity != self._identity:
                    rows.append(_identity_row(self._provider, identity))
                self._identity, self._identity_at_s = identity, now_s
            notices = self._read_notices(self._provider)[:_MAX_NOTICES]
            rows += [
                _notice_row(self._identity, notice) for notice in dict.fromkeys(notices) if notice not in self._told
            ]
            self._told = frozenset(notices)  # one that went away and comes back is another
        except FetchError as error:
            errors[f"{self.name}:{error.kind}"] += 1
            self._failures += 1
            self._failure = str(error)
            self._not_before_s = now_s + min(self.period_s * 2 ** min(self._failures, 10), _LONGEST_PAUSE_S)
        else:
            self._failures, self._failure = 0, None
        fits = tuple(fitted(Stream.NODE_EVENT, row, errors, self.name) for row in rows)
        return Observation({Stream.NODE_EVENT: fits} if fits else {}, dict(errors))

    def sights(self) -> tuple[Sight, ...]:
        """Say what the metadata service tells."""
        subject = "cloud instance"
        if self._provider is None:
            remedy = f"name the cloud: {', '.join(get_args(Provider))}"
            return (Sight(subject, seen=False, detail="off", remedy=remedy),)
        if self._identity is None and self._failure is None:
            self.read()
        if self._identity is None:
            remedy = "let the agent reach 169.254.169.254; in a container on AWS the hop limit must be 2"
            return (Sight(subject, seen=False, detail=self._failure or "not asked yet", remedy=remedy),)
        told = ", ".join(part for part in self._identity if part is not None)
        return (Sight(subject, seen=True, detail=f"{self._provider}: {told}"),)

    def close(self) -> None:
        """Close the connection."""
        self._fetcher.close()

    def _read_identity(self, provider: Provider) -> Identity:
        if provider == "aws":
            return Identity(
                self._aws("instance-id"),
                self._aws("instance-type"),
                self._aws("placement/availability-zone"),
                {"spot": "spot", "on-demand": "on-demand"}.get(self._aws("instance-life-cycle") or ""),  # type: ignore[arg-type]
            )
        if provider == "gcp":
            preemptible = self._gcp("instance/scheduling/preemptible")
            model = self._gcp("instance/scheduling/provisioning-model")
            spot = model == "SPOT" or preemptible == "TRUE"
            known = model is not None or preemptible is not None
            return Identity(
                self._gcp("instance/id"),
                _last(self._gcp("instance/machine-type")),
                _last(self._gcp("instance/zone")),
                ("spot" if spot else "on-demand") if known else None,
            )
        compute = self._azure("/metadata/instance/compute?api-version=2021-02-01") or {}
        self._azure_name = _text(compute.get("name"))
        location, zone = _text(compute.get("location")), _text(compute.get("zone"))
        return Identity(
            _text(compute.get("vmId")),
            _text(compute.get("vmSize")),
            f"{location}-{zone}" if location and zone else location,
            # "Regular" or empty is an ordinary machine; older versions of the service have no such field.
            {"Spot": "spot", "Low": "spot", "Regular": "on-demand", "": "on-demand"}.get(str(compute.get("priority"))),  # type: ignore[arg-type]
        )

    def _read_notices(self, provider: Provider) -> list[Notice]:
        if provider == "aws":
            notices = []
            action = _object(self._aws("spot/instance-action"))
            if action is not None and _text(action.get("action")):
                notices.append(Notice(str(action["action"]), _text(action.get("time"))))
            rebalance = _object(self._aws("events/recommendations/rebalance"))
            if rebalance is not None:
                notices.append(Notice("rebalance", _text(rebalance.get("noticeTime"))))
            return notices
        if provider == "gcp":
            notices = [Notice("Preempt", None)] if self._gcp("instance/preempted") == "TRUE" else []
            maintenance = self._gcp("instance/maintenance-event")
            return notices + ([Notice(maintenance, None)] if maintenance not in (None, "NONE") else [])
        events = (self._azure("/metadata/scheduledevents?api-version=2020-07-01") or {}).get("Events")
        return [
            Notice(str(event["EventType"]), _text(event.get("NotBefore")))
            for event in (events if isinstance(events, list) else [])[:_MAX_NOTICES]
            if isinstance(event, dict) and _text(event.get("EventType")) and self._concerns_us(event)
        ]

    def _concerns_us(self, event: dict[str, Any]) -> bool:
        """Say whether an event of Azure is this machine's: those of all machines of a set are told to each."""
        resources = event.get("Resources")
        ours = self._azure_name is None or not isinstance(resources, list) or self._azure_name in resources
        return ours and event.get("EventStatus") != "Completed"

    def _aws(self, path: str) -> str | None:
        """Ask IMDSv2, whose session token a forwarded request could not get."""
        now_s = self._monotonic()
        if self._token is None or now_s >= self._token_until_s:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
            answer = self._fetcher.request("PUT", f"{self._base}/latest/api/token", headers=headers)
            self._token = answer.body.decode("ascii", "replace").strip()
            if not _TEXT.fullmatch(self._token):
                self._token = None
                raise FetchError("no_token", "the metadata service gave no session token")
            self._token_until_s = now_s + _TOKEN_LIFE_S - _TOKEN_RENEW_S
        try:
            return self._plain(f"{self._base}/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
        except FetchError as error:
            if error.kind == "status_401":
                self._token = None  # the service was restarted; the next turn asks for another
            raise

    def _gcp(self, path: str) -> str | None:
        return self._plain(f"{self._base}/computeMetadata/v1/{path}", {"Metadata-Flavor": "Google"})

    def _azure(self, path: str) -> dict[str, Any] | None:
        text = self._plain(f"{self._base}{path}", {"Metadata": "true"}, most=_MAX_BYTES)
        return _object(text)

    def _plain(self, url: str, headers: Mapping[str, str], most: int = 4_096) -> str | None:
        """Return the text at an address; None where there is none, which is how the services say no."""
        try:
            body = self._fetcher.get(url, headers).body
        except FetchError as error:
            if error.kind in ("status_404", "status_410"):
                return None
            raise
        text = body.decode("utf-8", "replace").strip()
        return text if 0 < len(text) <= most else None


def _identity_row(provider: Provider, identity: Identity) -> Row:
    told = {"provider": provider} | {name: value for name, value in identity._asdict().items() if value is not None}
    detail = json.dumps(told, separators=(",", ":"), sort_keys=True)
    return {"kind": IDENTITY, "subject": identity.instance_id, "detail": detail}


def _notice_row(identity: Identity | None, notice: Notice) -> Row:
    told = {"action": notice.action} | ({} if notice.at is None else {"at": notice.at})
    row: Row = {
        "kind": INTERRUPTION,
        "subject": None if identity is None else identity.instance_id,
        "code": _announced_us(notice.at),
        "detail": json.dumps(told, separators=(",", ":"), sort_keys=True),
    }
    return row


def _announced_us(at: str | None) -> int | None:
    """Return the announced instant in microseconds since the Unix epoch; providers write it in two ways."""
    if at is None:
        return None
    for form in ("%Y-%m-%dT%H:%M:%SZ", "%a, %d %b %Y %H:%M:%S GMT"):
        try:
            return round(datetime.strptime(at, form).replace(tzinfo=UTC).timestamp()) * US_PER_S
        except ValueError:
            continue
    return None


def _object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FetchError("not_json", "the metadata service answered what is not JSON") from error
    return value if isinstance(value, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and _TEXT.fullmatch(value) else None


def _last(path: str | None) -> str | None:
    return None if path is None else path.rsplit("/", 1)[-1]
