"""Schedules on a real ledger: each policy, what people do to them, and what code says; the clock is the ledger's, and is turned."""

import asyncio
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

import eventflow
from eventflow import Fire, sync
from eventflow.cron import Rule
from eventflow.database import Database
from eventflow.encryption import AesGcm
from eventflow.errors import CodecError, UsageError
from eventflow.firing import Definition, create
from eventflow.idempotency import schedule_workflow_id
from eventflow.ledger import Ledger, define_schedules
from eventflow.registry import Registry, ScheduleSpec, registry
from eventflow.settings import Settings
from tests.conformance.colours import until
from tests.conformance.conftest import App

gates: dict[str, threading.Event] = {}
seen: dict[str, list[Fire]] = {}
ends: dict[str, list[str]] = {}


@eventflow.workflow(name="schedules works")
async def works(fire: Fire, key: str) -> str:
    """Notes its fire, and waits at a gate where there is one."""
    seen.setdefault(key, []).append(fire)
    try:
        while key in gates and not gates[key].is_set():
            await asyncio.sleep(0.01)
    finally:
        ends.setdefault(key, []).append(str(fire.time))
    return fire.cause


@eventflow.workflow(name="schedules plain")
def plain(a: int, b: int = 2, *, c: str = "c") -> str:
    return f"{a} {b} {c}"


class Clock:
    """One schedule, `key`, that fires every hour; its clock is turned by what it has to decide."""

    def __init__(self, client: sync.Client, connection: psycopg.Connection[Any]) -> None:
        self.key, self.client, self.connection = f"s{uuid.uuid4().hex[:10]}", client, connection
        self.at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=100)

    def make(self, **options: Any) -> "Clock":
        options = {"every": timedelta(hours=1), "catch_up": timedelta(days=9)} | options
        self.client.create_schedule(self.key, works, self.key, **options)
        return self

    def turn(self, hours: int = 1) -> None:
        """So many hours come and pass, in which nobody looked: of a past that ends there."""
        last = self.at + timedelta(hours=hours - 1)
        self.connection.execute(
            """update eventflow.schedules
                  set next_at = %s, due_at = now(), defined = defined || jsonb_build_object('end', %s::text) where name = %s""",
            [self.at, last.isoformat(), self.key],
        )  # fmt: skip
        self.at = last + timedelta(hours=1)

    @property
    def fires(self) -> list[Fire]:
        return seen.get(self.key, [])

    def wait(self, count: int) -> list[Fire]:
        until(lambda: len(self.fires) >= count)
        return self.fires

    @property
    def record(self) -> Any:
        return self.client.schedule(self.key)

    def gate(self) -> threading.Event:
        return gates.setdefault(self.key, threading.Event())


@pytest.fixture
def clock(app: App, ledger: str) -> Iterator[Clock]:
    with psycopg.connect(ledger, autocommit=True) as connection:
        made = Clock(sync.Client.here(), connection)
        yield made
        for gate in gates.values():
            gate.set()
        connection.execute("delete from eventflow.schedules where name = %s", [made.key])


# ---- overlap ---------------------------------------------------------------------------------------


def test_skip_starts_nothing_while_another_runs(clock: Clock) -> None:
    gate = clock.make().gate()
    clock.turn()
    clock.wait(1)
    clock.turn(2)
    until(lambda: clock.record.skipped == 2)
    assert len(clock.record.running) == len(clock.fires) == 1
    gate.set()
    until(lambda: not clock.record.running)
    clock.turn()
    assert [fire.previous for fire in clock.wait(2)] == [None, clock.fires[0].time]


def test_buffer_one_keeps_one(clock: Clock) -> None:
    gate = clock.make(overlap="buffer_one").gate()
    clock.turn(3)
    clock.wait(1)
    until(lambda: (clock.record.waiting, clock.record.skipped) == (1, 1))
    gate.set()
    first, second = clock.wait(2)
    assert second.time - first.time == timedelta(hours=1)
    until(lambda: clock.record.waiting == 0)


def test_buffer_all_runs_one_after_another(clock: Clock) -> None:
    gate = clock.make(overlap="buffer_all").gate()
    clock.turn(3)
    clock.wait(1)
    until(lambda: clock.record.waiting == 2)
    gate.set()
    times = [fire.time for fire in clock.wait(3)]
    assert times == sorted(times)
    assert ends[clock.key][:2] == [str(time) for time in times[:2]]
    assert clock.record.skipped == 0


def test_allow_lets_them_run_at_once(clock: Clock) -> None:
    clock.make(overlap="allow").gate()
    clock.turn(3)
    clock.wait(3)
    assert clock.key not in ends
    assert {fire.cause for fire in clock.fires} == {"catch_up"}


def test_cancel_other_ends_what_runs_and_goes_on_with_the_newest(clock: Clock) -> None:
    clock.make(overlap="cancel_other").gate()
    clock.turn()
    [first] = clock.wait(1)
    clock.turn(3)
    newest = clock.wait(2)[1]
    until(lambda: len(ends.get(clock.key, [])) == 1)
    cancelled = clock.client.handle(schedule_workflow_id("default", clock.key, first.time), str).get()
    assert cancelled.status == "cancelled"
    assert clock.key in str(cancelled.reason)
    assert newest.time > first.time and clock.record.skipped == 2


# ---- when ------------------------------------------------------------------------------------------


def test_the_catch_up_window(clock: Clock) -> None:
    clock.make(overlap="allow", catch_up=timedelta(hours=2, minutes=30))
    clock.connection.execute(
        "update eventflow.schedules set next_at = next_at - interval '48 hours', due_at = now() where name = %s",
        [clock.key],
    )
    until(lambda: clock.record.missed == 1)
    fires = clock.wait(2)
    until(lambda: clock.record.next_fire > datetime.now(UTC))
    assert len(fires) in {2, 3}
    assert all(datetime.now(UTC) - fire.time < timedelta(hours=2, minutes=31) for fire in fires)


def test_jitter_puts_off_and_the_fire_time_stays(clock: Clock) -> None:
    clock.make(every=timedelta(seconds=1), jitter=0.9, overlap="allow")
    fires = clock.wait(3)
    assert [fire.time.microsecond for fire in fires[:3]] == [0, 0, 0]
    rule = Rule(every=1.0, jitter=0.9)
    for fire in fires[:3]:
        created = clock.client.handle(schedule_workflow_id("default", clock.key, fire.time), str).get().created_at
        assert created >= rule.due(clock.key, fire.time)


def test_start_and_end(clock: Clock) -> None:
    now = datetime.now(UTC)
    clock.make(start=now + timedelta(hours=3), end=now + timedelta(hours=4, minutes=30))
    assert clock.client.upcoming(clock.key) == [now + timedelta(hours=3), now + timedelta(hours=4)]
    clock.client.create_schedule("over", plain, 1, every=timedelta(hours=1), end=now - timedelta(hours=1))
    assert clock.client.schedule("over").next_fire is None
    clock.client.delete_schedule("over")


def test_what_is_upcoming_is_in_the_schedules_zone(clock: Clock) -> None:
    clock.make(every=None, cron="30 2 * * *", timezone="Europe/Berlin")
    berlin = ZoneInfo("Europe/Berlin")
    after = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert clock.client.upcoming(clock.key, count=2, after=after) == [
        datetime(2026, 3, 29, 3, 0, tzinfo=berlin), datetime(2026, 3, 30, 2, 30, tzinfo=berlin),
    ]  # fmt: skip
    assert clock.record.next_fire.tzinfo == berlin
    with pytest.raises(UsageError, match="count is from 1"):
        clock.client.upcoming(clock.key, count=0)
    with pytest.raises(UsageError, match="with a zone"):
        clock.client.upcoming(clock.key, after=datetime(2026, 1, 1))


def test_while_none_is_due_nothing_is_asked_but_by_the_beat(clock: Clock) -> None:
    """The scheduler's own connection, where it has one, says nothing through many beats."""
    clock.make()
    asked = """select pid, state_change from pg_stat_activity
                where application_name = 'eventflow schedules' and datname = current_database()"""
    beats = "select sum(beat)::int from eventflow.beats"
    [(began,)] = clock.connection.execute(beats).fetchall()
    until(lambda: clock.connection.execute(beats).fetchall()[0][0] > began + 2)  # what was changed is known
    before = clock.connection.execute(asked).fetchall()
    until(lambda: clock.connection.execute(beats).fetchall()[0][0] > began + 8)
    assert clock.connection.execute(asked).fetchall() == before


# ---- what people do --------------------------------------------------------------------------------


def test_a_paused_schedule_rests_and_says_why(clock: Clock) -> None:
    clock.make(every=timedelta(seconds=1))
    clock.wait(1)
    clock.client.pause_schedule(clock.key, "the bank is closed")
    record = clock.record
    assert (record.paused, record.note, record.next_fire) == (True, "the bank is closed", None)
    assert record.changed_by and record.changed_at
    count = clock.connection.execute("select count(*) from eventflow.workflows").fetchone()
    triggered = clock.client.trigger_schedule(clock.key, result=str)
    assert triggered.result(timeout=10) == "trigger"
    assert clock.record.paused
    clock.client.resume_schedule(clock.key)
    clock.client.resume_schedule(clock.key)
    assert (clock.record.paused, clock.record.note) == (False, "")
    before = len(clock.fires)
    clock.wait(before + 1)
    assert count is not None
    assert clock.record.missed == 0


def test_trigger_starts_at_once_whatever_runs_and_counts_as_running(clock: Clock) -> None:
    gate = clock.make().gate()
    one, other = (
        clock.client.trigger_schedule(clock.key, result=str),
        clock.client.trigger_schedule(clock.key, result=str),
    )
    clock.wait(2)
    assert one.workflow_id != other.workflow_id
    assert len(clock.record.running) == 2
    clock.turn()
    until(lambda: clock.record.skipped == 1)
    gate.set()
    assert one.result(timeout=10) == other.result(timeout=10) == "trigger"


@pytest.mark.parametrize("at_once", [False, True])
def test_a_backfill_of_a_range_is_done_once(clock: Clock, at_once: bool) -> None:
    clock.make(every=timedelta(days=1), start=datetime(2026, 1, 1, tzinfo=UTC))
    clock.client.pause_schedule(clock.key) if at_once else None
    first, last = datetime(2026, 1, 3, tzinfo=UTC), datetime(2026, 1, 5, 12, tzinfo=UTC)
    days = [datetime(2026, 1, day, tzinfo=UTC) for day in (3, 4, 5)]
    assert clock.client.backfill_schedule(clock.key, first, last, dry_run=True) == days
    assert clock.client.backfill_schedule(clock.key, first, last, at_once=at_once) == days
    fires = clock.wait(3)
    assert {fire.time: fire.previous for fire in fires} == {day: day - timedelta(days=1) for day in days}
    assert {fire.cause for fire in fires} == {"backfill"}
    if not at_once:
        assert [fire.time for fire in fires] == days
    assert clock.client.backfill_schedule(clock.key, first, last, at_once=at_once) == []
    with pytest.raises(UsageError, match="is to come"):
        clock.client.backfill_schedule(clock.key, first, datetime.now(UTC) + timedelta(days=2))
    with pytest.raises(UsageError, match="with a zone"):
        clock.client.backfill_schedule(clock.key, datetime(2026, 1, 1), last)


def test_a_backfill_has_its_bound(clock: Clock) -> None:
    clock.make(every=timedelta(seconds=1), start=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(UsageError, match="more than 10,000 fire times"):
        clock.client.backfill_schedule(clock.key, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))


def test_schedules_of_people_need_no_deploy(clock: Clock) -> None:
    client, key = clock.client, clock.key
    client.create_schedule(key, plain, 1, kwargs={"c": "d"}, every=timedelta(days=1), timeout=60)
    assert client.trigger_schedule(key, result=str).result(timeout=10) == "1 2 d"
    with pytest.raises(UsageError, match="replace=True"):
        client.create_schedule(key, plain, 1, every=timedelta(days=1))
    client.create_schedule(key, "schedules works", key, with_fire=True, every=timedelta(days=1), replace=True)
    assert client.trigger_schedule(key, result=str).result(timeout=10) == "trigger"
    record = client.schedule(key)
    assert (record.workflow, record.settings, record.served) == ("schedules works", {"every": 86400.0}, True)
    assert record.made_by is not None and key in {s.name for s in client.schedules()}
    client.delete_schedule(key)
    for call in (
        client.schedule,
        client.delete_schedule,
        client.pause_schedule,
        client.trigger_schedule,
        client.upcoming,
    ):
        with pytest.raises(UsageError, match=f"there is no schedule '{key}'"):
            call(key)


def test_what_cannot_be_made(clock: Clock) -> None:
    create, day = clock.client.create_schedule, timedelta(days=1)
    with pytest.raises(UsageError, match="character 3: '25' is no hour"):
        create("x", plain, 1, cron="0 25 * * *")
    with pytest.raises(UsageError, match="starts workflows"):
        create("x", print, every=day)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="missing a required argument"):
        create("x", plain, every=day)
    with pytest.raises(CodecError):
        create("x", plain, "one", every=day)
    with pytest.raises(UsageError, match="not a name"):
        create("", plain, 1, every=day)
    with pytest.raises(UsageError, match="too long"):
        create("ö" * 200, plain, 1, every=day)
    with pytest.raises(UsageError, match="must be a number of seconds"):
        create("x", plain, 1, every="day")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="those of schedules"):
        eventflow.sync.start(plain, 1, workflow_id="schedule:default:x:2026-01-01T00:00:00Z")
    with pytest.raises(psycopg.Error, match="not a workflow id"):
        clock.connection.execute("select eventflow.enqueue('w', workflow_id => 'schedule:x')")


# ---- what code says --------------------------------------------------------------------------------


def spec_of(name: str, **rule: Any) -> ScheduleSpec:
    return ScheduleSpec(name, Rule(**rule), nothing.spec)


@eventflow.workflow(name="schedules nothing")
def nothing() -> None: ...


def declared(*schedules: ScheduleSpec) -> Registry:
    return Registry(schedules={schedule.name: schedule for schedule in schedules})


@pytest.fixture
def other(postgres_url: str, ledger: str) -> Iterator[Ledger]:
    """A program of another application, which does not run: nothing fires but what it defines."""
    made = Ledger(Database(ledger), f"a{uuid.uuid4().hex[:8]}", keep=1)
    yield made
    made.close()


def changes(ledger: Ledger, *schedules: ScheduleSpec, dry: bool = False) -> list[tuple[str, str]]:
    return [(c.name, c.kind) for c in define_schedules(ledger, declared(*schedules), dry=dry)]


def test_new_changed_and_gone_by_a_dry_run_and_in_earnest(other: Ledger) -> None:
    daily, hourly = spec_of("s", cron="0 2 * * *"), spec_of("s", cron="0 * * * *")
    assert changes(other, daily, dry=True) == [("s", "new")]
    assert other.query("list_schedules", {"application": other.application, "name": None}) == []
    assert changes(other, daily) == [("s", "new")]
    assert changes(other, daily) == []
    assert changes(other, hourly, dry=True) == [("s", "changed")]
    [change] = define_schedules(other, declared(hourly))
    assert "cron '0 2 * * *' in UTC -> cron '0 * * * *' in UTC; next: " in change.text
    [gone] = define_schedules(other, declared(), dry=True)
    assert (gone.kind, "not in this code" in gone.text) == ("elsewhere", True)


def test_what_was_due_by_the_old_rule_is_fired_by_it(other: Ledger) -> None:
    changes(other, spec_of("s", every=3600.0))
    now = datetime.now(UTC)
    with psycopg.connect(other._database.url, autocommit=True) as connection:  # pyright: ignore[reportPrivateUsage]
        connection.execute(
            """update eventflow.schedules set next_at = date_trunc('hour', now()), due_at = now()
                where application = %s""",
            [other.application],
        )
    changes(other, spec_of("s", every=86400.0))
    [(fired,)] = other.query("started_fires", {"ids": [
        schedule_workflow_id(other.application, "s", now.replace(minute=0, second=0, microsecond=0))
    ]})  # fmt: skip
    assert fired
    [row] = other.query("list_schedules", {"application": other.application, "name": None})
    assert row[8] > now


def test_a_zone_whose_rules_have_changed_since_is_followed(other: Ledger) -> None:
    """The next fire time was found by a process that knew other rules: the next start mends it."""
    daily = spec_of("s", cron="0 2 * * *", timezone="Europe/Berlin")
    changes(other, daily)
    with psycopg.connect(other._database.url, autocommit=True) as connection:  # pyright: ignore[reportPrivateUsage]
        moved = "update eventflow.schedules set next_at = next_at + interval '1 hour', due_at = due_at where application = %s"
        connection.execute(moved, [other.application])
    assert changes(other, daily) == []
    [row] = other.query("list_schedules", {"application": other.application, "name": None})
    assert row[8].astimezone(ZoneInfo("Europe/Berlin")).hour == 2


def test_code_does_not_take_what_a_person_has_made(clock: Clock, ledger: str) -> None:
    clock.make()
    here = Ledger(Database(ledger), "default", keep=1)
    with pytest.raises(UsageError, match=r"was made by .*give the one in code another name="):
        define_schedules(here, declared(spec_of(clock.key, every=60.0)))
    here.close()


def test_a_person_does_not_take_what_code_has_defined(other: Ledger) -> None:
    changes(other, spec_of("s", every=60.0))
    with pytest.raises(UsageError, match="is defined in code"):
        other.transact(
            lambda run: create(run, other.application, "me", Definition("s", "w", Rule(every=60.0)), replace=True)
        )


def test_a_program_defines_fires_and_chooses(ledger: str, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """`running(schedules=...)`: all, none, or those named; arguments of every kind of function."""
    app.down()
    monkeypatch.setattr(registry, "schedules", {})
    fired: dict[str, Any] = {}

    @eventflow.scheduled(every=timedelta(seconds=1), name="schedules first", overlap="allow")
    async def first(fire: Fire) -> str:
        fired.setdefault("first", fire)
        return fire.schedule

    @eventflow.scheduled("* * * * *", name="schedules second")
    @eventflow.workflow(name="schedules stacked", retries=2, timeout=60)
    def second() -> int:
        return 7

    usual = Settings(database_url=ledger, lease=1, beat=0.2, drain=2)
    with eventflow.running(usual, consumers=False):
        until(lambda: "first" in fired)
        assert isinstance(fired["first"], Fire) and fired["first"].timezone == "UTC"
        client = sync.Client.here()
        assert client.trigger_schedule("schedules second", result=int).result(timeout=10) == 7
        assert client.schedule("schedules second").workflow == "schedules stacked"
    fired.clear()
    with eventflow.running(usual, consumers=False, schedules=["schedules second"]):
        client = sync.Client.here()
        assert client.trigger_schedule("schedules second", result=int).result(timeout=10) == 7
        client.trigger_schedule("schedules first").result(timeout=10)
        assert fired.pop("first").cause == "trigger"
    with pytest.raises(UsageError, match="no schedule is named 'third'; there are: schedules first, schedules second"):
        with eventflow.running(usual, consumers=False, schedules=["third"]):
            pass
    with eventflow.running(usual, consumers=False, schedules=False):
        client = sync.Client.here()
        client.delete_schedule("schedules first")
        client.delete_schedule("schedules second")
    for name in ("schedules first", "schedules stacked"):
        del registry.specs[name]
    app.up()


def test_two_schedules_of_one_name_and_functions_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "schedules", {})
    monkeypatch.setattr(registry, "specs", dict(registry.specs))

    @eventflow.scheduled("0 * * * *", name="taken")
    @eventflow.workflow(name="taken one")
    def one() -> None: ...

    with pytest.raises(UsageError, match="two schedules are named 'taken'"):

        @eventflow.scheduled("0 * * * *", name="taken")
        @eventflow.workflow(name="taken two")
        def two() -> None: ...

    with pytest.raises(UsageError, match="two schedules are named 'twice'"):

        @eventflow.scheduled("0 2 * * *")
        @eventflow.scheduled("0 14 * * *", name="twice")
        def both() -> None: ...

    @eventflow.scheduled("0 2 * * *", name="at night")
    @eventflow.scheduled("0 14 * * *", name="by day")
    def either() -> None: ...

    assert {"at night", "by day"} <= set(registry.schedules)

    @eventflow.scheduled("0 * * * *")  # type: ignore[arg-type]
    def wrong(x: int) -> None: ...

    with pytest.raises(UsageError, match="takes a Fire, annotated so, or nothing"):
        _ = registry.schedules[wrong.name].takes_fire
    with pytest.raises(UsageError, match="method"):

        class A:
            @eventflow.scheduled("0 * * * *")  # type: ignore[arg-type]
            def tick(self) -> None: ...

    assert one.name == "taken one"


# ---- what only others can read ---------------------------------------------------------------------


def test_arguments_are_encrypted_and_whose_key_is_gone_holds_nothing_up(clock: Clock, ledger: str) -> None:
    """The others fire; who has no key can list and pause it all the same."""
    codec = AesGcm({"k": b"\x11" * 32})
    with sync.Client(ledger, payload_codec=codec) as client:
        client.create_schedule(
            clock.key, "schedules plain", "a very secret name", every=timedelta(seconds=1), overlap="allow"
        )
        [(stored,)] = clock.connection.execute(
            "select arguments from eventflow.schedules where name = %s", [clock.key]
        ).fetchall()
        assert stored.startswith("~") and "secret name" not in stored
        other = Clock(clock.client, clock.connection).make(every=timedelta(seconds=1), overlap="allow")
        other.wait(2)
        assert clock.record.last_fire is None
        with pytest.raises(UsageError, match="the arguments of the schedule"):
            clock.client.trigger_schedule(clock.key)
        workflow_id = client.trigger_schedule(clock.key).workflow_id
        clock.client.pause_schedule(clock.key, "no key here")
        assert clock.record.note == "no key here"
        clock.client.delete_schedule(other.key)
        clock.client.terminate([workflow_id])


def test_a_zone_that_only_others_know_holds_nothing_up(clock: Clock) -> None:
    clock.make(every=timedelta(seconds=1))
    clock.connection.execute(
        'update eventflow.schedules set defined = defined || \'{"timezone": "Mars/Olympus"}\' where name = %s',
        [clock.key],
    )
    other = Clock(clock.client, clock.connection).make(every=timedelta(seconds=1), overlap="allow")
    other.wait(2)
    assert clock.client.schedule(clock.key).settings["timezone"] == "Mars/Olympus"
    assert clock.key in {schedule.name for schedule in clock.client.schedules()}
    clock.client.delete_schedule(other.key)
