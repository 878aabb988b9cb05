"""`eventflow init`: a project from the template that this package carries."""

import re
import shutil
from importlib.metadata import version
from pathlib import Path

from eventflow.errors import UsageError

_TEMPLATE = Path(__file__).parent / "templates" / "project"
_HIDDEN = {"gitignore", "dockerignore"}  # files that would act on this checkout, were they called by their names here


def make_project(name: str, place: Path) -> list[str]:
    """Write a project of this name into a folder of this name; its files, sorted.

    Raises:
        UsageError: a name that cannot be, or a folder that has something in it.

    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name):
        raise UsageError(f"not a name for a project: {name!r}; it is small letters, digits, - and _, such as shop-2")
    folder = place / name
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty, and nothing was written")
        made = [_write(file, folder, name) for file in sorted(_TEMPLATE.rglob("*")) if _is_of_it(file)]
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}") from error
    return sorted(made)


def _is_of_it(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


def _write(file: Path, folder: Path, name: str) -> str:
    inside = file.relative_to(_TEMPLATE)
    if file.name in _HIDDEN:
        inside = inside.with_name(f".{file.name}")
    target = folder / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    text = file.read_text(encoding="utf-8").replace("PROJECT", name).replace("VERSION", version("eventflow"))
    target.write_text(text, encoding="utf-8")
    shutil.copymode(file, target)
    return str(inside)
