"""The disk of the database is full in the middle of the load: nothing is refused for good, all is kept once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from collector.wire import SAMPLES_PATH
from ingest.store.embedded import EmbeddedServer
from ingest.store.migrate import upgrade
from tests.db import ingest_server
from tests.db.ingest_harness import SECOND_US, batch_meta, headers, make_site, now_us, wide_body
from tests.scratch import quick_folder

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(600)]
ROWS = 2_000


@contextmanager
def small_disk(at: Path, size_mib: int) -> Iterator[None]:
    """A file system of its own: root's to mount."""
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


def test_a_full_disk_costs_senders_only_time() -> None:
    home = quick_folder("wl-full-")
    own = EmbeddedServer.in_home(home)
    try:
        own.start()
        database = own.database()
        upgrade(database.url)
        site, port = make_site(database), ingest_server.free_port()
        with small_disk(home / "small", 3):
            owner = own.placement.data.stat()
            os.chown(home / "small", owner.st_uid, owner.st_gid)
            process = ingest_server.start(own.placement.socket_dir, database.name, port)  # makes the days
            with database.connect("admin", autocommit=True) as admin:
                admin.execute(f"CREATE TABLESPACE small LOCATION '{home / 'small'}'".encode())
                for (name,) in admin.execute(
                    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'device_samples'::regclass"
                ).fetchall():
                    admin.execute(f"ALTER TABLE {name} SET TABLESPACE small".encode())
            try:
                statuses, kept = [], 0
                first, at_us = batch_meta(), now_us()
                with httpx.Client(timeout=30) as client:
                    while kept < 20:
                        body = wide_body(
                            batch_meta(spool=first.spool, sequence=kept + 1), ROWS, at_us - kept * ROWS // 2 * SECOND_US
                        )
                        answer = client.post(
                            f"http://127.0.0.1:{port}{SAMPLES_PATH}", content=body, headers=headers(site.site_token)
                        )
                        statuses.append(answer.status_code)
                        assert answer.status_code in (200, 503), answer.text
                        kept += answer.status_code == 200
                        if statuses.count(503) == 5:
                            subprocess.run(["mount", "-o", "remount,size=200m", home / "small"], check=True)
                        time.sleep(0.3 if answer.status_code == 503 else 0)
            finally:
                process.kill()
                process.wait()
            assert 503 in statuses, "the disk was never full"
            with database.connect("admin") as connection:
                counted = connection.execute("SELECT count(*), count(DISTINCT (device_id, at)) FROM device_samples")
                assert counted.fetchone() == (20 * ROWS, 20 * ROWS)
            own.stop()
    finally:
        own.destroy()
        shutil.rmtree(home)
