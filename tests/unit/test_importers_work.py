from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ingest.importers.columns import Source, read
from ingest.importers.errors import OptionError, RowError
from ingest.importers.hostlist import expand
from ingest.importers.job_rows import JobRow
from ingest.importers.jobs import FIELDS as JOB_FIELDS
from ingest.importers.jobs import JobOptions, parse_jobs
from ingest.importers.llm_log import FIELDS as LOG_FIELDS
from ingest.importers.llm_log import LlmLogOptions, parse_calls, token_parts
from ingest.importers.report import ImportReport
from ingest.importers.sacct import FIELDS as SACCT_FIELDS
from ingest.importers.sacct import gpus, parse_sacct

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Write = Callable[[str], Source]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(text: str) -> Source:
        path = tmp_path / "table"
        path.write_text(text, encoding="utf-8")
        return Source(path, tz="UTC")

    return made


def report_of(source: Source) -> ImportReport:
    return ImportReport("test", source.path.name, "ab", "lab")


def jobs(source: Source, options: JobOptions, known: dict[str, int] | None = None) -> tuple[list[JobRow], ImportReport]:
    report = report_of(source)
    chunks = read(source, JOB_FIELDS, report)
    return [job for chunk in chunks for job in parse_jobs(chunk, report.rejections, options, known or {}, NOW)], report


def sacct(source: Source) -> tuple[list[JobRow], ImportReport]:
    report = report_of(source)
    return [
        job for chunk in read(source, SACCT_FIELDS, report) for job in parse_sacct(chunk, report, "c1", NOW)
    ], report


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node[01-04,7]", ["node01", "node02", "node03", "node04", "node7"]),
        ("a1,b[2-3]-ib", ["a1", "b2-ib", "b3-ib"]),
        ("r[1-2]n[08-09]", ["r1n08", "r1n09", "r2n08", "r2n09"]),
    ],
)
def test_host_lists_expand_with_their_zeros(text: str, hosts: list[str]) -> None:
    assert expand(text) == hosts


@pytest.mark.parametrize(
    "text", ["n[1-999999999]", "n[3-1]", "n[1-]", "n[", "n[1]]", "", "a,,b", "n[0-99999]x[0-99999]"]
)
def test_malformed_and_unbounded_host_lists_are_refused(text: str) -> None:
    with pytest.raises(RowError):
        expand(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("billing=4,cpu=4,gres/gpu=4,mem=256M,node=1", (4, None)),
        ("gres/gpu:a100=4,gres/gpu=4", (4, "a100")),
        ("gres/gpu:a100=2,gres/gpu:h100=1", (3, None)),
        ("cpu=1,gres/gpumem=80G", (0, None)),
        (None, (0, None)),
    ],
)
def test_accelerators_of_alloc_tres_are_counted_once(text: str | None, found: tuple[int, str | None]) -> None:
    assert gpus(text) == found


SACCT = """JobID|Account|User|State|Start|End|AllocTRES|NodeList|JobName|
7|nlp|ann|COMPLETED|2025-05-01T10:00:00|2025-05-01T11:00:00|gres/gpu=8|n[1-2]|a "quoted" name|
7.batch|nlp||COMPLETED|2025-05-01T10:00:00|2025-05-01T11:00:00|gres/gpu=8|n[1-2]|batch|
8_3|nlp|ann|CANCELLED by 0|2025-05-01T10:00:00|2025-05-01T10:30:00|gres/gpu=3|n[1-2]|x|
9+1|nlp|ann|RUNNING|2025-05-01T10:00:00|Unknown|gres/gpu=4|n1|x|
10|nlp|ann|CANCELLED by 1001|None|2025-05-01T10:30:00||None assigned|x|
11_[4-9]|nlp|ann|PENDING|Unknown|Unknown|||x|
12|nlp|ann|RUNNING|2027-01-01T00:00:00|Unknown|gres/gpu=4|n1|x|
13|nlp|ann|COMPLETED|2025-05-01T10:00:00|2025-05-01T09:00:00|gres/gpu=4|n1|x|
"""


def test_sacct_jobs_come_with_state_nodes_and_ids_as_slurm_writes_them(write: Write) -> None:
    found, report = sacct(write(SACCT))
    assert [(job.native_id, job.state, job.accelerators) for job in found] == [
        ("7", "completed", 8),
        ("8_3", "cancelled", 3),
        ("9+1", "running", 4),
    ]
    assert found[0].holds == [("n1", None, None, 4), ("n2", None, None, 4)]
    assert found[0].name == 'a "quoted" name'
    # Three on two nodes: which held two is not known, so no node is blamed.
    assert found[1].holds == [(None, "c1", None, 3)]
    assert found[1].reason == "CANCELLED by 0"
    assert found[2].ended_us is None
    assert [(bad.line, bad.reason) for bad in report.rejections.examples] == [
        (6, "never started"),
        (7, "never started"),
        (8, "in the future"),
        (9, "ends before it starts"),
    ]
    assert report.notes == [
        "lines of job steps (JobID with a dot) are left out: their job has a line of its own (sacct -X)"
    ]


def test_sacct_times_are_of_the_clusters_zone(write: Write) -> None:
    source = write("JobID|State|Start|End|AllocTRES\n7|COMPLETED|2025-05-01T10:00:00|2025-05-01T11:00:00|gres/gpu=1\n")
    found, _ = sacct(Source(source.path, tz="America/New_York"))
    # 10:00 EDT is 14:00 UTC.
    assert found[0].started_us == 1_746_108_000_000_000


@pytest.mark.real
def test_the_real_sacct_sample_is_read_by_its_own_columns(shared: Path) -> None:
    found, report = sacct(Source(shared / "data/fixtures/slurm/sample-sacct-output.txt", tz="UTC"))
    # One anonymised row, a step (8012944_24093.0) with Start empty, repeated 68 times.
    assert (found, report.rows_read) == ([], 68)


def test_jobs_hold_nodes_where_they_are_known_and_a_pool_where_not(write: Write) -> None:
    text = (
        "job_id,start,end,status,gpus,gpus_per_node,nodes,hosts,gpu_model,pool\n"
        "a,2025-05-01T10:00,2025-05-01T11:00,success,16,8,2,,H100,eos\n"
        'b,2025-05-01T10:00,2025-05-01T11:00,aborted,,8,,"n[1-2]",H100,eos\n'
        "c,2025-05-01T10:00,,running,4,,,,,eos\n"
        'd,2025-05-01T10:00,2025-05-01T11:00,success,7,,,"n[1-2]",H100,eos\n'
        'e,2025-05-01T10:00,2025-05-01T11:00,success,16,,3,"n[1-2]",H100,eos\n'
    )
    found, report = jobs(write(text), JobOptions("lab", cluster="c1"))
    assert [(job.native_id, job.state, job.holds) for job in found] == [
        ("a", "completed", [(None, "eos", "H100", 16)]),
        ("b", "failed", [("n1", None, None, 8), ("n2", None, None, 8)]),
        ("c", "running", [(None, "eos", None, 4)]),
    ]
    assert report.rejections.by_reason == {"accelerators do not fit the nodes": 1, "another number of nodes": 1}


def test_a_job_that_ends_after_now_or_held_more_than_there_is_is_refused(write: Write) -> None:
    lines = [
        "a,2025-05-01T10:00,2099-01-01T00:00,4,,",  # 4 accelerators until 2099
        "b,2025-05-01T10:00,2025-05-01T11:00,100001,,",
        "c,2025-05-01T10:00,2025-05-01T11:00,513,n1,",
        "d,2025-05-01T10:00,2025-05-01T11:00,512,n1,",
        "e,2025-05-01T10:00,2025-05-01T11:00,100000,,",
        "f,2025-05-01T10:00,2025-05-01T11:00,-1,,",
    ]
    found, report = jobs(
        write("\n".join(["job_id,start,end,gpus,hosts,pool", *lines])), JobOptions("lab", cluster="c1")
    )
    assert [(job.native_id, job.accelerators) for job in found] == [("d", 512), ("e", 100_000)]
    assert report.rejections.by_reason == {"in the future": 1, "accelerators out of range": 3}
    text = "JobID|State|Start|End|AllocTRES|NodeList\n{}|COMPLETED|2025-05-01T10:00:00|{}|gres/gpu={}|{}\n"
    for job_id, end, gpus_, node in ((1, "2099-01-01T00:00:00", 1, "n1"), (2, "2025-05-01T11:00:00", 513, "n1")):
        assert sacct(write(text.format(job_id, end, gpus_, node)))[0] == []


def test_jobs_find_the_nodes_named_after_their_run(write: Write) -> None:
    source = write(
        "run,start,end,nodes,gpus\nr1,2025-05-01T10:00,2025-05-01T11:00,2,16\nr2,2025-05-01T10:00,2025-05-01T11:00,2,16\n"
    )
    found, report = jobs(
        source, JobOptions("lab", cluster="c", on_nodes="{job_id}/*"), {"r1/0": 1, "r1/1": 2, "r11/0": 3}
    )
    assert [job.holds for job in found] == [[("r1/0", None, None, 8), ("r1/1", None, None, 8)]]
    assert report.rejections.by_reason == {"no such nodes": 1}


@pytest.mark.real
def test_all_mlperf_jobs_are_read(shared: Path) -> None:
    found, report = jobs(Source(shared / "data/jobs/mlperf_training_v4_jobs.csv"), JobOptions("lab", cluster="mlperf"))
    assert (len(found), report.rejections.total) == (1_101, 0)
    assert len({job.account for job in found}) == 7
    assert sum(job.reason == "aborted" for job in found) == 9
    assert max(job.accelerators or 0 for job in found) == 11_616


def test_token_parts_are_disjoint_and_never_exceed_their_whole() -> None:
    parts = (
        "input",
        "output",
        "cache_read",
        "cache_write",
        "cache_write_1h",
        "reasoning",
        "audio_in",
        "audio_out",
        "image",
    )
    row: dict[str, Any] = dict.fromkeys(parts)
    row |= {"input": 100, "cache_read": 60, "cache_write": 10, "output": 50, "reasoning": 20}
    told = {"cache_read_tokens": 60, "cache_write_tokens": 10, "output_text_tokens": 30, "reasoning_tokens": 20}
    for excludes_cache, uncached in ((False, 30), (True, 100)):
        found = token_parts(row, excludes_cache=excludes_cache)
        assert {name: count for name, count in found.items() if count is not None} == told | {
            "input_uncached_tokens": uncached
        }
    with pytest.raises(RowError, match="exceed their whole"):
        token_parts(row | {"input": 5}, excludes_cache=False)
    with pytest.raises(RowError, match="out of range"):
        token_parts(row | {"output": -1}, excludes_cache=False)


def test_a_log_that_does_not_say_its_model_asks_for_it(write: Write) -> None:
    source = write("timestamp,input_tokens,output_tokens\n2025-05-01T10:00:00Z,1,2\n2026-05-01T10:00:00Z,1,2\n")
    report = report_of(source)
    chunk = next(iter(read(source, LOG_FIELDS, report)))
    with pytest.raises(OptionError, match="--model"):
        list(parse_calls(chunk, report.rejections, LlmLogOptions("lab"), "ab", NOW))
    rows = list(parse_calls(chunk, report.rejections, LlmLogOptions("lab", model="m", provider="p"), "ab", NOW))
    # Without a response id the file and line are the call's identity; a call after now is none.
    assert [row.dedupe_key for row in rows] == ["ab:2"]
    assert report.rejections.by_reason == {"in the future": 1}


@pytest.mark.real
def test_the_whole_azure_trace_is_read(shared: Path) -> None:
    source = Source(shared / "data/llm-traces/azure_2023_conv.csv", tz="UTC")
    report = report_of(source)
    options = LlmLogOptions("lab", model="m", provider="p")
    rows = [
        row
        for chunk in read(source, LOG_FIELDS, report)
        for row in parse_calls(chunk, report.rejections, options, "ab", NOW)
    ]
    assert (len(rows), report.rejections.total) == (19_366, 0)
