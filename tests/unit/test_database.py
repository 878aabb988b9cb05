"""An address that cannot be right is refused by name; what libpq will never take is not tried again."""

import psycopg
import pytest

from eventflow.database import Database, is_pointless
from eventflow.errors import SettingsError, UnavailableError
from eventflow.settings import load_settings


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@h/d?foo=bar", "postgresql://me:s3cret@h/d b", "postgresql://me:s3 cret@h/d",
        "postgresql://[s3cret", "postgresql://h:s3cret/d", "postgresql://me:s3%cret@h/d", "postgresql://me:s3cret@h:99999/d",
        "postgresql://me:s3cret@h1:5432,h2:x/d",
        # Passwords that no one encoded: libpq takes their ends for something that every message shows.
        "postgresql://me:pa/s3cret@h/d", "postgresql://me:12/s3cret@h/d", "postgresql://me:pa@s3cret@h/d",
        "postgresql://me:pa?s3cret@h/d", "postgresql://me:pa#s3cret@h/d",
    ],
)  # fmt: skip
def test_an_address_that_libpq_cannot_read_or_would_misread(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: ") as error:
        Database(load_settings(database_url=url).database_url)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://", "postgresql:///d", "postgresql://me:p%2Fa%40b@h/d?sslmode=require", "postgres://h1:1,h2/d",
        "postgresql+psycopg://[::1]:5432/d", "postgresql://h/d?user=me@azure&password=x", "postgresql://%2Frun%2Fpg/d",
    ],
)  # fmt: skip
def test_addresses_that_are_right(url: str) -> None:
    Database(load_settings(database_url=url).database_url)


@pytest.mark.parametrize("parameter", ["sslmode=bogus", "target_session_attrs=x", "gssencmode=x"])
def test_a_parameter_with_a_value_that_there_is_not(parameter: str) -> None:
    with pytest.raises(UnavailableError, match=f'invalid {parameter.partition("=")[0]} value: "') as error:
        Database(f"postgresql://me:s3cret@127.0.0.1:1/d?{parameter}").connect("test")
    assert error.value.permanent  # type: ignore[attr-defined]
    assert "s3cret" not in str(error.value)


def test_a_server_that_is_away_is_tried_again() -> None:
    with pytest.raises(UnavailableError) as error:
        Database("postgresql://127.0.0.1:1/d").connect("test")
    assert not error.value.permanent  # type: ignore[attr-defined]
    assert not is_pointless(psycopg.OperationalError("the database system is starting up"))
