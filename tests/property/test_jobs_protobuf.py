"""Our protobuf reader against arbitrary bytes, and against what Google's writer writes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.jobs.kubelet import _pod_devices
from collector.jobs.protobuf import ProtobufError, fields
from tests.fakes.kubelet import MESSAGES, pod

pytestmark = pytest.mark.property

NAMES = st.text(max_size=20)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_fields_or_an_error(message: bytes) -> None:
    with suppress(ProtobufError):
        for number, value in fields(message):
            assert number > 0
            assert isinstance(value, int) or len(value) <= len(message)
    with suppress(ProtobufError):
        list(_pod_devices(message))


@given(st.lists(st.tuples(NAMES, NAMES, st.dictionaries(NAMES, st.lists(NAMES, max_size=3), max_size=3)), max_size=4))
@settings(max_examples=100)
def test_what_google_writes_is_read(pods: list[tuple[str, str, dict[str, list[str]]]]) -> None:
    message = MESSAGES["ListPodResourcesResponse"](pod_resources=[pod(*entry) for entry in pods]).SerializeToString()
    assert [(d.namespace, d.pod, d.resource, d.device) for d in _pod_devices(message)] == [
        (namespace, name, resource, device)
        for namespace, name, devices in pods
        for resource, ids in devices.items()
        for device in ids
    ]
