"""Prints what the books say of each published data set beside what its publisher says: ``make real``.

Tables on stdout, progress on stderr. Exits with 1 if a difference passes its bound: what the tests assert, in full view.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from analytics.io.recompute import Ground
from analytics.io.statements import GroupBy
from ingest.importers.columns import Source
from ingest.importers.intensity import IntensityOptions, import_intensity
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.migrate import upgrade
from tests.real import inference, job_bills, token_bills, training
from tests.real.independent import money
from tests.real.stand import Stand, deployed

PUBLISHED_PERCENT: Final = 0.7
MEDIAN_PERCENT: Final = 0.2
WINDOW_PERCENT: Final = 0.2


@dataclass(frozen=True, slots=True)
class Verdict:
    """One closing line: what was compared, and whether it held."""

    text: str
    held: bool


def main() -> int:
    """Load every data set into a server of its own, print the tables, and return 0 if all bounds hold."""
    shared = _shared()
    home = Path(tempfile.mkdtemp(prefix="wl-real-"))
    home.chmod(0o711)
    server = EmbeddedServer.in_home(home)
    started = time.monotonic()
    try:
        _progress("starting an embedded PostgreSQL")
        server.start()
        template = server.database("wattledger_real_template")
        with server.database("postgres").connect("admin", autocommit=True) as admin:
            admin.execute("CREATE DATABASE wattledger_real_template OWNER wattledger_owner")
        upgrade(template.url)
        verdicts = [
            *_training(server, template, shared, home),
            *_inference(server, template, shared, home),
            *_jobs(server, template, shared, home),
            *_tokens(server, template, shared, home),
            _carbon(server, template, shared),
        ]
    finally:
        server.destroy()
        shutil.rmtree(home)
    _line()
    for verdict in verdicts:
        _line(f"{'ok  ' if verdict.held else 'FAIL'}  {verdict.text}")
    _progress(f"done in {time.monotonic() - started:.0f} s")
    return 0 if all(verdict.held for verdict in verdicts) else 1


def _training(server: EmbeddedServer, template: Database, shared: Path, folder: Path) -> list[Verdict]:
    published = training.Published.read(shared)
    found: dict[str, list[training.Run]] = {}
    verdicts = []
    for meter in training.METERS:
        with deployed(server, template, f"wattledger_real_train_{meter}", _folder(folder, meter)) as stand:
            _progress(f"training power, {meter} bills: 366,361 readings of 77 runs")
            training.load(stand, shared, meter)
            found[meter] = training.runs(stand, published, meter)
            _times(stand)
            verdicts.append(
                _restored(
                    server, stand, folder, f"training, {meter}", found[meter],
                    partial(training.runs, published=published, meter=meter),
                )
            )  # fmt: skip
    _table(
        "Training: 77 MLPerf runs on 8 x H100 nodes, node meters every 2 s; job = energy of the ac meter inside the job's window",
        ("benchmark", "run", "nodes", "ac kWh", "table", "difference", "dc kWh", "table", "difference", "job kWh", "coverage",
         "bad", "repeated"),
        [
            (
                ac.bench, _short(ac.run), f"{ac.nodes}",
                f"{ac.device_kwh:.5f}", f"{ac.table_kwh:.5f}", _off(ac.device_kwh, ac.table_kwh),
                f"{dc.device_kwh:.5f}", f"{dc.table_kwh:.5f}", _off(dc.device_kwh, dc.table_kwh),
                f"{ac.job_kwh:.5f}", f"{ac.coverage:.4f}", _count(ac.not_positive), _count(ac.repeated),
            )
            for ac, dc in zip(found["ac"], found["dc"], strict=True)
        ],
        note="The table sums negative and zero readings as they are; here they are bridged and counted (bad: of both meters).",
    )  # fmt: skip
    both = [(meter, run) for meter in training.METERS for run in found[meter]]
    totals = [(meter, run, run.published_kwh) for meter, run in both if run.published_kwh is not None]
    _table(
        "Training: jobs on 64 nodes against the totals their submitter published",
        ("benchmark", "run", "meter", "ours kWh", "published kWh", "difference", "coverage", "bad"),
        [
            (
                run.bench, _short(run.run), meter,
                f"{run.billed_kwh:.3f}", f"{kwh:.2f}", f"{run.published_difference_percent:+.3f} %",
                f"{run.coverage:.4f}", _count(run.bad_of_meter),
            )
            for meter, run, kwh in totals
        ],
    )  # fmt: skip
    off = [abs(run.published_difference_percent or 0) for _, run, _ in totals]
    apart = [abs(run.device_kwh / run.device_independent_kwh - 1) for _, run in both]
    inside = [abs(run.job_kwh / run.job_independent_kwh - 1) for _, run in both]
    bad = sum(run.not_positive for run in found["ac"]), sum(run.repeated for run in found["ac"])
    return [
        *verdicts,
        Verdict(
            f"{len(off)} published totals: difference at most {max(off):.3f} %, median {median(off):.3f} % "
            f"(bounds {PUBLISHED_PERCENT} and {MEDIAN_PERCENT})",
            max(off) <= PUBLISHED_PERCENT and median(off) <= MEDIAN_PERCENT,
        ),
        Verdict(
            f"{len(apart)} runs against an independent trapezoid: at most {max(apart):.1e}, median {median(apart):.1e}; "
            f"inside job windows at most {max(inside):.1e} (bound 1e-6)",
            max(*apart, *inside) <= 1e-6,
        ),
        Verdict(f"{bad[0]} readings not positive and {bad[1]} repeated: counted, not billed", bad == (25, 32)),
    ]


def _inference(server: EmbeddedServer, template: Database, shared: Path, folder: Path) -> list[Verdict]:
    with deployed(server, template, "wattledger_real_infer", _folder(folder, "infer")) as stand:
        _progress("inference power: 27,439 readings of 20 captures")
        inference.load(stand, shared, folder)
        found = inference.captures(stand, shared)
        _times(stand)
        restored = _restored(server, stand, folder, "inference", found, lambda copy: inference.captures(copy, shared))
    _table(
        "Inference: 20 captures of an 8 x H200 server at the wall, inside the labelled windows",
        ("capture", "ours kWh", "table kWh", "difference", "J/token", "table", "idle before", "at", "bad"),
        [
            (
                each.name.replace("|", " "), f"{each.billed_kwh:.5f}", f"{each.table_good_kwh:.5f}", f"{each.difference_percent:+.3f} %",
                "" if each.j_per_token is None else f"{each.j_per_token:.5f}",
                "" if each.table_j_per_token is None else f"{each.table_j_per_token:.5f}",
                f"{each.idle_before_s:.0f} s", f"{each.idle_before_w:,.0f} W", _count(each.bad_readings),
            )
            for each in found
        ],
        note="The table's mean counts error codes of -1 and -2 W as power (3 readings); they are taken out of it here.",
    )  # fmt: skip
    off = [abs(each.difference_percent) for each in found]
    tokens = [
        abs(each.j_per_token / each.table_j_per_token - 1) * 100
        for each in found
        if each.j_per_token and each.table_j_per_token
    ]
    return [
        restored,
        Verdict(
            f"{len(off)} windows: difference at most {max(off):.3f} %, median {median(off):.3f} %; J/token at most "
            f"{max(tokens):.3f} % (bound {WINDOW_PERCENT})",
            max(*off, *tokens) <= WINDOW_PERCENT,
        ),
    ]


def _restored(
    server: EmbeddedServer, stand: Stand, folder: Path, name: str, wanted: object, figures: Callable[[Stand], object]
) -> Verdict:
    """Back up, restore, and compare every figure; then compute each hour again from the restored files."""
    with stand.restored(server, _folder(folder, f"{stand.database.name}_backup")) as copy:
        same = figures(copy) == wanted
        again = copy.recomputed()
        _times(copy)
    repeated = sum(is_same is True and ground is Ground.SAMPLES for is_same, ground in again)
    return Verdict(
        f"{name}: imported, sealed, closed, billed; restored from a backup every figure {'is the same' if same else 'DIFFERS'}, "
        f"{repeated} of {len(again)} hours computed again from its files to the byte",
        same and repeated == len(again) > 0,
    )


def _folder(home: Path, name: str) -> Path:
    found = home / name
    found.mkdir()
    return found


def _jobs(server: EmbeddedServer, template: Database, shared: Path, folder: Path) -> list[Verdict]:
    with deployed(server, template, "wattledger_real_jobs") as stand:
        _progress("job table: 1,101 jobs of 7 tenants over 13 months")
        jobs = job_bills.read(shared / job_bills.TABLE)
        job_bills.set_up(stand, folder, sorted({job.tenant for job in jobs}))
        job_bills.load(stand, shared / job_bills.TABLE)
        apart = job_bills.expected(jobs)
        bill = stand.bill(job_bills.FROM_AT, job_bills.TO_AT)
        _times(stand)
    counts = {tenant: sum(job.tenant == tenant for job in jobs) for tenant in apart.tenant_us}
    rows, held = [], True
    for row in bill.rows:
        tenant = (row.tenant or "").removeprefix("mlperf/")
        independent = money(apart.tenant_nano.get(tenant, 0))
        held &= row.figures.cost == independent
        rows.append(
            (
                tenant, f"{counts[tenant]:,}", f"{row.figures.held_us / 3.6e9:,.3f}",
                f"{row.figures.cost:,.9f}" if row.figures.cost_by_category else "unpriced",
                f"{independent:,.9f}" if tenant in apart.tenant_nano else "unpriced",
                f"{row.figures.cost - independent:f}", _count(row.figures.unpriced_lines),
            )
        )  # fmt: skip
    _table(
        "Jobs known by (pool, model, count): bill of 13 months by tenant, USD",
        ("tenant", "jobs", "accelerator-hours", "ours", "independent", "difference", "unpriced lines"),
        rows,
        note="Rates are the test's; Gaudi 2 has none, and is unpriced instead of free. No meter: no energy, coverage 0.",
    )
    return [Verdict(f"{len(jobs):,} jobs, {len(rows)} tenants: {bill.total.cost:,.9f} USD, every decimal equal", held)]


def _tokens(server: EmbeddedServer, template: Database, shared: Path, folder: Path) -> list[Verdict]:
    with deployed(server, template, "wattledger_real_tokens") as stand:
        _progress("LLM trace: 19,366 requests, as published and with keys")
        token_bills.load(stand, shared, folder)
        made = token_bills.calls(shared)
        apart = token_bills.expected(shared, made)
        bill = stand.bill(token_bills.FROM_AT, token_bills.TO_AT, GroupBy.JOB)
        _times(stand)
    rows, held = [], True
    for row in bill.rows:
        key = row.key.removeprefix("key/")
        mine = [call for call in made if call.key == key]
        independent = money(apart[key])
        held &= row.figures.cost == independent
        rows.append(
            (
                key, mine[0].model[1], f"{len(mine):,}", f"{row.figures.tokens:,}", f"{row.figures.cost:,.9f}",
                f"{independent:,.9f}", f"{row.figures.cost - independent:f}",
            )
        )  # fmt: skip
    _table(
        "LLM requests: Azure 2023 conversation trace at LiteLLM's prices, USD ('gateway': the trace as published)",
        ("key", "model", "requests", "tokens", "ours", "independent", "difference"),
        rows,
    )
    return [Verdict(f"{len(made):,} requests, {len(rows)} keys: {bill.total.cost:,.9f} USD, every decimal equal", held)]


def _carbon(server: EmbeddedServer, template: Database, shared: Path) -> Verdict:
    with deployed(server, template, "wattledger_real_carbon") as stand:
        _progress("grid carbon: a year of hours of 4 zones")
        with stand.importing("import intensity") as connection:
            source = Source(shared / "data/carbon/us_grid_hourly_2022_eia.csv")
            report = import_intensity(connection, source, IntensityOptions(site="grid"))
        _times(stand)
    empty = report.rejections.by_reason["no value, stays missing"]
    return Verdict(f"{report.rows_read:,} hours of grid carbon: {empty} empty ones stay missing", empty == 26)


def _short(run: str) -> str:
    """The published names carry a time stamp of 21 digits between their two numbers."""
    return run.removeprefix("result_").split("-")[0] + "_" + run.rpartition("_")[2]


def _off(ours: float, theirs: float) -> str:
    return f"{(ours / theirs - 1) * 100:+.4f} %"


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> None:
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(header))]
    text = [all(not _numeric(line[at]) for line in lines[1:]) for at in range(len(header))]
    _line(f"\n{title}")
    for number, line in enumerate(lines):
        cells = (
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, text, strict=True)
        )
        _line("  " + "  ".join(cells).rstrip())
        if number == 0:
            _line("  " + "  ".join("─" * width for width in widths))
    if note:
        _line(f"  {note}")


def _numeric(cell: str) -> bool:
    return cell[:1] in "+-0123456789·" and "_" not in cell


def _count(number: int) -> str:
    return f"{number}" if number else "·"


def _times(stand: Stand) -> None:
    _progress("  " + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in stand.seconds.items()))


def _progress(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _line(text: str = "") -> None:
    sys.stdout.write(text + "\n")


def _shared() -> Path:
    named = os.environ.get("WATTLEDGER_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared"
    if not (folder / "data").is_dir():
        raise SystemExit(f"no real data in {folder}; set WATTLEDGER_SHARED to the folder that holds data/")
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
