from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.importers.columns import Source
from ingest.importers.jobs import JobOptions, import_jobs
from ingest.importers.llm_log import LlmLogOptions, import_llm_log
from ingest.importers.node_power import NodePowerOptions, import_node_power
from ingest.importers.sacct import SacctOptions, import_sacct
from ingest.store.engine import Database

pytestmark = pytest.mark.db
NOW = datetime(2026, 1, 1, tzinfo=UTC)
Write = Callable[[str, str], Source]
SACCT = "JobID|Account|User|State|Start|End|AllocTRES|NodeList\n"


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(name: str, text: str) -> Source:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return Source(path, tz="UTC")

    return made


def rows(conn: sa.Connection, query: str) -> list[tuple[object, ...]]:
    with conn.begin():
        return [tuple(row) for row in conn.execute(sa.text(query))]


def test_a_later_sacct_output_ends_the_running_job_and_replaces_what_it_held(conn: sa.Connection, write: Write) -> None:
    options = SacctOptions("lab", cluster="c1")
    first = SACCT + "7|a|u|RUNNING|2025-05-01T10:00:00|Unknown|gres/gpu=8|node[01-02]\n"
    later = SACCT + "7|a|u|COMPLETED|2025-05-01T10:00:00|2025-05-01T12:00:00|gres/gpu=8|node[01-02]\n"
    import_sacct(conn, write("1.txt", first), options, now=NOW)
    report = import_sacct(conn, write("2.txt", later), options, now=NOW)
    assert report.written == {"jobs": 1, "allocations": 2}
    assert rows(conn, "SELECT state, ended_at::text FROM jobs") == [("completed", "2025-05-01 12:00:00+00")]
    assert rows(
        conn,
        "SELECT n.name, a.accelerators, a.end_at::text, a.superseded_at IS NULL FROM allocations a "
        "JOIN nodes n ON n.id = a.node_id ORDER BY a.id",
    ) == [
        ("node01", 4, None, False),
        ("node02", 4, None, False),
        ("node01", 4, "2025-05-01 12:00:00+00", True),
        ("node02", 4, "2025-05-01 12:00:00+00", True),
    ]


def test_what_an_agent_saw_a_job_hold_is_not_replaced_by_an_import(conn: sa.Connection, write: Write) -> None:
    text = SACCT + "7|a|u|RUNNING|2025-05-01T10:00:00|Unknown|gres/gpu=8|n1\n"
    import_sacct(conn, write("1.txt", text), SacctOptions("lab", cluster="c1"), now=NOW)
    with conn.begin():
        conn.execute(sa.text("UPDATE allocations SET evidence = 'cgroup'"))
    ended = text.replace("RUNNING", "COMPLETED").replace("Unknown", "2025-05-01T11:00:00")
    report = import_sacct(conn, write("2.txt", ended), SacctOptions("lab", cluster="c1"), now=NOW)
    assert report.written["allocations"] == 0
    assert rows(conn, "SELECT state FROM jobs") == [("completed",)]
    assert rows(conn, "SELECT evidence, superseded_at FROM allocations") == [("cgroup", None)]


def test_a_call_with_a_response_id_is_one_call_in_two_files(conn: sa.Connection, write: Write) -> None:
    header = "timestamp,model,provider,response_id,input_tokens,cached_tokens,output_tokens,reasoning_tokens\n"
    call = "2025-05-01T10:00:00Z,m,p,r1,100,60,50,20\n"
    import_llm_log(conn, write("1.csv", header + call), LlmLogOptions("lab", tenant="acme/nlp"), now=NOW)
    second = header + call + "2025-05-01T11:00:00Z,m,p,r2,,,,\n"
    report = import_llm_log(conn, write("2.csv", second), LlmLogOptions("lab"), now=NOW)
    assert (report.written["api_calls"], report.unchanged) == (1, 1)
    assert rows(
        conn,
        "SELECT input_uncached_tokens, cache_read_tokens, output_text_tokens, reasoning_tokens, usage_known, tenant_id "
        "IS NOT NULL FROM api_calls ORDER BY called_at",
    ) == [(40, 60, 30, 20, True, True), (None, None, None, None, False, False)]


@pytest.mark.real
def test_the_azure_trace_comes_in_whole(conn: sa.Connection, shared: Path) -> None:
    source = Source(shared / "data/llm-traces/azure_2023_conv.csv", tz="UTC")
    options = LlmLogOptions("lab", model="azure/gpt-4", provider="azure", tenant="acme/chat", api_key="chat")
    report = import_llm_log(conn, source, options, now=NOW)
    assert report.written == {"api_calls": 19_366}
    assert report.rejections.total == 0
    # The first row, 18:15:46.6805900: 100 ns digits are cut.
    assert rows(
        conn, "SELECT called_at::text, input_uncached_tokens, output_text_tokens FROM api_calls ORDER BY 1 LIMIT 1"
    ) == [("2023-11-16 18:15:46.68059+00", 374, 44)]
    assert rows(conn, "SELECT from_at::text, to_at::text FROM changes ORDER BY 1") == [
        ("2023-11-16 18:00:00+00", "2023-11-16 19:00:00+00"),
        ("2023-11-16 19:00:00+00", "2023-11-16 20:00:00+00"),
    ]


@pytest.mark.real
def test_the_mlperf_jobs_come_in_with_their_pools(conn: sa.Connection, shared: Path) -> None:
    source = Source(shared / "data/jobs/mlperf_training_v4_jobs.csv")
    report = import_jobs(conn, source, JobOptions("lab", cluster="mlperf"), now=NOW)
    assert report.written == {"jobs": 1_101, "allocations": 1_101}
    assert rows(conn, "SELECT count(DISTINCT account), count(*) FILTER (WHERE state = 'failed') FROM jobs") == [(7, 9)]
    # The file's own accel_hours add up to 27,074 (data/README.md).
    hours = rows(conn, "SELECT sum(accelerators * extract(epoch FROM end_at - start_at)) / 3600 FROM allocations")
    assert round(float(str(hours[0][0]))) == 27_074
    again = import_jobs(conn, source, JobOptions("lab", cluster="mlperf"), now=NOW)
    assert again.already_imported_at is not None


@pytest.mark.real
def test_the_power_runs_hold_the_nodes_that_were_metered(conn: sa.Connection, shared: Path) -> None:
    power = Source(shared / "data/gpu-power/mlperf_train_h100_node_power_2s.parquet")
    naming = NodePowerOptions(site="smc", bills="ac", node_name="{run}/{node}", accelerators=8, model="H100")
    import_node_power(conn, power, naming, now=NOW)
    source = Source(shared / "data/gpu-power/mlperf_train_h100_jobs.csv")
    options = JobOptions("smc", cluster="smc", on_nodes="{job_id}/*")
    report = import_jobs(conn, source, options, now=NOW)
    assert report.rejections.total == 0
    # 39 + 5 x 8 + 20 x 9 + 6 x 8 + 7 x 64 node-runs
    assert report.written == {"jobs": 77, "allocations": 39 + 40 + 180 + 48 + 448}
    assert rows(conn, "SELECT DISTINCT accelerators FROM allocations") == [(8,)]
