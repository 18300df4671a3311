"""Spans of our own, sent by OTLP over HTTP where OpenTelemetry's variables name a place to send them.

Without OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT there is no tracer at all, and nothing is paid for
one. Headers, timeout, sampling and the rest are the exporter's and the SDK's to read, by their standard names. Spans hold
figures and templates of routes, never a body, a name of a tenant or a person.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

from wattledger.errors import WattledgerError

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_CLOSE_WITHIN_S: Final = 3.0
"""A collector that does not answer must not keep a process that is told to stop."""


class Traces:
    """The spans of one process on their way out; nothing global."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def tracer(self, name: str) -> Tracer:
        """Return the maker of spans of one part of the process."""
        return self._provider.get_tracer(name)

    def close(self) -> None:
        """Send what waits, for three seconds at most; what is then left is lost."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_WITHIN_S)


def traces_of(env: Mapping[str, str], service: str, version: str) -> Traces | None:
    """Return where spans of ``service`` go, None where nobody asked for them; raises WattledgerError for another protocol."""
    if not any(env.get(name) for name in _ENDPOINTS):
        return None
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    protocol = next((name for name in _PROTOCOLS if env.get(name)), None)
    if protocol is not None and env[protocol] != _PROTOCOL:
        raise WattledgerError(f"{protocol} is {env[protocol]!r:.40}; spans are sent as {_PROTOCOL} only")
    # Here, not above: it brings another HTTP client, and most processes send nothing.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    named = {} if env.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create({"service.version": version, **named}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)
