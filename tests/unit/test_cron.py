"""When schedules fire, and what becomes of each fire time: all of it pure, and the time is an argument."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from eventflow.cron import BATCH, Fire, Line, Plan, Rule, State, Waiting, plan
from eventflow.errors import UsageError

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
# Zones that changed their rules: no summer time since, no summer time any more, a day left out, half an hour, Ramadan.
CHANGED = (
    "Europe/Istanbul",
    "America/Sao_Paulo",
    "Pacific/Apia",
    "Asia/Pyongyang",
    "Africa/Casablanca",
    "Europe/Moscow",
)


def times(cron: str, zone: str, after: str, count: int) -> list[str]:
    """The next fire times after a moment on the zone's clock, as its clock shows them, with the offset."""
    rule, found = Rule(cron=cron, timezone=zone), list[str]()
    time: datetime | None = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    for _ in range(count):
        assert time is not None
        time = rule.after(time)
        assert time is not None
        found.append(time.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M %z"))
    return found


# ---- where clocks change ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        # A named time that the clock skips fires behind the gap, once, and the next day as ever.
        ("30 2 * * *", BERLIN, "2026-03-28T12:00", ["03-29 03:00 +0200", "03-30 02:30 +0200"]),
        ("30 2 * * *", NEW_YORK, "2026-03-07T12:00", ["03-08 03:00 -0400", "03-09 02:30 -0400"]),
        ("15 2 * * *", LORD_HOWE, "2026-10-03T12:00", ["10-04 02:30 +1100", "10-05 02:15 +1100"]),
        ("0,30 2 * * *", BERLIN, "2026-03-28T12:00", ["03-29 03:00 +0200", "03-30 02:00 +0200"]),
        ("0 2,3 * * *", BERLIN, "2026-03-28T12:00", ["03-29 03:00 +0200", "03-30 02:00 +0200"]),
        # One that it repeats fires the first time.
        ("30 2 * * *", BERLIN, "2026-10-24T12:00", ["10-25 02:30 +0200", "10-26 02:30 +0100"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31T12:00", ["11-01 01:30 -0400", "11-02 01:30 -0500"]),
        ("45 1 * * *", LORD_HOWE, "2026-04-04T12:00", ["04-05 01:45 +1100", "04-06 01:45 +1030"]),
        ("15 2 * * *", LORD_HOWE, "2026-04-04T12:00", ["04-05 02:15 +1030", "04-06 02:15 +1030"]),
        # By the clock on the wall: what is skipped is left out ...
        ("0 * * * *", BERLIN, "2026-03-29T00:30", ["03-29 01:00 +0100", "03-29 03:00 +0200", "03-29 04:00 +0200"]),
        ("*/30 2 * * *", NEW_YORK, "2026-03-07T12:00", ["03-09 02:00 -0400", "03-09 02:30 -0400"]),
        ("*/15 2 * * *", LORD_HOWE, "2026-10-03T12:00", ["10-04 02:30 +1100", "10-04 02:45 +1100", "10-05 02:00 +1100"]),
        # ... and what is repeated fires twice.
        ("0 * * * *", BERLIN, "2026-10-25T01:30", ["10-25 02:00 +0200", "10-25 02:00 +0100", "10-25 03:00 +0100"]),
        (
            "*/30 1 * * *", LORD_HOWE, "2026-04-04T12:00",
            ["04-05 01:00 +1100", "04-05 01:30 +1100", "04-05 01:30 +1030", "04-06 01:00 +1030"],
        ),
        (
            "0 */2 * * *", LORD_HOWE, "2026-04-04T23:00",
            ["04-05 00:00 +1100", "04-05 02:00 +1030", "04-05 04:00 +1030", "04-05 06:00 +1030"],
        ),
        # A zone that left a day out, one that stayed with summer time, one that gave it up: midnight does not exist.
        ("0 12 * * *", "Pacific/Apia", "2011-12-29T11:00", ["12-29 12:00 -1000", "12-31 00:00 +1400", "12-31 12:00 +1400"]),
        ("30 3 * * *", "Europe/Istanbul", "2016-03-26T12:00", ["03-27 04:00 +0300", "03-28 03:30 +0300"]),
        ("30 3 * * *", "Europe/Istanbul", "2016-10-29T12:00", ["10-30 03:30 +0300", "10-31 03:30 +0300"]),
        ("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00", ["11-04 01:00 -0200", "11-05 00:00 -0200"]),
        ("0 0 * * *", "America/Sao_Paulo", "2019-11-02T12:00", ["11-03 00:00 -0300", "11-04 00:00 -0300"]),
        ("15 0 * * *", "Asia/Pyongyang", "2018-05-03T12:00", ["05-04 00:15 +0830", "05-05 00:15 +0900"]),
    ],
)  # fmt: skip
def test_where_clocks_change(cron: str, zone: str, after: str, expected: list[str]) -> None:
    assert times(cron, zone, after, len(expected)) == expected


def test_who_asks_in_the_second_pass_of_an_hour_is_not_sent_back_to_the_first() -> None:
    rule = Rule(cron="30 2 * * *", timezone=BERLIN)
    second_pass = datetime(2026, 10, 25, 2, 15, fold=1, tzinfo=ZoneInfo(BERLIN))
    assert rule.after(second_pass) == datetime(2026, 10, 26, 2, 30, tzinfo=ZoneInfo(BERLIN))


@pytest.mark.parametrize("cron", ["0 */2 * * *", "*/15 * * * *", "5,35 */3 * * *", "30 * * * *", "0 * * * SUN"])
@pytest.mark.parametrize(
    ("zone", "begin"),
    [
        (LORD_HOWE, "2024-04-06T10:00"), (LORD_HOWE, "2024-10-05T10:00"), (BERLIN, "2024-03-30T20:00"),
        (BERLIN, "2024-10-26T20:00"), ("Asia/Pyongyang", "2018-05-04T12:00"), ("America/Caracas", "2016-05-01T04:00"),
    ],
)  # fmt: skip
def test_by_the_clock_on_the_wall_it_fires_whenever_that_shows_such_a_time(cron: str, zone: str, begin: str) -> None:
    first = datetime.fromisoformat(begin).replace(tzinfo=UTC)
    minutes = [first + timedelta(minutes=n) for n in range(12 * 60 + 1)]

    def shows(moment: datetime) -> bool:
        wall = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        return next(CronSim(cron, wall - timedelta(minutes=1))) == wall

    assert list(Rule(cron=cron, timezone=zone).between(minutes[0], minutes[-1])) == [m for m in minutes if shows(m)]


@pytest.mark.parametrize("moment", ["2010-10-11", "2010-10-16T04:00", "2010-10-17T02:59:59"])
@pytest.mark.parametrize("cron", ["*/15 0 * * SUN", "*/30 0 17,24 10 *"])
def test_a_midnight_that_is_skipped_is_left_out_whoever_asks_when(cron: str, moment: str) -> None:
    """In Sao Paulo 17 October 2010 began at one."""
    asked = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    assert Rule(cron=cron, timezone="America/Sao_Paulo").after(asked) == datetime(2010, 10, 24, 2, tzinfo=UTC)


def test_the_half_hour_that_is_skipped_elsewhere_in_the_year_is_left_out() -> None:
    """Lord Howe's clocks go from 02:00 to 02:30 on 4 October 2026."""
    time = Rule(cron="*/15 2 4 10 *", timezone=LORD_HOWE).after(datetime(2026, 3, 1, tzinfo=UTC))
    assert time == datetime(2026, 10, 3, 15, 30, tzinfo=UTC)  # 02:30


crons = st.builds(
    lambda *fields: " ".join(fields),
    st.sampled_from(["0", "30", "*/15", "5,35", "*"]), st.sampled_from(["2", "*", "1-3", "0", "*/2", "23"]),
    st.sampled_from(["*", "1", "L", "28-31"]), st.sampled_from(["*", "3,10", "4", "11"]), st.sampled_from(["*", "SUN", "1-5"]),
)  # fmt: skip
zones = st.sampled_from([BERLIN, NEW_YORK, LORD_HOWE, *CHANGED, "UTC"])
moments = st.datetimes(datetime(2010, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
rules = st.one_of(
    st.builds(lambda cron, zone: Rule(cron=cron, timezone=zone), crons, zones),
    st.builds(lambda every, zone: Rule(every=every, timezone=zone), st.floats(1, 90000), zones),
)


@settings(max_examples=200, deadline=None)
@given(rules, moments)
def test_fire_times_rise_and_do_not_depend_on_who_asks_when(rule: Rule, moment: datetime) -> None:
    """What comes after a moment comes after every moment between it and that."""
    first = rule.after(moment)
    assert first is not None and first > moment
    second = rule.after(first)
    assert second is not None and second > first
    for between in (moment + (first - moment) / 2, first - timedelta(microseconds=1)):
        assert rule.after(between) == first
    assert rule.after(first + (second - first) / 3) == second
    assert rule.before(second) == first


@settings(max_examples=100, deadline=None)
@given(rules, moments, st.floats(0, 86400))
def test_jitter_is_the_same_for_all_and_bounded(rule: Rule, moment: datetime, jitter: float) -> None:
    jittered = Rule(**{**vars(rule), "jitter": jitter})
    due = jittered.due("s", moment)
    assert due == jittered.due("s", moment)
    assert timedelta(0) <= due - moment <= timedelta(seconds=jitter)


@settings(max_examples=100, deadline=None)
@given(rules)
def test_the_ledger_keeps_a_rule_as_it_is(rule: Rule) -> None:
    whole = Rule(**{**vars(rule), "overlap": "allow", "start": datetime(2026, 1, 1, tzinfo=ZoneInfo(BERLIN))})
    assert Rule.of(rule.settings()) == rule
    assert Rule.of(whole.settings()) == whole


def test_intervals_count_from_their_start() -> None:
    start = datetime(2026, 1, 1, 0, 0, 7, tzinfo=UTC)
    rule = Rule(every=60.0, start=start, end=start + timedelta(minutes=2))
    assert list(rule.between(start - timedelta(days=1), start + timedelta(days=1))) == [
        start, start + timedelta(minutes=1), start + timedelta(minutes=2),
    ]  # fmt: skip
    assert Rule(every=300.0).after(start) == datetime(2026, 1, 1, 0, 5, tzinfo=UTC)


# ---- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("0 25 * * *", "character 3: '25' is no hour (0-23)"),
        ("1,2,70 * * * *", "character 5: '70' is no minute (0-59)"),
        ("0  0 * * MON,XUN", "character 14: 'XUN' is no day of the week"),
        ("*/0 * * * *", "character 1: '*/0' is no minute"),
        ("0 0 32 * *", "character 5: '32' is no day of the month"),
        ("0 0 * 13 *", "character 7: '13' is no month"),
        ("0 0 * * 1#6", "character 9: '1#6' is no day of the week"),
        ("5 5-4 * * *", "character 3: '5-4' is no hour"),
        ("0 0 30 2 *", "never fires"),
        ("0 2 * *", "has 4 fields, and not five"),
        ("0 0 2 * * *", "for seconds, use every="),
        ("@daily", "has 1 fields"),
        ("", "has 0 fields"),
        (7, "a cron expression is a text such as '0 2 * * *', not 7"),
    ],
)
def test_an_expression_that_is_wrong_is_told_where(cron: Any, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Rule(cron=cron)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"cron": "0 2 * * *", "timezone": "Europe/Berln"},
            "there is no time zone 'Europe/Berln'; did you mean 'Europe/Berlin'",
        ),
        ({"cron": "0 2 * * *", "timezone": "../etc/passwd"}, "there is no time zone"),
        ({"cron": "0 2 * * *", "timezone": None}, "there is no time zone None"),
        ({}, "one of them"),
        ({"cron": "0 2 * * *", "every": 5.0}, "one of them"),
        ({"every": 0.5}, "every= is from one second to 366 days, not 0:00:00.5"),
        ({"every": 1e9}, "every= is from one second to 366 days"),
        ({"every": 60.0, "overlap": "sometimes"}, "no such overlap: 'sometimes'"),
        ({"every": 60.0, "jitter": 1e6}, "jitter= is a day at most"),
        ({"every": 60.0, "catch_up": 1e10}, "catch_up= is ten years at most"),
        ({"every": 60.0, "start": datetime(2026, 1, 1)}, "times with a zone"),
        (
            {"every": 60.0, "start": datetime(2026, 1, 2, tzinfo=UTC), "end": datetime(2026, 1, 1, tzinfo=UTC)},
            "end= is before start=",
        ),
    ],
)
def test_a_rule_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Rule(**options)
    assert said in str(refused.value)


def test_a_fire_has_its_times_in_the_schedules_zone() -> None:
    time = datetime(2026, 7, 1, 0, 0, tzinfo=UTC)
    fire = Fire("s", time, time - timedelta(days=1), "catch_up", BERLIN)
    assert (fire.time.hour, fire.time.tzinfo) == (2, ZoneInfo(BERLIN))
    assert fire.previous is not None and fire.previous.tzinfo == ZoneInfo(BERLIN)
    assert Fire("s", time.astimezone(ZoneInfo(BERLIN))).timezone == BERLIN
    with pytest.raises(UsageError, match="has none"):
        Fire("s", datetime(2026, 7, 1))


# ---- overlap, catch-up -----------------------------------------------------------------------------

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def decide(
    overlap: Any = "skip", *, missed: int = 0, busy: bool = False, waiting: int = 0, catch_up: float = 3600.0, **more: Any
) -> Plan:  # fmt: skip
    """At noon, of a schedule that fires every minute; so many of its fire times are due beside that of noon."""
    rule = Rule(every=60.0, overlap=overlap, catch_up=catch_up)
    head = Waiting(NOON - 20 * MINUTE, "schedule") if waiting else None
    return plan(rule, "s", State(NOON - missed * MINUTE, None, Line(busy, head, waiting), **more), NOON)


def minutes(fires: list[Fire] | list[Waiting]) -> list[int]:
    """How many minutes before noon each is."""
    return [(NOON - fire.time) // MINUTE for fire in fires]


@pytest.mark.parametrize(
    ("overlap", "busy", "waiting", "missed", "fires", "waits", "cancel", "skipped"),
    [
        ("skip", False, 0, 0, [0], [], False, 0),
        ("skip", True, 0, 0, [], [], False, 1),
        ("skip", False, 0, 2, [2], [], False, 2),
        ("buffer_one", True, 0, 0, [], [0], False, 0),
        ("buffer_one", True, 1, 0, [], [], False, 1),
        ("buffer_one", False, 1, 0, [20], [0], False, 0),
        ("buffer_one", False, 0, 3, [3], [2], False, 2),
        ("buffer_all", True, 3, 0, [], [0], False, 0),
        ("buffer_all", False, 0, 3, [3], [2, 1, 0], False, 0),
        ("buffer_all", False, 2, 0, [20], [0], False, 0),
        ("allow", True, 0, 3, [3, 2, 1, 0], [], False, 0),
        ("cancel_other", True, 0, 0, [], [0], True, 0),
        ("cancel_other", True, 1, 0, [], [0], True, 1),
        ("cancel_other", True, 0, 2, [], [0], True, 2),
        ("cancel_other", False, 0, 2, [0], [], False, 2),
    ],
)
def test_each_policy(
    overlap: str, busy: bool, waiting: int, missed: int, fires: list[int], waits: list[int], cancel: bool, skipped: int
) -> None:
    made = decide(overlap, busy=busy, waiting=waiting, missed=missed)
    assert (minutes(made.fires), minutes(made.waits), made.cancel, made.skipped) == (fires, waits, cancel, skipped)
    assert made.next_at == NOON + MINUTE
    left = waiting * (not made.replaced) - len(made.begun) + len(made.waits)
    assert made.due_at == (NOON + timedelta(seconds=1) if left else NOON + MINUTE)


def test_what_is_late_is_caught_up_with_and_what_is_too_late_is_not() -> None:
    made = decide("allow", missed=90, catch_up=300.0)
    assert minutes(made.fires) == [5, 4, 3, 2, 1, 0]
    assert [fire.cause for fire in made.fires] == ["catch_up"] * 5 + ["schedule"]
    assert [fire.previous for fire in made.fires] == [None, *(fire.time for fire in made.fires[:-1])]
    assert (made.missed, made.next_at) == (1, NOON + MINUTE)


def test_a_long_time_away_goes_in_batches() -> None:
    made = decide("allow", missed=150, catch_up=1e6)
    assert (len(made.fires), made.next_at) == (BATCH, NOON - 50 * MINUTE)
    assert made.due_at == made.next_at


def test_a_backfill_goes_beside_and_holds_nothing_up() -> None:
    line = Line(busy=False, head=Waiting(NOON - 500 * MINUTE, "backfill"), length=2)
    made = decide("skip", busy=True, backfill=line)
    assert [(fire.cause, fire.previous) for fire in made.fires] == [("backfill", NOON - 501 * MINUTE)]
    assert (made.skipped, made.fired_at, made.due_at) == (1, None, NOON + timedelta(seconds=1))
    assert decide("skip", backfill=Line(busy=True, head=line.head, length=2)).begun == []


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["skip", "buffer_one", "buffer_all", "allow", "cancel_other"]), rules, moments,
    st.lists(st.floats(0.1, 200000), max_size=12), st.floats(0, 1e6), st.lists(st.booleans(), min_size=12, max_size=12),
)  # fmt: skip
def test_each_fire_time_is_decided_once_in_order(
    overlap: Any, rule: Rule, moment: datetime, looks: list[float], jitter: float, ended: list[bool]
) -> None:
    """Whoever looks whenever: what was started rises in time, is never started twice, and is a fire time."""
    rule = Rule(**{**vars(rule), "overlap": overlap, "catch_up": 86400.0, "jitter": min(jitter, 86400.0)})
    state, now = State(rule.after(moment), None), moment
    line, started = list[Waiting](), list[datetime]()
    busy = False
    for seconds, over in zip(looks, ended, strict=False):
        now, busy = now + timedelta(seconds=seconds), busy and not over
        own = Line(busy, line[0] if line else None, len(line))
        made = plan(rule, "s", State(state.next_at, state.fired_at, own), now)
        line = [w for w in line if w not in made.begun and not made.replaced] + made.waits
        started += [fire.time.astimezone(UTC) for fire in made.fires]
        busy = busy or (bool(made.fires) and overlap != "allow")
        assert made.next_at is None or state.next_at is None or made.next_at >= state.next_at
        assert overlap == "allow" or len(made.fires) <= 1
        state = State(made.next_at, made.fired_at)
    assert all(one < other for one, other in pairwise(started))
    assert all(rule.after(time - timedelta(microseconds=1)) == time for time in islice(started, 20))
