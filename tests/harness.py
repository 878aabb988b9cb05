"""What the guarantees' tests are made of: a world (a ledger, a topic, workers in processes of their own) and its proof.

Workers are real processes (`python -m eventflow run APP`), so that a signal, a lost connection or a crash point does
to them what it would do in production. Nothing here sleeps for a guessed time: `World.wait` polls until a condition
holds and fails, with the workers' logs, when it does not.
"""

import json
import os
import random
import signal
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.forkserver import fork
from tests.patience import until_next_look

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
APPS = ROOT / "tests" / "integration" / "worker_apps"

# Short enough that a test waits for a takeover and not for a lease.
FAST = {
    "EVENTFLOW_LEASE": "1",
    "EVENTFLOW_BEAT": "0.2",
    "EVENTFLOW_KAFKA": json.dumps({"session.timeout.ms": 2000}),
}
# The defaults of a deployment, for tests that measure them.
DEFAULTS: dict[str, str] = {}


class Worker:
    """One `eventflow run` process, or a `program` of its own; its output goes to a file that a failing test shows."""

    def __init__(
        self, app: str, environment: dict[str, str], log: Path, *, program: bool = False, options: Sequence[str] = ()
    ) -> None:
        self.app, self.log = app, log
        argv = [app] if program else ["eventflow", "run", app]
        with log.open("ab") as out, Path(os.devnull).open("rb") as nothing:
            files = nothing.fileno(), out.fileno(), out.fileno()
            self.process = fork([*argv, *options], APPS, environment, files)
        self.pid = self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        if self.alive:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.process.wait(10)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.process.wait(timeout)

    @property
    def frozen(self) -> bool:
        """Whether it is stopped (state T), as after SIGSTOP."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return status.rpartition(")")[2].split()[0] == "T"


@dataclass
class World:
    """A ledger's database, one topic, and the workers of one test."""

    database_url: str
    bootstrap_servers: str
    folder: Path
    defaults: dict[str, str] = field(default_factory=lambda: dict(FAST))
    topic: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:12]}")
    workers: list[Worker] = field(default_factory=list[Worker])
    produced: int = 0
    excused: dict[int, int] = field(default_factory=dict[int, int])
    _connection: "psycopg.Connection[Any] | None" = None
    _producer: Producer | None = None
    _admin: AdminClient | None = None

    # ---- Postgres ----

    def sql(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Run one statement in the test's own autocommit connection, opened anew where it was lost."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self.database_url, autocommit=True, connect_timeout=5, application_name="test"
            )
        try:
            cursor = self._connection.execute(query.encode(), params or None)
        except psycopg.OperationalError:
            if not self._connection.closed:
                raise
            return []  # the server went away: a poll asks again
        return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *params: object) -> Any:
        """The only value of the only row; None while the server is away."""
        try:
            rows = self.sql(query, *params)
        except psycopg.OperationalError:
            return None
        return rows[0][0] if rows else None

    def wait(self, condition: Callable[[], T], what: str, timeout: float = 40) -> T:
        """Poll until the condition is true; its value.

        Raises:
            AssertionError: it did not come true in time.
        """
        began = time.monotonic()
        while True:
            value = condition()
            if value:
                return value
            passed = time.monotonic() - began
            assert passed < timeout, f"not within {timeout} s: {what}; {self.summary()}"
            time.sleep(until_next_look(passed))

    def summary(self) -> str:
        """Where the world stands, for a message of failure."""
        try:
            rows = self.sql("select name, status::text, count(*) from eventflow.workflows group by 1, 2")
        except psycopg.Error as error:
            return f"Postgres: {error}"
        return f"{self.produced} produced, workflows {rows}, workers {[w.process.poll() for w in self.workers]}"

    def completed(self, group: str, topic: str | None = None) -> int:
        """How many messages of the topic have succeeded for the group."""
        return (
            self.one(
                """select count(*) from eventflow.workflows w join eventflow.claims c on c.id = w.claim
                   join eventflow.sources s on s.id = c.source
                   where c."group" = %s and s.topic = %s and w.status = 'succeeded'""",
                group, topic or self.topic,
            )
            or 0
        )  # fmt: skip

    def wait_completed(self, group: str, count: int | None = None, timeout: float = 60) -> None:
        """Wait until so many (all that were produced) have succeeded for the group."""
        wanted = self.produced if count is None else count
        self.wait(lambda: self.completed(group) >= wanted, f"{wanted} of {group} completed", timeout)

    def lose(self, worker: Worker, chance: random.Random) -> None:
        """Have it killed, frozen or told to go, as chance will have it."""
        match chance.choice(["kill", "freeze", "leave"]):
            case "kill":
                worker.kill()
            case "freeze":
                worker.freeze()
                self.mark_effects(worker)
            case _:
                worker.signal(signal.SIGTERM)

    def executor(self, worker: Worker) -> int | None:
        """The id of the worker's living executor."""
        return self.one("select max(id) from eventflow.executors where pid = %s and alive", worker.pid)

    def owned(self, worker: Worker, group: str | None = None) -> int:
        """How many partitions the worker's living executor owns."""
        return (
            self.one(
                """select count(*) from eventflow.claims c join eventflow.executors e on e.id = c.owner
                   where e.pid = %s and e.alive and not c.released
                     and (%s::text is null or c."group" = %s)""",
                worker.pid, group, group,
            )
            or 0
        )  # fmt: skip

    def wait_owner(self, worker: Worker, partitions: int = 1, group: str | None = None) -> None:
        """Wait until the worker owns at least so many partitions."""
        self.wait(
            lambda: self.owned(worker, group) >= partitions,
            f"{worker.log.name} owns {partitions} partitions",
        )

    def unfinished(self) -> int:
        return self.one(
            "select count(*) from eventflow.workflows where status in ('queued', 'running', 'waiting', 'parked')"
        )

    # ---- Kafka ----

    @property
    def admin(self) -> AdminClient:
        """One client for the whole test: futures of a client that is gone fail."""
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        return self._admin

    def create_topic(self, partitions: int = 4, name: str | None = None) -> str:
        """Create the world's topic, and wait until the brokers lead its partitions.

        To know them is not enough: a broker refuses what comes before it leads. Where it refuses a batch of an idempotent
        producer and takes the one behind it, librdkafka reports both as delivered (KAFKA-15591, before Kafka 4.5).
        """
        topic = name or self.topic
        self.producer.poll(0)  # it asks for its producer id while workers start, and not when the load begins
        self.admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)
        self.wait(lambda: self.has_partitions(partitions, topic), f"topic {topic} exists")
        return topic

    def delete_topic(self, name: str | None = None) -> None:
        topic, admin = name or self.topic, self.admin
        admin.delete_topics([topic])[topic].result(30)
        self.wait(lambda: topic not in admin.list_topics(timeout=5).topics, f"{topic} is deleted")
        self._producer = None  # its sequence numbers go on where the deleted log ended

    def forget_clients(self) -> None:
        """They know what was: another cluster, a log that is not the same any more."""
        self._producer = self._admin = None

    @property
    def producer(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(
                {
                    "bootstrap.servers": self.bootstrap_servers, "enable.idempotence": True, "linger.ms": 1,
                    "message.timeout.ms": 120000, "reconnect.backoff.max.ms": 500,
                    "message.max.bytes": 4_000_000,
                }
            )  # fmt: skip
        return self._producer

    def produce(self, count: int, *, over: float = 0.0, **fields: object) -> None:
        """Produce so many orders, spread evenly over the partitions; `over` seconds, a hundredth at a time."""
        end, began = self.produced + count, time.monotonic()
        for done in range(1, count + 1):
            self.send({"n": self.produced, **fields}, key=str(self.produced))
            if over:
                ahead = over * done / count - (time.monotonic() - began)
                if ahead > 0.01:
                    self.producer.poll(0)
                    time.sleep(ahead)
        assert self.produced == end
        self.flush()

    def fill(self, partitions: int, count: int) -> None:
        """Produce so many orders of seven keys, one to each partition in turn."""
        for _ in range(count):
            self.send({"n": self.produced}, key=f"k{self.produced % 7}", partition=self.produced % partitions)
        self.flush()

    def send(self, value: object, *, key: str | None = None, partition: int = -1, topic: str | None = None) -> None:
        """Produce one value: bytes and None as they are, anything else as JSON."""
        raw = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        self.producer.produce(topic or self.topic, raw, key, partition, on_delivery=_delivered)
        self.produced += 1

    def flush(self, timeout: float = 120) -> None:
        assert self.producer.flush(timeout) == 0, "messages were not delivered"

    def ends(self, topic: str | None = None) -> dict[int, int]:
        """Per partition the offset after its last message."""
        name, admin = topic or self.topic, self.admin
        partitions = admin.list_topics(name, 10).topics[name].partitions
        places = {TopicPartition(name, p): OffsetSpec.latest() for p in partitions}
        return {p.partition: f.result(20).offset for p, f in admin.list_offsets(places).items()}

    def has_partitions(self, count: int, topic: str | None = None) -> bool:
        """Whether the brokers lead so many partitions of the topic by now."""
        try:
            return len(self.ends(topic)) == count
        except KafkaException:
            return False

    # ---- workers ----

    def start(
        self, app: str = "one_step", *, crash: str = "", stop: str = "", ready: bool = False, program: bool = False,
        options: Sequence[str] = (), **settings: str,
    ) -> Worker:  # fmt: skip
        """Start a worker; `crash` and `stop` arm a crash point, `ready` waits until it owns a partition.

        A `program` is run by `python`, and not by `eventflow run`, whose `options` come after the app.
        """
        log = self.folder / f"worker-{len(self.workers) + 1}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EVENTFLOW_")}
        environment |= {
            "DATABASE_URL": self.database_url, "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "TOPIC": self.topic, "EFFECTS_URL": self.database_url,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(APPS)]), "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
        } | self.defaults | settings  # fmt: skip
        if crash:
            environment["EVENTFLOW_CRASH"] = crash
        if stop:
            environment["EVENTFLOW_STOP"] = stop
        worker = Worker(app, environment, log, program=program, options=options)
        self.workers.append(worker)
        if ready:
            self.wait_owner(worker)
        return worker

    def wait_death(self, worker: Worker, timeout: float = 40) -> int:
        """Wait until the worker is gone; its exit status, negative for a signal."""
        self.wait(lambda: not worker.alive, f"{worker.log.name} is gone", timeout)
        return worker.process.wait()

    def close(self) -> None:
        """Kill what still runs, and let go of the connections."""
        for worker in self.workers:
            if worker.alive:
                worker.thaw()
                worker.kill()
        if self._connection is not None:
            self._connection.close()

    # ---- the proof ----

    def check(self, group: str, *, topic: str | None = None, effects: bool = False, rows: bool = True) -> None:
        """Every message of the topic completed exactly once for the group; with `effects`, one effect row each."""
        check_exactly_once(self.database_url, topic or self.topic, group, self.ends(topic), effects=effects, rows=rows)

    def check_no_incidents(self) -> None:
        assert self.sql("select kind, subject, detail from eventflow.incidents") == []

    def mark_effects(self, worker: Worker) -> None:
        """From now on what this worker does outside is not counted: it wakes up in the middle of what it was doing.

        Nothing can stop a step that was underway when its process was frozen; what it must not do is commit.
        """
        self.excused[worker.pid] = self.one("select coalesce(max(id), 0) from effects")

    def _counted(self) -> str:
        return " and ".join(["true", *(f"not (pid = {pid} and id > {after})" for pid, after in self.excused.items())])

    def check_steps(self, group: str) -> None:
        """No first step ran again after its message's second step had begun: its record was durable by then (R12)."""
        late = self.sql(
            f"""select partition, "offset" from effects where "group" = %s and {self._counted()} group by 1, 2
                having max(id) filter (where note = 'one') > min(id) filter (where note = 'two')""",
            group,
        )
        assert late == [], f"first steps that ran after they were recorded: {late}"

    def check_order(self, group: str) -> None:
        """Per partition, a message's first effect comes after the last effect of every earlier message (R11)."""
        self._check_order(group, "''")

    def check_key_order(self, group: str) -> None:
        """The same per partition and key, which each effect names before a `|`; those without a key are in no order."""
        self._check_order(group, "split_part(note, '|', 1)", "note not like '|%%'")

    def _check_order(self, group: str, key: str, which: str = "true") -> None:
        rows = self.sql(
            f"""select partition, {key}, "offset", min(id), max(id) from effects
                where "group" = %s and {which} and {self._counted()} group by 1, 2, 3 order by 1, 2, 3""",
            group,
        )
        last: dict[tuple[int, str], tuple[int, int]] = {}
        for partition, key_of, offset, first, final in rows:
            before, at = last.get((partition, key_of), (-1, -1))
            assert first > before, f"{partition}/{offset} {key_of} acted before {partition}/{at} had ended"
            last[partition, key_of] = (final, offset)


def _delivered(error: object, _message: object) -> None:
    assert error is None, error


def check_exactly_once(
    database_url: str, topic: str, group: str, ends: dict[int, int], *, effects: bool = False, rows: bool = True
) -> None:
    """Assert that the group completed every message of the topic's newest incarnation exactly once.

    Args:
        ends: per partition the offset after its last message; the first is 0.
        effects: whether each message must have left exactly one row in `effects`.
        rows: whether each must have left one in the ledger.
    """
    with psycopg.connect(database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # workers still fold deltas into claims
        if rows:
            _check_rows(connection, topic, group, ends)
        _check_ranges(connection, topic, group, ends)
        if effects:
            _check_effects(connection, topic, group, ends)


_NEWEST = """from eventflow.claims c where c."group" = %(group)s and c.source = (
  select id from eventflow.sources where topic = %(topic)s order by incarnation desc limit 1)"""


def _check_rows(connection: Any, topic: str, group: str, ends: dict[int, int]) -> None:
    rows = connection.execute(
        f"""select c.partition, w."offset", w.status::text, w.id
            from eventflow.workflows w join (select c.id, c.partition {_NEWEST}) c on c.id = w.claim""",
        {"group": group, "topic": topic},
    ).fetchall()
    places = Counter((partition, offset) for partition, offset, _, _ in rows)
    wanted = {(p, o) for p, end in ends.items() for o in range(end)}
    assert wanted - places.keys() == set(), f"lost: {sorted(wanted - places.keys())[:10]}"
    assert places.keys() - wanted == set(), f"invented: {sorted(places.keys() - wanted)[:10]}"
    assert [place for place, times in places.items() if times > 1] == []
    other = [(id_, status) for _, _, status, id_ in rows if status != "succeeded"]
    assert other == [], f"not succeeded: {other[:10]}"


def _check_ranges(connection: Any, topic: str, group: str, ends: dict[int, int]) -> None:
    where = {"group": group, "topic": topic}
    claims = {
        id_: (partition, list(accepted))
        for id_, partition, accepted in connection.execute(
            f"select c.id, c.partition, c.accepted {_NEWEST}", where
        ).fetchall()
    }
    deltas = connection.execute(
        "select claim, ranges from eventflow.deltas where claim = any(%s)", [list(claims)]
    ).fetchall()
    for id_, (partition, accepted) in claims.items():
        assert accepted[0].lower is None, f"partition {partition}: {accepted}"
        pieces = [(r.lower, r.upper) for r in accepted[1:]]
        pieces += [(r.lower, r.upper) for claim, ranges in deltas if claim == id_ for r in ranges]
        covered = accepted[0].upper
        for low, high in sorted(pieces):
            assert low >= covered, f"partition {partition}: {low}..{high} was accepted twice"
            assert low == covered, f"partition {partition}: {covered}..{low} was not accepted"
            covered = high
        assert covered == ends[partition], (
            f"partition {partition}: accepted up to {covered}, it ends at {ends[partition]}"
        )
    assert {p for p, _ in claims.values()} >= {p for p, end in ends.items() if end}


def _check_effects(connection: Any, topic: str, group: str, ends: dict[int, int]) -> None:
    rows = connection.execute(
        """select partition, "offset", count(*) from effects where topic = %s and "group" = %s
           group by 1, 2""",
        [topic, group],
    ).fetchall()
    twice = [row for row in rows if row[2] != 1]
    assert twice == [], f"effects that are there more than once: {twice[:10]}"
    wanted = {(p, o) for p, end in ends.items() for o in range(end)}
    assert {(p, o) for p, o, _ in rows} == wanted


# ---- load in the background ----------------------------------------------------------------------


@dataclass
class Read:
    """An event as a consumer that reads committed messages has it."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


def read_all(world: World, topic: str) -> list[Read]:
    """Everything that is committed in the topic, in order per partition, up to its present end."""
    consumer = Consumer({
        "bootstrap.servers": world.bootstrap_servers, "group.id": "judge", "isolation.level": "read_committed",
        "enable.partition.eof": True, "enable.auto.commit": False, "auto.offset.reset": "earliest",
    })  # fmt: skip
    ends = world.ends(topic)
    consumer.assign([TopicPartition(topic, p, 0) for p in ends])
    left, found, until = set(ends), list[Read](), time.monotonic() + 60
    while left:
        assert time.monotonic() < until, f"{topic} cannot be read to its end: {left}"
        message = consumer.poll(0.2)
        if message is None:
            continue
        error = message.error()
        if error is None:
            found.append(Read(message.key(), message.value(), dict(message.headers() or ())))
        elif error.code() == KafkaError._PARTITION_EOF and message.offset() >= ends[message.partition()]:
            left.discard(message.partition())
    consumer.close()
    return found


class Load:
    """Produces at a steady rate from a thread, until it is stopped."""

    def __init__(self, world: World, per_second: float = 200) -> None:
        self._world, self._pause = world, 1 / per_second
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def _run(self) -> None:
        world, due = self._world, time.monotonic()
        try:
            while not self._stop.is_set():
                world.send({"n": world.produced}, key=str(world.produced))
                world.producer.poll(0)
                due += self._pause
                self._stop.wait(max(0.0, due - time.monotonic()))
        except BaseException as error:
            self._error = error

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        if self._error is not None:
            raise self._error
        self._world.flush()


# ---- a proxy that cuts ---------------------------------------------------------------------------


class Proxy:
    """A TCP proxy before Postgres that cuts a connection after a number of bytes, in mid-message where it falls so.

    `cut(low, high)` gives every connection opened from then on a random budget of bytes, in one direction: towards
    the server it cuts a flush half sent, towards the client it loses the answer to one that committed.
    """

    def __init__(self, url: str, seed: int = 0, port: int = 0) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._random = random.Random(seed)
        self._budget: tuple[int, int] | None = None
        self._listener = socket.create_server(("127.0.0.1", port))
        self._open: set[socket.socket] = set()
        self._through = threading.Event()
        self._through.set()
        self.cuts = 0
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{port}"))
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self, low: int, high: int) -> None:
        """From now on, each new connection lives for between so many bytes."""
        self._budget = (low, high)

    def heal(self) -> None:
        """Cut no more: connections opened from now on live."""
        self._budget = None

    def block(self) -> None:
        """From now on nothing gets through; what is open hangs, and so does what is opened."""
        self._through.clear()

    def unblock(self) -> None:
        """Everything gets through again, with what was held back."""
        self._through.set()

    def close(self) -> None:
        self._through.set()
        self._listener.close()
        for side in list(self._open):
            _reset(side)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            budgets: list[int | None] = [None, None]
            if self._budget is not None:
                budgets[self._random.randrange(2)] = self._random.randint(*self._budget)
            self._open |= {client, server}
            for source, sink, budget in ((client, server, budgets[0]), (server, client, budgets[1])):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink, budget), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, budget: int | None) -> None:
        try:
            while data := source.recv(65536):
                self._through.wait()
                if budget is None or self._budget is None:
                    sink.sendall(data)
                    continue
                sink.sendall(data[:budget])
                budget -= len(data)
                if budget <= 0:
                    self.cuts += 1
                    break
        except OSError:
            pass
        finally:
            for side in (source, sink):
                self._open.discard(side)
                _reset(side)


def _reset(side: socket.socket) -> None:
    """Close both halves at once; the other pump wakes up."""
    try:
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        side.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    side.close()


def seeds(variable: str = "EVENTFLOW_CRASH_SEEDS", default: int = 2) -> Sequence[int]:
    """The seeds of this run: 2 in `make test`, more by `make test-crash`."""
    return range(int(os.environ.get(variable, default)))


def few_seeds() -> list[Any]:
    """The same for what takes long: one of them in `make test`."""
    return [seed if seed == 0 else pytest.param(seed, marks=pytest.mark.long) for seed in seeds()]


def few(choices: Iterable[T], *these: T) -> list[Any]:
    """Of these choices, only some in `make test`."""
    return [one if one in these else pytest.param(one, marks=pytest.mark.long) for one in choices]


def pick(seed: int, *what: object, choices: Iterable[T]) -> T:
    """A choice that depends on the seed and on what it is for, and on nothing else."""
    return random.Random(f"{seed}:{what}").choice(list(choices))
