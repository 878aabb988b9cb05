"""Messages that kill, fail or cannot be read: each is its own trouble and nobody else's (R13, R15)."""

import json
import signal
import time

import pytest

from tests.harness import World

KILLED = -signal.SIGKILL


def keep_running(world: World, done: "Done", limit: int, **settings: str) -> int:
    """Restart the worker as often as it dies, until the condition holds; how often it died."""
    deaths, worker = 0, world.start("killer", **settings)
    deadline = time.monotonic() + 100
    while not done():
        if not worker.alive:
            assert worker.process.returncode == KILLED, worker.text[-2000:]
            deaths += 1
            assert deaths <= limit, f"{deaths} deaths; {world.summary()}"
            worker = world.start("killer", **settings)
        assert time.monotonic() < deadline, world.summary()
        time.sleep(0.02)
    assert worker.alive
    return deaths


class Done:
    """Whether all but the killers have succeeded, and the killers are parked."""

    def __init__(self, world: World, killers: int) -> None:
        self._world, self._killers = world, killers

    def __call__(self) -> bool:
        rows = dict(self._world.sql("select status::text, count(*) from eventflow.workflows group by 1"))
        others = self._world.produced - self._killers
        return rows.get("succeeded") == others and rows.get("parked") == self._killers


@pytest.mark.parametrize("kind", ["async", pytest.param("sync", marks=pytest.mark.long), "transaction"])
def test_a_killer_is_parked_and_its_neighbours_are_not(world: World, kind: str) -> None:
    world.create_topic(2)
    for n in range(200):
        world.send({"n": n, "do": "kill" if n == 60 else ""}, partition=n % 2)
    world.flush()
    deaths = keep_running(world, Done(world, 1), 4, KIND=kind, RECOVERIES="2")
    # The first death is before any row, or charged to a row; then `recoveries` runs more, and it is parked.
    assert 3 <= deaths <= 4
    [(partition, offset, recoveries, reason, value)] = world.sql(
        """select c.partition, w."offset", w.recoveries, w.reason, w.value from eventflow.workflows w
           join eventflow.claims c on c.id = w.claim where w.status = 'parked'"""
    )
    assert (partition, offset) == (0, 30)
    assert json.loads(value)["do"] == "kill"
    assert reason
    assert recoveries >= 2
    # Its neighbours may have been in flight at one death; never were they near the limit.
    assert world.one("select max(recoveries) from eventflow.workflows where status = 'succeeded'") <= 1
    if kind == "transaction":
        assert world.sql('select count(*), count(distinct (partition, "offset")) from effects') == [(199, 199)]


@pytest.mark.long
def test_two_killers_among_many_with_the_default_recoveries(world: World) -> None:
    world.create_topic(2)
    for n in range(300):
        world.send({"n": n, "do": "kill" if n in {50, 51} else ""}, partition=n % 2)
    world.flush()
    deaths = keep_running(world, Done(world, 2), 14, KIND="async")
    print(f"{deaths} deaths")
    assert world.one("select max(recoveries) from eventflow.workflows where status = 'succeeded'") <= 2


def finals(world: World, group: str) -> dict[int, tuple[str, bytes | None, str | None, int]]:
    """Per offset: status, value, error text and retries."""
    rows = world.sql(
        """select w."offset", w.status::text, w.value, w.error, w.retries
           from eventflow.workflows w join eventflow.claims c on c.id = w.claim where c."group" = %s""",
        group,
    )
    return {offset: tuple(rest) for offset, *rest in rows}


def wait_final(world: World, group: str) -> dict[int, tuple[str, bytes | None, str | None, int]]:
    return world.wait(
        lambda: f if len(f := finals(world, group)) == world.produced
        and all(v[0] in {"succeeded", "failed", "parked", "cancelled"} for v in f.values()) else None,
        f"all of {group} are final",
    )  # fmt: skip


def test_a_handler_that_keeps_failing(world: World) -> None:
    """After its retries the message is kept whole as failed, and the partition goes on; in order, too."""
    world.create_topic(1)
    raw = b'{"n": 7,   "do": "fail", "pad": "as it came"}'
    for n in range(100):
        world.send(raw if n in {0, 40, 41, 99} else {"n": n}, key=f"key {n}")
    world.flush()
    worker = world.start("failing")
    for group in ("billing", "ordered", "ledger"):
        rows = wait_final(world, group)
        for offset, (status, value, error, retries) in rows.items():
            if offset in {0, 40, 41, 99}:
                assert (status, value, retries) == ("failed", raw, 2), f"{group} {offset}"
                assert error is not None
                assert "order 7 is refused" in error
            else:
                assert (status, retries) == ("succeeded", 0)
    assert world.one("select count(*) from eventflow.workflows where status = 'failed' and key = %s", b"key 40") == 3
    effects = world.sql(
        """select note, count(*), count(distinct "offset") from effects where "group" in ('billing', 'ledger')
           group by 1 order by 1"""
    )
    assert effects == [("entered", 96, 96), ("tried", 96 + 4 * 3, 100)]
    assert worker.alive
    world.check_no_incidents()


def test_results_and_errors_that_no_database_can_hold(world: World) -> None:
    """A NUL byte in a result is kept as JSON has it, one in an error's text is kept readable; the batch survives."""
    world.create_topic(1)
    special = {10: "nul result", 20: "nul error", 30: "usage"}
    for n in range(60):
        world.send({"n": n, "do": special.get(n, "")})
    world.flush()
    worker = world.start("failing")
    rows = wait_final(world, "billing")
    failed = {offset: row for offset, row in rows.items() if row[0] != "succeeded"}
    assert set(failed) <= set(special)
    assert rows[20][0] == "failed"
    assert "in the text of an error" in (rows[20][2] or "")
    assert rows[30][0] == "failed"
    assert rows[30][3] == 0, "a usage error is not retried"
    # JSON escapes a NUL, so a result may hold one.
    output = """select w.output from eventflow.workflows w where w.name = 'bill' and w."offset" = 10"""
    assert (rows[10][0], world.one(output)) == ("succeeded", json.dumps("a NUL \0 in a result"))
    assert worker.alive
    wait_final(world, "ledger")
    wait_final(world, "ordered")


@pytest.mark.parametrize("restart", [False, True])
def test_a_parked_message_holds_its_partition_and_no_other(world: World, restart: bool) -> None:
    """In order, what follows it waits until a person has decided, also after a restart; the other partition has room."""
    world.create_topic(2)
    for n in range(60):
        world.send({"n": n, "do": "park" if n == 0 else ""}, partition=n % 2)
    world.flush()
    parked = "select count(*) from eventflow.workflows where name = 'follow' and status = 'parked'"
    worker = world.start("failing", EVENTFLOW_MAX_IN_FLIGHT="10")
    world.wait_completed("ordered", 30)
    world.wait(lambda: world.one(parked) == 1, "the first one is parked")
    if restart:
        assert worker.stop() == 0
        world.start("failing", ready=True, EVENTFLOW_MAX_IN_FLIGHT="10")
        world.send({"n": 61}, partition=1)
        world.flush()
        world.wait_completed("ordered", 31)
    assert world.one("select count(*) from effects where \"group\" = 'ordered' and partition = 0") == 0
    world.sql("update eventflow.workflows set status = 'cancelled', finished_at = now() where status = 'parked'")
    world.wait_completed("ordered", world.produced - 1)
    world.check_order("ordered")


@pytest.mark.parametrize("column", ["output", "value", "error"])
def test_a_row_that_the_ledger_refuses(world: World, column: str) -> None:
    """Only its own workflow fails; whatever shared its flush is recorded (R15)."""
    world.create_topic(1)
    condition = {
        "output": "output is null or output not like '%poison%'",
        "value": "status <> 'succeeded' or value not like '%poison%'::bytea",
        "error": "error is null or error not like '%is refused%'",
    }[column]
    world.sql(f"alter table eventflow.workflows add constraint refused check ({condition})")
    bad = {5, 6, 50, 199}
    for n in range(200):
        world.send({"n": n, "do": ("fail" if column == "error" else "poison") if n in bad else ""})
    world.flush()
    worker = world.start("failing", EVENTFLOW_MAX_IN_FLIGHT="3")  # fewer than are refused: none may keep its room
    rows = wait_final(world, "billing")
    assert {offset for offset, row in rows.items() if row[0] != "succeeded"} == bad
    for offset in bad:
        status, value, error, _ = rows[offset]
        assert status == "failed"
        assert value is not None
        assert json.loads(value)["n"] == offset
        assert error is not None
    assert worker.alive
    wait_final(world, "ordered")
    world.check_no_incidents()


BIG = {"n": 8, "pad": "x" * 1_000_000}
INPUTS: list[tuple[str, bytes | None]] = [
    ("fine", b'{"n": 0}'),
    ("no json", b"{not json"),
    ("other schema", b'{"n": "seven"}'),
    ("missing field", b"{}"),
    ("nul in json", b'{"n": 4, "pad": "a\\u0000b"}'),
    ("raw nul", b'{"n": 5, "pad": "a\x00b"}'),
    ("not utf-8", b'{"n": 6, "pad": "\xff\xfe"}'),
    ("empty", b""),
    ("1 MB", json.dumps(BIG).encode()),
    ("tombstone", None),
    ("fine again", b'{"n": 10}'),
]
UNREADABLE = {"no json", "other schema", "missing field", "raw nul", "not utf-8", "empty"}


def test_values_of_every_kind(world: World) -> None:
    """What cannot be decoded is kept whole as failed, at once, and passes the partition on; raw bytes take anything."""
    world.create_topic(1)
    for _, value in INPUTS:
        world.send(value)
    world.flush()
    worker = world.start("readers", EVENTFLOW_KAFKA='{"fetch.message.max.bytes": 4000000}')
    expected = {
        "model": {*UNREADABLE, "tombstone"}, "raw": {"tombstone"}, "tombstones": UNREADABLE,
    }  # fmt: skip
    for group, bad in expected.items():
        rows = wait_final(world, group)
        failed = {INPUTS[offset][0] for offset, row in rows.items() if row[0] == "failed"}
        assert failed == bad, group
        for offset, (status, value, error, retries) in rows.items():
            assert value == INPUTS[offset][1], f"{group}: {INPUTS[offset][0]} is not kept as it came"
            assert retries == 0, "undecodable messages are not retried"
            assert (error is not None) == (status == "failed")
    results = dict(
        world.sql(
            """select w."offset", w.output from eventflow.workflows w join eventflow.claims c on c.id = w.claim
               where c."group" = 'tombstones' and w.status = 'succeeded'"""
        )
    )
    assert json.loads(results[9]) == "tombstone"
    assert worker.alive
    world.check_no_incidents()


def test_headers_and_keys_are_kept(world: World) -> None:
    world.create_topic(1)
    world.producer.produce(world.topic, b"{not json", b"\x00\xff", headers=[("a", b"1"), ("a", b"\x00"), ("b", None)])
    world.produced += 1
    world.flush()
    world.start("readers")
    wait_final(world, "model")
    [(key, headers)] = world.sql("select key, headers from eventflow.workflows where name = 'model'")
    assert key == b"\x00\xff"
    assert json.loads(headers) == [["a", "MQ=="], ["a", "AA=="], ["b", None]]
