"""Which services the tests run on."""

from pathlib import Path

import pytest

from tests import services


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (services.DATABASE, services.KAFKA, services.WANTED, services.REQUIRE, services.WAIVE):
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


def test_what_is_missing_is_skipped_or_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(services, "PACKAGES", {"there": tmp_path, "gone": tmp_path / "gone"})
    assert services.need("there") == tmp_path
    with pytest.raises(pytest.skip.Exception, match="gone"):
        services.need("gone")
    assert "gone: missing, its tests are skipped" in services.describe("local")
    monkeypatch.setenv(services.REQUIRE, "1")
    with pytest.raises(pytest.fail.Exception, match=f"{services.WAIVE}=gone"):
        services.need("gone")
    assert "there: installed · gone: missing, and required" in services.describe("docker")
    monkeypatch.setenv(services.WAIVE, "there, gone")
    with pytest.raises(pytest.skip.Exception):
        services.need("gone")
    monkeypatch.setenv(services.WAIVE, "gnoe")
    with pytest.raises(RuntimeError, match="gnoe"):
        services.describe("local")
