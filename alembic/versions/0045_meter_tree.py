"""Meters of sites above their nodes, with readings; and what no device tells: overhead, shared IT, capacity set aside, assets, idle.

Replicas of the version before go on writing node meters: what they do not know has defaults. On the way back meters of sites are
lost with their readings; devices that stand for overhead or shared IT stay, under a kind that version knows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0045_meter_tree"
down_revision = "0044_line_evidence"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"
TABLES = ("meter_readings", "overhead_models", "shared_it", "capacity_holds", "assets", "idle_policies")
ERROR = "parts per million: half of the 90 % interval, relative to the energy it says"
METERS = "A power meter of a node. Of several meters of one node one bills, the others check."
TREE = (
    "A power meter of a node, or of a site above its nodes. Of several meters of one node one bills, the others check."
)
NAME = "as the source names it: redfish, rapl, ac, dc"
DEVICES = (
    "One accelerator, one MIG instance, one node that only has a node meter, or one pool of which no device is known."
)
ALL_DEVICES = (
    "One accelerator, one MIG instance, one node that only has a node meter, one pool of which no device is known, or what else of a "
    "node or site uses energy."
)
KIND = "gpu, mig, node, or pool: accelerators known only by (pool, model, count)"
ALL_KINDS = (
    "gpu, mig, node, pool: accelerators known only by (pool, model, count); chassis: a node beyond its accelerators; "
    "site: IT shared by a site"
)
UUID = "vendor UUID; node:<site>/<name> for a node metered as a whole; pool:<site>/<pool>/<model>"
MINE = "starts_with(uuid, 'chassis:') OR starts_with(uuid, 'site:')"


def upgrade() -> None:
    _devices(
        "'gpu', 'mig', 'node', 'pool', 'chassis', 'site'",
        ALL_KINDS,
        f"{UUID}; chassis:<site>/<node>; site:<site>/<name>",
        ALL_DEVICES,
    )
    op.execute(f"UPDATE devices SET kind = split_part(uuid, ':', 1) WHERE kind = 'node' AND ({MINE})")  # noqa: S608 (constants)
    _meters()
    _readings()
    _overhead()
    _shared()
    _capacity()
    _assets()
    _idle()
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
        op.execute(
            f"CREATE TRIGGER stamp_dated BEFORE INSERT OR UPDATE OF superseded_at ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION stamp_dated()"
        )
        op.execute(f"GRANT SELECT ON {table} TO {WORKER}")
    for table in ("capacity_holds", "idle_policies"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY service ON {table} TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
        op.execute(f"CREATE POLICY tenant_subtree ON {table} FOR SELECT TO {API} USING ({BY_TENANT})")
    op.execute(f"GRANT SELECT ON capacity_holds, idle_policies, meters, meter_readings TO {API}")
    # It makes the devices that overhead and shared IT are booked on.
    op.execute(f"GRANT INSERT ON devices TO {WORKER}")


def downgrade() -> None:
    op.execute(f"REVOKE INSERT ON devices FROM {WORKER}")
    op.execute(f"REVOKE SELECT ON meters FROM {API}")  # noqa: S608 (constants)
    for table in reversed(TABLES):
        op.drop_table(table)
    op.execute("UPDATE meters SET parent_meter_id = NULL WHERE parent_meter_id IS NOT NULL")
    op.execute("DELETE FROM meters WHERE node_id IS NULL")
    for name in ("place", "level", "covers", "amounts"):
        op.drop_constraint(op.f(f"meters_{name}_ck"), "meters", type_="check")
    op.drop_constraint(op.f("meters_site_id_name_uq"), "meters", type_="unique")
    for name in ("gain_ppm", "wrap_mj", "covers", "level", "parent_meter_id", "site_id"):
        op.drop_column("meters", name)
    op.alter_column("meters", "node_id", nullable=False)
    op.alter_column("meters", "name", comment=NAME)
    op.create_table_comment("meters", METERS)
    op.execute(f"UPDATE devices SET kind = 'node' WHERE {MINE}")  # noqa: S608 (constants)
    _devices("'gpu', 'mig', 'node', 'pool'", KIND, UUID, DEVICES)


def _devices(kinds: str, of_kind: str, of_uuid: str, comment: str) -> None:
    op.drop_constraint(op.f("devices_kind_ck"), "devices", type_="check")
    op.create_check_constraint(op.f("devices_kind_ck"), "devices", f"kind IN ({kinds})")
    op.alter_column("devices", "kind", comment=of_kind)
    op.alter_column("devices", "uuid", comment=of_uuid)
    op.create_table_comment("devices", comment)


def _meters() -> None:
    op.alter_column("meters", "node_id", nullable=True)
    op.alter_column("meters", "name", comment=f"{NAME}; of a site's own meter as people do")
    for column in (
        sa.Column("site_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("parent_meter_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column(
            "level", sa.Text(), server_default="node", nullable=False, comment="utility, pdu, cdu, node or other"
        ),
        sa.Column(
            "covers",
            sa.Text(),
            server_default="it",
            nullable=False,
            comment="it: all IT below it; part: some of it, as processors and memory; cooling; all: IT and what serves it",
        ),
        sa.Column(
            "wrap_mj",
            sa.BigInteger(),
            nullable=True,
            comment="millijoules at which its counter begins again at 0; null = a fall is a reset",
        ),
        sa.Column(
            "gain_ppm",
            sa.Integer(),
            server_default="20000",
            nullable=False,
            comment="parts per million: half of the 90 % interval of what it shows, relative",
        ),
    ):
        op.add_column("meters", column)
    op.create_foreign_key(op.f("meters_site_id_fk"), "meters", "sites", ["site_id"], ["id"])
    op.create_foreign_key(op.f("meters_parent_meter_id_fk"), "meters", "meters", ["parent_meter_id"], ["id"])
    op.create_unique_constraint(op.f("meters_site_id_name_uq"), "meters", ["site_id", "name"])
    for name, rule in (
        ("place", "num_nonnulls(node_id, site_id) = 1"),
        ("level", "level IN ('utility', 'pdu', 'cdu', 'node', 'other')"),
        ("covers", "covers IN ('it', 'part', 'cooling', 'all')"),
        ("amounts", "coalesce(wrap_mj, 1) > 0 AND gain_ppm >= 0"),
    ):
        op.create_check_constraint(op.f(f"meters_{name}_ck"), "meters", rule)
    op.execute("UPDATE meters SET covers = 'part' WHERE name IN ('rapl', 'rapl-dram')")
    op.create_table_comment("meters", TREE)


def _readings() -> None:
    op.create_table(
        "meter_readings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        _id("meter_id"),
        sa.Column("from_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("to_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("energy_mj", sa.BigInteger(), nullable=False, comment="millijoules used in [from_at, to_at)"),
        sa.Column("source", sa.Text(), nullable=False, comment="the file it came in"),
        _id("import_id"),
        *_known(),
        *_keys("meter_readings", meter_id="meters", import_id="imports"),
        _check("meter_readings_period", "from_at < to_at AND energy_mj >= 0"),
        comment="Energy of one period of a site's meter (utility, PDU, CDU). A correction is a new row; periods known never overlap.",
    )
    op.create_index("meter_readings_meter_ix", "meter_readings", ["meter_id", "from_at"])


def _overhead() -> None:
    op.create_table(
        "overhead_models",
        _own_id(),
        _id("site_id"),
        sa.Column(
            "node_glob",
            sa.Text(),
            nullable=False,
            comment="glob over node names; of several that match the longest counts",
        ),
        sa.Column(
            "idle_mw",
            sa.BigInteger(),
            nullable=False,
            comment="milliwatts a node uses beyond its accelerators while it runs",
        ),
        sa.Column(
            "per_accelerator_active_ppm",
            sa.Integer(),
            nullable=False,
            comment="parts per million of the accelerators' energy that come on top: fans, conversion",
        ),
        sa.Column("error_ppm", sa.Integer(), nullable=False, comment=ERROR),
        *_dated(),
        *_keys("overhead_models", site_id="sites"),
        _check("overhead_models_amounts", "idle_mw >= 0 AND per_accelerator_active_ppm >= 0 AND error_ppm >= 0"),
        comment="Assumed overhead of nodes without a meter.",
    )
    op.create_index("overhead_models_site_ix", "overhead_models", ["site_id"])


def _shared() -> None:
    op.create_table(
        "shared_it",
        _own_id(),
        _id("site_id"),
        sa.Column("name", sa.Text(), nullable=False, comment="text"),
        sa.Column("kind", sa.Text(), nullable=False, comment="switch, storage, management or other"),
        sa.Column("power_mw", sa.BigInteger(), nullable=True, comment="milliwatts, assumed; null = its meter says"),
        _id("meter_id", nullable=True),
        sa.Column("error_ppm", sa.Integer(), nullable=False, comment=ERROR),
        *_dated(),
        *_keys("shared_it", site_id="sites", meter_id="meters"),
        _check("shared_it_kind", "kind IN ('switch', 'storage', 'management', 'other')"),
        _check("shared_it_power", "num_nonnulls(power_mw, meter_id) = 1 AND coalesce(power_mw, 0) >= 0"),
        _check("shared_it_error", "error_ppm >= 0"),
        comment="IT that serves all nodes of a site: switches, storage, management. Its energy is the platform's.",
    )
    op.create_index("shared_it_site_ix", "shared_it", ["site_id"])


def _capacity() -> None:
    op.create_table(
        "capacity_holds",
        _own_id(),
        _id("site_id"),
        _id("node_id", nullable=True),
        _id("device_id", nullable=True),
        sa.Column("kind", sa.Text(), nullable=False, comment="reservation, maintenance or stranded"),
        _id("tenant_id", nullable=True),
        *_dated(),
        *_keys("capacity_holds", site_id="sites", node_id="nodes", device_id="devices", tenant_id="tenants"),
        _check("capacity_holds_kind", "kind IN ('reservation', 'maintenance', 'stranded')"),
        _check("capacity_holds_what", "num_nonnulls(node_id, device_id) <= 1"),
        comment="Capacity set aside: a device, a node with all of its devices, or a whole site; reserved (for a tenant), down, stranded.",
    )
    op.create_index("capacity_holds_site_ix", "capacity_holds", ["site_id"])


def _assets() -> None:
    op.create_table(
        "assets",
        _own_id(),
        sa.Column("asset", sa.Text(), nullable=False, comment="number in the asset register, kept across board swaps"),
        _id("device_id", nullable=True),
        _id("node_id", nullable=True),
        sa.Column("capitalized_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "disposed_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC; null = on the books"
        ),
        *_dated(),
        *_keys("assets", device_id="devices", node_id="nodes"),
        _check("assets_what", "num_nonnulls(device_id, node_id) = 1"),
        _check("assets_dates", "disposed_at IS NULL OR disposed_at > capitalized_at"),
        comment="Which device or node an asset is, and when it came on the books and left them. Identity and dates, no money.",
    )
    op.create_index("assets_device_ix", "assets", ["device_id"])


def _idle() -> None:
    op.create_table(
        "idle_policies",
        _own_id(),
        _id("site_id"),
        sa.Column(
            "policy",
            sa.Text(),
            nullable=False,
            comment="keep: the platform carries it; proportional: tenants by use; fixed: tenants by fixed parts",
        ),
        sa.Column("basis", sa.Text(), nullable=True, comment="time or energy: what a proportional one goes by"),
        _id("tenant_id", nullable=True),
        sa.Column(
            "fixed_ppm",
            sa.Integer(),
            nullable=True,
            comment="parts per million of the idle cost that the tenant carries",
        ),
        *_dated(),
        *_keys("idle_policies", site_id="sites", tenant_id="tenants"),
        _check("idle_policies_policy", "policy IN ('keep', 'proportional', 'fixed')"),
        _check(
            "idle_policies_basis",
            "(policy = 'proportional') = (basis IS NOT NULL) AND coalesce(basis, 'time') IN ('time', 'energy')",
        ),
        _check(
            "idle_policies_parts",
            "num_nonnulls(tenant_id, fixed_ppm) = CASE policy WHEN 'fixed' THEN 2 ELSE 0 END "
            "AND coalesce(fixed_ppm, 0) BETWEEN 0 AND 1000000",
        ),
        comment="Who carries the cost of idle accelerators of a site; of a fixed one a row for each tenant. None: the platform keeps it.",
    )
    op.create_index("idle_policies_site_ix", "idle_policies", ["site_id"])


def _own_id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id")


def _id(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=nullable, comment="surrogate id")


def _keys(table: str, **targets: str) -> list[sa.Constraint]:
    foreign: list[sa.Constraint] = [
        sa.ForeignKeyConstraint([name], [f"{target}.id"], name=op.f(f"{table}_{name}_fk"))
        for name, target in targets.items()
    ]
    return [sa.PrimaryKeyConstraint("id", name=op.f(f"{table}_pk")), *foreign]


def _check(name: str, rule: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(rule, name=op.f(f"{name}_ck"))


def _dated() -> list[sa.Column[object]]:
    return [
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        *_known(),
    ]


def _known() -> list[sa.Column[object]]:
    return [
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.Column(
            "recorded_xid",
            _Xid8(),
            nullable=False,
            comment="transaction, of any server these rows have been in, that recorded it; 1 = before this was kept",
        ),
        sa.Column(
            "superseded_xid",
            _Xid8(),
            nullable=True,
            comment="transaction that replaced it; null = current, or replaced before this was kept",
        ),
    ]


class _Xid8(sa.types.UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "XID8"
