from pathlib import Path

import psycopg
import pytest

from ingest.store.engine import Database, DatabaseUrlError, Role

pytestmark = pytest.mark.unit

URL = "postgresql://finops:s3cret@db.example:5433/costs?sslmode=require"


def test_on_the_socket_each_role_logs_in_itself() -> None:
    database = Database.on_socket(Path("/run/a b"), "costs")
    parsed = psycopg.conninfo.conninfo_to_dict(database.libpq_uri("api"))
    assert parsed == {"user": "wattledger_api", "host": "/run/a b", "port": "5432", "dbname": "costs"}
    assert psycopg.conninfo.conninfo_to_dict(database.libpq_uri("admin"))["user"] == "postgres"


@pytest.mark.parametrize("role", ["owner", "writer", "worker", "api"])
def test_at_a_url_its_user_switches_to_the_role(role: Role) -> None:
    parsed = psycopg.conninfo.conninfo_to_dict(Database.at_url(URL).libpq_uri(role))
    assert parsed["user"] == "finops"
    assert parsed["password"] == "s3cret"
    assert parsed["sslmode"] == "require"
    assert parsed["options"] == f"-c role=wattledger_{role}"


def test_options_in_the_url_are_kept() -> None:
    database = Database.at_url(URL + "&options=-c%20statement_timeout%3D5s")
    options = psycopg.conninfo.conninfo_to_dict(database.libpq_uri("worker"))["options"]
    assert options == "-c statement_timeout=5s -c role=wattledger_worker"


def test_migrations_use_the_url_as_it_is() -> None:
    assert Database.at_url(URL).libpq_uri("admin") == URL


def test_sqlalchemys_spelling_of_the_driver_is_taken() -> None:
    assert Database.at_url(URL.replace("postgresql:", "postgresql+psycopg:")).url == URL


def test_the_password_is_never_shown() -> None:
    by_user = Database.at_url(URL)
    by_query = Database.at_url("postgresql://h/d?user=u&password=s3cret")
    for database in (by_user, by_query):
        assert "s3cret" not in repr(database) + str(database) + database.display_url
    assert by_user.display_url == "postgresql://finops@db.example:5433/costs?sslmode=require"


def test_another_database_of_the_same_server_keeps_the_rest() -> None:
    assert Database.at_url(URL).named("other").url == URL.replace("/costs", "/other")
    assert Database.at_url(URL).name == "costs"


@pytest.mark.parametrize("url", ["sqlite:///s3cret.db", "s3cret", "postgresql://u:s3cret@h/d?nonsense=1"])
def test_what_is_no_postgresql_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(DatabaseUrlError) as caught:
        Database.at_url(url)
    assert "s3cret" not in str(caught.value)
    assert "WATTLEDGER_DATABASE_URL" in str(caught.value)


def test_an_unset_variable_means_the_embedded_server() -> None:
    assert Database.from_env({}) is None
    assert Database.from_env({"WATTLEDGER_DATABASE_URL": ""}) is None
    assert Database.from_env({"WATTLEDGER_DATABASE_URL": URL}) == Database.at_url(URL)


def test_the_url_may_lie_in_a_file_as_mounted_secrets_do(tmp_path: Path) -> None:
    secret = tmp_path / "database_url"
    secret.write_text(f"{URL}\n")
    assert Database.from_env({"WATTLEDGER_DATABASE_URL_FILE": str(secret)}) == Database.at_url(URL)


@pytest.mark.parametrize(
    ("content", "also", "told"),
    [("", {}, "is empty"), (None, {}, "No such file"), (URL, {"WATTLEDGER_DATABASE_URL": URL}, "both set")],
)
def test_a_named_file_never_means_the_embedded_server(
    tmp_path: Path, content: str | None, also: dict[str, str], told: str
) -> None:
    secret = tmp_path / "database_url"
    if content is not None:
        secret.write_text(content)
    with pytest.raises(DatabaseUrlError, match=told):
        Database.from_env({"WATTLEDGER_DATABASE_URL_FILE": str(secret), **also})
