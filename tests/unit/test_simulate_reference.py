"""Tenants, prices and calls of the simulated world: they fit one another and carry their labels."""

from decimal import Decimal
from itertools import pairwise

import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from wattledger.simulate import reference
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.llm import calls_started_between
from wattledger.simulate.spec import BLOCK_US, US_PER_S, FleetSpec, PlantKind
from wattledger.simulate.tenants import API_KEYS, ORGANISATIONS, OVERSPENT_KEY, bindings_yaml

START_US = 1_790_000_400 * US_PER_S
SPEC = FleetSpec(start_at_us=START_US, nodes=16, devices_per_node=8)
DAY_END_US = START_US + 24 * BLOCK_US


def test_every_model_called_has_a_demo_price_for_each_token_part() -> None:
    priced = {(row.provider, row.model, row.meter) for row in reference.prices(SPEC)}
    for key in API_KEYS:
        for provider, model, _ in key.models:
            for meter in ("input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens"):
                assert (provider, model, meter) in priced
    assert {row.source for row in reference.prices(SPEC)} == {"demo price"}


def test_prices_per_million_become_prices_per_token_exactly() -> None:
    amounts = {(row.model, row.meter): Decimal(row.amount) for row in reference.prices(SPEC)}
    assert amounts["gpt-5", "output_tokens"] == Decimal("0.000011")
    assert amounts["gpt-5-mini", "cache_read_tokens"] == Decimal("0.00000003")
    assert amounts["NVIDIA H100 80GB HBM3", "accelerator_hour"] == Decimal("2.15")


def test_dated_rates_follow_one_another_without_holes() -> None:
    for rows in (reference.tariffs(SPEC), reference.intensity(SPEC)):
        assert rows[0].valid_from_us <= START_US
        assert all(before.valid_to_us == after.valid_from_us for before, after in pairwise(rows))
        assert rows[-1].valid_to_us is None
        assert all(Decimal(row.amount) > 0 for row in rows)


def test_bindings_name_every_account_but_those_that_stay_unmapped() -> None:
    document = yaml.safe_load(bindings_yaml())
    accounts = {rule["account"]: rule["tenant"] for rule in document["bindings"] if "account" in rule}
    assert accounts == {entry.account: entry.path for entry in ORGANISATIONS}
    jobs = Fleet(SPEC).jobs(START_US, DAY_END_US)
    assert all(accounts.get(job.account) == job.tenant for job in jobs)
    unmapped = sum(job.tenant is None for job in jobs)
    assert 0.02 * len(jobs) < unmapped < 0.12 * len(jobs)


def test_the_overspent_key_bursts_in_its_planted_hours_only() -> None:
    (plant,) = [entry for entry in Fleet(SPEC).plants(START_US, DAY_END_US) if entry.kind is PlantKind.KEY_OVERSPEND]
    calls = [call for call in calls_started_between(SPEC, START_US, DAY_END_US) if call.api_key == OVERSPENT_KEY]
    inside = sum(plant.start_us <= call.start_us < plant.end_us for call in calls)
    # 600 calls an hour in all, 16 % of them by this key: 96 an hour on average, 25 times as many for two hours.
    assert 4500 < inside < 5100
    assert 1500 < len(calls) - inside < 2700


def test_spans_say_what_was_called_for_whom_and_that_it_is_simulated() -> None:
    fleet = Fleet(SPEC)
    calls = {call.span_id: call for call in fleet.calls(START_US, START_US + 2 * BLOCK_US)}
    seen = 0
    for export in fleet.traces(START_US, START_US + 2 * BLOCK_US):
        (group,) = ExportTraceServiceRequest.FromString(export.body).resource_spans
        resource = {entry.key: entry.value.string_value for entry in group.resource.attributes}
        assert resource["wattledger.origin"] == "simulated"
        for span in group.scope_spans[0].spans:
            call, seen = calls[span.span_id], seen + 1
            texts = {entry.key: entry.value.string_value for entry in span.attributes}
            numbers = {entry.key: entry.value.int_value for entry in span.attributes}
            assert texts["gen_ai.provider.name"] == call.provider
            assert texts["gen_ai.request.model"] == call.model
            assert texts["wattledger.api_key"] == call.api_key
            assert span.start_time_unix_nano == call.start_us * 1000
            if call.usage_known:
                assert texts["gen_ai.response.id"] == call.response_id
                assert numbers["gen_ai.usage.input_tokens"] == call.input_tokens >= call.cached_tokens
                assert numbers["gen_ai.usage.cache_read.input_tokens"] == call.cached_tokens
                assert numbers["gen_ai.usage.output_tokens"] == call.output_tokens >= call.reasoning_tokens
            else:
                assert "gen_ai.usage.input_tokens" not in numbers
    assert seen == len(calls) > 500


def test_calls_of_two_halves_are_the_calls_of_the_whole() -> None:
    fleet = Fleet(SPEC)
    middle_us = START_US + BLOCK_US + 123 * US_PER_S
    halves = fleet.calls(START_US, middle_us) + fleet.calls(middle_us, START_US + 2 * BLOCK_US)
    assert halves == fleet.calls(START_US, START_US + 2 * BLOCK_US)


def test_the_truth_counts_tokens_by_disjoint_parts() -> None:
    end_us = START_US + 2 * BLOCK_US
    calls = calls_started_between(SPEC, START_US, end_us)
    truth = Fleet(SPEC).truth(START_US, end_us)
    assert sum(key.calls for key in truth.keys) == len(calls)
    parts = sum(
        key.input_uncached_tokens + key.cache_read_tokens + key.output_text_tokens + key.reasoning_tokens
        for key in truth.keys
    )
    assert parts == sum(call.input_tokens + call.output_tokens for call in calls)
    assert '"device_energy_mj"' in truth.to_json()
