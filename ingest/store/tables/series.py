"""What is remembered of named series between requests, for every replica: pods as kube-state-metrics tells of them, and spacing."""

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, PrimaryKeyConstraint, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from ingest.store.tables.columns import column, instant, recorded_at, reference
from ingest.store.tables.metadata import metadata

kube_pods = Table(
    "kube_pods",
    metadata,
    reference("site_id", "sites"),
    column("cluster", Text),
    column("uid", Text, comment="the pod's UID, by which agents and watchers know it too"),
    column("facts", JSONB, comment="field -> [told at, microseconds since 1970, value]; what jobs are made from"),
    column("exporter", Text, comment="the instance of kube-state-metrics that told of it last"),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    column("accelerators", Integer, nullable=True, comment="accelerators asked for; null = none were told of"),
    instant("seen_at", comment="instant, UTC: it was there then; up to five minutes behind"),
    instant("gone_at", nullable=True, comment="instant, UTC: a scrape in which its series were missing"),
    instant("ended_at", nullable=True, comment="instant, UTC: it is over since; null = it is there, or nobody knows"),
    column("told_us", BigInteger, comment="microseconds since 1970: when the report on its job was made last"),
    recorded_at(),
    PrimaryKeyConstraint("site_id", "cluster", "uid"),
    # What each sweep asks for: pods that may have gone without a word.
    Index(
        "kube_pods_open_ix",
        "site_id",
        "cluster",
        "seen_at",
        postgresql_where=text("ended_at IS NULL AND accelerators IS NOT NULL"),
    ),
    Index("kube_pods_recorded_ix", "recorded_at"),
    comment="Pods as the series of kube-state-metrics tell of them, in pieces and in any order.",
)

kube_exporters = Table(
    "kube_exporters",
    metadata,
    reference("site_id", "sites"),
    column("cluster", Text),
    column("name", Text, comment="the instance of kube-state-metrics"),
    instant("since_at", comment="instant, UTC: it was heard of without a break from here on"),
    instant("heard_at", comment="instant, UTC: until here; up to a minute behind"),
    PrimaryKeyConstraint("site_id", "cluster", "name"),
    comment="Who tells of a cluster's pods: that a pod is missing means something only while its teller is heard of.",
)

series_xids = Table(
    "series_xids",
    metadata,
    column("device_id", Integer, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    column("code", Integer, comment="XID; 0 = none"),
    instant("from_at", comment="instant, UTC: of the sample that told of it first"),
    comment="The error of a device that a scraped gauge showed last: a change of it is an event.",
)

series_nodes = Table(
    "series_nodes",
    metadata,
    reference("site_id", "sites"),
    column("node", Text),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    column("cadence_us", BigInteger),
    instant("from_at", comment="instant, UTC: of the sample that settled it"),
    PrimaryKeyConstraint("site_id", "node", "origin"),
    comment="The spacing of the series of a node, as some replica learned it last.",
)
