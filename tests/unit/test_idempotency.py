from datetime import UTC, datetime
from uuid import RFC_4122
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventflow.errors import UsageError
from eventflow.idempotency import (
    MessageIdentity,
    check_workflow_id,
    first_ticket,
    message_workflow_id,
    message_workflow_id_prefix,
    new_ticket,
    parse_message_workflow_id,
    parse_schedule_workflow_id,
    schedule_workflow_id,
)

names = st.text(min_size=1, max_size=40).filter(lambda t: t.isprintable())
numbers = st.integers(0, 2**62)
identities = st.builds(
    MessageIdentity, names, names, st.integers(1, 2**31), st.integers(0, 2**31), numbers, st.integers(1, 50)
)


def id_of(i: MessageIdentity) -> str:
    return message_workflow_id(i.group, i.topic, i.incarnation, i.partition, i.offset, i.generation)


@given(identities)
def test_the_id_says_everything(identity: MessageIdentity) -> None:
    assert parse_message_workflow_id(id_of(identity)) == identity


@given(identities, identities)
def test_two_messages_never_share_an_id(one: MessageIdentity, other: MessageIdentity) -> None:
    assert (id_of(one) == id_of(other)) == (one == other)


@given(identities)
def test_the_prefix_and_the_offset_make_the_id(i: MessageIdentity) -> None:
    whole = message_workflow_id(i.group, i.topic, i.incarnation, i.partition, i.offset)
    assert whole == message_workflow_id_prefix(i.group, i.topic, i.incarnation, i.partition) + str(i.offset)


def test_the_format_never_changes() -> None:
    assert message_workflow_id("billing", "orders", 1, 3, 42) == "kafka:billing:orders:1:3:42"
    assert message_workflow_id("a:b", "t.1-x_y", 2, 0, 0, 3) == "kafka:a%3Ab:t.1-x_y:2:0:0:g3"


def test_names_that_a_dash_would_confuse() -> None:
    assert message_workflow_id("g", "a-1", 1, 2, 0) != message_workflow_id("2-g", "a", 1, 1, 0)


@pytest.mark.parametrize("text", ["", "kafka:", "kafka:g:t:0:1:1", "kafka:g:t:1:01:1", "kafka:g:t:1:1:1:g1", "x"])
def test_other_ids_are_no_messages(text: str) -> None:
    assert parse_message_workflow_id(text) is None


@pytest.mark.parametrize("bad", ["", "x" * 513, "a\0b", "a\nb", "kafka:x", "\ud800"])
def test_ids_that_people_may_not_give(bad: str) -> None:
    with pytest.raises(UsageError):
        check_workflow_id(bad)


def test_ids_that_people_may_give() -> None:
    assert check_workflow_id("refund:o-1 ä") == "refund:o-1 ä"


def test_tickets_are_uuids_that_sort_by_time() -> None:
    one, other = new_ticket(1_700_000_000_000, b"\xff" * 10), new_ticket(1_700_000_000_001, b"\0" * 10)
    assert (one.version, one.variant, other.version) == (7, RFC_4122, 7)
    assert first_ticket(1_700_000_000_000) < one < first_ticket(1_700_000_000_001) < other
    assert len({new_ticket(7, n.to_bytes(10, "big")) for n in range(1000)}) == 1000


# ---- schedules -------------------------------------------------------------------------------------

moments = st.datetimes(datetime(1000, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC))
fires = st.tuples(names.filter(lambda t: len(t) < 12), names.filter(lambda t: len(t) < 12), moments)


@given(fires)
def test_a_fire_times_id_says_everything(fire: tuple[str, str, datetime]) -> None:
    assert parse_schedule_workflow_id(schedule_workflow_id(*fire)) == fire


@given(fires, fires)
def test_two_fire_times_never_share_an_id(one: tuple[str, str, datetime], other: tuple[str, str, datetime]) -> None:
    assert (schedule_workflow_id(*one) == schedule_workflow_id(*other)) == (one == other)


@given(fires, st.sampled_from(["Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia"]))
def test_a_fire_times_id_is_the_same_in_every_zone(fire: tuple[str, str, datetime], zone: str) -> None:
    application, name, time = fire
    if 1001 < time.year < 9998:
        assert schedule_workflow_id(application, name, time.astimezone(ZoneInfo(zone))) == schedule_workflow_id(*fire)


def test_the_format_of_fire_times_never_changes() -> None:
    time = datetime(2026, 11, 27, 3, 0, tzinfo=ZoneInfo("Europe/Berlin"))
    assert schedule_workflow_id("default", "close_day", time) == "schedule:default:close_day:2026-11-27T02:00:00Z"
    assert (
        schedule_workflow_id("a:b", "c d", time.replace(microsecond=7))
        == "schedule:a%3Ab:c%20d:2026-11-27T02:00:00.000007Z"
    )


def test_ids_that_no_fire_time_has() -> None:
    for wrong in ("schedule:a:b:2026-11-27", "schedule:a:b:2026-13-27T02:00:00Z", "schedule:a::2026-11-27T02:00:00Z",
                  "schedule:a:b:2026-11-27T02:00:00.000000Z", "kafka:b:o:1:3:42"):  # fmt: skip
        assert parse_schedule_workflow_id(wrong) is None
    with pytest.raises(UsageError, match="those of schedules"):
        check_workflow_id("schedule:mine")
    with pytest.raises(UsageError, match="too long"):
        schedule_workflow_id("default", "ö" * 100, datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(UsageError, match="has none"):
        schedule_workflow_id("default", "s", datetime(2026, 1, 1))
    with pytest.raises(UsageError, match="needs"):
        schedule_workflow_id("default", "", datetime(2026, 1, 1, tzinfo=UTC))
