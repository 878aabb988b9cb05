"""Where code has swallowed what was to unwind it: by the traceback of what it swallowed, and the source.

A traceback grows frame by frame while its exception unwinds; so its outermost frame is the one that went on.
"""

import ast
import linecache
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

_OURS = str(Path(__file__).parent)


def place_of(errors: Iterable[BaseException]) -> str:
    """Where the first of these that the program has swallowed was: "/app/orders.py:17, in ship"; or "an unknown place"."""
    for error in errors:
        traceback = error.__traceback__
        if traceback is not None and not traceback.tb_frame.f_code.co_filename.startswith(_OURS):
            return _named(traceback)
    return "an unknown place"


def _named(traceback: TracebackType) -> str:
    code = traceback.tb_frame.f_code
    line = swallowing_line("".join(linecache.getlines(code.co_filename)), traceback.tb_lineno)
    return f"{code.co_filename}:{line}, in {code.co_name}"


def swallowing_line(source: str, line: int) -> int:
    """The line of the `except` that caught what this line raised, or of what leaves a `finally`; else the line itself."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return line
    around = [node for node in ast.walk(tree) if isinstance(node, ast.Try) and _has(node.body, line)]
    for node in sorted(around, key=lambda node: node.lineno, reverse=True):
        for found in (*_catching(node), *_leaving(node.finalbody)):
            return found
    return line


def _has(body: list[ast.stmt], line: int) -> bool:
    return body[0].lineno <= line <= (body[-1].end_lineno or line)


def _catching(node: ast.Try) -> Iterator[int]:
    """Handlers that catch everything."""
    for handler in node.handlers:
        caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if any(one is None or ast.unparse(one).rpartition(".")[2] in {"BaseException", "Suspended"} for one in caught):
            yield handler.lineno


def _leaving(body: list[ast.stmt]) -> Iterator[int]:
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Return | ast.Break | ast.Continue):
                yield node.lineno
