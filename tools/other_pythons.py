"""Type-check for other versions of Python, and run the unit tests on those that are installed here."""

import shutil
import subprocess
import sys
from pathlib import Path


def interpreter(version: str) -> str | None:
    """An interpreter of this version that really runs."""
    candidates = [shutil.which(f"python{version}")]
    candidates += [str(p) for p in sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))]
    for candidate in candidates:
        if (
            candidate
            and subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False).returncode == 0
        ):
            return candidate
    return None


def main(binaries: str, *versions: str) -> int:
    for version in versions:
        subprocess.run([f"{binaries}/pyright", "--pythonversion", version], check=True)
        found = interpreter(version)
        if found is None:
            print(f"Python {version} is not installed here: its unit tests were not run")
            continue
        venv = Path(f".venv-{version}")
        ready = venv / "ready"
        lock = Path("requirements/dev.lock")
        if not ready.exists() or ready.stat().st_mtime < lock.stat().st_mtime:
            subprocess.run([found, "tools/make_venv.py", str(venv), str(lock)], check=True)
            ready.touch()
        subprocess.run([str(venv / "bin" / "pytest"), "tests/unit", "-q", "--no-header"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
