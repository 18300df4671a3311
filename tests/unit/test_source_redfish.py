"""Node power from a management controller: layouts, sessions, rights, certificates."""

from __future__ import annotations

import http.server
import json
import shutil
import ssl
import subprocess
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from collector.probe import Observation, Row
from collector.source.redfish import NodePower, RedfishSource, parse_power
from collector.wire import Stream

CHASSIS = "/redfish/v1/Chassis"
HOST = "https://bmc.example"


def chassis(name: str, *, computes: bool = True, contained: bool = False, **links: str) -> dict[str, Any]:
    resource: dict[str, Any] = {"Id": name, "Links": {}}
    if computes:
        resource["Links"]["ComputerSystems"] = [{"@odata.id": "/redfish/v1/Systems/1"}]
    if contained:
        resource["Links"]["ContainedBy"] = {"@odata.id": f"{CHASSIS}/1"}
    return resource | {key: {"@odata.id": path} for key, path in links.items()}


def collection(*paths: str) -> dict[str, Any]:
    return {"Members": [{"@odata.id": path} for path in paths]}


class Controller:
    """Answers resources by path, to those with a token if it has a password."""

    def __init__(self, resources: dict[str, Any], *, password: str | None = None) -> None:
        self.resources = {"/redfish/v1/": {"Chassis": {"@odata.id": CHASSIS}}, **resources}
        self.password = password
        self.tokens: set[str] = set()
        self.given = 0
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        if path == "/redfish/v1/SessionService/Sessions":
            if json.loads(request.content) != {"UserName": "reader", "Password": self.password}:
                return httpx.Response(401)
            self.given += 1
            self.tokens.add(f"t{self.given}")
            headers = {"X-Auth-Token": f"t{self.given}", "Location": f"{path}/{self.given}"}
            return httpx.Response(201, json={}, headers=headers)
        if self.password is not None and request.headers.get("X-Auth-Token") not in self.tokens:
            return httpx.Response(401)
        if request.method == "DELETE":
            self.tokens.discard(str(request.headers.get("X-Auth-Token")))
            return httpx.Response(204)
        resource = self.resources.get(path)
        return httpx.Response(404) if resource is None else httpx.Response(200, content=json.dumps(resource))


class Stand:
    """A source on a controller, and its clock."""

    def __init__(self, controller: Controller, password: str | None = None) -> None:
        self.now_s = 1_000.0
        self.controller = controller
        self.source = RedfishSource(
            HOST,
            credentials=None if password is None else lambda: ("reader", password),
            transport=httpx.MockTransport(controller),
            monotonic=lambda: self.now_s,
        )

    def read(self, after_s: float = 60.0) -> Observation:
        self.now_s += after_s
        return self.source.read()

    def row(self, after_s: float = 60.0) -> Row:
        (row,) = self.read(after_s).rows[Stream.NODE]
        return row


@pytest.fixture
def dell(shared: Path) -> Controller:
    folder = shared / "data/fixtures/redfish"
    return Controller(
        {
            CHASSIS: collection(f"{CHASSIS}/System.Embedded.1"),
            f"{CHASSIS}/System.Embedded.1": json.loads((folder / "dell_chassis.json").read_text()),
            f"{CHASSIS}/System.Embedded.1/Power": json.loads((folder / "dell_power.json").read_text()),
        }
    )


@pytest.mark.real
def test_a_recorded_controller_s_power_is_found_and_then_asked_for_directly(dell: Controller) -> None:
    stand = Stand(dell)
    assert stand.row() == {"meter": "redfish", "span_us": 0, "power_mw": 429_000, "energy_mj": None}
    dell.asked.clear()
    assert stand.row()["span_us"] == 60_000_000
    assert dell.asked == [f"GET {CHASSIS}/System.Embedded.1/Power"]
    assert stand.source.sights()[0].seen


@pytest.mark.unit
def test_environment_metrics_give_power_and_a_counter() -> None:
    controller = Controller(
        {
            CHASSIS: collection(f"{CHASSIS}/tray", f"{CHASSIS}/1"),
            f"{CHASSIS}/tray": chassis("tray", computes=False, contained=True, Power=f"{CHASSIS}/tray/Power"),
            f"{CHASSIS}/tray/Power": {"PowerControl": [{"PowerConsumedWatts": 100}]},
            f"{CHASSIS}/1": chassis(
                "1", EnvironmentMetrics=f"{CHASSIS}/1/EnvironmentMetrics", Power=f"{CHASSIS}/1/Power"
            ),
            f"{CHASSIS}/1/EnvironmentMetrics": {"PowerWatts": {"Reading": 6280.2}, "EnergykWh": {"Reading": 1415.262}},
        }
    )
    # 1415.262 kWh x 3.6e9 mJ, exactly; the tray inside would have been a part only.
    assert Stand(controller).row() == {
        "meter": "redfish",
        "span_us": 0,
        "power_mw": 6_280_200,
        "energy_mj": 5_094_943_200_000,
    }


@pytest.mark.unit
def test_a_controller_with_bare_sensors_is_read_at_its_total() -> None:
    sensors = f"{CHASSIS}/1/Sensors"
    controller = Controller(
        {
            CHASSIS: collection(f"{CHASSIS}/1"),
            f"{CHASSIS}/1": chassis("1", Sensors=sensors, EnvironmentMetrics=f"{CHASSIS}/1/EnvironmentMetrics"),
            sensors: collection(f"{sensors}/PSU1_Power", f"{sensors}/Total_Power"),
            f"{sensors}/Total_Power": {"ReadingType": "Power", "ReadingUnits": "W", "Reading": 812.5},
        }
    )
    assert Stand(controller).row()["power_mw"] == 812_500


@pytest.mark.unit
def test_among_the_many_chassis_of_an_hgx_the_one_with_the_computer_is_taken() -> None:
    boards = [f"{CHASSIS}/HGX_GPU_SXM_{number}" for number in range(40)]
    controller = Controller(
        {
            CHASSIS: collection(*boards, f"{CHASSIS}/1"),
            **{
                board: chassis(board, computes=False, EnvironmentMetrics=f"{board}/EnvironmentMetrics")
                for board in boards
            },
            **{f"{board}/EnvironmentMetrics": {"PowerWatts": {"Reading": 700}} for board in boards},
            f"{CHASSIS}/1": chassis("1", Power=f"{CHASSIS}/1/Power"),
            f"{CHASSIS}/1/Power": {"PowerControl": [{"PowerConsumedWatts": 10200}]},
        }
    )
    assert Stand(controller).row()["power_mw"] == 10_200_000
    assert not any("EnvironmentMetrics" in path for path in controller.asked)
    del controller.resources[f"{CHASSIS}/1/Power"]
    assert Stand(controller).read().errors == {"redfish:no_reading": 1}  # one board is not the node
    controller.resources[boards[7]]["ChassisType"] = "Sled"
    assert Stand(controller).row()["power_mw"] == 700_000


@pytest.mark.unit
@pytest.mark.parametrize(
    ("resource", "power"),
    [
        ({"PowerControl": [{"PowerConsumedWatts": 429}]}, NodePower(429_000, None)),
        ({"PowerControl": [{"PowerConsumedWatts": 0}]}, None),
        ({"PowerControl": [{"PowerConsumedWatts": None}]}, None),
        ({"PowerControl": [{"PowerConsumedWatts": "429"}]}, None),
        ({"PowerControl": []}, None),
        ({"PowerControl": ["?"]}, None),
        ({"PowerWatts": {"Reading": Decimal("0.5")}}, NodePower(500, None)),
        ({"PowerWatts": {"Reading": None}, "EnergyJoules": {"Reading": Decimal("12.5")}}, NodePower(None, 12_500)),
        ({"EnergykWh": {"Reading": 1415}}, None),  # whole kWh: too coarse to say when
        ({"EnergykWh": {"Reading": Decimal("1415.2")}}, None),
        ({"ReadingType": "Temperature", "Reading": 40}, None),
        ({}, None),
    ],
)
def test_what_a_resource_says_of_the_node(resource: dict[str, Any], power: NodePower | None) -> None:
    assert parse_power(resource) == power


def with_password(password: str | None) -> Controller:
    resources = {
        CHASSIS: collection(f"{CHASSIS}/1"),
        f"{CHASSIS}/1": chassis("1", Power=f"{CHASSIS}/1/Power"),
        f"{CHASSIS}/1/Power": {"PowerControl": [{"PowerConsumedWatts": 429}]},
    }
    return Controller(resources, password=password)


@pytest.mark.unit
def test_one_session_is_opened_renewed_when_it_ran_out_and_given_back() -> None:
    controller = with_password("secret")
    stand = Stand(controller, "secret")
    stand.row()
    stand.row()
    assert (controller.given, controller.tokens) == (1, {"t1"})
    controller.tokens.clear()
    assert stand.row()["power_mw"] == 429_000
    assert controller.tokens == {"t2"}
    stand.source.close()
    assert controller.tokens == set()


@pytest.mark.unit
def test_a_wrong_password_is_not_tried_again_for_an_hour() -> None:
    controller = with_password("secret")
    stand = Stand(controller, "wrong")
    assert stand.read().errors == {"redfish:status_401": 1}
    asked = len(controller.asked)
    assert stand.read(3_500).errors == {}
    assert len(controller.asked) == asked
    assert stand.read(200).errors == {"redfish:status_401": 1}
    assert "status_401" in stand.source.sights()[0].detail


@pytest.mark.unit
def test_a_controller_that_fails_is_asked_ever_less_often() -> None:
    controller = Controller({})
    stand = Stand(controller)
    attempts = 0
    for _ in range(100):  # 100 minutes
        before = len(controller.asked)
        stand.read()
        attempts += len(controller.asked) > before
    assert attempts == 9  # in minutes 1, 3, 7, 15, 30, 45, 60, 75 and 90


@pytest.mark.unit
def test_the_token_goes_to_no_other_host() -> None:
    controller = with_password("secret")
    controller.resources[f"{CHASSIS}/1"] = chassis("1", Power="https://elsewhere.example/Power")
    observation = Stand(controller, "secret").read()
    assert observation.errors == {"redfish:foreign_link": 1}


@pytest.mark.unit
@pytest.mark.parametrize("body", ["[]", "not json", "[" * 100_000])
def test_an_answer_that_is_no_resource_is_counted(body: str) -> None:
    source = RedfishSource(HOST, transport=httpx.MockTransport(lambda _: httpx.Response(200, text=body)))
    assert source.read().errors == {"redfish:not_json": 1}


@pytest.mark.unit
def test_an_endless_answer_is_given_up() -> None:
    source = RedfishSource(HOST, transport=httpx.MockTransport(lambda _: httpx.Response(200, content=b" " * 2**21)))
    assert source.read().errors == {"redfish:too_large": 1}


@pytest.mark.unit
def test_a_password_is_not_sent_in_the_open() -> None:
    with pytest.raises(ValueError, match="https"):
        RedfishSource("http://10.0.0.1")
    with pytest.raises(ValueError, match="https"):
        RedfishSource("bmc")
    with pytest.raises(ValueError, match="must not hold a password"):
        RedfishSource("https://root:calvin@bmc")


@pytest.mark.unit
def test_it_is_off_without_an_address_and_never_asked_too_often() -> None:
    source = RedfishSource("", period_s=1.0)
    assert (source.read(), source.period_s) == (Observation(), 30.0)
    assert source.sights()[0].remedy == "set the controller's address and credentials"


@pytest.mark.contract
def test_a_certificate_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    command += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(command, check=True, capture_output=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"PowerControl": [{"PowerConsumedWatts": 1}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        url = f"https://localhost:{server.server_address[1]}"
        assert RedfishSource(url, timeout_s=5).read().errors == {"redfish:tls": 1}
        trusting = RedfishSource(url, timeout_s=5, verify=ssl.create_default_context(cafile=str(certificate)))
        assert trusting.read().errors == {"redfish:no_reading": 1}  # the handshake is fine; it has no chassis
        trusting.close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
