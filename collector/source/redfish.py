"""Reads the node's power from its management controller by Redfish, in the layouts of 2015 and of 2020.

Newer controllers have ``EnvironmentMetrics`` (or bare ``Sensors``) at the chassis, older ones ``Power`` with ``PowerControl``; the
first that answers is kept. One session with a token is opened and deleted again, as controllers have room for a few. It is
asked every half minute at most, and less often while it fails: a wrong password repeated locks the account. Meter ``redfish``.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from collector.clock import US_PER_S
from collector.probe import Observation, Row, Sight
from collector.source.fetch import Fetcher, FetchError
from collector.source.rows import fitted
from collector.wire import Stream

if TYPE_CHECKING:
    import ssl

    from collector.http import httpx

LEAST_PERIOD_S: Final = 30.0
_METER: Final = "redfish"
_MAX_BYTES: Final = 1_048_576
_MAX_CHASSIS: Final = 96
_MAX_SENSORS: Final = 64
_LONGEST_PAUSE_S: Final = 900.0
_LOCKED_OUT_PAUSE_S: Final = 3_600.0
_DISCOVER_S: Final = 60.0
_MW_PER_W: Final = 1_000
_MJ_PER_KWH: Final = 3_600_000_000
_MJ_PER_J: Final = 1_000
_FINE_KWH_PLACES: Final = -3
"""A counter in whole kWh would put an hour's energy into another hour: only one in Wh or finer is used."""
_TOTAL: Final = re.compile(r"total_?power|power_?consum|(?:sys|system|chassis|node)_?(?:input_?)?power", re.IGNORECASE)
_WHOLE_NODES: Final = frozenset({"RackMount", "Blade", "Sled", "StandAlone", "Enclosure"})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Credentials = Callable[[], tuple[str, str] | None]
"""Fetches user name and password from where they are kept, or None for a controller that asks for none."""


class NodePower(NamedTuple):
    """What a controller says of the whole node."""

    power_mw: int | None
    energy_mj: int | None


def parse_power(resource: dict[str, Any]) -> NodePower | None:
    """Return the power in a ``Power``, ``EnvironmentMetrics`` or ``Sensor`` resource; None where it tells none.

    Of several PowerControl entries the first is the chassis (DSP0268); 0 W is what a controller without a reading says.
    """
    controls = resource.get("PowerControl")
    if isinstance(controls, list):
        watts = next((_number(entry.get("PowerConsumedWatts")) for entry in controls if isinstance(entry, dict)), None)
        return _power(watts, None)
    if "PowerWatts" in resource or "EnergyJoules" in resource or "EnergykWh" in resource:
        return _power(_reading(resource.get("PowerWatts")), _energy_mj(resource))
    if resource.get("ReadingType") == "Power":
        return _power(_number(resource.get("Reading")), None)
    return None


class RedfishSource:
    """The node's own power meter, by Redfish."""

    def __init__(
        self,
        url: str = "",
        *,
        credentials: Credentials | None = None,
        verify: ssl.SSLContext | bool = True,
        period_s: float = 60.0,
        timeout_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open nothing yet.

        ``url``: the controller's, https unless it is this machine; empty: off. ``verify``: an SSL context that trusts the
        controller's certificate authority, or False to accept any certificate, which is the operator's to decide.
        """
        self.name = "redfish"
        self.period_s = max(period_s, LEAST_PERIOD_S)
        self._url = url.rstrip("/")
        self._credentials = credentials
        self._fetcher = Fetcher(timeout_s=timeout_s, max_bytes=_MAX_BYTES, verify=verify, transport=transport)
        self._monotonic = monotonic
        self._token: str | None = None
        self._session: str | None = None
        self._path: str | None = None
        self._read_at_s: float | None = None
        self._not_before_s = float("-inf")
        self._failures = 0
        self._failure: str | None = None
        parts = urlsplit(self._url)
        if parts.password:
            raise ValueError("the controller's address must not hold a password; give it as credentials")
        if self._url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"the controller's address must be like https://host, got {url!r}")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError(f"{url!r} would show the controller's password to the network; use https://")
        self._host = f"{parts.scheme}://{parts.netloc}"

    def read(self) -> Observation:
        """Return one row, or none while the controller gives no reading."""
        now_s = self._monotonic()
        if not self._url or now_s < self._not_before_s:
            return Observation()
        errors: Counter[str] = Counter()
        try:
            power = self._read_power()
        except FetchError as error:
            self._failed(now_s, error)
            return Observation(errors={f"{self.name}:{error.kind}": 1})
        self._failures, self._failure = 0, None
        span_s = 0.0 if self._read_at_s is None else now_s - self._read_at_s
        self._read_at_s = now_s
        row: Row = {
            "meter": _METER,
            "span_us": round(span_s * US_PER_S),
            "power_mw": power.power_mw,
            "energy_mj": power.energy_mj,
        }
        return Observation({Stream.NODE: (fitted(Stream.NODE, row, errors, self.name),)}, dict(errors))

    def sights(self) -> tuple[Sight, ...]:
        """Say whether the controller gives the node's power."""
        subject = "node power by Redfish"
        if not self._url:
            return (Sight(subject, seen=False, detail="off", remedy="set the controller's address and credentials"),)
        if self._read_at_s is None and self._failure is None:
            self.read()
        if self._failure is not None:
            remedy = "check the address, the account (read-only is enough) and the controller's certificate authority"
            return (Sight(subject, seen=False, detail=self._failure, remedy=remedy),)
        return (Sight(subject, seen=True, detail=f"{self._path} every {self.period_s:.0f} s"),)

    def close(self) -> None:
        """Give the session back and close the connection."""
        session, self._session = self._session, None
        if session is not None and self._token is not None:
            with contextlib.suppress(FetchError):  # else the controller drops it after a while by itself
                self._fetcher.request("DELETE", self._absolute(session), headers={"X-Auth-Token": self._token})
        self._token = None
        self._fetcher.close()

    def _read_power(self) -> NodePower:
        if self._path is not None:
            try:
                power = parse_power(self._get(self._path))
            except FetchError as error:
                if error.kind != "status_404":
                    raise
                power = None
            if power is not None:
                return power
            self._path = None  # the controller was updated: look again
        self._path, power = self._discover()
        return power

    def _discover(self) -> tuple[str, NodePower]:
        """Return the resource that tells the node's power. Raises FetchError where there is none."""
        give_up_at = self._monotonic() + _DISCOVER_S
        root = self._get("/redfish/v1/")
        collection = self._get(_link(root.get("Chassis")) or "/redfish/v1/Chassis")
        others: list[tuple[bool, dict[str, Any]]] = []
        # The chassis that holds the computer and is inside no other: trays and boards (an HGX has dozens) count what it counts.
        for member in _links(collection.get("Members"))[:_MAX_CHASSIS]:
            resource = self._get(member)
            links = resource.get("Links")
            contained = isinstance(links, dict) and links.get("ContainedBy") is not None
            if contained or not (isinstance(links, dict) and links.get("ComputerSystems")):
                others.append((contained, resource))
                continue
            found = self._power_of(resource, give_up_at)
            if found is not None:
                return found
        for _, resource in sorted(others, key=lambda entry: entry[0]):
            if resource.get("ChassisType") not in _WHOLE_NODES:
                continue  # one board's power would pass for the node's
            found = self._power_of(resource, give_up_at)
            if found is not None:
                return found
        raise FetchError("no_reading", f"no chassis of {self._host} tells its power")

    def _power_of(self, chassis: dict[str, Any], give_up_at: float) -> tuple[str, NodePower] | None:
        paths = [path for name in ("EnvironmentMetrics", "Power") if (path := _link(chassis.get(name))) is not None]
        for path in (*paths, *self._sensors(chassis)):
            if self._monotonic() > give_up_at:
                raise FetchError("timeout", f"no power reading found within {_DISCOVER_S} s")
            power = self._try(path)
            if power is not None:
                return path, power
        return None

    def _sensors(self, chassis: dict[str, Any]) -> list[str]:
        path = _link(chassis.get("Sensors"))
        if path is None:
            return []
        try:
            members = _links(self._get(path).get("Members"))
        except FetchError:
            return []
        return [member for member in members if _TOTAL.search(member.rsplit("/", 1)[-1])][:_MAX_SENSORS]

    def _try(self, path: str) -> NodePower | None:
        try:
            return parse_power(self._get(path))
        except FetchError as error:
            if error.kind in ("status_404", "status_403", "status_501"):
                return None
            raise

    def _get(self, path: str) -> dict[str, Any]:
        if self._token is None and self._credentials is not None:
            self._log_in()
        try:
            return self._ask(path)
        except FetchError as error:
            if error.kind != "status_401" or self._token is None:
                raise
            self._token = self._session = None  # it ran out
        self._log_in()
        return self._ask(path)

    def _ask(self, path: str) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        if self._token is not None:
            headers["X-Auth-Token"] = self._token
        body = self._fetcher.get(self._absolute(path), headers).body
        try:
            # Decimal: an energy counter in kWh has more digits than a float keeps.
            resource = json.loads(body, parse_float=Decimal)
        except (ValueError, RecursionError) as error:
            raise FetchError("not_json", f"{path} is not JSON") from error
        if not isinstance(resource, dict):
            raise FetchError("not_json", f"{path} is not an object")
        return resource

    def _log_in(self) -> None:
        pair = self._credentials() if self._credentials is not None else None
        if pair is None:
            return
        body = json.dumps({"UserName": pair[0], "Password": pair[1]}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        path = "/redfish/v1/SessionService/Sessions"
        answer = self._fetcher.request("POST", self._absolute(path), headers=headers, body=body)
        token = answer.headers.get("x-auth-token")
        if not token:
            raise FetchError("status_401", "the controller opened a session but gave no token")
        self._token, self._session = token, answer.headers.get("location")

    def _absolute(self, path: str) -> str:
        """Return the address of a path; the token goes to no other host, whatever a link says."""
        url = urljoin(self._host + "/", path)
        if not url.startswith(self._host + "/"):
            raise FetchError("foreign_link", f"{path} leads away from {self._host}")
        return url

    def _failed(self, now_s: float, error: FetchError) -> None:
        self._failure = str(error)
        self._failures += 1
        pause_s = min(self.period_s * 2 ** min(self._failures, 10), _LONGEST_PAUSE_S)
        if error.kind in ("status_401", "status_403"):
            pause_s = _LOCKED_OUT_PAUSE_S
        self._not_before_s = now_s + pause_s


def _power(watts: Decimal | None, energy_mj: int | None) -> NodePower | None:
    power_mw = round(watts * _MW_PER_W) if watts is not None and watts > 0 else None
    return None if power_mw is None and energy_mj is None else NodePower(power_mw, energy_mj)


def _energy_mj(resource: dict[str, Any]) -> int | None:
    joules = _reading(resource.get("EnergyJoules"))
    if joules is not None and joules > 0:
        return int(joules * _MJ_PER_J)
    kwh = _reading(resource.get("EnergykWh"))
    if kwh is None or kwh <= 0 or int(kwh.as_tuple().exponent) > _FINE_KWH_PLACES:
        return None
    return int(kwh * _MJ_PER_KWH)


def _reading(excerpt: object) -> Decimal | None:
    return _number(excerpt.get("Reading")) if isinstance(excerpt, dict) else None


def _number(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number) < 10**15 else None


def _link(value: object) -> str | None:
    path = value.get("@odata.id") if isinstance(value, dict) else None
    return path if isinstance(path, str) and 0 < len(path) < 512 else None


def _links(value: object) -> list[str]:
    return [path for entry in value if (path := _link(entry)) is not None] if isinstance(value, list) else []
