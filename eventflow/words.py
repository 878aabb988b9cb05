"""How counts, times and lengths of time are said to people. Pure."""

from datetime import UTC, datetime, timedelta


def counted(count: int, what: str) -> str:
    """`one workflow`, `3 workflows`, `2 processes`."""
    return f"one {what}" if count == 1 else f"{count} {what}{'es' if what.endswith('s') else 's'}"


def times(count: int) -> str:
    """`once`, `3 times`."""
    return "once" if count == 1 else f"{count} times"


def time_text(moment: datetime | None) -> str:
    """A moment in UTC, to the second."""
    return "?" if moment is None else moment.astimezone(UTC).isoformat(" ", "seconds").replace("+00:00", "Z")


def length_text(length: timedelta | float) -> str:
    """How long something takes: `25 ms`, `1.2 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def one_line(text: str, longest: int = 300) -> str:
    """On one line, without what would move a terminal's cursor."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= longest else f"{shown[:longest]}..."
