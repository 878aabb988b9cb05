from datetime import timedelta

import pytest
from pydantic import ValidationError

from eventflow.errors import SettingsError
from eventflow.settings import Settings, load_settings, masked

URL = "postgresql://me:s3cret@db.example/shop"


def test_secrets_never_show() -> None:
    settings = load_settings(database_url=URL, kafka={"sasl.password": "s3cret"})
    assert "s3cret" not in repr(settings)
    assert settings.safe_database_url == "postgresql://me:***@db.example/shop"
    assert masked("postgresql://db/shop?user=me&password=s3cret") == "postgresql://db/shop?user=me&password=***"


def test_secrets_of_other_databases_never_show() -> None:
    settings = load_settings(database_url=URL, databases={"shop": URL, "crm": "postgres://me:s3cret@x/y"})
    assert settings.databases == {"shop": URL, "crm": "postgresql://me:s3cret@x/y"}
    assert "s3cret" not in repr(settings)
    with pytest.raises(ValidationError) as error:
        Settings(database_url=URL, databases={"shop": "mysql://me:s3cret@x/y"})
    assert "s3cret" not in str(error.value)


def test_other_databases_come_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTFLOW_DATABASES", f'{{"shop": "{URL}"}}')
    assert load_settings(database_url=URL).databases == {"shop": URL}


def test_a_missing_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(SettingsError, match="DATABASE_URL is not set"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EVENTFLOW_LEASE", "soon"),
        ("EVENTFLOW_THREADS", "0"),
        ("DATABASE_URL", "mysql://x"),
        ("EVENTFLOW_KEEP", "long"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable) as error:
        load_settings()
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("name", ["auto.offset.reset", "group.id", "enable.auto.commit"])
def test_kafka_properties_that_are_ours(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_settings(database_url=URL, kafka={name: "x"})


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("EVENTFLOW_KAFKA", "{s3cret", "EVENTFLOW_KAFKA: must be a JSON object: Expecting property name enclosed in double quotes, at character 2"),
        ("EVENTFLOW_KAFKA", '["s3cret"]', 'EVENTFLOW_KAFKA: must be a JSON object, such as {"client.rack": "a"}'),
        ("EVENTFLOW_KAFKA", '{"a": ["s3cret"]}', "EVENTFLOW_KAFKA: the Kafka property 'a' must be a string, a number or a boolean"),
        ("EVENTFLOW_KAFKA", '{"group.id": "s3cret"}', "EVENTFLOW_KAFKA: the Kafka property 'group.id' can not be set; use group= of @kafka_consumer"),
        ("EVENTFLOW_DATABASES", "{s3cret", "EVENTFLOW_DATABASES: must be a JSON object: Expecting property name enclosed in double quotes, at character 2"),
        ("EVENTFLOW_DATABASES", '["s3cret"]', 'EVENTFLOW_DATABASES: must be a JSON object, such as {"shop": "postgresql://..."}'),
        ("EVENTFLOW_DATABASES", '{"the shop": "s3cret"}', "EVENTFLOW_DATABASES: not a name for a database: 'the shop'; it is letters, digits and _, such as shop_2"),
        ("EVENTFLOW_DATABASES", '{"shop": ["s3cret"]}', "EVENTFLOW_DATABASES: the database 'shop' must be a URL that begins with postgresql://"),
        ("EVENTFLOW_DATABASES", '{"shop": "mysql://me:s3cret@x"}', "EVENTFLOW_DATABASES: the database 'shop': must be a URL that begins with postgresql://"),
        ("EVENTFLOW_DATABASES", '{"shop": "postgresql://me:s3/cret@x/y"}', "EVENTFLOW_DATABASES: the database 'shop': in its user and password, characters such as / @ : ? # must be percent-encoded"),
        ("EVENTFLOW_KEEP", "long", "EVENTFLOW_KEEP: must be `all`, or how long: `30m`, `12h`, `7d`, or seconds"),
        ("EVENTFLOW_KEEP", "9" * 300 + "d", "EVENTFLOW_KEEP: must be `all`, or how long: `30m`, `12h`, `7d`, or seconds"),
        ("EVENTFLOW_KEEEP", "7d", "EVENTFLOW_KEEEP is no setting of eventflow; did you mean EVENTFLOW_KEEP?"),
        ("eventflow_treads", "7", "eventflow_treads is no setting of eventflow; did you mean EVENTFLOW_THREADS?"),
        ("EVENTFLOW_DATABASE_URL", URL, "EVENTFLOW_DATABASE_URL is no setting of eventflow; did you mean DATABASE_URL?"),
        ("EVENTFLOW_QQ", "7", "EVENTFLOW_QQ is no setting of eventflow"),
        ("EVENTFLOW_BEAT", "5", "EVENTFLOW_BEAT is 5 and EVENTFLOW_LEASE is 5: a lease must be three beats or longer, or a process is presumed dead that lives"),
        ("EVENTFLOW_LEASE", "1", "EVENTFLOW_BEAT is 1 and EVENTFLOW_LEASE is 1: a lease must be three beats or longer, or a process is presumed dead that lives"),
    ],
)  # fmt: skip
def test_what_is_said(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert str(error.value) == said


@pytest.mark.parametrize(
    "variable",
    [
        "EVENTFLOW_CACHE", "EVENTFLOW_CRASH", "EVENTFLOW_STOP", "EVENTFLOW_CRASH_SEEDS", "EVENTFLOW_TEST_BACKEND",
        # What Kubernetes gives every pod beside services named `eventflow` and `eventflow-web`.
        "EVENTFLOW_SERVICE_HOST", "EVENTFLOW_SERVICE_PORT_HTTP", "EVENTFLOW_PORT", "EVENTFLOW_WEB_PORT_80_TCP_ADDR",
        "EVENTFLOW_WEB_SERVICE_PORT",
    ],
)  # fmt: skip
def test_variables_of_others(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "tcp://10.0.0.1:80")
    load_settings(database_url=URL)


def test_kafka_properties_come_as_json_or_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"client.rack": "a", "socket.keepalive.enable": True, "socket.timeout.ms": 5000}
    assert load_settings(database_url=URL, kafka=wanted).kafka == wanted
    monkeypatch.setenv(
        "EVENTFLOW_KAFKA", '{"client.rack": "a", "socket.keepalive.enable": true, "socket.timeout.ms": 5000}'
    )
    assert load_settings(database_url=URL).kafka == wanted


@pytest.mark.parametrize(("text", "kept"), [("all", None), ("7d", timedelta(days=7)), ("90", timedelta(seconds=90))])
def test_keep(text: str, kept: timedelta | None) -> None:
    assert load_settings(database_url=URL, keep=text).keep == kept
