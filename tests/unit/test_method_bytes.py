"""The books of four fixed sites, byte by byte: what changes them is another method, never a surprise of a faster one.

A hash says that bytes changed and not why: that is for the tests of the model. If a formula is meant to change after a release,
METHOD_VERSION counts up with what stands here. ``python -m tests.unit.test_method_bytes`` prints what would stand here now.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from functools import cache
from typing import Any, Final

import pytest

from analytics.frames import OverheadModels, SharedIt
from analytics.inputs import HourInputs
from analytics.pipeline import close_hours, content_hash, read_meters, roll_minutes, roll_tenants
from analytics.policy import Policy
from analytics.version import METHOD_VERSION
from tests.fakes.explained import explained
from tests.fakes.site import (
    LONG_AGO,
    at,
    binding,
    call,
    device,
    factor,
    intensity,
    moved,
    price,
    table,
    tariff,
)
from tests.property.test_laws_overhead import with_chassis
from tests.property.test_laws_truth import EVERYTHING
from tests.sim.spec import JobMix, Sampling, Sharing, WorldSpec
from tests.sim.world import World

pytestmark = pytest.mark.unit
WRAP_MJ: Final = 400_000_000
PLAIN, MIG, SLICED, MPS = "plain", "mig", "time_slice", "mps"
SHARED: Final = {
    PLAIN: None,
    MIG: Sharing("mig", boards=2, profiles=((3, 2, 2), (7,)), reconfigure_at_s=1_500),
    SLICED: Sharing("time_slice", boards=2),
    MPS: Sharing("mps", boards=2, contention=0.5),
}
BOOKS: Final = {
    "plain": {
        "usage": "3f57cfcec09277e3",
        "lines": "c5c3f242f043538e",
        "findings": "5bcdef9eab5153a8",
        "quality": "ad83fffbbb1a75b8",
        "job_tenants": "dfb5f56c4dfd0cd2",
        "minutes": "1a6f240287c05144",
        "tenant_minutes": "6c11e5da29461f50",
    },
    "mig": {
        "usage": "5fbf0e1d51223bd3",
        "lines": "caeb5693ba178254",
        "findings": "2d985b2d5ef1e76c",
        "quality": "dd9277013356ecca",
        "job_tenants": "946262f0ca1d3015",
        "minutes": "0b623f54ca53401d",
        "tenant_minutes": "1cce5c0ae1ec6fab",
    },
    "time_slice": {
        "usage": "96fd54302e84a700",
        "lines": "1b94de15165c8f48",
        "findings": "81f32f6e1a2f1ce3",
        "quality": "1671543678ab476c",
        "job_tenants": "8c54fe9b3de341ee",
        "minutes": "a28c50fba08ee5af",
        "tenant_minutes": "2bf530e390ca3de0",
    },
    "mps": {
        "usage": "cc5e31f6cfa2a1ac",
        "lines": "181fc39aa751ce23",
        "findings": "cb76ccb6ab4b8358",
        "quality": "c8403edf17230859",
        "job_tenants": "806218b56a8f2050",
        "minutes": "e7775f869c265430",
        "tenant_minutes": "6edd6d9022eea447",
    },
}
WORDS: Final = {
    "plain": "e1ba60184d5fbc82",
    "mig": "2d18de5e6c3cffe2",
    "time_slice": "788107a663049899",
    "mps": "4421dfafdb961793",
}


@cache
def fixed(kind: str) -> HourInputs:
    """An hour and what follows of five boards on two metered nodes, in which everything awkward happens; no two sites alike."""
    number = list(SHARED).index(kind)
    spec = WorldSpec(
        seed=7 + number,
        hours=2,
        boards=5,
        nodes=2,
        jobs=JobMix(count=16, duration_s=(120, 3_000), gap_s=(0, 300), boards_each=(1, 2)),
        sharing=SHARED[kind],
        weather=replace(EVERYTHING, wrap_mj=WRAP_MJ, node_meter_gain=1.0),
    )
    hooks = number % 2 == 1
    how = Sampling(
        cadence_s=15, exact_at_events=not hooks, hook_anchors=hooks, event_delay_s=0.2, refresh_s=0.1, process_period_s=15,
        gauge="average" if kind == SLICED else "counter",
    )  # fmt: skip
    seen = World(spec).sample(how)
    until = {"valid_from": at(600), "valid_to": at(3_000)}
    more: dict[str, Any] = {
        "anchors": seen.anchors.to_dicts(),
        "tenants": [{"tenant_id": number, "path": f"acme/{number}"} for number in (1, 2, 3)],
        "bindings": [binding(1, 1, account="a"), binding(2, 2, account="b"), binding(3, 2, api_key="k1")],
        "moves": [moved(1, 2, 3, 3_600)],
        "prices": [
            price(1, "2.123456789", model="SIM-700", valid_to=at(3_600)),
            price(2, "3.000000001", model="SIM-700", valid_from=at(3_600)),
            price(3, "0.000000001234", provider="openai", model="gpt", meter="input_tokens"),
        ],
        "tariffs": [
            tariff(1, "0.1134567", metering_point="facility", valid_to=at(3_600)),
            tariff(2, "0.1634567", metering_point="it", valid_from=at(3_600)),
        ],
        "intensity": [intensity(1, "381.7", valid_to=at(2_700)), intensity(2, "212.3", valid_from=at(2_700))],
        "factors": [factor(1, "1.37", valid_to=at(5_400))],
        "capacity": [
            {"hold_id": 1, "kind": "reservation", "node_id": 1, **until},
            {"hold_id": 2, "kind": "maintenance", "device_id": 2, "valid_from": at(2_400), "valid_to": at(4_800)},
            {"hold_id": 3, "kind": "stranded", "device_id": 5, "valid_from": at(4_000), "valid_to": None},
        ],
        "assets": [{"asset": "A-1", "capitalized_at": at(300), "disposed_at": at(6_900), "device_id": 4}],
        "idle": [{"policy_id": 1, "policy": "proportional", "basis": ("time", "energy")[number % 2], "valid_from": LONG_AGO}],
        "calls": [
            call(key, 60 * minute, input_uncached_tokens=7 + minute, origin=4) for minute in range(120) for key in ("k1", "k2")
        ],
    }  # fmt: skip
    site = seen.site(**more)
    accounts = [{**row, "account": "abc"[row["job_id"] % 3]} for row in site.jobs]
    site = replace(site, jobs=accounts, devices=[*site.devices, device(95, kind="site", uuid="site:sim/leaf", node_id=None, model="switch")])  # fmt: skip
    usage = with_chassis(seen, WRAP_MJ, site)
    facts: dict[str, Any] = {
        "shared_it": table(
            SharedIt,
            [{"shared_it_id": 1, "device_id": 95, "name": "leaf", "kind": "switch", "power_mw": 450_001, "error_ppm": 100_000,
              "valid_from": LONG_AGO}],
        ),
        "overhead_models": table(
            OverheadModels,
            [{"model_id": 1, "node_id": 2, "precedence": 0, "idle_mw": 310_007, "per_accelerator_active_ppm": 70_001,
              "error_ppm": 200_000, **until}],
        ),
    }  # fmt: skip
    return replace(site.inputs(), usage=replace(usage, **facts))


def books(inputs: HourInputs) -> dict[str, str]:
    result = close_hours(inputs, Policy())
    metered = read_meters(inputs.usage, Policy())
    minutes = roll_minutes(inputs.usage, Policy(), metered)
    frames = {name: getattr(result, name) for name in ("usage", "lines", "findings", "quality", "job_tenants")} | {
        "minutes": minutes,
        "tenant_minutes": roll_tenants(inputs.usage, minutes, result.job_tenants, metered, Policy()),
    }
    return {name: content_hash(frame).hex()[:16] for name, frame in frames.items()}


def words(inputs: HourInputs) -> str:
    steps = []
    for line, rows in explained(inputs, close_hours(inputs, Policy()), Policy()):
        assert line.differs == ()
        assert [word for row in rows for word in row.differs] == []
        steps += [line.steps, *(row.steps for row in rows)]
    return hashlib.sha256(repr(steps).encode()).hexdigest()[:16]


@pytest.mark.parametrize("kind", SHARED)
def test_the_method_gives_the_bytes_it_gave(kind: str) -> None:
    assert METHOD_VERSION == 2
    assert books(fixed(kind)) == BOOKS[kind]


@pytest.mark.parametrize("kind", SHARED)
def test_every_line_of_a_fixed_site_is_explained_to_the_millijoule(kind: str) -> None:
    # Other words are no other method: they may change, but not unseen.
    assert words(fixed(kind)) == WORDS[kind]


if __name__ == "__main__":
    sys.stdout.write(f"BOOKS: Final = { {kind: books(fixed(kind)) for kind in SHARED} }\n")
    sys.stdout.write(f"WORDS: Final = { {kind: words(fixed(kind)) for kind in SHARED} }\n")
