"""Settings: who wins, what is refused, and what is never shown."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from collector import config
from collector.errors import AgentError, ConfigError

pytestmark = pytest.mark.unit


def faults_of(**flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(None, {}, flags)
    return str(caught.value)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('node = "from-file"\nspool_max_mib = 64\nrow_s = 20\nbatch_s = 60\n')
    environ = {
        "WATTLEDGER_AGENT_SPOOL_MAX_MIB": "128",
        "WATTLEDGER_AGENT_ROW_S": "30",
        "WATTLEDGER_AGENT_GPM": "off",
        "OTHER": "x",
    }
    loaded = config.load(file, environ, {"row_s": "60", "node": None})
    found = loaded.settings
    assert (found.node, found.spool_max_mib, found.row_s, found.sample_s, found.gpm) == ("from-file", 128, 60, 1, False)
    assert loaded.origins["node"] == str(file)
    assert loaded.origins["spool_max_mib"] == "environment"
    assert loaded.origins["row_s"] == "flag"
    assert loaded.origins["sample_s"] == "default"


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('spool_pth = "/x"\nsample_s = "often"\ngpm = 1\n')
    with pytest.raises(ConfigError) as caught:
        config.load(file, {"WATTLEDGER_AGENT_TOKEN": "s3cret"}, {"log_level": "loud", "spool_max_mib": "1.5"})
    message = str(caught.value)
    assert "unknown setting 'spool_pth' (did you mean 'spool_path'?)" in message
    assert "sample_s must be a number, got 'often'" in message
    assert "gpm must be true or false, got 1" in message
    assert "log_level must be one of" in message
    assert "spool_max_mib must be a whole number" in message
    assert "WATTLEDGER_AGENT_TOKEN_FILE" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"sample_s": "0"}, "sample_s must lie in"),
        ({"sample_s": "nan"}, "sample_s must lie in"),
        ({"sample_s": "3"}, "row_s (10.0) must be a multiple of sample_s (3.0)"),
        ({"batch_s": "15"}, "batch_s (15.0) must be a multiple of row_s (10.0)"),
        ({"row_s": "7", "batch_s": "7"}, "must divide an hour"),
        ({"server_url": "ledger.example.org"}, "server_url must be like https://"),
        ({"server_url": "http://ledger.example.org"}, "would show the token to the network"),
        ({"server_url": "https://me:pw@ledger.example.org"}, "must not hold a password"),
        ({"token_file": "/a", "token_env": "B"}, "token_file and token_env are both set"),
        ({"client_cert_file": "/a"}, "client_cert_file and client_key_file go together"),
        ({"spool_max_mib": "0"}, "spool_max_mib must be at least 1"),
        ({"labels": "rack"}, "labels must look like"),
        ({"cpu_affinity": "all"}, "cpu_affinity must be like 0-3,8 or housekeeping"),
        ({"cpu_cap_percent": "-1"}, "must not be negative"),
        ({"dcgm_url": "127.0.0.1:9400"}, "dcgm_url must be like http://"),
        ({"otlp_listen": "0.0.0.0:4318"}, "otlp_listen must be a loopback address"),
        ({"otlp_listen": "127.0.0.1"}, "otlp_listen must be a loopback address"),
        ({"cloud": "mine"}, "cloud must be aws, gcp, azure or empty"),
        ({"environ": "always"}, "environ must be hint or never"),
        ({"engine_urls": "http://127.0.0.1:8000,vllm"}, "engine_urls must be like http://127.0.0.1:8000, got 'vllm'"),
        ({"redfish_url": "http://10.0.0.7"}, "would show its password to the network"),
        ({"redfish_user": "root"}, "redfish_user and redfish_password_file go together"),
        ({"node_power_s": "5"}, "node_power_s must lie in [30, 3600]"),
        ({"commands": True}, "commands need a command_key_file"),
        ({"commands": True}, "commands need a server_url, and a token_file or token_env"),
        ({"commands": True, "power_limit_min_w": "9"}, "0 < power_limit_min_w <= power_limit_max_w, got 9 and 0"),
        ({"node": "a\nb"}, "node must be 1 to 255 printable characters"),
    ],
)
def test_impossible_settings_are_refused_with_what_to_do(flags: dict[str, object], fault: str) -> None:
    message = faults_of(**flags)
    assert fault in message
    assert "pw" not in message


@pytest.mark.parametrize("url", ["http://127.0.0.1:8710", "http://localhost:1", "http://[::1]:1", "https://x.example"])
def test_servers_that_are_fine(url: str) -> None:
    assert config.load(None, {}, {"server_url": url}).settings.server_url == url


def test_a_missing_file_is_a_fault_and_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        config.load(tmp_path / "none.toml", {}, {})


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b'node = "n\xff"', r"agent\.toml: it is not UTF-8 text \(byte 9\)"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x=" + b"[" * 5_000, "nested too deeply"),
        (b"[x", "cannot read"),
    ],
)
def test_a_file_that_is_no_settings_is_a_fault_by_name(tmp_path: Path, data: bytes, fault: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=fault):
        config.load(file, {}, {})


def test_the_printed_settings_are_toml_that_gives_the_same_settings(tmp_path: Path) -> None:
    loaded = config.load(None, {}, {"node": 'a"b\\c', "labels": "rack=r12", "gpm": False})
    printed = loaded.describe()
    file = tmp_path / "again.toml"
    file.write_text(printed)
    assert tomllib.loads(printed)["node"] == 'a"b\\c'
    assert config.load(file, {}, {}).settings == loaded.settings
    assert "# flag" in printed


def test_a_token_comes_from_where_it_is_kept_and_is_not_in_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    loaded = config.load(None, {}, {"token_file": str(file)})
    assert loaded.settings.token() == "s3cret"
    assert "s3cret" not in repr(loaded) + loaded.describe()
    file.write_text("rotated\n")
    assert loaded.settings.token() == "rotated"
    monkeypatch.setenv("LEDGER_TOKEN", "other")
    assert config.load(None, {}, {"token_env": "LEDGER_TOKEN"}).settings.token() == "other"
    assert config.load(None, {}, {}).settings.token() is None


def test_a_token_that_is_not_there_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="cannot read the token from"):
        config.load(None, {}, {"token_file": str(tmp_path / "none")}).settings.token()
    with pytest.raises(AgentError, match="NO_SUCH_VARIABLE"):
        config.load(None, {}, {"token_env": "NO_SUCH_VARIABLE"}).settings.token()
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(AgentError, match="is empty"):
        config.load(None, {}, {"token_file": str(tmp_path / "empty")}).settings.token()


def test_the_shipped_example_is_valid() -> None:
    example = Path(__file__).resolve().parents[2] / "deploy/agent/agent.toml"
    settings = config.load(example, {}, {}).settings
    assert settings.server_url.startswith("https://")
    # An operator finds every setting in it, commented out where the default serves.
    text = example.read_text(encoding="utf-8")
    assert [name for name in config.FIELDS if f"{name} =" not in text] == []
