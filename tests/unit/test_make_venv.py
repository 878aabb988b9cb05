"""Where Python cannot make environments, one sentence says which package to install."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

MAIN = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "make_venv.py"))["main"]


@pytest.mark.parametrize("missing", ["ensurepip", "venv"])
def test_without_ensurepip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert MAIN(str(tmp_path / "env"), "no.lock") == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    said = capsys.readouterr()
    assert said.err == (
        f"This Python cannot make environments: install the package python{version}-venv (Debian, Ubuntu).\n"
    )
    assert said.out == ""
    assert not (tmp_path / "env").exists()


def test_an_old_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(
        MAIN.__globals__, "sys", SimpleNamespace(version_info=(3, 10, 4), version="3.10.4 (x)", stderr=sys.stderr)
    )
    assert MAIN("env", "no.lock") == 1
    assert capsys.readouterr().err == "eventflow needs Python 3.11 or newer, this is 3.10.4\n"
