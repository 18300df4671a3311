"""Who is believed: the books weigh evidence in the order in which the agent does."""

from itertools import pairwise

from analytics.policy import EVIDENCE, HINT
from collector.jobs.evidence import RANK


def test_evidence_is_weighed_in_the_order_of_the_agent() -> None:
    weights = [EVIDENCE[evidence] for evidence in sorted(RANK, key=RANK.__getitem__)]
    assert all(first >= second for first, second in pairwise(weights))


def test_a_hint_alone_ranks_below_everything_else() -> None:
    assert [name for name, weight in EVIDENCE.items() if weight == HINT] == ["environ"]
