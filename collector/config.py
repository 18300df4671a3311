"""The agent's settings: one frozen object made of defaults < TOML file < environment < flags, the same names on each.

A setting ``spool_path`` is ``spool_path`` in TOML, ``WATTLEDGER_AGENT_SPOOL_PATH`` in the environment and
``--spool-path`` on the command line. Unknown keys and impossible combinations stop the start with one message that lists
all faults. It holds where a secret is, never the secret.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from collector.clock import US_PER_S
from collector.config_faults import faults_of
from collector.errors import AgentError, ConfigError

ENV_PREFIX: Final = "WATTLEDGER_AGENT_"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


def _setting(default: Any, explanation: str) -> Any:
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one agent, checked."""

    server_url: str = _setting(
        "", "where ingest listens, e.g. https://ledger.example.org; empty: keep in the spool only"
    )
    node: str = _setting("", "the name of this node; empty: the host name")
    token_file: str = _setting("", "file whose first line is the agent's token; read before each request")
    token_env: str = _setting("", "name of the environment variable that holds the agent's token")
    ca_file: str = _setting("", "certificate authorities to trust instead of the public ones")
    client_cert_file: str = _setting("", "client certificate for mutual TLS")
    client_key_file: str = _setting("", "key of the client certificate")
    allow_plain_http: bool = _setting(False, "send over http:// to another machine, token and all")
    spool_path: str = _setting("/var/lib/wattledger-agent/spool.db", "the spool file, on a local disk")
    spool_max_mib: int = _setting(512, "drop the oldest batches beyond this size")
    ship_max_mib_per_s: float = _setting(4.0, "MiB a second sent at most, after an outage above all; 0: no limit")
    sample_s: float = _setting(1.0, "seconds between readings")
    row_s: float = _setting(10.0, "seconds one row stands for; a multiple of sample_s")
    batch_s: float = _setting(10.0, "seconds of rows in one batch; a multiple of row_s")
    nvml: bool = _setting(True, "read NVIDIA devices through the driver's own library")
    nvidia_smi: bool = _setting(
        False,
        "read NVIDIA devices by running nvidia-smi where nvml is off or its library cannot be loaded; no energy counter",
    )
    gpm: bool = _setting(True, "read GPU performance monitoring where there is any")
    dcgm_url: str = _setting(
        "", "metrics of a dcgm-exporter on this node, e.g. http://127.0.0.1:9400/metrics; empty: none"
    )
    amd: bool = _setting(True, "read AMD devices where their driver is loaded at the start")
    jobs: bool = _setting(
        True, "find out which job holds which device: cgroups, Slurm's hooks, kubelet, DCGM's mapping"
    )
    cluster: str = _setting("local", "the cluster of jobs whose manager does not say which it is")
    environ: str = _setting(
        "never", "hint: read job ids from the environment of processes where nothing better is there"
    )
    slurm_shared: bool = _setting(False, "Slurm gives a device to several jobs at once (shards, MPS)")
    job_mapping_dir: str = _setting(
        "", "folder of dcgm-exporter's job mapping (--hpc-job-mapping-dir); /run/gpustat is looked into anyway"
    )
    engine_urls: str = _setting(
        "", "metrics of vLLM and SGLang servers, e.g. http://127.0.0.1:8000,http://127.0.0.1:8001"
    )
    cloud: str = _setting("", "ask the metadata service of aws, gcp or azure what this node is; empty: never")
    redfish_url: str = _setting("", "this node's management controller, e.g. https://10.0.0.7; empty: none")
    redfish_user: str = _setting("", "user of the management controller")
    redfish_password_file: str = _setting("", "file whose first line is that user's password")
    redfish_ca_file: str = _setting("", "certificate authorities to trust with the management controller")
    redfish_verify: bool = _setting(True, "check the management controller's certificate")
    ipmi: bool = _setting(False, "read the node's power by ipmi-dcmi or ipmitool")
    node_power_s: float = _setting(60.0, "seconds between readings of the management controller; at least 30")
    host: bool = _setting(True, "read processor, memory, disk and network counters of the node")
    rapl: bool = _setting(True, "read the processors' energy (RAPL) where this user may")
    infiniband: bool = _setting(True, "read InfiniBand and RoCE ports where there are any")
    kernel_log: bool = _setting(True, "find the driver's XID lines in the kernel log where this user may read it")
    otlp_listen: str = _setting(
        "", "loopback address for OTLP/HTTP traces of calls made on this node, e.g. 127.0.0.1:4318; empty: none"
    )
    commands: bool = _setting(False, "carry out signed orders from the server: power limits")
    command_key_file: str = _setting("", "file with this node's key of orders, as `wattledger fleet key` prints it")
    command_poll_s: float = _setting(30.0, "seconds between questions for orders")
    power_limit_min_w: int = _setting(0, "watts; the lowest power limit an order may set on a device of this node")
    power_limit_max_w: int = _setting(0, "watts; the highest power limit an order may set on a device of this node")
    release_file: str = _setting(
        "/run/wattledger-agent/release", "while this file exists the devices are let go for maintenance; empty: none"
    )
    cpu_cap_percent: float = _setting(
        1.0, "percent of one core, averaged over a minute, above which devices are read less often; 0: no cap"
    )
    cpu_affinity: str = _setting(
        "", "processors to run on, e.g. 0-3,8, or housekeeping: those neither isolated nor tickless; empty: any"
    )
    low_priority: bool = _setting(True, "run at nice 10 and at the lowest best-effort disk priority")
    health_s: float = _setting(60.0, "seconds between lines about the agent itself")
    labels: str = _setting("", "labels of this node, e.g. rack=r12,pool=train")
    log_level: str = _setting("info", "debug, info, warning or error")

    @property
    def sample_us(self) -> int:
        """Microseconds between readings."""
        return round(self.sample_s * US_PER_S)

    @property
    def row_us(self) -> int:
        """Microseconds one row stands for."""
        return round(self.row_s * US_PER_S)

    @property
    def batch_us(self) -> int:
        """Microseconds of rows in one batch."""
        return round(self.batch_s * US_PER_S)

    @property
    def label_pairs(self) -> dict[str, str]:
        """The labels as pairs."""
        return dict(pair.split("=", 1) for pair in self.labels.split(",") if pair)

    def redfish_credentials(self) -> tuple[str, str] | None:
        """Fetch the management controller's user and password. Raises AgentError naming the place, not the password."""
        if not self.redfish_user:
            return None
        return self.redfish_user, _first_line(self.redfish_password_file, "the management controller's password")

    def token(self) -> str | None:
        """Fetch the token from where it is kept; None where none is set. Raises AgentError naming the place, not the token."""
        if self.token_file:
            return _first_line(self.token_file, "the token")
        if self.token_env:
            token = os.environ.get(self.token_env)
            if not token:
                raise AgentError(f"token_env names {self.token_env}, which is not set in the environment")
            return token
        return None


def _first_line(path: str, what: str) -> str:
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(f"cannot read {what} from {path}: {error}") from error
    if not lines or not lines[0].strip():
        raise AgentError(f"cannot read {what}: {path} is empty")
    return lines[0].strip()


FIELDS: Final = {entry.name: entry for entry in dataclasses.fields(Settings)}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and, for each, where its value came from."""

    settings: Settings
    origins: dict[str, str]

    def describe(self) -> str:
        """Return one line per setting: TOML that could be used again, with the origin as a comment."""
        lines = []
        for name in FIELDS:
            value = getattr(self.settings, name)
            text = (
                str(value).lower()
                if isinstance(value, bool)
                else repr(value)
                if not isinstance(value, str)
                else _toml(value)
            )
            lines.append(f"{f'{name} = {text}':<60} # {self.origins[name]}")
        return "\n".join(lines)


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Loaded:
    """Merge the sources and check the whole. Raises ConfigError listing every fault.

    ``flags`` holds what was given on the command line only; None counts as not given.
    """
    faults: list[str] = []
    values: dict[str, Any] = {}
    origins = dict.fromkeys(FIELDS, "default")
    sources: list[tuple[str, Mapping[str, object]]] = []
    if path is not None:
        sources.append((str(path), _toml_file(path, faults)))
    sources.append(("environment", _environment(environ, faults)))
    sources.append(("flag", {name: value for name, value in flags.items() if value is not None}))
    for origin, given in sources:
        for name, raw in given.items():
            if name not in FIELDS:
                faults.append(f"{origin}: unknown setting {name!r}{_closest(name)}")
                continue
            try:
                values[name] = _typed(name, raw)
            except ValueError as error:
                faults.append(f"{origin}: {name} {error}")
            origins[name] = origin
    if not values.get("node"):
        values["node"] = socket.gethostname()
        origins["node"] = "host name"
    settings = Settings(**values)
    faults += faults_of(settings)
    if faults:
        raise ConfigError(
            "the agent cannot start with these settings:\n" + "\n".join(f"  - {fault}" for fault in faults)
        )
    return Loaded(settings, origins)


def _toml_file(path: Path, faults: list[str]) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        faults.append(f"cannot read {path}: {error}")
    except UnicodeDecodeError as error:
        faults.append(f"cannot read {path}: it is not UTF-8 text (byte {error.start}); save it as UTF-8")
    except RecursionError:
        faults.append(f"cannot read {path}: it is nested too deeply; settings are names and values, no tables")
    return {}


def _environment(environ: Mapping[str, str], faults: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in environ.items():
        if not key.startswith(ENV_PREFIX):
            continue
        name = key.removeprefix(ENV_PREFIX).lower()
        if name == "token":
            faults.append(
                f"environment: {key} would hold the secret itself; set {ENV_PREFIX}TOKEN_FILE, or name a variable in {ENV_PREFIX}TOKEN_ENV"
            )
        elif name != "config":  # which file to read: the command line's business
            found[name] = value
    return found


def _typed(name: str, raw: object) -> object:
    default = FIELDS[name].default
    if isinstance(default, bool):
        if isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and raw.lower() in _TRUE | _FALSE:
            return raw.lower() in _TRUE
        raise ValueError(f"must be true or false, got {raw!r}")
    if isinstance(default, str):
        if isinstance(raw, str):
            return raw
        raise ValueError(f"must be text, got {raw!r}")
    number = int if isinstance(default, int) else float
    if isinstance(raw, bool) or not isinstance(raw, int | float | str) or (number is int and isinstance(raw, float)):
        raise ValueError(f"must be {'a whole number' if number is int else 'a number'}, got {raw!r}")
    try:
        return number(raw)
    except ValueError:
        raise ValueError(f"must be {'a whole number' if number is int else 'a number'}, got {raw!r}") from None


def _closest(name: str) -> str:
    import difflib  # noqa: PLC0415  only a faulty start needs it

    matches = difflib.get_close_matches(name, FIELDS, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
