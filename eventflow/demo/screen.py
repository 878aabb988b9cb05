"""What the demo shows: a live picture on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from eventflow.demo.ledger import Held

_WINDOW = 2.0  # seconds over which a rate is taken
_PLAIN_EVERY = 2.0


class Gauge:
    """A number that grows towards a total, and how fast."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.value = title, total, 0
        self._seen: deque[tuple[float, int]] = deque()

    def set(self, value: int) -> None:
        """Take the number of now."""
        now = time.monotonic()
        self.value = value
        self._seen.append((now, value))
        while self._seen[0][0] < now - _WINDOW:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Per second, over the last moments."""
        (began, least), (now, most) = self._seen[0], self._seen[-1]
        return (most - least) / (now - began) if now > began else 0.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker's line."""

    title: str
    pid: int
    state: str
    held: Held


class Screen:
    """Plain lines: each piece of news, and the numbers every two seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._spoke = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def say(self, text: str) -> None:
        """A piece of news."""
        self.console.print(f"{self.elapsed:5.1f} s  {text}", highlight=False, soft_wrap=True)

    @property
    def elapsed(self) -> float:
        """Seconds since the curtain rose."""
        return time.monotonic() - self._began

    def show(self, gauges: Sequence[Gauge], workers: Sequence[WorkerView]) -> None:
        """The numbers of now."""
        if time.monotonic() - self._spoke < _PLAIN_EVERY:
            return
        self._spoke = time.monotonic()
        numbers = "; ".join(f"{g.title} {g.value:,} ({g.rate:,.0f}/s)" for g in gauges)
        held = ", ".join(f"{w.title} {w.state} with {w.held.partitions} partitions" for w in workers)
        self.say(f"{numbers}; {held}")


class LiveScreen(Screen):
    """A picture that renews itself in place; the news gather below it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._news: list[tuple[float, str]] = []
        self._picture: RenderableType = ""
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._news.append((self.elapsed, text))

    def show(self, gauges: Sequence[Gauge], workers: Sequence[WorkerView]) -> None:
        self._picture = Group(_bars(gauges), Text(), _table(workers), Text())

    def _render(self) -> RenderableType:
        news = [Text.from_markup(f"[dim]{at:5.1f} s[/dim]  {text}") for at, text in self._news]
        return Group(self._picture, *news)


def _bars(gauges: Sequence[Gauge]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "right"):
        grid.add_column(justify=justify, no_wrap=True)
    for gauge in gauges:
        bar = ProgressBar(gauge.total, gauge.value, width=30)
        grid.add_row(
            gauge.title, bar, f"{gauge.value:,}[dim] of {gauge.total:,}[/dim]", f"[cyan]{gauge.rate:,.0f}/s[/cyan]"
        )
    return grid


_COLOURS = {"runs": "green", "starts": "yellow", "killed": "bold red", "ended": "dim"}


def _table(workers: Sequence[WorkerView]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for title in ("worker", "process", "state"):
        table.add_column(title)
    for title in ("partitions held", "in flight", "effects written"):
        table.add_column(title, justify="right")
    for worker in workers:
        held, colour = worker.held, _COLOURS.get(worker.state, "")
        table.add_row(
            worker.title, str(worker.pid), f"[{colour}]{worker.state}[/]", str(held.partitions),
            f"{held.in_flight:,}", f"{held.effects:,}",
        )  # fmt: skip
    return table


def make_screen(console: Console) -> Screen:
    """A live picture where the terminal can show one, else plain lines."""
    return LiveScreen(console) if console.is_terminal and not console.is_dumb_terminal else Screen(console)
