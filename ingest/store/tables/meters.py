"""What stands between the grid and a device: readings of site meters, and dated facts of sites that no device tells.

Meters themselves are identities (:mod:`ingest.store.tables.reference`); readings of node meters are samples. What is here are few
rows, told by people or by a building's own system. It holds no money: what an asset costs is not here.
"""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Index, Integer, Table, Text

from ingest.store.tables.columns import (
    column,
    dated_twice,
    instant,
    recorded_at,
    reference,
    stamps,
    surrogate_id,
)
from ingest.store.tables.metadata import metadata

_ERROR = "parts per million: half of the 90 % interval, relative to the energy it says"

meter_readings = Table(
    "meter_readings",
    metadata,
    surrogate_id(wide=True),
    reference("meter_id", "meters"),
    instant("from_at"),
    instant("to_at"),
    column("energy_mj", BigInteger, comment="millijoules used in [from_at, to_at)"),
    column("source", Text, comment="the file it came in"),
    reference("import_id", "imports"),
    recorded_at(),
    instant("superseded_at", nullable=True, comment="instant, UTC: no longer our knowledge from here; null = current"),
    *stamps(),
    Index("meter_readings_meter_ix", "meter_id", "from_at"),
    CheckConstraint("from_at < to_at AND energy_mj >= 0", name="period"),
    comment="Energy of one period of a site's meter (utility, PDU, CDU). A correction is a new row; periods known never overlap.",
)

_OTHER = "as of its meter; null = the row says something else"

meter_words = Table(
    "meter_words",
    metadata,
    surrogate_id(),
    reference("meter_id", "meters"),
    column("bills", Boolean, nullable=True, comment=_OTHER),
    column("covers", Text, nullable=True, comment=_OTHER),
    column("wrap_mj", BigInteger, nullable=True, comment=f"millijoules, {_OTHER}"),
    *dated_twice(),
    Index("meter_words_meter_ix", "meter_id"),
    CheckConstraint("num_nonnulls(bills, covers, wrap_mj) = 1", name="one"),
    CheckConstraint("covers IN ('it', 'part', 'cooling', 'all')", name="covers"),
    CheckConstraint("wrap_mj > 0", name="amounts"),
    comment="What is said of a node's meter, one word a row; where nothing is said its row in meters holds.",
)

overhead_models = Table(
    "overhead_models",
    metadata,
    surrogate_id(),
    reference("site_id", "sites"),
    column("node_glob", Text, comment="glob over node names; of several that match the longest counts"),
    column("idle_mw", BigInteger, comment="milliwatts a node uses beyond its accelerators while it runs"),
    column(
        "per_accelerator_active_ppm",
        Integer,
        comment="parts per million of the accelerators' energy that come on top: fans, conversion",
    ),
    column("error_ppm", Integer, comment=_ERROR),
    *dated_twice(),
    Index("overhead_models_site_ix", "site_id"),
    CheckConstraint("idle_mw >= 0 AND per_accelerator_active_ppm >= 0 AND error_ppm >= 0", name="amounts"),
    comment="Assumed overhead of nodes without a meter.",
)

shared_it = Table(
    "shared_it",
    metadata,
    surrogate_id(),
    reference("site_id", "sites"),
    column("name", Text),
    column("kind", Text, comment="switch, storage, management or other"),
    column("power_mw", BigInteger, nullable=True, comment="milliwatts, assumed; null = its meter says"),
    reference("meter_id", "meters", nullable=True),
    column("error_ppm", Integer, comment=_ERROR),
    *dated_twice(),
    Index("shared_it_site_ix", "site_id"),
    CheckConstraint("kind IN ('switch', 'storage', 'management', 'other')", name="kind"),
    CheckConstraint("num_nonnulls(power_mw, meter_id) = 1 AND coalesce(power_mw, 0) >= 0", name="power"),
    CheckConstraint("error_ppm >= 0", name="error"),
    comment="IT that serves all nodes of a site: switches, storage, management. Its energy is the platform's.",
)

capacity_holds = Table(
    "capacity_holds",
    metadata,
    surrogate_id(),
    reference("site_id", "sites"),
    reference("node_id", "nodes", nullable=True),
    reference("device_id", "devices", nullable=True),
    column("kind", Text, comment="reservation, maintenance or stranded"),
    reference("tenant_id", "tenants", nullable=True),
    *dated_twice(),
    Index("capacity_holds_site_ix", "site_id"),
    CheckConstraint("kind IN ('reservation', 'maintenance', 'stranded')", name="kind"),
    CheckConstraint("num_nonnulls(node_id, device_id) <= 1", name="what"),
    comment="Capacity set aside: a device, a node with all of its devices, or a whole site; reserved (for a tenant), down, stranded.",
)

assets = Table(
    "assets",
    metadata,
    surrogate_id(),
    column("asset", Text, comment="number in the asset register, kept across board swaps"),
    reference("device_id", "devices", nullable=True),
    reference("node_id", "nodes", nullable=True),
    instant("capitalized_at"),
    instant("disposed_at", nullable=True, comment="instant, UTC; null = on the books"),
    *dated_twice(),
    Index("assets_device_ix", "device_id"),
    CheckConstraint("num_nonnulls(device_id, node_id) = 1", name="what"),
    CheckConstraint("disposed_at IS NULL OR disposed_at > capitalized_at", name="dates"),
    comment="Which device or node an asset is, and when it came on the books and left them. Identity and dates, no money.",
)

idle_policies = Table(
    "idle_policies",
    metadata,
    surrogate_id(),
    reference("site_id", "sites"),
    column(
        "policy",
        Text,
        comment="keep: the platform carries it; proportional: tenants by use; fixed: tenants by fixed parts",
    ),
    column("basis", Text, nullable=True, comment="time or energy: what a proportional one goes by"),
    reference("tenant_id", "tenants", nullable=True),
    column("fixed_ppm", Integer, nullable=True, comment="parts per million of the idle cost that the tenant carries"),
    *dated_twice(),
    Index("idle_policies_site_ix", "site_id"),
    CheckConstraint("policy IN ('keep', 'proportional', 'fixed')", name="policy"),
    CheckConstraint(
        "(policy = 'proportional') = (basis IS NOT NULL) AND coalesce(basis, 'time') IN ('time', 'energy')",
        name="basis",
    ),
    CheckConstraint(
        "num_nonnulls(tenant_id, fixed_ppm) = CASE policy WHEN 'fixed' THEN 2 ELSE 0 END "
        "AND coalesce(fixed_ppm, 0) BETWEEN 0 AND 1000000",
        name="parts",
    ),
    comment="Who carries the cost of idle accelerators of a site; of a fixed one a row for each tenant. None: the platform keeps it.",
)
