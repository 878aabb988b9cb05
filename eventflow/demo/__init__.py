"""`eventflow demo`: orders flow through Kafka into Postgres, a worker is killed in their midst, and the count is exact.

The plot stands here. `app` is what the workers run, `stage` is all that is set up and taken down, `ledger` what is read
from Postgres, `screen` what is shown. Everything is the demo's own: services, database, topic; a program's own
`DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS` are never read.
"""

import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table

from eventflow.demo.ledger import Connection, Held, Picture, Proof, look, prove
from eventflow.demo.screen import Gauge, Screen, WorkerView, make_screen
from eventflow.demo.stage import PARTITIONS, Stage, Worker
from eventflow.local import Addresses

_SPREAD = 12.0  # seconds over which the orders are produced, at least
_MOST = 2_500  # orders per second, at most
_LIMIT = 100.0  # seconds after set-up; then the proof shows what is missing
_KILL_AT = 0.4  # the share of the orders after which a worker is killed
_CLAIMS = PARTITIONS * 2  # a claim per partition and group


def run_demo(folder: Path, addresses: Addresses, orders: int) -> int:
    """Run the demo on these services; the exit status: 0 only where everything agrees."""
    console = Console()
    stage = Stage(folder, addresses, orders, max(_SPREAD, orders / _MOST))
    try:
        stage.set_up()
        console.print(
            f"[bold]eventflow demo[/bold]: {orders:,} orders through a real Kafka into a real Postgres.\n"
            "Two handlers get each of them: [cyan]billing[/cyan] is a workflow with a step, "
            "[cyan]ledger[/cyan] a transaction.\nTwo workers run both; one will be killed.\n",
            highlight=False,
            soft_wrap=True,
        )
        with psycopg.connect(stage.url, autocommit=True) as connection, make_screen(console) as screen:
            play = Play(stage, connection, screen, orders)
            finished = play.run()
        stage.end_workers()
        return _prove(console, stage, orders, play.takeover) if finished else 1
    finally:
        stage.kill_workers()


class Play:
    """The plot: two workers, one SIGKILL, a third worker, the end."""

    def __init__(self, stage: Stage, connection: Connection, screen: Screen, orders: int) -> None:
        self._stage, self._connection, self._screen, self._orders = stage, connection, screen, orders
        self._gauges = (
            Gauge("orders produced", orders), Gauge("workflows completed", orders), Gauge("effects written", orders),
        )  # fmt: skip
        self._picture = Picture(0, 0, 0, {})
        self._until = time.monotonic() + _LIMIT
        self.takeover: float | None = None

    def run(self) -> bool:
        """Play it; whether nothing unforeseen has happened."""
        victim = self._start_worker()
        self._start_worker()
        if not self._watch(self._both_own):
            return False
        self._screen.say("both workers hold partitions; the orders begin to flow")
        self._stage.orders.start()
        if not self._watch(lambda: self._picture.workflows >= self._orders * _KILL_AT):
            return False
        self._kill(victim)
        self._start_worker()
        return self._watch(lambda: self._taken_over(victim) and self._done())

    def _start_worker(self) -> Worker:
        worker = self._stage.start_worker()
        self._screen.say(f"[green]{worker.title}[/green] starts: process {worker.pid}, `eventflow run`")
        return worker

    def _watch(self, reached: Callable[[], bool]) -> bool:
        """Look and show, until something is reached; False where a worker has ended by itself."""
        while time.monotonic() < self._until:
            self._picture = look(self._connection)
            self._show()
            if reached():
                return True
            fallen = [w for w in self._stage.workers if w.killed_at is None and w.status is not None]
            if fallen:
                self._screen.say(f"{fallen[0].title} ended by itself with status {fallen[0].status}: {fallen[0].log}")
                return False
            time.sleep(0.1)
        self._screen.say(f"not finished after {_LIMIT:.0f} s")
        return True

    def _show(self) -> None:
        numbers = (self._stage.orders.acknowledged, self._picture.workflows, self._picture.effects)
        for gauge, number in zip(self._gauges, numbers, strict=True):
            gauge.set(number)
        self._screen.show(self._gauges, [self._view(w) for w in self._stage.workers])

    def _view(self, worker: Worker) -> WorkerView:
        held = self._picture.held.get(worker.pid, Held())
        state = "killed" if worker.killed_at else "ended" if worker.status is not None else "runs"
        return WorkerView(worker.title, worker.pid, state if held.alive or state != "runs" else "starts", held)

    def _both_own(self) -> bool:
        owners = [h for h in self._picture.held.values() if h.partitions]
        return self._picture.owned == _CLAIMS and len(owners) == len(self._stage.workers)

    def _kill(self, victim: Worker) -> None:
        held = self._picture.held.get(victim.pid, Held())
        victim.kill()
        self._screen.say(
            f"[bold red]SIGKILL[/bold red] to {victim.title}: it held {held.partitions} partitions and "
            f"{held.in_flight} accepted workflows in flight"
        )

    def _taken_over(self, victim: Worker) -> bool:
        """Whether the dead worker is known to be dead, and every partition belongs to a living one."""
        if self.takeover is None and victim.killed_at is not None:
            held = self._picture.held.get(victim.pid, Held())
            if not held.alive and not held.in_flight and self._picture.owned == _CLAIMS:
                self.takeover = time.monotonic() - victim.killed_at
                self._screen.say(
                    f"[bold green]taken over[/bold green] {self.takeover:.1f} s after the kill: "
                    "all that it held belongs to the living"
                )
        return self.takeover is not None

    def _done(self) -> bool:
        return self._picture.workflows >= self._orders and self._picture.effects >= self._orders


def _prove(console: Console, stage: Stage, orders: int, takeover: float | None) -> int:
    """Print the proof; the exit status."""
    with psycopg.connect(stage.url, autocommit=True) as connection:
        proof = prove(connection, orders)
    produced = stage.produced()
    unclean = [w for w in stage.workers if w.killed_at is None and w.status != 0]
    console.print(
        "\nThe proof, read from Kafka, from Postgres and from the rows that the handlers wrote:\n", soft_wrap=True
    )
    console.print(_table(proof, produced, takeover))
    for worker in unclean:
        console.print(f"{worker.title} did not end cleanly (status {worker.status}): {worker.log}")
    exact = (
        produced == proof.workflows == proof.effects == orders
        and proof.duplicates == proof.lost == 0 and takeover is not None and not unclean
    )  # fmt: skip
    console.print("\n[bold green]exact[/bold green]" if exact else "\n[bold red]NOT exact[/bold red]")
    return 0 if exact else 1


def _table(proof: Proof, produced: int, takeover: float | None) -> Table:
    grid = Table.grid(padding=(0, 3))
    grid.add_column()
    grid.add_column(justify="right", style="bold")
    rows = {
        "messages produced": produced, "workflows completed": proof.workflows, "effects written": proof.effects,
        "duplicates": proof.duplicates, "lost": proof.lost,
        "workflows begun by the dead, ended by the living": proof.taken_over,
    }  # fmt: skip
    for title, number in rows.items():
        grid.add_row(f"  {title}", f"{number:,}")
    grid.add_row("  takeover after SIGKILL", "not seen" if takeover is None else f"{takeover:.1f} s")
    return grid
