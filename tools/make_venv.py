"""Make a virtual environment from a lock file; where Python cannot, say in one sentence what to install."""

import subprocess
import sys
from pathlib import Path


def main(venv: str, lock: str) -> int:
    if sys.version_info < (3, 11):
        print(f"eventflow needs Python 3.11 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    try:
        import ensurepip  # noqa: F401
        import venv as builder
    except ImportError:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        print(
            f"This Python cannot make environments: install the package python{version}-venv (Debian, Ubuntu).",
            file=sys.stderr,
        )
        return 1
    if not (Path(venv) / "bin" / "python").exists():
        print(f"making {venv}", flush=True)
        builder.create(venv, with_pip=True)
    pip = [f"{venv}/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    print("installing the locked versions", flush=True)
    subprocess.run([*pip, "--require-hashes", "-r", lock], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", "."], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
