"""For every line of a random site the last step is the line, and each usage hour is what its readings say, worked out apart."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings

from tests.fakes.explained import explained
from tests.fakes.site import factor, intensity, price, tariff
from tests.property.test_laws_truth import EVERYTHING, specs
from tests.sim.spec import Sampling, WorldSpec
from tests.sim.world import World

pytestmark = pytest.mark.property


@given(spec=specs(EVERYTHING))
@settings(max_examples=6, deadline=None)
def test_the_last_step_is_the_line_for_every_line_of_a_random_site(spec: WorldSpec) -> None:
    seen = World(spec).sample(Sampling(exact_at_events=False))
    models = sorted({row["model"] for row in seen.devices})
    site = seen.site(
        prices=[price(number, "2.15", model=model) for number, model in enumerate(models, 1)],
        tariffs=[tariff(1, "0.148", metering_point="facility")],
        intensity=[intensity(1, "355.5")],
        factors=[factor(1, "1.24")],
    )
    result = site.close()
    found = explained(site.inputs(), result, site.policy)
    assert len(found) == result.lines.height
    for line, rows in found:
        assert [word for row in rows for word in row.differs] == []
        assert line.differs == ()
        assert isinstance(line.line["billed_cost"], Decimal)
