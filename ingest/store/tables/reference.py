"""What the fleet is and what things cost: identities, and facts dated twice that hang on them.

An identity row (site, node, device, tenant) never changes; everything that can change about it is a dated row. One exception: a
device that was known by its UUID alone is described once, and ``described_at`` says when.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)

from ingest.store.tables.columns import RATE, column, dated_twice, instant, reference, surrogate_id
from ingest.store.tables.metadata import metadata
from ingest.store.tables.price_book import price_terms

sites = Table(
    "sites",
    metadata,
    surrogate_id(),
    column("name", Text, unique=True),
    column("time_zone", Text, server_default="UTC", comment="IANA zone of tariffs and billing periods"),
    column("grid_zone", Text, nullable=True, comment="zone of the carbon-intensity feed"),
    column("market_zone", Text, nullable=True, comment="zone of the electricity price feed"),
    comment="A place with one electricity supply and one clock of tariffs.",
)

nodes = Table(
    "nodes",
    metadata,
    surrogate_id(),
    reference("site_id", "sites"),
    column("name", Text),
    UniqueConstraint("site_id", "name"),
    comment="A host, by site and name.",
)

topology = Table(
    "topology",
    metadata,
    surrogate_id(),
    reference("node_id", "nodes", index=True),
    column("rack", Text, nullable=True),
    column("switch", Text, nullable=True),
    column("nvlink_domain", Text, nullable=True),
    *dated_twice(),
    comment="Where a node stands and what it hangs on.",
)

devices = Table(
    "devices",
    metadata,
    surrogate_id(),
    column(
        "uuid",
        Text,
        unique=True,
        comment="vendor UUID; node:<site>/<name> for a node metered as a whole; pool:<site>/<pool>/<model>; "
        "chassis:<site>/<node>; site:<site>/<name>",
    ),
    column("vendor", Text),
    column("model", Text),
    column(
        "kind",
        Text,
        comment="gpu, mig, node, pool: accelerators known only by (pool, model, count); chassis: a node beyond its accelerators; "
        "site: IT shared by a site",
    ),
    reference("parent_device_id", "devices", nullable=True),
    column("mig_profile", Text, nullable=True),
    column("slice_ratio", Numeric(9, 6), server_default="1", comment="share of the parent board, 0 to 1"),
    column("accelerators", Integer, server_default="1", comment="physical accelerators this row stands for"),
    column("memory_bytes", BigInteger, nullable=True),
    instant("created_at", server_default=func.now()),
    instant(
        "described_at",
        nullable=True,
        comment="instant, UTC: until then the model was unknown, the device no part of another; null = described when made",
    ),
    CheckConstraint("kind IN ('gpu', 'mig', 'node', 'pool', 'chassis', 'site')", name="kind"),
    CheckConstraint("accelerators >= 1", name="accelerators"),
    comment="One accelerator, one MIG instance, one node that only has a node meter, one pool of which no device is known, or what "
    "else of a node or site uses energy.",
)

placements = Table(
    "placements",
    metadata,
    surrogate_id(),
    reference("device_id", "devices", index=True),
    reference("node_id", "nodes", index=True),
    column("in_service", Boolean, server_default="true", comment="false: down or stranded, still on the books"),
    column("asset", Text, nullable=True, comment="asset register number, kept across board swaps"),
    column(
        "feed",
        SmallInteger,
        nullable=True,
        comment="collector.wire.Feed that says so, the most direct one; null = not known",
    ),
    *dated_twice(),
    # Two writers that meet a moved device at once cannot both place it.
    Index(
        "placements_open_uq",
        "device_id",
        unique=True,
        postgresql_where=text("valid_to IS NULL AND superseded_at IS NULL"),
    ),
    comment="Which node a device is in; a board swap is a new row.",
)

device_sightings = Table(
    "device_sightings",
    metadata,
    column("device_id", Integer, ForeignKey("devices.id"), primary_key=True),
    column("feed", SmallInteger, primary_key=True, autoincrement=False, comment="collector.wire.Feed that spoke"),
    reference("node_id", "nodes"),
    instant("last_at"),
    comment="When the node a device is placed on last spoke for it, by feed; a minute or two behind.",
)

meters = Table(
    "meters",
    metadata,
    surrogate_id(),
    reference("node_id", "nodes", nullable=True),
    column("name", Text, comment="as the source names it: redfish, rapl, ac, dc; of a site's own meter as people do"),
    column(
        "bills", Boolean, server_default="true", comment="true: its energy is billed; false: it checks another meter"
    ),
    reference("site_id", "sites", nullable=True),
    reference("parent_meter_id", "meters", nullable=True),
    column("level", Text, server_default="node", comment="utility, pdu, cdu, node or other"),
    column(
        "covers",
        Text,
        server_default="it",
        comment="it: all IT below it; part: some of it, as processors and memory; cooling; all: IT and what serves it",
    ),
    column(
        "wrap_mj",
        BigInteger,
        nullable=True,
        comment="millijoules at which its counter begins again at 0; null = a fall is a reset",
    ),
    column(
        "gain_ppm",
        Integer,
        server_default="20000",
        comment="parts per million: half of the 90 % interval of what it shows, relative",
    ),
    UniqueConstraint("node_id", "name"),
    UniqueConstraint("site_id", "name"),
    CheckConstraint("num_nonnulls(node_id, site_id) = 1", name="place"),
    CheckConstraint("level IN ('utility', 'pdu', 'cdu', 'node', 'other')", name="level"),
    CheckConstraint("covers IN ('it', 'part', 'cooling', 'all')", name="covers"),
    CheckConstraint("coalesce(wrap_mj, 1) > 0 AND gain_ppm >= 0", name="amounts"),
    comment="A power meter of a node, or of a site above its nodes. Of several meters of one node one bills, the others check.",
)

tenants = Table(
    "tenants",
    metadata,
    surrogate_id(),
    column("path", Text, unique=True, comment="slash path, e.g. acme/research/nlp; everything rolls up along it"),
    instant("created_at", server_default=func.now()),
    CheckConstraint(r"path ~ '^[^/\s][^/]*(/[^/]+)*$'", name="path"),
    comment="Identity of a node of the paying organisation's tree.",
)

tenant_details = Table(
    "tenant_details",
    metadata,
    surrogate_id(),
    reference("tenant_id", "tenants", index=True),
    column("contact", Text, nullable=True),
    column("cost_centre", Text, nullable=True),
    *dated_twice(),
    comment="Contact and cost centre of a tenant.",
)

bindings = Table(
    "bindings",
    metadata,
    surrogate_id(),
    column("position", Integer, comment="order of the rule; the first match wins"),
    reference("tenant_id", "tenants"),
    column("cluster", Text, nullable=True, comment="glob; null = any"),
    column("account", Text, nullable=True, comment="glob; null = any"),
    column("partition", Text, nullable=True, comment="glob; null = any"),
    column("user_name", Text, nullable=True, comment="glob; null = any"),
    column("namespace", Text, nullable=True, comment="glob; null = any"),
    column("label", Text, nullable=True, comment="glob over key=value; null = any"),
    column("api_key", Text, nullable=True, comment="glob over the key's public name; null = any"),
    column("tag", Text, nullable=True, comment="glob over key=value; null = any"),
    *dated_twice(),
    comment="Ordered, dated rule from what a scheduler or gateway reports to a tenant path.",
)

tenant_moves = Table(
    "tenant_moves",
    metadata,
    surrogate_id(),
    reference("tenant_id", "tenants"),
    reference("to_tenant_id", "tenants"),
    *dated_twice(),
    comment="A reorganization: what is a tenant's by then is paid by another. Applied after bindings and tenants named outright.",
)

prices = Table(
    "prices",
    metadata,
    surrogate_id(),
    column("provider", Text, comment="owned for our own accelerators, else the API or cloud provider"),
    column("model", Text, comment="device model or API model"),
    column(
        "meter",
        Text,
        comment="accelerator_hour, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, ...",
    ),
    column("amount", RATE, comment="price of one unit, in currency"),
    column("unit", Text, comment="what one amount buys: hour, token, request"),
    column("currency", String(3)),
    column("source", Text, comment="where the price comes from"),
    *dated_twice(),
    *price_terms(),
    Index("prices_lookup_ix", "provider", "model", "meter"),
    comment="Dated price book: one row is one price id of the books.",
)

tariffs = Table(
    "tariffs",
    metadata,
    surrogate_id(),
    reference("site_id", "sites"),
    column("metering_point", Text, comment="it, facility or included: what the price applies to"),
    column("amount_per_kwh", RATE, comment="currency per kWh; may be negative"),
    column("currency", String(3)),
    column("source", Text),
    *dated_twice(),
    Index("tariffs_lookup_ix", "site_id", "valid_from"),
    CheckConstraint("metering_point IN ('it', 'facility', 'included')", name="metering_point"),
    comment="Electricity price of a site over time.",
)

intensity = Table(
    "intensity",
    metadata,
    surrogate_id(),
    column("grid_zone", Text),
    column("basis", Text, comment="location, market or marginal; marginal never enters the inventory"),
    column("gco2e_per_kwh", RATE, comment="grams of CO2 equivalent per kWh"),
    column("life_cycle", Boolean, comment="true: upstream emissions included"),
    column("estimated", Boolean, server_default="false"),
    column("source", Text),
    *dated_twice(),
    Index("intensity_lookup_ix", "grid_zone", "basis", "valid_from"),
    CheckConstraint("basis IN ('location', 'market', 'marginal')", name="basis"),
    comment="Carbon intensity of a grid zone over time. A missing hour is a missing row, never smoothed.",
)

facility_factors = Table(
    "facility_factors",
    metadata,
    surrogate_id(),
    reference("site_id", "sites"),
    column("factor", RATE, comment="facility energy / IT energy (interim PUE), at least 1"),
    column("category", SmallInteger, comment="PUE measurement category 0 to 3 (ISO/IEC 30134-2)"),
    column("source", Text),
    *dated_twice(),
    CheckConstraint("factor >= 1", name="factor"),
    comment="Facility factor of a site over time; none = IT energy only, and said so.",
)

fx_rates = Table(
    "fx_rates",
    metadata,
    surrogate_id(),
    column("base_currency", String(3)),
    column("quote_currency", String(3)),
    column("rate", RATE, comment="quote units per base unit"),
    column("source", Text),
    *dated_twice(),
    comment="Exchange rates, dated.",
)
