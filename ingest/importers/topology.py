"""Imports where nodes stand: Slurm's topology.conf (tree, block), its topology.yaml, or a table of node, rack, switch, NVLink domain.

A switch is kept as its path from the top (``core/spine1/leaf3``), so that how far two nodes are apart can be read from it; a
block is an NVLink domain. What a file does not say of a node is taken as not known, and replaces what was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import psycopg
import sqlalchemy as sa
import yaml

from ingest.importers.columns import Field, Source, read
from ingest.importers.errors import ImportFileError, RowError
from ingest.importers.hostlist import expand
from ingest.importers.instants import EPOCH
from ingest.importers.report import ImportReport, ProgressCallback
from ingest.importers.run import importing
from ingest.store import identities, topology
from ingest.store.identities import NodeKey

FIELDS: Final = (
    Field(
        "node", "text", {"node": None, "node_name": None, "host": None, "hostname": None}, required=True, filled=True
    ),
    Field("rack", "text", {"rack": None, "rack_name": None, "cabinet": None}),
    Field("switch", "text", {"switch": None, "leaf": None, "leaf_switch": None, "tor": None}),
    Field("nvlink_domain", "text", {"nvlink_domain": None, "nvl_domain": None, "clique": None, "block": None}),
)
MAX_BYTES: Final = 16 << 20
# None of these looks at a character twice: a line may be as long as the file.
_SETTING: Final = re.compile(r"(?<!\w)(\w++)\s*+=\s*+(\S++)")
_SLURM: Final = re.compile(r"^[ \t]*+(SwitchName|BlockName)[ \t]*+=", re.IGNORECASE | re.MULTILINE)
_YAML: Final = re.compile(r"^[ \t]*+(?:-[ \t]*+)?topology[ \t]*+:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TopologyOptions:
    site: str
    valid_from: datetime
    """From when on it is so."""


@dataclass
class Tree:
    """Switches with what hangs on them, and blocks, as the file names them."""

    parent: dict[str, str] = field(default_factory=dict)
    leaf: dict[str, str] = field(default_factory=dict)
    block: dict[str, str] = field(default_factory=dict)

    def nodes(self) -> Iterator[tuple[str, str | None, str | None]]:
        """Yield node, path of its switch, block."""
        for node in sorted({*self.leaf, *self.block}):
            switch = self.leaf.get(node)
            yield node, None if switch is None else self.path(switch), self.block.get(node)

    def path(self, switch: str) -> str:
        """Return a switch's path from the top; raises RowError for switches that hang on each other in a ring."""
        path = [switch]
        while path[-1] in self.parent:
            path.append(self.parent[path[-1]])
            if len(path) != len(set(path)):
                raise RowError("switches hang on each other", " < ".join(path))
        return "/".join(reversed(path))


def import_topology(
    conn: sa.Connection,
    source: Source,
    options: TopologyOptions,
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one file; raises ImportFileError. The same file from another instant on is another import."""
    scope = options.valid_from.isoformat()
    with importing(conn, source, kind="topology", site=options.site, scope=scope, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        standings = {
            node: topology.Standing(options.valid_from, *place) for node, *place in _places(source, report, progress)
        }
        ids = identities.node_ids(conn, [NodeKey(site_id, node) for node in standings])
        driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
        assert driver is not None  # noqa: S101 - a checked-out connection has one
        changed = topology.keep(driver, {ids[NodeKey(site_id, node)]: [one] for node, one in standings.items()})
        report.written["nodes"] = changed
        report.unchanged = len(standings) - changed
        at_us = (options.valid_from - EPOCH) // EPOCH.resolution
        report.saw(at_us, at_us)
    return report


def _places(
    source: Source, report: ImportReport, progress: ProgressCallback | None
) -> Iterator[tuple[str, str | None, str | None, str | None]]:
    """Yield node, rack, switch, NVLink domain."""
    text = _text_of(source)
    if text is None:
        for chunk in read(source, FIELDS, report, progress):
            for _, node, rack, switch, domain in chunk.rows("node", "rack", "switch", "nvlink_domain"):
                yield node, rack, switch, domain
        return
    try:
        tree = read_yaml(text) if not _SLURM.search(text) else read_conf(text, report)
        found = list(tree.nodes())
    except RowError as error:
        raise ImportFileError(f"{source.path.name}: {error.reason}: {error.detail}") from error
    report.rows_read += len(found)
    for node, switch, block in found:
        yield node, None, switch, block


def read_conf(text: str, report: ImportReport) -> Tree:
    """Read topology.conf; a line that cannot be read is refused in the report."""
    tree = Tree()
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), 1):
        settings = {name.casefold(): value for name, value in _SETTING.findall(line.partition("#")[0])}
        try:
            _take(tree, settings)
        except RowError as error:
            report.rows_read += 1
            report.rejections.reject(number, error.reason, error.detail)
    return tree


def read_yaml(text: str) -> Tree:
    """Read topology.yaml (Slurm 25.05 and newer); raises RowError for what is none."""
    try:
        topologies = yaml.safe_load(text)
        tree = Tree()
        for one in topologies:
            for switch in (one.get("tree") or {}).get("switches", ()):
                _take(
                    tree,
                    {"switchname": switch["switch"], "nodes": switch.get("nodes"), "switches": switch.get("children")},
                )
            for block in (one.get("block") or {}).get("blocks", ()):
                _take(tree, {"blockname": block["block"], "nodes": block.get("nodes")})
    except RowError:
        raise
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RowError("not a topology.yaml", str(error).partition("\n")[0]) from error
    return tree


def _take(tree: Tree, settings: Mapping[str, str | None]) -> None:
    switch, block = settings.get("switchname"), settings.get("blockname")
    nodes = [node for node in expand(settings.get("nodes") or "") if node] if settings.get("nodes") else []
    if switch is not None:
        tree.leaf.update(dict.fromkeys(nodes, switch))
        below = settings.get("switches")
        tree.parent.update(dict.fromkeys(expand(below), switch) if below else {})
    elif block is not None:
        tree.block.update(dict.fromkeys(nodes, block))


def _text_of(source: Source) -> str | None:
    """Return the text of a file of Slurm's, None for a table."""
    if source.path.stat().st_size > MAX_BYTES:
        return None
    raw = source.path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text if _SLURM.search(text) or _YAML.search(text) else None
