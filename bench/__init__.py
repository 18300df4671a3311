"""Benchmarks against the limit or the peer, measured in the same run. ``python -m bench [NAME]``; see ``bench.report``."""

from typing import Final

BENCHES: Final = {
    "ingest.native": "bench.ingest_native",
    "ingest.agents": "bench.ingest_agents",
    "ingest.sustained": "bench.sustained",
    "ingest.layouts": "bench.ingest_layouts",
    "ingest.otlp": "bench.ingest_otlp",
    "ingest.otlp.metrics": "bench.ingest_otlp_metrics",
    "ingest.peers": "bench.peers_ingest",
    "ingest.disk": "bench.ingest_disk",
    "query.fleet": "bench.query_fleet",
    "scale": "bench.scale",
    "history": "bench.history",
    "attribution.day": "bench.attribution",
    "attribution.hour": "bench.attribution_hour",
    "attribution.open": "bench.attribution_open",
    "attribution.short": "bench.short_jobs",
    "sharing.error": "bench.shared_devices",
    "bill.month": "bench.bill",
    "agent.cost": "bench.agent_cost",
}
"""Name to module; each module has ``run() -> list[bench.report.Result]`` and is imported only when it runs."""
