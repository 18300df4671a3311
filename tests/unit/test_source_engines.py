"""vLLM and SGLang as their metrics endpoints tell them."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from collector.probe import Observation, Row
from collector.source.engines import EngineSource
from collector.wire import COLUMNS, MAX_STRING_BYTES, Stream


class Stand:
    """Engines by address, a source on them, and its clock."""

    def __init__(self, *urls: str) -> None:
        self.now_s = 100.0
        self.texts: dict[str, str] = {}
        self.asked: list[str] = []
        transport = httpx.MockTransport(self.answer)
        self.source = EngineSource(
            urls or ("http://127.0.0.1:8000",), transport=transport, monotonic=lambda: self.now_s
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        text = self.texts.get(str(request.url))
        return httpx.Response(503) if text is None else httpx.Response(200, text=text)

    def read(self, text: str | None = None) -> Observation:
        if text is not None:
            self.texts["http://127.0.0.1:8000/metrics"] = text
        self.now_s += 10.0
        return self.source.read()

    def row(self, text: str) -> Row:
        (row,) = self.read(text).rows[Stream.ENGINE]
        return row


def histogram(name: str, counts: dict[str, int], total_s: float, labels: str = "") -> str:
    lines = [f'{name}_bucket{{{labels}le="{bound}"}} {count}.0\n' for bound, count in counts.items()]
    return "".join(lines) + f"{name}_sum{{{labels}}} {total_s}\n{name}_count{{{labels}}} {list(counts.values())[-1]}\n"


@pytest.mark.real
def test_a_vllm_endpoint_is_read_as_captured(shared: Path) -> None:
    row = Stand().row((shared / "captures/otlp/vllm/metrics.txt").read_text())
    assert {name: value for name, value in row.items() if not name.endswith("_histogram")} == {
        "engine": "http://127.0.0.1:8000",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "span_us": 0,
        "requests_running": 3,
        "requests_waiting": 1,
        "prompt_tokens": 125_340,
        "generation_tokens": 48_210,
        "prefix_cache_hits": 61_000,
        "prefix_cache_queries": 125_000,
        "requests_finished": 223,  # 210 stopped + 12 at their length + 1 aborted
        "preemptions": 0,
        "kv_cache_usage_ratio": 0.42,
    }
    assert json.loads(str(row["ttft_histogram"])) == {
        "le": [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0],
        "n": [0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3],
        "sum": 0.65,
    }
    assert json.loads(str(row["request_histogram"]))["sum"] == 7.1
    assert "itl_histogram" not in row  # this engine told none
    assert set(row) <= {column.name for column in COLUMNS[Stream.ENGINE]}


@pytest.mark.unit
def test_engines_of_one_model_add_up_and_their_fill_is_the_mean() -> None:
    text = "".join(
        f'vllm:num_requests_running{{engine="{engine}",model_name="m"}} {3 + engine}\n'
        f'vllm:kv_cache_usage_perc{{engine="{engine}",model_name="m"}} {0.2 + engine * 0.2}\n'
        + histogram(
            "vllm:inter_token_latency_seconds", {"0.1": 5, "+Inf": 7}, 1.5, f'engine="{engine}",model_name="m",'
        )
        for engine in (0, 1)
    )
    row = Stand().row(text)
    assert row["requests_running"] == 7
    assert row["kv_cache_usage_ratio"] == pytest.approx(0.3)
    assert json.loads(str(row["itl_histogram"])) == {"le": [0.1], "n": [10, 14], "sum": 3.0}


@pytest.mark.unit
def test_an_old_name_beside_its_new_one_is_not_counted_twice() -> None:
    labels = 'model_name="m",'
    text = histogram("vllm:inter_token_latency_seconds", {"0.1": 5, "+Inf": 7}, 1.5, labels)
    text += histogram("vllm:time_per_output_token_seconds", {"0.1": 5, "+Inf": 7}, 1.5, labels)
    text += 'vllm:kv_cache_usage_perc{model_name="m"} 0.5\nvllm:gpu_cache_usage_perc{model_name="m"} 0.5\n'
    row = Stand().row(text)
    assert json.loads(str(row["itl_histogram"]))["n"] == [5, 7]
    assert row["kv_cache_usage_ratio"] == 0.5


@pytest.mark.unit
def test_sglang_s_counters_are_added_over_streams_and_sources_and_not_over_ranks() -> None:
    text = """\
sglang:num_running_reqs{model_name="q",engine_type="unified",tp_rank="0",dp_rank="0"} 8.0
sglang:num_running_reqs{model_name="q",engine_type="unified",tp_rank="1",dp_rank="0"} 8.0
sglang:num_running_reqs{model_name="q",engine_type="unified",tp_rank="0",dp_rank="1"} 2.0
sglang:num_queue_reqs{model_name="q",tp_rank="0"} 4.0
sglang:prompt_tokens_total{model_name="q",is_streaming="false"} 8.128902e+06
sglang:prompt_tokens_total{model_name="q",is_streaming="true"} 98
sglang:generation_tokens_total{model_name="q"} 7.557572e+06
sglang:cached_tokens_total{model_name="q",cache_source="device"} 30
sglang:cached_tokens_total{model_name="q",cache_source="host"} 12
sglang:cached_tokens_total{model_name="q",cache_source="total"} 42
sglang:token_usage{model_name="q",tp_rank="0"} 0.28
sglang:num_requests_total{model_name="q",is_streaming="false"} 11008
sglang:num_retracted_reqs{model_name="q",pid="7"} 1
sglang:num_retracted_requests_total{model_name="q"} 48
sglang:cache_hit_rate{model_name="q"} 0.0075
"""
    assert Stand().row(text) == {
        "engine": "http://127.0.0.1:8000",
        "model": "q",
        "span_us": 0,
        "requests_running": 10,
        "requests_waiting": 4,
        "prompt_tokens": 8_129_000,
        "generation_tokens": 7_557_572,
        "prefix_cache_hits": 42,
        "prefix_cache_queries": 8_129_000,
        "requests_finished": 11_008,
        "preemptions": 48,
        "kv_cache_usage_ratio": 0.28,
    }


@pytest.mark.unit
def test_each_model_of_an_endpoint_is_a_row() -> None:
    text = 'vllm:num_requests_running{model_name="a"} 1\nvllm:num_requests_running{model_name="b"} 2\nvllm:num_requests_running 3\n'
    rows = Stand().read(text).rows[Stream.ENGINE]
    assert [(row["model"], row["requests_running"]) for row in rows] == [("a", 1), ("b", 2), ("unknown", 3)]


@pytest.mark.unit
@pytest.mark.parametrize("digits", [1, 15])
def test_a_histogram_of_many_buckets_is_merged_the_same_way_however_full_it_is(digits: int) -> None:
    bounds = [f"{number * 0.125:.3f}" for number in range(1, 201)]
    counts = dict.fromkeys(bounds, 10 ** (digits - 1)) | {"+Inf": 10 ** (digits - 1)}
    row = Stand().row(histogram("vllm:e2e_request_latency_seconds", counts, 1.0, 'model_name="m",'))
    text = str(row["request_histogram"])
    merged = json.loads(text)
    assert len(text) <= MAX_STRING_BYTES
    # 200 bounds, then every second of them, three times: 100, 50, 25.
    assert len(merged["le"]) == 25
    assert merged["le"][:2] == [1.0, 2.0]
    assert len(merged["n"]) == 26


@pytest.mark.unit
@pytest.mark.parametrize(
    "text",
    [
        histogram("vllm:e2e_request_latency_seconds", {"0.1": 5}, 1.0),  # without the last bucket
        histogram("vllm:e2e_request_latency_seconds", {"0.1": 9, "+Inf": 7}, 1.0),  # not cumulative
        histogram("vllm:e2e_request_latency_seconds", {"x": 5, "+Inf": 7}, 1.0),
        histogram("vllm:e2e_request_latency_seconds", {"0.1": 5, "+Inf": 7}, float("nan")),
        histogram("vllm:e2e_request_latency_seconds", {"0.1": 5, "+Inf": 7}, 1.0, 'engine="0",')
        + histogram("vllm:e2e_request_latency_seconds", {"0.2": 5, "+Inf": 7}, 1.0, 'engine="1",'),
    ],
)
def test_what_is_no_histogram_is_null_and_counted(text: str) -> None:
    observation = Stand().read(text + "vllm:num_requests_running 1\n")
    assert observation.rows[Stream.ENGINE][0]["request_histogram"] is None
    assert observation.errors == {"engines:unusable:request_histogram": 1}


@pytest.mark.unit
def test_numbers_that_cannot_be_are_null_and_counted() -> None:
    observation = Stand().read(
        "vllm:num_requests_running -1\nvllm:prompt_tokens_total NaN\nvllm:kv_cache_usage_perc 42\n"
    )
    (row,) = observation.rows[Stream.ENGINE]
    assert (row["requests_running"], row["prompt_tokens"], row["kv_cache_usage_ratio"]) == (None, None, None)
    assert sum(observation.errors.values()) == 3


@pytest.mark.unit
def test_an_engine_that_does_not_answer_gives_no_row_and_delays_no_other() -> None:
    stand = Stand("http://127.0.0.1:8000", "http://127.0.0.1:8001/metrics")
    stand.texts["http://127.0.0.1:8001/metrics"] = "vllm:num_requests_running 1\n"
    observation = stand.read()
    assert [row["engine"] for row in observation.rows[Stream.ENGINE]] == ["http://127.0.0.1:8001/metrics"]
    assert observation.errors == {"engines:status_503": 1}
    for _ in range(12):
        stand.read()
    # After 10, 20, 40 and then 60 s: in 130 s a dead engine is asked at 10, 20, 40 and 80 s.
    assert stand.asked.count("http://127.0.0.1:8000/metrics") == 4
    assert stand.asked.count("http://127.0.0.1:8001/metrics") == 13
    dead, alive = stand.source.sights()
    assert (dead.seen, alive.seen, alive.detail) == (False, True, "unknown")


@pytest.mark.unit
def test_a_server_that_wants_a_slash_gets_it_at_the_next_turn() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(307, headers={"Location": "/metrics/"})
        return httpx.Response(200, text="vllm:num_requests_running 1\n")

    now_s = [0.0]
    source = EngineSource(["http://a:1"], transport=httpx.MockTransport(answer), monotonic=lambda: now_s[0])
    assert source.read().errors == {"engines:status_307": 1}
    now_s[0] = 10.0
    assert source.read().rows[Stream.ENGINE][0]["engine"] == "http://a:1"


@pytest.mark.unit
def test_a_page_without_a_known_metric_is_no_idle_engine() -> None:
    observation = Stand().read("up 1\n")
    assert (observation.rows, observation.errors) == ({}, {"engines:no_known_metric": 1})


@pytest.mark.unit
def test_rows_span_the_time_since_the_one_before() -> None:
    stand = Stand()
    text = "vllm:num_requests_running 1\n"
    assert [stand.row(text)["span_us"] for _ in range(3)] == [0, 10_000_000, 10_000_000]


@pytest.mark.unit
def test_without_addresses_it_is_off_and_a_bad_one_is_refused() -> None:
    source = EngineSource()
    assert source.read() == Observation()
    assert source.sights()[0].remedy == "name the engines' addresses, e.g. http://127.0.0.1:8000"
    with pytest.raises(ValueError, match="like http://"):
        EngineSource(["localhost:8000"])
    with pytest.raises(ValueError, match="must not hold a password"):
        EngineSource(["http://user:secret@localhost:8000"])
