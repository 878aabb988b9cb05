from datetime import timedelta

import pytest

from eventflow.errors import SettingsError
from eventflow.settings import load_settings, masked

URL = "postgresql://me:s3cret@db.example/shop"


def test_secrets_never_show() -> None:
    settings = load_settings(database_url=URL, kafka={"sasl.password": "s3cret"})
    assert "s3cret" not in repr(settings)
    assert settings.safe_database_url == "postgresql://me:***@db.example/shop"
    assert masked("postgresql://db/shop?user=me&password=s3cret") == "postgresql://db/shop?user=me&password=***"


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


@pytest.mark.parametrize(("text", "kept"), [("all", None), ("7d", timedelta(days=7)), ("90", timedelta(seconds=90))])
def test_keep(text: str, kept: timedelta | None) -> None:
    assert load_settings(database_url=URL, keep=text).keep == kept
