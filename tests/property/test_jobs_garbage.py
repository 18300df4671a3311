"""Whatever stands in the files evidence is read from: a holder, an event, a device or a counted fault, and never a crash."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.jobs.cgroup import parse
from collector.jobs.hooks import HookError, parse_event
from collector.jobs.names import DeviceNames
from collector.wire import COLUMNS, MAX_STRING_BYTES, Stream
from tests.fakes.job_node import GPUS, JobNode

pytestmark = pytest.mark.property

WORDS = st.sampled_from(
    [
        "system.slice", "slurmstepd.scope", "job_31", "step_0", "user", "task_0", "user.slice", "user-1000.slice", "kubepods",
        "kubepods.slice", "burstable", "pod2fc932ce-fdcc-454b-97bd-aadfdeb4c340", "a" * 64, f"docker-{'b' * 64}.scope", "..", "",
        "uid_1000", "slurm", "machine.slice", "s5K1KKYAYG5D00",
    ]
)  # fmt: skip
PATHS = st.lists(st.one_of(WORDS, st.text(max_size=12)), max_size=10).map(lambda parts: "0::/" + "/".join(parts))


@given(st.lists(st.one_of(PATHS, st.text(max_size=60)), max_size=6).map("\n".join))
@settings(max_examples=300)
def test_any_cgroup_text_is_a_holder_or_none(text: str) -> None:
    holder = parse(text).holder
    if holder is not None:
        assert holder.id
        assert len(holder.id) <= 255 or holder.kind == "system"


@given(PATHS)
@settings(max_examples=300)
def test_what_a_session_s_user_appends_never_changes_whose_session_it_is(path: str) -> None:
    session = "0::/user.slice/user-1000.slice/user@1000.service"
    assert parse(session + path.removeprefix("0::")).holder == parse(session).holder
    step = "0::/system.slice/slurmstepd.scope/job_31/step_0/user/task_0"
    assert parse(step + path.removeprefix("0::")).holder == parse(step).holder


@given(st.text(max_size=200), st.text(max_size=40), st.integers(0, 2**63))
@settings(max_examples=200)
def test_any_hook_text_is_an_event_or_an_error(text: str, value: str, written_at_ns: int) -> None:
    name = "1800000000123456789.77.start.31"
    good = "wattledger-hook=1\nevent=start\njob=31\n"
    for content in (
        text,
        good + text,
        f"{good}started={value}\ngpus={value}\nshards={value}\nuid={value}\narray_job={value}\n",
    ):
        with suppress(HookError):
            event = parse_event(name, content, written_at_ns)
            assert event.job_id == "31"
            assert event.at_us - 401 * 86_400_000_000 <= event.started_at_us <= event.at_us + 1_000_000


@given(st.text(max_size=40))
def test_any_name_is_a_device_or_none(name: str) -> None:
    found = DeviceNames(GPUS, {}).find(name)
    assert found is None or found in {device.uuid for device in GPUS}


@given(
    st.dictionaries(
        st.sampled_from(
            ["user", "account", "name", "qos", "cluster", "partition", "gpus", "started", "shards", "node", "sluid"]
        ),
        st.text(max_size=600),
    ),
    st.sampled_from(["stat", "status", "cgroup", "cmdline", "environ"]),
    st.binary(max_size=300),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_node_full_of_nonsense_is_read_to_the_end_and_what_is_told_fits_the_wire(
    fields: dict[str, str], name: str, content: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        node = JobNode(Path(folder), environ="hint")
        with suppress(UnicodeEncodeError):  # what no file can hold
            node.hook("start", 31, **{"gpus": "0", **fields})  # type: ignore[arg-type]
        node.mapping.mkdir(mode=0o755)
        (node.mapping / "1").write_bytes(content)
        node.run(700, 2, "0::/")
        (node.proc.root / "700" / name).write_bytes(content)
        node.facts.values["jobs"] = content.decode(errors="replace")
        node.read()
        node.read()
        for stream, rows in node.rows.items():
            texts = {column.name for column in COLUMNS[stream] if column.type == "utf8"}
            for row in rows:
                for text in (row.get(column) for column in texts):
                    assert text is None or (isinstance(text, str) and len(text.encode()) <= MAX_STRING_BYTES)
        assert Stream.AGENT not in node.rows
