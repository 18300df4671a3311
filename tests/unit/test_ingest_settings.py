"""Ingest's settings: every fault at once, each with its variable."""

from pathlib import Path

import pytest

from ingest.settings import Settings, SettingsError
from ingest.store.engine import Database

pytestmark = pytest.mark.unit
DATABASE = Database.on_socket(Path("/run/x"))


def test_the_environment_overrides_defaults() -> None:
    settings = Settings.from_env({"WATTLEDGER_INGEST_WRITERS": "4", "HOME": "/x"}, DATABASE)
    assert (settings.writers, settings.group_rows, settings.limits.linger_s) == (4, 20_000, 0.05)


def test_what_is_watched_is_where_the_database_lies_and_what_is_named() -> None:
    env = {"WATTLEDGER_INGEST_DISK_PATHS": "/pg/data, /pg/wal", "WATTLEDGER_INGEST_DATABASE_MAX_MIB": "2048"}
    settings = Settings.from_env(env, DATABASE, data_paths=(Path("/home"),))
    assert settings.watched_paths == (Path("/home"), Path("/pg/data"), Path("/pg/wal"))
    for wrong, told in (
        ({"WATTLEDGER_INGEST_DISK_PATHS": "data"}, "WATTLEDGER_INGEST_DISK_PATHS: must be whole paths"),
        ({"WATTLEDGER_INGEST_DATABASE_MAX_MIB": "1024"}, "must be more than WATTLEDGER_INGEST_MIN_FREE_MIB"),
    ):
        with pytest.raises(SettingsError, match=told):
            Settings.from_env(wrong, DATABASE)


def test_all_faults_are_told_at_once() -> None:
    env = {
        "WATTLEDGER_INGEST_WRITERS": "many",
        "WATTLEDGER_INGEST_LINGER_MS": "-1",
        "WATTLEDGER_INGEST_QUEUE_MIB": "0",
        "WATTLEDGER_INGEST_COLOUR": "red",
    }
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(env, DATABASE)
    message = str(caught.value)
    for wanted in (
        "WATTLEDGER_INGEST_WRITERS: must be a whole number, got 'many'",
        "WATTLEDGER_INGEST_LINGER_MS: must be 0 to 1000, got -1",
        "WATTLEDGER_INGEST_QUEUE_MIB: must be 1 to 65536, got 0",
        "WATTLEDGER_INGEST_COLOUR: no such setting; known are WATTLEDGER_INGEST_WRITERS",
    ):
        assert wanted in message
