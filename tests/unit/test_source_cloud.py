"""Which instance a node is and when it ends, against a loopback metadata service that answers as documented."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from collector.probe import Observation, Row
from collector.source.cloud import CloudSource, Provider
from collector.wire import Stream

AWS = {
    "/latest/meta-data/instance-id": "i-1234567890abcdef0",
    "/latest/meta-data/instance-type": "p5.48xlarge",
    "/latest/meta-data/placement/availability-zone": "us-east-1a",
    "/latest/meta-data/instance-life-cycle": "spot",
}
GCP = {
    "/computeMetadata/v1/instance/id": "4520031799277581759",
    "/computeMetadata/v1/instance/machine-type": "projects/123/machineTypes/a3-highgpu-8g",
    "/computeMetadata/v1/instance/zone": "projects/123/zones/us-central1-a",
    "/computeMetadata/v1/instance/scheduling/preemptible": "FALSE",
    "/computeMetadata/v1/instance/preempted": "FALSE",
    "/computeMetadata/v1/instance/maintenance-event": "NONE",
}
COMPUTE = {
    "vmId": "02aab8a4-74ef",
    "vmSize": "Standard_ND96isr_H100_v5",
    "location": "westus",
    "zone": "2",
    "name": "node7",
}
AZURE = {
    "/metadata/instance/compute": json.dumps(COMPUTE | {"priority": "Spot"}),
    "/metadata/scheduledevents": json.dumps({"DocumentIncarnation": 1, "Events": []}),
}


@dataclass
class Service:
    """A metadata service on the loopback: texts by path, and the headers each provider insists on."""

    texts: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    down: bool = False
    url: str = ""
    sources: list[CloudSource] = field(default_factory=list)

    def answer(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        path = path.partition("?")[0]
        self.asked.append(f"{method} {path}")
        if self.down:
            return 503, ""
        if path == "/latest/api/token":
            if method != "PUT" or not headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
                return 405, ""
            self.tokens.append(f"token{len(self.tokens)}")
            return 200, self.tokens[-1]
        if path.startswith("/latest/") and headers.get("X-aws-ec2-metadata-token") not in self.tokens[-1:]:
            return 401, ""
        if any(headers.get(name) != value for name, value in self.headers.items()):
            return 403, ""
        return (200, self.texts[path]) if path in self.texts else (404, "not found")


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            status, text = made.answer(self.command, self.path, self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_PUT = _answer  # noqa: N815  the names are the library's

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield made
    for source in made.sources:
        source.close()
    server.shutdown()
    server.server_close()
    thread.join()


class Stand:
    def __init__(self, service: Service, provider: Provider) -> None:
        self.now_s = 100.0
        self.source = CloudSource(provider, base_url=service.url, monotonic=lambda: self.now_s)
        service.sources.append(self.source)

    def read(self, after_s: float = 5.0) -> Observation:
        self.now_s += after_s
        return self.source.read()

    def events(self, after_s: float = 5.0) -> list[Row]:
        return list(self.read(after_s).rows.get(Stream.NODE_EVENT, ()))


@pytest.mark.contract
def test_an_aws_instance_is_named_once_and_its_spot_notice_told_once(service: Service) -> None:
    service.texts = dict(AWS)
    stand = Stand(service, "aws")
    (identity,) = stand.events()
    assert (identity["kind"], identity["subject"]) == ("instance_identity", "i-1234567890abcdef0")
    assert json.loads(str(identity["detail"])) == {
        "provider": "aws",
        "instance_id": "i-1234567890abcdef0",
        "instance_type": "p5.48xlarge",
        "zone": "us-east-1a",
        "lifecycle": "spot",
    }
    assert stand.events() == []
    service.texts["/latest/meta-data/events/recommendations/rebalance"] = '{"noticeTime": "2027-01-15T08:00:00Z"}'
    assert [json.loads(str(row["detail"]))["action"] for row in stand.events()] == ["rebalance"]
    service.texts["/latest/meta-data/spot/instance-action"] = '{"action": "terminate", "time": "2027-01-15T08:02:00Z"}'
    (notice,) = stand.events()
    assert notice == {
        "kind": "interruption",
        "subject": "i-1234567890abcdef0",
        "code": 1_800_000_120_000_000,  # 08:02:00 in microseconds since 1970
        "detail": '{"action":"terminate","at":"2027-01-15T08:02:00Z"}',
    }
    assert stand.events() == []
    assert len(service.tokens) == 1
    assert "GET /latest/meta-data/iam" not in " ".join(service.asked)  # credentials are never asked for


@pytest.mark.contract
def test_an_aws_session_token_is_renewed(service: Service) -> None:
    service.texts = dict(AWS)
    stand = Stand(service, "aws")
    stand.read()
    stand.read(21_400.0)
    assert len(service.tokens) == 2
    service.tokens.append("the service was restarted")
    assert stand.read().errors == {"cloud:status_401": 1}
    assert stand.read(20.0).errors == {}


@pytest.mark.contract
def test_a_gcp_instance_and_its_preemption(service: Service) -> None:
    service.texts, service.headers = dict(GCP), {"Metadata-Flavor": "Google"}
    stand = Stand(service, "gcp")
    (identity,) = stand.events()
    assert json.loads(str(identity["detail"])) == {
        "provider": "gcp",
        "instance_id": "4520031799277581759",
        "instance_type": "a3-highgpu-8g",
        "zone": "us-central1-a",
        "lifecycle": "on-demand",
    }
    service.texts["/computeMetadata/v1/instance/maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    service.texts["/computeMetadata/v1/instance/preempted"] = "TRUE"
    assert [row["detail"] for row in stand.events()] == [
        '{"action":"Preempt"}',
        '{"action":"TERMINATE_ON_HOST_MAINTENANCE"}',
    ]
    service.texts["/computeMetadata/v1/instance/maintenance-event"] = "NONE"
    assert stand.events() == []
    service.texts["/computeMetadata/v1/instance/maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    assert len(stand.events()) == 1  # another one


@pytest.mark.contract
def test_an_azure_machine_is_told_of_its_own_events_only(service: Service) -> None:
    service.texts, service.headers = dict(AZURE), {"Metadata": "true"}
    stand = Stand(service, "azure")
    (identity,) = stand.events()
    assert json.loads(str(identity["detail"])) == {
        "provider": "azure",
        "instance_id": "02aab8a4-74ef",
        "instance_type": "Standard_ND96isr_H100_v5",
        "zone": "westus-2",
        "lifecycle": "spot",
    }
    event = {"EventId": "A", "EventType": "Preempt", "EventStatus": "Scheduled", "Resources": ["node7"]}
    other = event | {"EventId": "B", "EventType": "Reboot", "Resources": ["node8"]}
    document = {"Events": [event | {"NotBefore": "Fri, 15 Jan 2027 08:02:00 GMT"}, other]}
    service.texts["/metadata/scheduledevents"] = json.dumps(document)
    (notice,) = stand.events()
    assert notice["code"] == 1_800_000_120_000_000
    assert json.loads(str(notice["detail"]))["action"] == "Preempt"


@pytest.mark.contract
def test_a_service_that_does_not_answer_is_asked_ever_less_often(service: Service) -> None:
    service.down = True
    stand = Stand(service, "gcp")
    for _ in range(100):  # 500 s
        stand.read()
    # In seconds: 0, 10, 30, 70, 150, 310, then not before 630.
    assert len(service.asked) == 6
    (sight,) = stand.source.sights()
    assert (sight.seen, "169.254.169.254" in str(sight.remedy)) == (False, True)


@pytest.mark.unit
def test_it_is_off_unless_a_cloud_is_named() -> None:
    source = CloudSource()
    assert source.read() == Observation()
    assert source.sights()[0].remedy == "name the cloud: aws, gcp, azure"
    with pytest.raises(ValueError, match="must be one of"):
        CloudSource("openstack")  # type: ignore[arg-type]


@pytest.mark.contract
@pytest.mark.parametrize("text", ["[]", "null", "{", "x" * 100_000])
def test_an_answer_that_is_no_metadata_is_no_notice(service: Service, text: str) -> None:
    service.texts = dict(AWS) | {"/latest/meta-data/spot/instance-action": text}
    stand = Stand(service, "aws")
    assert [row["kind"] for row in stand.events()] == ["instance_identity"]
