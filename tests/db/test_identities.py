"""Identities: found or made once however many ask at once; devices placed, moved, and refused on two nodes."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa

from collector.wire import DeviceRef
from ingest.store import identities, placements
from ingest.store.engine import Database
from ingest.store.identities import EngineKey, EpochKey, NodeKey, OnNode
from ingest.store.placements import Conflict
from ingest.store.tenancy import TenantPathError

pytestmark = pytest.mark.db

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
BOARD = DeviceRef(uuid="GPU-1", model="H100", memory_bytes=85_899_345_920)
MIG = DeviceRef(
    uuid="MIG-1", model="H100", kind="mig", parent_uuid="GPU-1", mig_profile="1g.10gb", slice_ratio=0.142857
)


def after(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


@pytest.fixture
def engine(db: Database) -> Iterator[sa.Engine]:
    engine = db.create_engine("owner", pool_size=8)
    yield engine
    engine.dispose()


@pytest.fixture
def conn(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect() as connection:
        yield connection


@pytest.fixture
def nodes(conn: sa.Connection) -> tuple[int, int]:
    site = identities.site_ids(conn, ["lab"])["lab"]
    first, second = NodeKey(site, "n1"), NodeKey(site, "n2")
    ids = identities.node_ids(conn, [first, second])
    return ids[first], ids[second]


@pytest.fixture
def gpu(conn: sa.Connection) -> int:
    return identities.device_ids(conn, [BOARD])["GPU-1"]


def test_asking_again_gives_the_same_ids_and_burns_none(conn: sa.Connection) -> None:
    first = identities.site_ids(conn, ["lab", "hall"])
    assert identities.site_ids(conn, ["hall", "lab", "lab"]) == first
    third = identities.site_ids(conn, ["annex"])["annex"]
    assert third == max(first.values()) + 1
    assert identities.site_ids(conn, []) == {}


def test_each_kind_of_identity_is_made_and_found(conn: sa.Connection, nodes: tuple[int, int]) -> None:
    node, _ = nodes
    epoch = EpochKey(node, "boot", 1, 1, 1, 10_000_000)
    again = epoch._replace(driver_epoch=2)
    for _ in range(2):
        epochs = identities.epoch_ids(conn, {epoch: "0.1.0", again: "0.1.0"})
        assert len(set(epochs.values())) == 2
        assert set(identities.meter_ids(conn, [OnNode(node, "ac"), OnNode(node, "dc")])) == {(node, "ac"), (node, "dc")}
        assert set(identities.port_ids(conn, [OnNode(node, "mlx5_0/1")])) == {(node, "mlx5_0/1")}
        assert set(identities.engine_ids(conn, [EngineKey(node, "http://localhost:8000", "llama")])) == {
            (node, "http://localhost:8000", "llama")
        }
        assert set(identities.tenant_ids(conn, ["acme/research", "(platform)"])) == {"acme/research", "(platform)"}


def test_a_meter_that_checks_stays_one_that_checks(conn: sa.Connection, nodes: tuple[int, int]) -> None:
    meter = OnNode(nodes[0], "dc")
    identities.meter_ids(conn, [meter], bills=False)
    identities.meter_ids(conn, [meter])
    assert conn.execute(sa.text("SELECT bills FROM meters")).scalars().all() == [False]


def test_a_meter_of_processors_covers_a_part_and_one_of_the_platform_all_it(
    conn: sa.Connection, nodes: tuple[int, int]
) -> None:
    names = ["redfish", "rapl", "rapl/psys", "rapl/package-0", "rapl-dram/0", "rapl-psys", "hwmon/x/rapl"]
    identities.meter_ids(conn, [OnNode(nodes[0], name) for name in names])
    said = conn.execute(sa.text("SELECT name FROM meters WHERE covers = 'part' ORDER BY name")).scalars()
    assert said.all() == ["rapl", "rapl-dram/0", "rapl/package-0"]


def test_what_is_no_tenant_path_makes_no_tenant(conn: sa.Connection) -> None:
    with pytest.raises(TenantPathError):
        identities.tenant_ids(conn, ["acme", "acme//nlp"])


def test_a_fleet_of_ten_thousand_is_made_in_one_call(conn: sa.Connection) -> None:
    refs = [DeviceRef(uuid=f"GPU-{number}", model="H100") for number in range(10_000)]
    ids = identities.device_ids(conn, refs)
    assert len(set(ids.values())) == 10_000
    assert identities.device_ids(conn, refs) == ids


def test_a_mig_instance_knows_its_board_whatever_the_order(conn: sa.Connection) -> None:
    ids = identities.device_ids(conn, [MIG, BOARD])
    row = conn.execute(
        sa.text("SELECT parent_device_id, slice_ratio, mig_profile FROM devices WHERE kind = 'mig'")
    ).one()
    assert tuple(row) == (ids["GPU-1"], Decimal("0.142857"), "1g.10gb")
    assert identities.device_ids(conn, [MIG]) == {"MIG-1": ids["MIG-1"]}


def test_a_mig_instance_of_a_board_nobody_reported_is_an_error_that_names_both(conn: sa.Connection) -> None:
    with pytest.raises(identities.UnknownParentError, match="MIG-1 is a part of GPU-1"):
        identities.device_ids(conn, [MIG])


def test_eight_writers_that_meet_the_same_nodes_agree_on_their_ids(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        site = identities.site_ids(conn, ["lab"])["lab"]
    keys = [NodeKey(site, f"n{number}") for number in range(200)]
    answers: list[dict[NodeKey, int]] = []
    start = threading.Barrier(8)

    def run(turn: int) -> None:
        with engine.begin() as conn:
            start.wait()
            answers.append(identities.node_ids(conn, keys[turn:] + keys[:turn]))

    threads = [threading.Thread(target=run, args=(turn * 25,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert all(answer == answers[0] for answer in answers)


def history(conn: sa.Connection) -> list[tuple[int, datetime, datetime | None]]:
    rows = conn.execute(
        sa.text("SELECT node_id, valid_from, valid_to FROM placements WHERE superseded_at IS NULL ORDER BY valid_from")
    )
    return [(row.node_id, row.valid_from, row.valid_to) for row in rows]


def test_a_first_sighting_places_a_device_and_the_next_ones_change_nothing(
    conn: sa.Connection, nodes: tuple[int, int], gpu: int
) -> None:
    node, _ = nodes
    assert placements.place(conn, node, {gpu: NOON}, {}) == ()
    assert placements.place(conn, node, {gpu: after(1)}, {gpu: NOON}) == ()
    assert history(conn) == [(node, NOON, None)]


def test_a_device_on_two_nodes_within_ten_minutes_is_refused(
    conn: sa.Connection, nodes: tuple[int, int], gpu: int
) -> None:
    first, second = nodes
    placements.place(conn, first, {gpu: NOON}, {})
    conflicts = placements.place(conn, second, {gpu: after(69)}, {gpu: after(60)})
    assert conflicts == (Conflict(gpu, second, first, after(69), after(60)),)
    # A restarted ingest remembers no sighting; the placement itself still speaks for ten minutes.
    assert placements.place(conn, second, {gpu: after(9)}, {}) == (Conflict(gpu, second, first, after(9), NOON),)
    assert history(conn) == [(first, NOON, None)]


def test_a_board_swap_ends_one_placement_and_begins_another_and_keeps_what_was_known(
    conn: sa.Connection, nodes: tuple[int, int], gpu: int
) -> None:
    first, second = nodes
    placements.place(conn, first, {gpu: NOON}, {})
    conn.commit()
    assert placements.place(conn, second, {gpu: after(70)}, {gpu: after(60)}) == ()
    assert history(conn) == [(first, NOON, after(70)), (second, after(70), None)]
    old = conn.execute(sa.text("SELECT node_id, valid_to FROM placements WHERE superseded_at IS NOT NULL")).all()
    assert [tuple(row) for row in old] == [(first, None)]


def test_late_data_of_the_old_node_is_no_conflict_and_after_the_move_it_is(
    conn: sa.Connection, nodes: tuple[int, int], gpu: int
) -> None:
    first, second = nodes
    placements.place(conn, first, {gpu: NOON}, {})
    placements.place(conn, second, {gpu: after(70)}, {gpu: NOON})
    assert placements.place(conn, first, {gpu: after(30)}, {gpu: after(75)}) == ()
    assert placements.place(conn, second, {gpu: after(30)}, {gpu: after(75)}) != ()
    assert history(conn) == [(first, NOON, after(70)), (second, after(70), None)]


def test_history_that_arrives_backwards_begins_a_placement_earlier(
    conn: sa.Connection, nodes: tuple[int, int], gpu: int
) -> None:
    first, second = nodes
    placements.place(conn, second, {gpu: NOON}, {})
    placements.place(conn, second, {gpu: after(-60)}, {})
    assert history(conn) == [(second, after(-60), None)]
    placements.place(conn, first, {gpu: after(-600)}, {})
    assert history(conn) == [(first, after(-600), after(-60)), (second, after(-60), None)]


def test_two_nodes_that_claim_a_new_device_at_once_do_not_both_get_it(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        site = identities.site_ids(conn, ["lab"])["lab"]
        node_ids = list(identities.node_ids(conn, [NodeKey(site, f"n{number}") for number in range(8)]).values())
        gpu = identities.device_ids(conn, [BOARD])["GPU-1"]
    refused: list[Conflict] = []
    start = threading.Barrier(8)

    def run(node_id: int) -> None:
        with engine.begin() as conn:
            start.wait()
            refused.extend(placements.place(conn, node_id, {gpu: NOON}, {}))

    threads = [threading.Thread(target=run, args=(node_id,)) for node_id in node_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    with engine.begin() as conn:
        assert len(history(conn)) == 1


def test_two_nodes_are_placed_at_once_and_each_hears_of_its_own_refusals(
    conn: sa.Connection, nodes: tuple[int, int], gpu: int
) -> None:
    first, second = nodes
    other = identities.device_ids(conn, [DeviceRef(uuid="GPU-2", model="H100")])["GPU-2"]
    placements.place(conn, first, {gpu: NOON}, {})
    reports = [
        placements.Sightings(second, {gpu: after(5)}, {gpu: after(4)}),
        placements.Sightings(first, {other: after(5)}, {}),
        placements.Sightings(first, {}, {}),
    ]
    assert placements.place_all(conn, reports) == [(Conflict(gpu, second, first, after(5), after(4)),), (), ()]
    where = sa.text("SELECT device_id, node_id, valid_from FROM placements ORDER BY device_id")
    assert [tuple(row) for row in conn.execute(where)] == [(gpu, first, NOON), (other, first, after(5))]


def test_a_device_in_two_reports_at_once_is_a_mistake_of_the_caller(
    conn: sa.Connection, nodes: tuple[int, int], gpu: int
) -> None:
    with pytest.raises(ValueError, match="in two reports"):
        placements.place_all(conn, [placements.Sightings(node, {gpu: NOON}, {}) for node in nodes])
