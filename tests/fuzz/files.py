"""What comes as a file: imports, host lists, topologies, sealed segments, policies."""

from __future__ import annotations

import atexit
import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import polars as pl

from analytics.io import bindings, budget_policy
from ingest.importers import (
    focus_columns,
    focus_rows,
    hostlist,
    jobs,
    litellm,
    llm_log,
    node_power,
    rates,
    sacct,
    topology,
)
from ingest.importers.columns import Chunk, Source, read
from ingest.importers.errors import ImportFileError, RowError
from ingest.importers.report import ImportReport
from ingest.store import segments_format
from ingest.store.segments_format import SegmentFormatError, SegmentMeta, SegmentWriter
from tests.fuzz.targets import Target
from tests.scratch import quick_folder

NOW: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
_DATA: Final = Path(__file__).resolve().parents[3] / "shared" / "data"
_EXAMPLES: Final = Path(__file__).resolve().parents[2] / "deploy" / "examples"
_CELLS: Final = (b'"', b"\t", b"|", b"NULL", b"1e999999", b"-", b"2026-13-45", b"1.7976931348623157e309", b"\n\n")
Rows = Callable[[Chunk, ImportReport], Iterable[object]]


def targets() -> list[Target]:
    """Return the decoders of files."""
    folder = quick_folder("wl-fuzz-")
    atexit.register(shutil.rmtree, folder)
    refused = (ImportFileError,)
    found = [
        Target(name, seeds, partial(_imported, folder / name, fields, rows), refused, _CELLS)
        for name, seeds, fields, rows in _tables()
    ]
    yaml_words = (b"&a ", b"*a", b"!!python/object ", b"? ", b"- " * 300, b"{" * 300, b"%TAG ", b"2001-99-99", b"<<: ")
    return [
        *found,
        Target(
            "hostlist",
            _HOSTS,
            _expanded,
            (RowError, UnicodeDecodeError),
            (b"[", b"]", b",", b"-", b"1-99999,", b"[0-9]"),
        ),
        Target("topology", _topologies(), partial(_placed, folder / "topology"), refused, yaml_words),
        Target("policy", [_policy(), _DEEP], _judged, (UnicodeDecodeError,), yaml_words),
        Target("tenants", [_tenants()], _tenancy, (UnicodeDecodeError, bindings.BindingsError), yaml_words),
        Target("segments", _segments(folder), partial(_segment, folder / "segment"), (SegmentFormatError,), (b"PAR1",)),
    ]


def _imported(path: Path, fields: Sequence[Any], rows: Rows, data: bytes) -> None:
    path.write_bytes(data)
    report = ImportReport("fuzz", path.name, "0" * 64, "site")
    for chunk in read(Source(path, tz="UTC"), fields, report):
        for _ in rows(chunk, report):
            pass
    json.dumps(report.as_json())


def _tables() -> list[tuple[str, list[bytes], Sequence[Any], Rows]]:
    spend = litellm.Seen()
    log_options = llm_log.LlmLogOptions("site", provider="p")
    power = node_power.NodePowerOptions("site")
    energy = node_power.Parsed()
    latest_us = int(NOW.timestamp()) * 1_000_000
    return [
        (
            "focus",
            [*_heads("billing/focus_1.0_sample.csv"), _parquet(_DATA / "billing/focus_1.0_sample.csv")],
            focus_columns.FIELDS,
            lambda chunk, report: focus_rows.parse_charges(chunk, report.rejections, None, NOW),
        ),
        (
            "litellm",
            [
                _spend_csv(),
                json.dumps([_SPEND, _SPEND]).encode(),
                json.dumps(_SPEND).encode() + b"\n" + json.dumps(_SPEND).encode(),
            ],
            litellm.FIELDS,
            lambda chunk, report: litellm.parse_calls(chunk, report, litellm.LitellmOptions("site"), NOW, spend),
        ),
        (
            "llm-log",
            [
                b"timestamp,model,input_tokens,output_tokens,cached_tokens,status\n2026-10-01T10:00:00Z,m,1000,250,600,ok\n"
            ],
            llm_log.FIELDS,
            lambda chunk, report: llm_log.parse_calls(chunk, report.rejections, log_options, "0" * 64, NOW),
        ),
        (
            "sacct",
            [_SACCT, gzip.compress(_SACCT)],
            sacct.FIELDS,
            lambda chunk, report: sacct.parse_sacct(chunk, report, "c", NOW),
        ),
        (
            "job-table",
            [
                b"job_id,user,start,end,gpus,state,nodes\n1,ada,2026-10-01T10:00:00Z,2026-10-01T11:00:00Z,8,COMPLETED,n[1-2]\n"
            ],
            jobs.FIELDS,
            lambda chunk, report: jobs.parse_jobs(chunk, report.rejections, jobs.JobOptions("site"), {}, NOW),
        ),
        (
            "node-power",
            [b"node,ts_ms,watts\nn1,1715341082000,2100\nn1,1715344200000,1900\n"],
            node_power.FIELDS,
            lambda chunk, report: node_power._accepted(chunk, power, report.rejections, energy, latest_us),
        ),
        (
            "intensity",
            [b"datetime,zone,carbon_intensity_g_per_kwh\n2026-10-01T00:00:00Z,DE,380.5\n2026-10-01T01:00:00Z,DE,1e3\n"],
            rates.INTERVAL_FIELDS,
            lambda chunk, report: rates.intervals(chunk, report, rates.DEFAULT_STEP),
        ),
    ]


_SACCT: Final = (
    b"JobID|Cluster|User|Account|Partition|State|Submit|Start|End|AllocTRES|NodeList|JobName\n"
    b"17|c|ada|a|p|COMPLETED|2026-10-01T09:00:00|2026-10-01T10:00:00|2026-10-01T11:00:00|cpu=8,gres/gpu:h100=8,node=1|n[01-02]|x\n"
    b"18_3|c|ada|a|p|RUNNING|2026-10-01T09:00:00|2026-10-01T10:00:00|Unknown|gres/gpu=1|n7|y\n"
)
_HOSTS: Final = [b"node[01-04,7],gpu1", b"a[1-2]b[3-4][5,6]", b"login"]
_SPEND: Final = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "api_key": "ab" * 32,
    "spend": 0.0021,
    "prompt_tokens": 1000,
    "completion_tokens": 250,
    "total_tokens": 1250,
    "startTime": "2026-10-01T10:00:00.250Z",
    "endTime": "2026-10-01T10:00:02.250Z",
    "model": "gpt-4o",
    "custom_llm_provider": "openai",
    "metadata": {"usage_object": {"prompt_tokens_details": {"cached_tokens": 600}}},
    "cache_hit": "False",
    "status": "success",
}
_DEEP: Final = b"version: 1\nbudgets:\n" + b"  - [[[[{a: {b: c}}]]]]\n"


def _spend_csv() -> bytes:
    cells = [json.dumps(value) if isinstance(value, dict) else str(value) for value in _SPEND.values()]
    return (",".join(_SPEND) + "\n" + ",".join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\n").encode()


def _heads(name: str) -> list[bytes]:
    lines = (_DATA / name).read_bytes().splitlines(keepends=True)
    return [b"".join(lines[:4]), b"".join(lines[:40])]


def _parquet(path: Path) -> bytes:
    sink = io.BytesIO()
    pl.read_csv(path, n_rows=20, infer_schema=False).write_parquet(sink)
    return sink.getvalue()


def _expanded(data: bytes) -> None:
    hosts = hostlist.expand(data.decode())
    if len(hosts) > hostlist.MAX_HOSTS:
        raise AssertionError(f"{len(hosts)} hosts")


def _topologies() -> list[bytes]:
    conf = b"SwitchName=s1 Nodes=n[1-4]\nSwitchName=s2 Nodes=n[5-8]\nSwitchName=top Switches=s[1-2]\n"
    plain = b"node,rack,switch\nn1,r1,s1\n"
    document = (
        b"---\n- topology: topo1\n  cluster_default: true\n  tree:\n    switches:\n"
        b"      - switch: s0\n        children: s[1-2]\n      - switch: s1\n        nodes: n[1-2]\n"
        b"- topology: topo2\n  block:\n    block_sizes: [4]\n    blocks:\n      - block: b1\n        nodes: n[1-4]\n"
    )
    return [conf, plain, document]


def _placed(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for _ in topology._places(Source(path), ImportReport("fuzz", path.name, "0" * 64, "site"), None):
        pass


def _policy() -> bytes:
    return (_EXAMPLES / "budgets.yaml").read_bytes()


def _judged(data: bytes) -> None:
    budget_policy.check(data.decode())


def _tenants() -> bytes:
    return (_EXAMPLES / "bindings.yaml").read_bytes()


def _tenancy(data: bytes) -> None:
    bindings.check(data.decode())


def _segments(folder: Path) -> list[bytes]:
    path = folder / "seed.parquet"
    schema = {"at_us": pl.Int64, "device_id": pl.Int32, "power_mw": pl.Int64}
    writer = SegmentWriter(path, schema, statistics=["at_us"])
    writer.write(
        pl.DataFrame({"at_us": range(300), "device_id": [1] * 300, "power_mw": [300_000] * 300}, schema=schema)
    )
    writer.close(SegmentMeta("site", "2026-11-21T10:00:00Z", "device", 1, {"id": [1]}, {"id": [1]}))
    return [path.read_bytes()]


def _segment(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    segments_format.read_meta(path)
    segments_format.check_pages(path)
