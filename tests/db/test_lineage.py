"""One question from an answer back to its datasets: every hop with cost and energy from the books, and where it breaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from analytics.api.app import create_api
from analytics.jobs import HourCloser, WorkerSettings
from ingest.calls import ApiCall, CallSource
from ingest.receivers.open_lineage import read_events
from ingest.receivers.outcomes import read_outcomes
from ingest.store import tokens
from ingest.store.calls import write_calls
from ingest.store.engine import Database
from ingest.store.lineage import write_events, write_outcomes
from ingest.store.registry import Registry
from ingest.store.tokens import Scope
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.fakes.serving import serving
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.db

MODEL = "nlp-7b-sft"
CALLED_AT = HOUR_AT + HOUR + timedelta(minutes=30)
NOW_US = 1_800_000_000_000_000
TUNE, SERVE, CLEAN = (f"0198f5b2-6f1e-7c3a-9d2b-3f6a1f0e8c1{n}" for n in range(3))


@dataclass
class World:
    """A fine-tune from 8 to 9, its model served from 9 to 10 on the same GPU, and a call of team-a at half past nine."""

    fleet: SmallFleet
    engine: sa.Engine
    client: httpx.Client
    issue: Callable[[str], dict[str, str]]

    def close(self) -> None:
        HourCloser(self.fleet.database, WorkerSettings(code_version="test")).run(HOUR_AT + 4 * HOUR)

    def event(
        self, run_id: str, at_h: float, kind: str, state: str = "COMPLETE", tenant: str | None = None, **more: Any
    ) -> None:
        job = {"cluster": "c1", "nativeId": more.pop("job", None), "kind": kind, "model": more.pop("model", None)}
        sent = {
            "eventType": state,
            "eventTime": (HOUR_AT + at_h * HOUR).isoformat(),
            "run": {"runId": run_id, "facets": {"wattledger_job": job}},
            "job": {"namespace": "ml", "name": f"{kind}.nlp"},
            **{name: [{"namespace": space, "name": each} for space, each in given] for name, given in more.items()},
        }
        read = read_events(json.dumps(sent).encode(), NOW_US)
        assert not read.refused
        write_events(self.engine, self.fleet.site_id, tenant, read.events)

    def events(self) -> None:
        self.event(TUNE, 0, "fine_tune", "START", job="4711", inputs=[("s3://data", "chats")])
        self.event(TUNE, 1, "fine_tune", outputs=[("models", MODEL)])
        self.event(SERVE, 1, "serving", "START", job="77", inputs=[("models", MODEL)])

    def outcome(self, **more: Any) -> None:
        sent = {"response_id": "r-1", "kind": "thumbs", "label": "up", "at": CALLED_AT.isoformat(), **more}
        read = read_outcomes(json.dumps(sent).encode(), NOW_US)
        assert not read.refused
        write_outcomes(self.engine, self.fleet.site_id, None, read.outcomes)

    def ask(self, tenant: str = "acme/research", response_id: str = "r-1") -> httpx.Response:
        return self.client.get(f"/v1/lineage/{response_id}", headers=self.issue(tenant))


@pytest.fixture
def world(db: Database) -> Iterator[World]:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR + timedelta(minutes=5))
    fleet.job("4711", HOUR_AT, HOUR_AT + HOUR)
    fleet.job("77", HOUR_AT + HOUR, HOUR_AT + 2 * HOUR)
    with fleet.admin() as conn:
        conn.execute(
            "INSERT INTO bindings (position, tenant_id, api_key, valid_from) VALUES (2, %s, 'team-*', '2026-01-01Z')",
            [fleet.tenant_id],
        )
        conn.execute("INSERT INTO tenants (path) VALUES ('globex')")
        for meter, amount in (("input_tokens", "0.000001"), ("output_tokens", "0.000002")):
            conn.execute(
                "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
                "VALUES ('vllm', %s, %s, %s, 'token', 'USD', 'test', '2026-01-01Z')",
                [MODEL, meter, amount],
            )
    engine, admin = db.create_engine("writer"), db.create_engine("admin")
    call(engine, fleet.site_id, "r-1", "team-a", 1000, 500)
    call(engine, fleet.site_id, "r-2", "team-b", 7, 9)

    def issue(tenant: str) -> dict[str, str]:
        with admin.begin() as conn:
            issued = tokens.create(conn, "reader", [Scope.READ], actor="t", tenant_path=tenant)
        return {"authorization": f"Bearer {issued.secret}"}

    with serving(create_api(db)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield World(fleet, engine, client, issue)
    engine.dispose()
    admin.dispose()


def call(engine: sa.Engine, site_id: int, response_id: str, key: str, given: int, produced: int) -> None:
    reported = ApiCall(
        called_at_us=int(CALLED_AT.timestamp()) * 1_000_000,
        dedupe_key=f"span/{response_id}",
        provider="vllm",
        model=MODEL,
        usage_known=True,
        origin=1,
        api_key=key,
        response_id=response_id,
        input_uncached_tokens=given,
        output_text_tokens=produced,
    )
    write_calls(engine, Registry(engine), site_id, [reported], source=CallSource.SPAN)


def hops(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {hop["hop"]: hop for hop in told["hops"]}


def test_an_answer_leads_to_its_serving_its_fine_tune_and_its_dataset_with_what_each_cost(world: World) -> None:
    world.events()
    world.event(CLEAN, -1, "data", tenant="acme/research/nlp", outputs=[("s3://data", "chats")])
    world.outcome(score=0.9)
    world.close()
    told = world.ask().json()
    assert (told["complete"], told["breaks_at"]) == (True, None)
    assert [hop["hop"] for hop in told["hops"]] == ["response", "serving", "fine_tune", "dataset"]
    found = hops(told)
    # 1,000 x 0.000001 + 500 x 0.000002 USD; what another key used of the same model is not in it.
    assert (found["response"]["cost"], found["response"]["currency"]) == ("0.002", "USD")
    assert found["response"]["energy_kwh"] is None
    # An hour at 2 USD, and 0.1 kWh at 0.20 USD and 400 g: a job of its own for either.
    for hop, job, run in (("serving", "c1/77", SERVE), ("fine_tune", "c1/4711", TUNE)):
        figures = {name: found[hop][name] for name in ("job", "run_id", "cost", "energy_kwh", "carbon_gco2e", "books")}
        assert figures == {
            "job": job,
            "run_id": run,
            "cost": "2.02",
            "energy_kwh": "0.1",
            "carbon_gco2e": "40",
            "books": "closed",
        }
        assert (found[hop]["sources"], found[hop]["origins"], found[hop]["coverage_ratio"]) == (
            ["measured"],
            ["live"],
            1.0,
        )
    assert found["dataset"]["name"] == "s3://data:chats"
    assert (found["dataset"]["run_id"], found["dataset"]["cost"]) == (CLEAN, None)
    assert found["dataset"]["unknown"] == ["its run names no scheduler job"]
    assert [(each["kind"], each["label"], each["score"]) for each in told["outcomes"]] == [("thumbs", "up", 0.9)]


@pytest.mark.parametrize("tenant", ["globex", "acme/research/vision", "acme/research/nlp/chat"])
def test_another_tenants_response_is_answered_like_one_nobody_knows(world: World, tenant: str) -> None:
    world.events()
    world.outcome(serving_id="c1/77")
    world.close()
    other, nobody = world.ask(tenant), world.ask(tenant, "r-none")
    assert (other.status_code, nobody.status_code) == (404, 404)
    assert other.json() == nobody.json()
    assert world.ask("*").json()["complete"] is True


def test_a_hop_of_another_tenant_is_missing_and_shows_nothing_of_it(world: World) -> None:
    world.events()
    world.close()
    with world.fleet.admin() as conn:  # the platform trains, a tenant uses
        conn.execute(
            "UPDATE jobs SET tenant_id = (SELECT id FROM tenants WHERE path = 'globex') WHERE native_id = '4711'"
        )
    told = world.ask().json()
    assert (told["complete"], told["breaks_at"]) == (False, "fine_tune")
    assert told["break_reason"] == f"a run that wrote the model '{MODEL}' is not known, or not to this token"
    assert hops(told)["fine_tune"]["cost"] is None
    assert "4711" not in json.dumps(told)
    assert "chats" not in json.dumps(told)


def test_the_chain_says_where_it_breaks_and_goes_on_behind_the_gap(world: World) -> None:
    assert world.ask("*").json()["breaks_at"] == "serving"
    world.event(TUNE, 0, "fine_tune", "START", job="4711", inputs=[("s3://data", "chats")])
    world.event(TUNE, 0.9, "fine_tune", outputs=[("models", MODEL)])
    told = world.ask("*").json()
    assert told["breaks_at"] == "serving"
    assert f"a serving run of '{MODEL}' at that time is not known" in told["break_reason"]
    found = hops(told)
    assert (found["fine_tune"]["run_id"], found["dataset"]["name"]) == (TUNE, "s3://data:chats")
    # Nothing is closed yet: unknown, never 0.
    assert (found["response"]["cost"], found["response"]["unknown"][0]) == (None, "its hour is not in the books yet")
    assert (found["fine_tune"]["cost"], found["fine_tune"]["unknown"]) == (
        None,
        ["no hour of this job is in the books yet"],
    )


def test_a_fine_tune_that_failed_or_ended_too_late_made_nothing_that_was_served(world: World) -> None:
    world.event(TUNE, 0, "fine_tune", "START", job="4711", outputs=[("models", MODEL)])
    world.event(SERVE, 1, "serving", "START", job="77", inputs=[("models", MODEL)])
    assert world.ask("*").json()["break_reason"].endswith("had not ended by then")
    world.event(TUNE, 0.5, "fine_tune", "FAIL")
    assert world.ask("*").json()["break_reason"].endswith("ended as fail by then")


def test_outcomes_name_hops_that_no_event_reported(world: World) -> None:
    world.outcome(serving_id="c1/77", fine_tune_id="c1/4711", dataset_ids=["s3://data:chats"])
    world.close()
    told = world.ask("*").json()
    found = hops(told)
    assert (found["serving"]["job"], found["fine_tune"]["job"]) == ("c1/77", "c1/4711")
    assert (found["serving"]["cost"], found["fine_tune"]["cost"]) == ("2.02", "2.02")
    assert (found["dataset"]["found"], found["dataset"]["cost"]) == (True, None)
    assert told["complete"] is True


def test_a_model_made_from_a_model_leads_to_both_and_to_the_data_of_each(world: World) -> None:
    world.event(TUNE, 0, "fine_tune", "START", job="4711", inputs=[("s3://data", "chats"), ("models", "base")])
    world.event(TUNE, 1, "fine_tune", outputs=[("models", MODEL)])
    world.event(CLEAN, -2, "training", inputs=[("s3://data", "web")], outputs=[("models", "base")])
    told = world.ask("*").json()
    assert [(hop["hop"], hop["depth"], hop["name"]) for hop in told["hops"][2:]] == [
        ("fine_tune", 0, "fine_tune.nlp"),
        ("fine_tune", 1, "training.nlp"),
        ("dataset", 0, "s3://data:chats"),
        ("dataset", 1, "s3://data:web"),
    ]


def test_the_command_line_shows_the_chain_and_leaves_with_1_where_it_breaks(
    world: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal.on(world.fleet.database, tmp_path / "home", monkeypatch, capsys)
    broken = terminal.run("lineage", "r-1")
    assert broken.exit_code == 1
    assert "breaks at serving" in broken.out
    world.events()
    world.close()
    whole = terminal.run("lineage", "r-1", "--format", "json")
    assert (whole.exit_code, whole.json["hops"][2]["cost"]) == (0, "2.02")
    lines = terminal.run("lineage", "r-1", "--format", "csv").out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["hop", "response", "serving", "fine_tune", "dataset"]
    assert terminal.run("lineage", "nothing").exit_code == 2


def test_a_response_nobody_reported_is_known_by_its_outcomes_alone(world: World) -> None:
    world.outcome(response_id="r-9", model=MODEL, fine_tune_id="c1/4711")
    told = world.ask("*", "r-9").json()
    assert (told["breaks_at"], told["break_reason"]) == (
        "response",
        "no call with this response id is known; 1 outcomes name it",
    )
    assert hops(told)["fine_tune"]["job"] == "c1/4711"
    # It bears no tenant, so it is nobody's in particular.
    assert world.ask("acme/research", "r-9").status_code == 404


def job(world: World, native_id: str, begin: float, end: float, **facts: Any) -> None:
    """Run a job on the fleet's GPU from ``begin`` to ``end`` hours after eight."""
    world.fleet.job(native_id, HOUR_AT + begin * HOUR, HOUR_AT + end * HOUR)
    if facts:
        with world.fleet.admin() as conn:
            sets = ", ".join(f"{name} = %({name})s" for name in facts)
            conn.execute(f"UPDATE jobs SET {sets} WHERE native_id = %(native_id)s", {**facts, "native_id": native_id})


def nothing_ran(world: World) -> None:
    with world.fleet.admin() as conn:
        conn.execute("DELETE FROM allocations")
        conn.execute("DELETE FROM job_ends")
        conn.execute("DELETE FROM jobs")


def test_a_fine_tune_that_was_requeued_costs_what_all_its_runs_cost(world: World) -> None:
    nothing_ran(world)
    job(world, "900", 0, 1 / 3)
    job(world, "900", 1 / 2, 1)
    job(world, "77", 1, 2)
    world.event(TUNE, 0.01, "fine_tune", "START", job="900", inputs=[("s3://data", "chats")])
    world.event(TUNE, 0.99, "fine_tune", outputs=[("models", MODEL)])
    world.event(SERVE, 1, "serving", "START", job="77", inputs=[("models", MODEL)])
    world.close()
    hop = hops(world.ask("*").json())["fine_tune"]
    # 20 and 30 of 60 minutes of an hour of 2.02 USD and 0.1 kWh; rounded once a line.
    assert (round(Decimal(hop["cost"]), 6), round(Decimal(hop["energy_kwh"]), 6)) == (
        Decimal("1.683333"),
        Decimal("0.083333"),
    )
    assert (hop["job"], hop["jobs"], hop["job_count"]) == ("c1/900", ["c1/900"], 2)
    assert hop["basis"] == "all hours of the 2 runs of job c1/900, which was begun anew"
    assert hop["unknown"] == []


def test_what_of_a_requeued_job_was_over_before_the_run_is_named_and_not_in_its_cost(
    world: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing_ran(world)
    job(world, "900", 0, 1 / 4)
    job(world, "900", 1 / 2, 1)
    world.event(TUNE, 0.51, "fine_tune", "START", job="900")
    world.event(TUNE, 0.99, "fine_tune", outputs=[("models", MODEL)])
    world.close()
    hop = hops(world.ask("*").json())["fine_tune"]
    assert (hop["cost"], hop["job_count"]) == ("1.01", 1)
    assert hop["unknown"] == ["1 of its jobs were not there while the run was, and are not in this: c1/900"]
    told = Terminal.on(world.fleet.database, tmp_path / "home", monkeypatch, capsys).run("lineage", "r-1").out
    assert f"fine_tune: {hop['unknown'][0]}" in told, "the table is no less honest than the JSON"


@pytest.mark.parametrize(
    ("ids", "said", "facts"),
    [
        (["0198f5b2-aaaa-7c3a-9d2b-000000000001", "0198f5b2-aaaa-7c3a-9d2b-000000000002"], 1, {"workload": "Job/tune"}),
        (["123+0", "123+1"], 1, {}),
        (["123+0", "123+1"], "123", {}),
        (["4700_1", "4700_2"], "4700", {}),
    ],
)
def test_the_pods_of_one_work_the_components_of_one_job_and_the_tasks_of_an_array_are_one_cost(
    world: World, ids: list[str], said: int | str, facts: dict[str, Any]
) -> None:
    nothing_ran(world)
    job(world, ids[0], 0, 1 / 2, **facts)
    job(world, ids[1], 1 / 2, 1, **facts)
    world.event(TUNE, 0.01, "fine_tune", "START", job=said if isinstance(said, str) else ids[0])
    world.event(TUNE, 0.99, "fine_tune", outputs=[("models", MODEL)])
    world.close()
    hop = hops(world.ask("*").json())["fine_tune"]
    assert (hop["cost"], hop["energy_kwh"], hop["job_count"]) == ("2.02", "0.1", 2)
    assert hop["jobs"] == [f"c1/{each}" for each in ids]
    assert hop["unknown"] == []
    world.outcome(fine_tune_id=f"c1/{said if isinstance(said, str) else ids[0]}")
    assert hops(world.ask("*").json())["fine_tune"]["cost"] == "2.02"


def test_a_pod_of_which_nobody_told_the_owner_is_not_told_as_the_whole(world: World) -> None:
    nothing_ran(world)
    pod = "0198f5b2-aaaa-7c3a-9d2b-000000000001"
    job(world, pod, 0, 1)
    world.event(TUNE, 0.01, "fine_tune", "START", job=pod)
    world.event(TUNE, 0.99, "fine_tune", outputs=[("models", MODEL)])
    world.close()
    unknown = hops(world.ask("*").json())["fine_tune"]["unknown"]
    assert unknown == ["nobody told what the pod belongs to; other pods of the same work are not in this"]


def test_pods_a_token_may_not_see_are_counted_as_missing_and_not_named(world: World) -> None:
    nothing_ran(world)
    ids = [f"0198f5b2-aaaa-7c3a-9d2b-00000000000{n}" for n in (1, 2)]
    for n, each in enumerate(ids):
        job(world, each, n / 2, (n + 1) / 2, workload="Job/tune")
    world.event(TUNE, 0.01, "fine_tune", "START", tenant="acme/research/nlp", job=ids[0])
    world.event(TUNE, 0.99, "fine_tune", tenant="acme/research/nlp", outputs=[("models", MODEL)])
    world.close()
    with world.fleet.admin() as conn:
        conn.execute(
            "UPDATE jobs SET tenant_id = (SELECT id FROM tenants WHERE path = 'globex') WHERE native_id = %s", [ids[1]]
        )
    told = world.ask()
    hop = hops(told.json())["fine_tune"]
    assert (hop["cost"], hop["job_count"]) == ("1.01", 1)
    assert hop["unknown"] == [
        "1 more of its jobs are not known to this token, or not yet in the books: they are not in this"
    ]
    assert ids[1] not in told.text


def test_an_adapter_that_was_tuned_while_its_server_ran_is_found_by_the_call_s_instant(world: World) -> None:
    world.event(SERVE, 0.1, "serving", "START", job="77", model=MODEL)
    world.event(TUNE, 0.2, "fine_tune", "START", job="4711", inputs=[("s3://data", "chats")])
    world.event(TUNE, 1, "fine_tune", outputs=[("models", MODEL)])
    told = world.ask("*").json()
    assert (told["complete"], hops(told)["fine_tune"]["run_id"]) == (True, TUNE)
    assert hops(told)["fine_tune"]["reason"] is None


def test_of_two_that_wrote_the_model_the_last_before_the_call_is_taken_and_the_doubt_is_said(world: World) -> None:
    world.events()
    again = TUNE[:-1] + "9"
    world.event(again, 1.1, "fine_tune", "START", job="4711")
    world.event(again, 1.2, "fine_tune", outputs=[("models", MODEL)])
    hop = hops(world.ask("*").json())["fine_tune"]
    assert hop["run_id"] == again
    assert f"run {TUNE} wrote the model before" in hop["reason"]
