"""Handlers of all kinds in all orders, drawn from a seed, while everything is killed, frozen and replaced.

One topic is read by nine groups, three kinds of handler in three orders, sync or async, as `tests/draws.py` draws them: a
message is handled nine times, so the 200,000 messages of the large form (`make test-random`) are 22,223 in the topic. That way
what one broker has to fetch and what one ledger has to remember is spent on handlers and not on producing, and each message
is judged in nine ways. Workers are killed at any moment or at a crash point, frozen and thawed before or after they are
taken over, told to leave; the broker and Postgres are killed and started again.

All that is random depends on the seed alone, but for how the processes race: a failure may need several runs.
"""

import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from eventflow.local import Kafka, Postgres
from eventflow.sync import Client
from tests import draws
from tests.draws import FATAL, Draw, Fault, Group
from tests.harness import Worker, World, check_exactly_once, few_seeds, read_all

Place = tuple[int, int]  # partition and offset

HANDLED = """
select coalesce(sum(upper(r) - case when lower_inf(r) then 0 else lower(r) end), 0)::bigint
from (select unnest(accepted) r from eventflow.claims union all select unnest(ranges) from eventflow.deltas) d
"""
UNFINISHED = "select count(*) from eventflow.workflows where status in ('queued', 'running', 'waiting', 'parked')"


def restart(server: Kafka | Postgres | None) -> None:
    assert server is not None
    server.kill()
    server.start()


@dataclass
class Chaos:
    """One run: what is produced, what is done to whom, and what was to come of it."""

    world: World
    seed: int
    messages: int  # in the topic
    faults: list[Fault]
    kafka: Kafka | None = None
    postgres: Postgres | None = None
    say: Callable[[str], None] = lambda text: None
    patience: float = 60  # seconds without anything happening
    workers: int = 2
    pool: list[Worker] = field(default_factory=list[Worker])
    armed: list[Worker] = field(default_factory=list[Worker])
    left: list[Worker] = field(default_factory=list[Worker])
    frozen: list[tuple[Worker, bool]] = field(default_factory=list[tuple[Worker, bool]])
    places: dict[Place, Draw] = field(default_factory=dict[Place, Draw])
    kills: int = 0
    said: float = 0.0
    done: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.groups = draws.groups(self.seed)
        self.out = f"{self.world.topic}-out"
        self.settings = draws.settings(self.seed) | {"SEED": str(self.seed), "OUT": self.out}

    # ---- what is done ----

    def run(self) -> None:
        world = self.world
        world.create_topic(draws.PARTITIONS)
        world.create_topic(draws.PARTITIONS, self.out)
        for _ in range(self.workers):
            self.join()
        for turn, fault in enumerate(self.faults, 1):
            size = self.messages * turn // (len(self.faults) + 1) - world.produced
            self.produce(size)
            if fault.wait:
                self.wait_handled(world.produced - round(size * (1 - fault.wait)))
            self.end_armed()
            self.thaw(all_of_them=False)
            self.do(fault)
        self.produce(self.messages - world.produced)
        self.finish()

    def produce(self, count: int) -> None:
        world, ends = self.world, Counter(partition for partition, _ in self.places)
        for _ in range(count):
            draw = draws.message(self.seed, world.produced)
            self.places[draw.partition, ends[draw.partition]] = draw
            ends[draw.partition] += 1
            world.send(draw.value, key=draw.key, partition=draw.partition)
        world.flush()  # what is underway when a broker dies may be lost by its producer (KAFKA-15591)

    def wait_handled(self, messages: int) -> None:
        wanted = messages * len(self.groups)
        self.wait(lambda: self.handled() >= wanted, f"{wanted} are handled")

    def handled(self) -> int:
        return self.world.one(HANDLED) or 0

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until then, as long as anything gets on; saying every ten seconds how far it is."""
        moved, before = time.monotonic(), self.handled()
        while not condition():
            now, handled = time.monotonic(), self.handled()
            if handled > before:
                moved, before = now, handled
            assert now < moved + self.patience, f"nothing moves: {what}; {self.story()}"
            if now > self.said + 10:
                self.said = now
                self.say(self.standing())
            time.sleep(0.1)

    def standing(self) -> str:
        done = len(self.done)
        return f"{self.handled():,} of {self.messages * len(self.groups):,} messages handled, {self.kills} kills, {done} of {len(self.faults)} faults"

    def story(self) -> str:
        return f"{self.world.summary()}; faults: {', '.join(self.done)}"

    def join(self, crash: str = "") -> Worker:
        worker = self.world.start("at_random", crash=crash, **self.settings)
        (self.armed if crash else self.pool).append(worker)
        return worker

    def choose(self, who: float) -> Worker:
        """One that runs."""
        iced = {worker.pid for worker, _ in self.frozen}
        awake = [worker for worker in self.pool if worker.pid not in iced]
        return awake[int(who * len(awake))]

    def end_armed(self) -> None:
        """Who has not come to its point by now is killed where it is."""
        for worker in self.armed:
            worker.kill()
        self.armed.clear()

    def thaw(self, *, all_of_them: bool) -> None:
        for worker, late in self.frozen:
            if all_of_them or not late:
                worker.thaw()
        self.frozen = [(worker, False) for worker, late in self.frozen if late and not all_of_them]

    def do(self, fault: Fault) -> None:
        self.done.append(f"{fault.what} {fault.point}:{fault.count}" if fault.what == "point" else fault.what)
        self.kills += fault.what in {"kill", "point", "broker", "postgres"}
        match fault.what:
            case "kill":
                victim = self.choose(fault.who)
                victim.kill()
                self.pool.remove(victim)
                self.join()
            case "point":
                self.join(crash=f"{fault.point}:{fault.count}")
            case "freeze":
                if len(self.frozen) < len(self.pool) - 1:
                    victim = self.choose(fault.who)
                    victim.freeze()
                    self.frozen.append((victim, fault.late))
            case "leave":
                victim = self.choose(fault.who)
                victim.signal(signal.SIGTERM)
                self.pool.remove(victim)
                self.left.append(victim)
                self.join()
            case "broker":
                restart(self.kafka)
                self.world.wait(lambda: self.world.has_partitions(draws.PARTITIONS), "the broker leads again")
            case "postgres":
                restart(self.postgres)

    def finish(self) -> None:
        self.end_armed()
        self.thaw(all_of_them=True)
        self.wait_handled(self.messages)
        self.wait(lambda: self.world.one(UNFINISHED) == 0, "none is unfinished")
        self.wait(lambda: self.world.one("select count(*) from eventflow.outbox") == 0, "the outbox is empty")
        assert all(worker.alive for worker in self.pool), self.story()
        assert all(self.has_left(worker) for worker in self.left), self.story()
        self.say(f"{self.standing()}: judging")

    def has_left(self, worker: Worker) -> bool:
        """In order; or it was told to before it had said a word, when no program has its say."""
        status = self.world.wait_death(worker)
        return status >= 0 or (status == -signal.SIGTERM and not worker.text)

    # ---- what must have come of it ----

    def check(self) -> None:
        world, ends = self.world, self.world.ends()
        assert ends == Counter(p for p, _ in self.places), "the test's producer lost some"
        world.check_no_incidents()
        excuses = self.excuses()
        events = self.events()
        for group in self.groups:
            check_exactly_once(world.database_url, world.topic, group.name, ends, rows=False)
            self.check_dead_letters(group)
            self.check_effects(group, excuses)
            self.check_events(group, events[group.name])

    def check_dead_letters(self, group: Group) -> None:
        with Client(self.world.database_url) as client:
            found = [(letter.partition, letter.offset) for letter in client.dead_letters(group=group.name)]
        wanted = {place for place, draw in self.places.items() if draw.do in FATAL}
        self.agree(group, "dead letters", Counter(found), dict.fromkeys(wanted, 1))

    def excuses(self) -> dict[int, list[tuple[datetime, datetime]]]:
        """When a process did not know yet that it had been taken for dead: nothing stops a step that is underway then."""
        rows = self.world.sql("select pid, born_at, died_at from eventflow.executors order by pid, id")
        found = defaultdict[int, list[tuple[datetime, datetime]]](list)
        for (pid, _, died), (after, born, _) in zip(rows, [*rows[1:], (None, None, None)], strict=True):
            if died is not None:
                until = born if after == pid else died + timedelta(days=1)
                found[pid].append((died, until + timedelta(seconds=2)))
        return found

    def check_effects(self, group: Group, excuses: dict[int, list[tuple[datetime, datetime]]]) -> None:
        rows = self.world.sql(
            """select id, partition, "offset", split_part(note, '|', 2), pid, at from effects
               where "group" = %s order by id""",
            group.name,
        )
        counts = Counter((partition, offset, what) for _, partition, offset, what, _, _ in rows)
        self.agree(group, "effects", counts if group.once else Counter(counts.keys()), self.wanted_effects(group))
        if not group.once:
            rows = [r for r in rows if not any(since <= r[5] <= until for since, until in excuses.get(r[4], []))]
        if group.kind == "workflow":
            self.check_steps(group, rows)
        self.check_order(group, rows)

    def wanted_effects(self, group: Group) -> dict[tuple[int, int, str], int]:
        wanted = dict[tuple[int, int, str], int]()
        for place, draw in self.places.items():
            whats = ("one", "two") if group.kind == "workflow" else ("entered",)
            if draw.do in FATAL:
                whats = ("one",) if group.kind == "workflow" and draw.do == "late" else ()
            wanted |= {(*place, what): 1 for what in whats}
        return wanted

    def check_steps(self, group: Group, rows: list[tuple[Any, ...]]) -> None:
        """No step acts again once the one behind it has: its record was durable by then (R12)."""
        acted = set[Place]()
        for id_, partition, offset, what, _, _ in rows:
            if what == "two":
                acted.add((partition, offset))
            else:
                assert (partition, offset) not in acted, self.dump(
                    group, (partition, offset), f"{id_} repeats step one"
                )

    def check_order(self, group: Group, rows: list[tuple[Any, ...]]) -> None:
        """In each scope the ids of effects, which rise as they happen, rise with the offsets.

        What a plain batch did may be done again, beside what came behind in it: there the first and last effect of each rise.
        """
        if group.plain:
            self.check_rising(group, self.one_each(rows))
            self.check_rising(group, self.one_each(reversed(rows))[::-1])
        else:
            self.check_rising(group, rows)

    def one_each(self, rows: Any) -> list[tuple[Any, ...]]:
        seen = set[Place]()
        return [r for r in rows if (r[1], r[2]) not in seen and not seen.add((r[1], r[2]))]

    def check_rising(self, group: Group, rows: list[tuple[Any, ...]]) -> None:
        last = dict[str, int]()
        for id_, partition, offset, *_ in rows:
            scope = group.scope(partition, self.places[partition, offset].key)
            if scope is None:
                continue
            before = last.get(scope, -1)
            assert offset >= before, self.dump(
                group, (partition, offset), f"effect {id_} of {offset} comes after one of {before}"
            )
            last[scope] = offset

    # ---- events ----

    def events(self) -> dict[str, list[tuple[int, int, str]]]:
        """What a consumer of committed messages reads, by group; in order where the key is a scope."""
        found = defaultdict[str, list[tuple[int, int, str]]](list)
        ids = Counter[bytes]()
        for event in read_all(self.world, self.out):
            value = json.loads(event.value or b"")
            found[value["group"]].append((value["partition"], value["offset"], value["what"]))
            ids[event.headers["eventflow-id"]] += 1
        assert [id_ for id_, times in ids.items() if times > 1] == []
        return found

    def check_events(self, group: Group, events: list[tuple[int, int, str]]) -> None:
        wanted = dict[tuple[int, int, str], int]()
        for place, draw in self.places.items():
            whats = ("mid", "two", "end") if group.kind == "workflow" else () if group.plain else ("end",)
            if draw.do in FATAL:
                whats = ("mid",) if group.kind == "workflow" and draw.do == "late" else ()
            wanted |= {(*place, what): 1 for what in whats}
        self.agree(group, "events", Counter(events), wanted)
        self.check_rising(group, [("event", *event) for event in events])

    # ---- what is said of a failure ----

    def agree(self, group: Group, what: str, found: Counter[Any], wanted: dict[Any, int]) -> None:
        if found == wanted:
            return
        differing = sorted(thing for thing in found.keys() | wanted.keys() if found[thing] != wanted.get(thing, 0))
        counts = {thing: (found[thing], wanted.get(thing, 0)) for thing in differing[:10]}
        raise AssertionError(self.dump(group, differing[0][:2], f"{len(differing)} {what}, (found, wanted): {counts}"))

    def dump(self, group: Group, place: Place, text: str) -> str:
        """The failure, and all that ledger and effects know of the messages around it in its scope."""
        partition, offset = place
        draw = self.places[place]
        scope = group.scope(partition, draw.key)
        near = [
            o for p, o in self.places
            if p == partition and abs(o - offset) < 200 and (o == offset or scope is not None)
            and group.scope(p, self.places[p, o].key) == scope and abs(o - offset) < (200 if "/" in (scope or "") else 5)
        ]  # fmt: skip
        lines = [f"{group}: {text}", f"{place}: {draw}, scope {scope}", self.story()]
        for title, query in (
            ("effects", """select id, "offset", note, pid, at from effects
                where "group" = %s and partition = %s and "offset" = any(%s) order by id"""),
            ("workflows", """select w."offset", w.id, w.status::text, w.attempt, w.retries, w.recoveries, w.executor,
                w.created_at, w.finished_at, w.error from eventflow.workflows w join eventflow.claims c on c.id = w.claim
                where c."group" = %s and c.partition = %s and w."offset" = any(%s) order by 1"""),
        ):  # fmt: skip
            lines += [title, *(str(tuple(map(str, r))) for r in self.world.sql(query, group.name, partition, near))]
        claims = """select id, owner, epoch, released, accepted::text from eventflow.claims where "group" = %s and partition = %s"""
        lines += ["claims", *map(str, self.world.sql(claims, group.name, partition))]
        executors = "select id, pid, alive, born_at::text, died_at::text, taken_by from eventflow.executors order by id"
        lines += ["executors", *map(str, self.world.sql(executors))]
        lines.append(f"logs of {', '.join(f'{w.pid}: {w.log}' for w in self.world.workers)}")
        return "\n".join(lines)


@pytest.mark.crash
@pytest.mark.parametrize("seed", few_seeds())
def test_random_handlers_in_small(
    private_world: World, private_kafka: Kafka, private_postgres: Postgres, seed: int
) -> None:
    chaos = Chaos(
        private_world, seed, 300, draws.faults(seed, 4), kafka=private_kafka, postgres=private_postgres
    )  # fmt: skip
    chaos.run()
    chaos.check()


def test_what_is_wrong_is_seen(world: World) -> None:
    """Where nothing is killed all is well; then one thing after another is made wrong in what came of it."""
    chaos = Chaos(world, 0, 100, [])
    chaos.run()
    chaos.check()

    def is_seen(query: str, text: str, undo: str = "") -> None:
        rows = world.sql(query)
        assert rows, query
        with pytest.raises(AssertionError, match=text):
            chaos.check()
        if undo:
            world.sql(undo, list(rows[0]))

    columns = '"group", topic, partition, "offset", note, pid, at'
    again = f"insert into effects ({columns}) select {columns} from effects"
    last = """(select max(id) from effects where "group" = '{}')"""
    is_seen(
        f"{again} where id = {last.format('transaction-key')} returning id", r"effects, \(found, wanted\)",
        "delete from effects where id = any(%s)",
    )  # fmt: skip
    is_seen(
        f"{again} where note like '%|one' and (\"group\", partition, \"offset\") = (select \"group\", partition, \"offset\""
        f" from effects where id = {last.format('workflow-none')}) returning id", "repeats step one",
        "delete from effects where id = any(%s)",
    )  # fmt: skip
    exchange = """update effects set id = a.low + a.high - id from (
        select min(id) low, max(id) high from effects where "group" = 'transaction-partition' and partition = 0) a
        where id in (a.low, a.high) returning id"""
    is_seen(exchange, "comes after one of")
    world.sql(exchange)
    is_seen(
        """update eventflow.workflows set status = 'succeeded'
           where id = (select min(id) from eventflow.workflows where status = 'failed') returning id""",
        r"dead letters, \(found, wanted\)", "update eventflow.workflows set status = 'failed' where id = any(%s)",
    )  # fmt: skip
    is_seen(
        f"update effects set \"group\" = 'nobody' where id = {last.format('transaction-key')} returning id",
        r"effects, \(found, wanted\)", "update effects set \"group\" = 'transaction-key' where id = any(%s)",
    )  # fmt: skip
    chaos.check()
    event = read_all(world, chaos.out)[0]  # what is published cannot be taken back: this is the last
    world.producer.produce(chaos.out, event.value, event.key, headers={"eventflow-id": b"another"})
    world.flush()
    is_seen("select 1", r"events, \(found, wanted\)")


@pytest.fixture
def spoken(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Says how far it is, with the time since it began, to whoever watches."""
    began = time.monotonic()

    def say(text: str) -> None:
        with capsys.disabled():
            minutes, seconds = divmod(int(time.monotonic() - began), 60)
            print(f"{minutes:3}:{seconds:02}  {text}", flush=True)

    return say


@pytest.mark.large
def test_random_handlers_in_large(
    private_world: World, private_kafka: Kafka, private_postgres: Postgres, spoken: Callable[[str], None]
) -> None:
    seed = int(os.environ.get("EVENTFLOW_TEST_SEED") or random.SystemRandom().randrange(1_000_000))
    messages, kills = (int(os.environ[f"EVENTFLOW_TEST_{name}"]) for name in ("MESSAGES", "KILLS"))
    again = f"make test-random SEED={seed} MESSAGES={messages} KILLS={kills}"
    spoken(f"seed {seed}; to repeat it: {again}")
    groups = draws.groups(seed)
    chaos = Chaos(
        private_world, seed, -(-messages // len(groups)), draws.faults(seed, kills), private_kafka, private_postgres,
        spoken, patience=120, workers=3,
    )  # fmt: skip
    try:
        chaos.run()
        chaos.check()
    except BaseException:
        spoken(f"seed {seed} has failed; to repeat it: {again}")
        raise
    spoken(f"{chaos.standing()}: each once, in order")
