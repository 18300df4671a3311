"""The agent stays small with its settings read anew again and again."""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from collector.memory import give_back, no_authorities, usual_authorities

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
# Twelve threads at a time, as the agent has them, each with a few megabytes of rows; what is left of them at the end is what counts.
_CHURN = """
import re, sys, threading
from pathlib import Path
from collector.memory import give_back, one_heap
one_heap()
def rss_mib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def rows(barrier):
    kept = [bytes(200) + bytes([n % 256]) * (n % 700) for n in range(5_000)]
    barrier.wait()
before = rss_mib()
for _ in range(5):
    barrier = threading.Barrier(12)
    threads = [threading.Thread(target=rows, args=(barrier,)) for _ in range(12)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
give_back()
print(rss_mib() - before)
"""


def test_what_many_threads_held_is_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", _CHURN], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 3.0


def test_clients_share_the_usual_authorities_until_settings_are_read_anew() -> None:
    first = usual_authorities(trust_env=False)
    assert first.get_ca_certs()
    assert usual_authorities(trust_env=False) is first
    give_back()
    assert usual_authorities(trust_env=False) is not first


def test_a_connection_that_needs_no_authorities_would_trust_nobody() -> None:
    context = no_authorities()
    assert context.get_ca_certs() == []
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
