"""What the benchmarks send to the peers is what they send to us, and the page of figures keeps what people wrote."""

import struct
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import cramjam
import numpy as np
import pytest

from bench import peers_servers, scale_page
from bench.bodies import DEVICES, Node
from bench.scale import Point
from bench.scale_plot import Panel, figure
from bench.trace_bodies import native, remote_write
from bench.trace_fleet import METRICS
from ingest.receivers.native import Reader, decode

AT_MS = 1_795_300_000_000


def rows(instants: int) -> dict[str, np.ndarray]:
    """Rows of eight boards, each metric a number of its own: metric x 1000 + row."""
    count = instants * DEVICES
    of_row = np.arange(count)
    at_us = AT_MS * 1_000 + of_row // DEVICES * 10_000_000
    fixed = {"at": at_us, "device_id": of_row % DEVICES + 1, "reading": of_row * 0, "span_us": of_row * 0 + 10_000_000}
    counts = {"samples": of_row * 0 + 10, "samples_missed": of_row * 0}
    return fixed | counts | {name: place * 100 + of_row for place, name in enumerate(METRICS)}


def test_a_request_to_a_peer_has_each_value_of_each_board_once() -> None:
    (body,) = remote_write(Node(1), rows(2), 2)
    decoded = cramjam.snappy.decompress_raw(body)
    spelled = bytes(decoded)
    # 8 boards of len(METRICS) series, each of two samples of 18 bytes.
    assert spelled.count(b"\x12\x10\x09") == 8 * len(METRICS) * 2
    # The second metric of the third board: rows 2 and 10, at the first instant and ten seconds after it.
    name = METRICS[1].encode()
    at = [part for part in spelled.split(b"\x0a\x08__name__\x12")[1:] if part[1 : 1 + len(name)] == name][2]
    first = at.index(b"\x12\x10\x09") + 3
    assert struct.unpack_from("<d", at, first) == (102.0,)
    assert struct.unpack_from("<d", at, first + 18) == (110.0,)
    instant = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(at[first + 18 + 9 : first + 18 + 15]))
    assert instant == AT_MS + 10_000


def test_our_body_has_the_same_rows() -> None:
    (body,) = native(Node(1), rows(2), 2)
    frame = decode(Reader().read(body).streams)
    assert frame.height == 16
    assert frame["device"].to_list() == [0, 1, 2, 3, 4, 5, 6, 7] * 2
    assert frame[METRICS[1]].to_list() == list(range(100, 116))
    assert frame["at_us"].unique().sort().to_list() == [AT_MS * 1_000, AT_MS * 1_000 + 10_000_000]


def test_a_machine_without_apt_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(peers_servers.PeersMissingError, match="victoria-metrics prometheus prometheus-node-exporter"):
        peers_servers.install_missing()


def test_a_figure_is_an_image_with_its_units() -> None:
    drawn = figure("Cost", "simulated fleet", [Panel("Taking in", "CPU s", "devices", [1, 10], {"a": [0.1, 0.9]})])
    texts = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Cost", "simulated fleet", "Taking in, CPU s", "devices", "a", "0.1", "1"} <= set(texts)


def test_the_page_keeps_what_stands_around_the_measured_part(tmp_path: Path) -> None:
    (tmp_path / "scaling.md").write_text("before <!-- measured: begin -->\nold\n<!-- measured: end --> after")
    measured = (5.0, 1.0, 2.0, 250.0, 30.0, 1.5, 7.0, 3.0, 90.0)
    point = Point(8, 1, 2_880, *measured, by_hour_us=[3.0], load_average=0.2, took_s=12.0)
    long = Point(8, 4, 11_520, *measured, by_hour_us=[2.0, 9.0, 9.0, 3.0], load_average=0.3, took_s=12.0)
    machine = {"cores": 2, "memory_gib": 8, "system": "Linux", "python": "3.11", "load_average_1min": 0.1}
    at = datetime(2026, 11, 21, tzinfo=UTC)
    scale_page.write(tmp_path, {"devices": [point], "hours": [point, long]}, machine, at)
    text = (tmp_path / "scaling.md").read_text()
    assert text.startswith("before <!--")
    assert text.endswith("--> after")
    assert "old" not in text
    assert "| ingest | us CPU/row | 1 |" in text
    assert "| load average |  | 0.2 | 0.3 |" in text
    # The first third of four hours is one hour, and so is the last: 3 / 2. One hour alone has no trend.
    assert "a row: 2.00, 9.00, 9.00, 3.00. The last third cost 1.50 times the first." in text
    assert text.count("The last third") == 1
    assert (tmp_path / "scaling" / "devices.svg").exists()
