"""Which services the tests run on."""

import pytest

from tests import services


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (services.DATABASE, services.KAFKA, services.WANTED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(services, "docker_answers", lambda: False)


def test_local_is_the_last_resort() -> None:
    assert services.choose() == "local"


def test_docker_before_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "docker_answers", lambda: True)
    assert services.choose() == "docker"


def test_external_before_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "docker_answers", lambda: True)
    monkeypatch.setenv(services.DATABASE, "postgresql://x")
    monkeypatch.setenv(services.KAFKA, "x:9092")
    assert services.choose() == "external"


def test_a_programs_own_services_are_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://x")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "x:9092")
    assert services.choose() == "local"


@pytest.mark.parametrize("wanted", ["docker", "external", "cloud"])
def test_a_backend_asked_for_by_name_is_never_replaced(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv(services.WANTED, wanted)
    with pytest.raises(RuntimeError, match="EVENTFLOW_TEST_BACKEND"):
        services.choose()
