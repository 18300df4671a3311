"""The rules between settings: what is impossible alone or together, each fault told with what to do.

Pure: it opens no file and asks no network. How settings are read is :mod:`collector.config`'s business.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from collector.clock import US_PER_S
from collector.placement import HOUSEKEEPING, parse_cpus

if TYPE_CHECKING:
    from collector.config import Settings

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_MAX_PERIOD_S: Final = 3_600


def faults_of(settings: Settings) -> list[str]:
    """Return every rule the settings break."""
    return [
        *_impossible_periods(settings),
        *_impossible_server(settings),
        *_impossible_sources(settings),
        *_impossible_commands(settings),
        *_impossible_rest(settings),
    ]


def _impossible_periods(settings: Settings) -> list[str]:
    faults = [
        f"{name} must lie in [{lowest}, {_MAX_PERIOD_S}], got {value!r}"
        for name, value, lowest in (
            ("sample_s", settings.sample_s, 0.05),
            ("row_s", settings.row_s, 0.05),
            ("batch_s", settings.batch_s, 0.05),
            ("health_s", settings.health_s, 1),
        )
        if not lowest <= value <= _MAX_PERIOD_S
    ]
    if faults:
        return faults
    if settings.row_us % settings.sample_us:
        faults.append(f"row_s ({settings.row_s}) must be a multiple of sample_s ({settings.sample_s})")
    if settings.batch_us % settings.row_us:
        faults.append(f"batch_s ({settings.batch_s}) must be a multiple of row_s ({settings.row_s})")
    if _MAX_PERIOD_S * US_PER_S % settings.row_us:
        faults.append(f"row_s ({settings.row_s}) must divide an hour, so that a row ends on each full hour")
    return faults


def _impossible_server(settings: Settings) -> list[str]:
    faults = []
    if settings.token_file and settings.token_env:
        faults.append("token_file and token_env are both set; keep one")
    if bool(settings.client_cert_file) != bool(settings.client_key_file):
        faults.append("client_cert_file and client_key_file go together; set both or none")
    if not settings.server_url:
        return faults
    try:
        url = urlsplit(settings.server_url)
        host = url.hostname
    except ValueError as error:
        return [*faults, f"server_url {settings.server_url!r}: {error}"]
    if url.scheme not in ("http", "https") or not host:
        faults.append(f"server_url must be like https://host[:port], got {settings.server_url!r}")
    elif url.username or url.password:
        faults.append("server_url must not hold a password; use token_file or token_env")
    elif url.scheme == "http" and host not in _LOOPBACK and not settings.allow_plain_http:
        faults.append(
            "server_url is http:// to another machine, which would show the token to the network; use https:// or set allow_plain_http = true"
        )
    if settings.client_cert_file and url.scheme == "http":
        faults.append("client_cert_file needs an https:// server_url")
    return faults


def _impossible_sources(settings: Settings) -> list[str]:
    faults = []
    if settings.dcgm_url and not _is_http_url(settings.dcgm_url):
        faults.append(f"dcgm_url must be like http://127.0.0.1:9400/metrics, got {settings.dcgm_url!r}")
    if settings.cloud not in ("", "aws", "gcp", "azure"):
        faults.append(f"cloud must be aws, gcp, azure or empty, got {settings.cloud!r}")
    if settings.environ not in ("hint", "never"):
        faults.append(f"environ must be hint or never, got {settings.environ!r}")
    if not settings.cluster or len(settings.cluster) > 255 or not settings.cluster.isprintable():
        faults.append("cluster must be 1 to 255 printable characters")
    faults += [
        f"engine_urls must be like http://127.0.0.1:8000, got {url!r}"
        for url in settings.engine_urls.split(",")
        if settings.engine_urls and not _is_http_url(url)
    ]
    faults += _impossible_node_power(settings)
    if settings.otlp_listen and not _is_loopback(settings.otlp_listen):
        faults.append(f"otlp_listen must be a loopback address like 127.0.0.1:4318, got {settings.otlp_listen!r}")
    return faults


def _impossible_node_power(settings: Settings) -> list[str]:
    faults = []
    if not 30 <= settings.node_power_s <= _MAX_PERIOD_S:
        faults.append(f"node_power_s must lie in [30, {_MAX_PERIOD_S}], got {settings.node_power_s!r}")
    if bool(settings.redfish_user) != bool(settings.redfish_password_file):
        faults.append("redfish_user and redfish_password_file go together; set both or none")
    if settings.redfish_url and not _is_http_url(settings.redfish_url):
        faults.append(f"redfish_url must be like https://host, got {settings.redfish_url!r}")
    elif settings.redfish_url.startswith("http:") and urlsplit(settings.redfish_url).hostname not in _LOOPBACK:
        faults.append("redfish_url is http:// to another machine, which would show its password to the network")
    return faults


def _impossible_commands(settings: Settings) -> list[str]:
    if not settings.commands:
        return []
    faults = []
    if not settings.server_url or not (settings.token_file or settings.token_env):
        faults.append("commands need a server_url, and a token_file or token_env, to ask for orders")
    if not settings.command_key_file:
        faults.append("commands need a command_key_file: without a key no order could be believed")
    if not 0 < settings.power_limit_min_w <= settings.power_limit_max_w:
        faults.append(
            "commands need 0 < power_limit_min_w <= power_limit_max_w, got "
            f"{settings.power_limit_min_w} and {settings.power_limit_max_w}"
        )
    if not 1 <= settings.command_poll_s <= _MAX_PERIOD_S:
        faults.append(f"command_poll_s must lie in [1, {_MAX_PERIOD_S}], got {settings.command_poll_s!r}")
    return faults


def _is_loopback(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return host.strip("[]") in _LOOPBACK and port.isdecimal() and int(port) < 65_536


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and not url.password


def _impossible_rest(settings: Settings) -> list[str]:
    faults = []
    if settings.spool_max_mib < 1:
        faults.append(f"spool_max_mib must be at least 1, got {settings.spool_max_mib}")
    if settings.log_level not in _LOG_LEVELS:
        faults.append(f"log_level must be one of {', '.join(_LOG_LEVELS)}, got {settings.log_level!r}")
    if len(settings.node) > 255 or not settings.node.isprintable():
        faults.append("node must be 1 to 255 printable characters")
    if settings.ship_max_mib_per_s < 0 or settings.cpu_cap_percent < 0:
        faults.append("ship_max_mib_per_s and cpu_cap_percent must not be negative; 0 is no limit")
    if settings.cpu_affinity and settings.cpu_affinity != HOUSEKEEPING:
        try:
            parse_cpus(settings.cpu_affinity)
        except ValueError:
            faults.append(f"cpu_affinity must be like 0-3,8 or {HOUSEKEEPING}, got {settings.cpu_affinity!r}")
    if settings.labels and not all(
        re.fullmatch(r"[^=,]{1,255}=[^,]{0,255}", pair) and pair.isprintable() for pair in settings.labels.split(",")
    ):
        faults.append(f"labels must look like rack=r12,pool=train, got {settings.labels!r}")
    return faults
