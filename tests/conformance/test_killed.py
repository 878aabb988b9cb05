"""SIGKILL at every commit boundary that waiting, talking and children add; what comes out is as if nothing had happened.

A worker kills itself at a named point, a peer goes on. Effects are rows in the commit of their checkpoints: each must be
there once. The seed chooses how often the point is passed before the kill.
"""

import json
import signal

import psycopg
import pytest

from tests.conformance.colours import COLOURS
from tests.harness import Worker, World, few_seeds, pick, seeds

pytestmark = pytest.mark.crash

APP = "tests.conformance.crash_app"
SOON = {
    "EVENTFLOW_SUSPEND_AFTER": "0.02", "EVENTFLOW_ACCEPT_AFTER": "0.01", "EVENTFLOW_LEASE": "0.6", "EVENTFLOW_BEAT": "0.1",
}  # fmt: skip

# Scenario -> workflows by id, each with its arguments; "%" is the id of the scenario's first.
SCENARIOS = {
    "sleeps": [("sleeps", [])],
    "talks": [("talks", [])],
    "parents": [("parents", [])],
    "goes_on": [("goes_on", [1]), ("feeds", ["%"])],
    "orders": [("orders", [4])],
    "starts": [("starts", [])],
    "cancels": [("cancels", [])],
    "terminates": [("terminates", [])],
    "times_out": [("times_out", [])],
    "streams": [("streams", [])],
}
ENDS = {"cancels": "cancelled", "terminates": "cancelled", "times_out": "failed"}  # and what becomes of their children
RESULTS = {
    "sleeps": 3,
    "talks": [0, 1, 2, 3, 3],
    "parents": [0, 1, -2, 3, 8],
    "goes_on": 3,
    "feeds": 3,
    "orders": 6,
    "starts": 10,
    "cancels": ["WorkflowCancelledError"] * 3,
    "terminates": ["WorkflowCancelledError"] * 3,
    "times_out": ["WorkflowTimeoutError"] * 3,
    "streams": 4,
}
_CLEANED = sorted(f"{what} {n}" for what in ("told", "cleaned up") for n in range(3))
EFFECTS = {
    "sleeps": ["slept 0", "slept 1", "slept 2"],
    "talks": ["echo 0", "echo 1", "echo 2", "heard 0", "heard 1", "heard 2"],
    "parents": ["first", "napped 0", "napped 1", "napped 2", "napped 3", "napped 8"],
    "goes_on": ["run 1: 1", "run 2: 2", "run 3: 3"],
    "starts": [*(f"child {n}" for n in (1, 2, 3, 4)), "started"],
    "orders": [*(f"one {n}" for n in range(4)), "total 6", *(f"two {n}" for n in range(4))],
    "cancels": _CLEANED,
    "terminates": [],
    "times_out": _CLEANED,
    "streams": [f"streamed {n}" for n in range(4)],
}
ITEMS = [f"{where} {n}" for n in range(4) for where in ("workflow", "step", "transaction")]  # of the stream
# Point -> how often at most it is passed before the kill.
POINTS = {
    "journal.before_flush": 8,
    "journal.after_begin": 8,
    "journal.before_commit": 8,
    "journal.after_commit": 8,
    "executor.after_step": 12,
    "executor.before_finish": 1,
    "transactions.before_commit": 3,
    "transactions.after_commit": 3,
    "recovery.before_claim_rows": 1,
    "recovery.after_claim_rows": 1,
    "recovery.before_claim_woken": 1,
    "recovery.after_claim_woken": 1,
    "dispatcher.before_commit": 2,
    "dispatcher.after_claim": 2,
    "ledger.before_commit": 6,
    "ledger.after_commit": 6,
}


SURE = {  # what passes a point that others may not: messages may come in time
    "recovery.before_claim_woken": ["sleeps", "parents"],
    "recovery.after_claim_woken": ["sleeps", "parents"],
    "dispatcher.before_commit": ["orders"],
    "dispatcher.after_claim": ["orders"],
    "transactions.before_commit": [scenario for scenario, notes in EFFECTS.items() if notes],
    "transactions.after_commit": [scenario for scenario, notes in EFFECTS.items() if notes],
    "ledger.before_commit": ["cancels", "terminates"],
    "ledger.after_commit": ["cancels", "terminates"],
}


def insert(world: World, workflow: str, workflow_id: str, args: list[object]) -> None:
    """As one that was let go of before it ran by a process that left: any process takes it, and that is its first attempt."""
    world.sql(
        """insert into eventflow.workflows (id, name, application, status, arguments, attempt)
           values (%s, %s, 'default', 'queued', %s, 0)""",
        workflow_id, f"crash_app.{workflow}", json.dumps({"args": args, "kwargs": {}}),
    )  # fmt: skip


def begin(world: World, scenario: str) -> None:
    for colour in COLOURS:
        first = f"{colour} {scenario}"
        for workflow, args in SCENARIOS[scenario]:
            workflow_id = first if workflow == scenario else f"{first} {workflow}"
            insert(world, f"{workflow} {colour}", workflow_id, [first if a == "%" else a for a in args])


def finish(world: World, scenario: str) -> None:
    """All that it began has ended as it must, each effect there once, and nothing is left over."""
    mine = "select count(*) from eventflow.workflows where parent is null and status <> 'succeeded'"
    world.wait(lambda: world.one(mine) == 0, "all have succeeded", 30)
    rows = world.sql("select name, output from eventflow.workflows where parent is null")
    for name, output in rows:
        assert json.loads(output) == RESULTS[name.split(".")[1].split()[0]], name
    assert len(rows) == len(SCENARIOS[scenario]) * 2
    for colour in COLOURS:
        notes = """select note from effects where "group" = %s or starts_with("group", %s) order by note"""
        found = [note for (note,) in world.sql(notes, f"{colour} {scenario}", f"{colour} {scenario}>")]
        assert found == EFFECTS[scenario], colour
    if scenario in ENDS:
        ended = "select distinct status::text from eventflow.workflows where parent is not null"
        assert world.sql(ended) == [(ENDS[scenario],)]
    if scenario == "streams":
        for colour in COLOURS:
            items = "select value from eventflow.stream_items where workflow_id = %s order by id"
            found = [value for (value,) in world.sql(items, f"{colour} streams")]
            assert found == [*map(json.dumps, ITEMS), None], "each once, in order, and closed behind the last"
    assert world.sql("select workflow_id, payload from eventflow.messages where not consumed") == []
    assert world.sql("select kind, subject, detail from eventflow.incidents") == []
    asleep = "select count(*) from eventflow.watches w join eventflow.workflows s on s.id = w.workflow_id and s.finished_at is not null"
    assert world.one(asleep) == 0, "nobody who has ended waits for anything"


def died_there(worker: Worker, point: str) -> bool:
    return f"crash point {point}: SIGKILL" in worker.text


def killed_once(world: World, scenario: str, point: str, count: int) -> None:
    """A worker begins, and dies at a point, the so many-th time that it gets there; another one finishes."""
    begin(world, scenario)
    victim = world.start(APP, crash=f"{point}:{count}", **SOON)
    assert world.wait_death(victim, 20) == -signal.SIGKILL, f"{scenario} {count}"
    assert died_there(victim, point)
    world.start(APP, **SOON)
    finish(world, scenario)


def killed_at(world: World, point: str, seed: int) -> None:
    scenario = pick(seed, point, "scenario", choices=SURE.get(point, list(SCENARIOS)))
    killed_once(world, scenario, point, pick(seed, point, "count", choices=range(1, POINTS[point] + 1)))


def killed_in_a_chain(world: World, scenario: str, seed: int) -> None:
    begin(world, scenario)
    for link in range(3):
        point = pick(seed, scenario, link, choices=[p for p in POINTS if p.startswith("journal")])
        world.wait_death(world.start(APP, crash=f"{point}:{pick(seed, link, choices=range(1, 4))}", **SOON), 20)
    world.start(APP, **SOON)
    finish(world, scenario)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("case", POINTS)
def test_killed_while_workflows_wait_talk_and_have_children(world: World, case: str, seed: int) -> None:
    killed_at(world, case, seed)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("case", SCENARIOS)
def test_killed_again_and_again(world: World, case: str, seed: int) -> None:
    """Each worker of a chain dies at another point; the last one finishes."""
    killed_in_a_chain(world, case, seed)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("case", ENDS)
def test_killed_between_a_request_to_end_and_the_clean_up(world: World, case: str, seed: int) -> None:
    """Before the request, before the run has recorded that it was told, or in its clean-up, which is done once."""
    points = ["journal.before_flush", "journal.before_commit", "journal.after_commit", "executor.after_step"]
    if EFFECTS[case]:
        points += ["transactions.before_commit", "transactions.after_commit"]
    point = pick(seed, case, "end", choices=points)
    killed_once(world, case, point, pick(seed, case, "end count", choices=range(1, 7)))


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("point", ["executor.after_step", "transactions.before_commit", "transactions.after_commit"])
def test_killed_around_the_items_of_a_stream(world: World, point: str, seed: int) -> None:
    """An item that a step or a transaction appends is there once its record is, once."""
    killed_once(world, "streams", point, pick(seed, point, "items", choices=range(1, 5)))


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("point", ["executor.after_step", "transactions.before_commit", "transactions.after_commit"])
def test_killed_around_the_record_of_what_a_step_starts(world: World, point: str, seed: int) -> None:
    """What a step or a transaction starts is there once its record is, each once."""
    killed_once(world, "starts", point, pick(seed, point, choices=range(1, 4)))


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("point", ["before_guard", "before_commit", "after_commit"])
def test_killed_while_many_share_a_transaction(world: World, point: str, seed: int) -> None:
    """Each effect is there once, in the commit of its record, and each result is what its effect says."""
    colour = COLOURS[seed % 2]
    world.sql("create table public.counter (n int)")
    world.sql("insert into public.counter values (0)")
    for n in range(4):
        insert(world, f"shares {colour}", f"{colour} {n}", [8])
    one_lane = SOON | {"EVENTFLOW_TRANSACTION_LANES": "1"}
    count = pick(seed, point, "shared", choices=range(1, 3))
    victim = world.start(APP, crash=f"transactions.{point}:{count}", **one_lane)
    assert world.wait_death(victim, 20) == -signal.SIGKILL
    world.start(APP, **one_lane)
    done = "select count(*) from eventflow.workflows where status = 'succeeded'"
    world.wait(lambda: world.one(done) == 4, "all have succeeded", 30)
    effects = world.sql("""select "group", split_part(note, ': ', 2), xmin::text from effects""")
    recorded = "select workflow_id, output, xmin::text from eventflow.checkpoints where name like '%counted%'"
    assert sorted(effects) == sorted(world.sql(recorded))
    assert sorted(int(n) for _, n, _ in effects) == list(range(1, 65))
    words = ["first", "then"]
    for workflow_id, output in world.sql("select id, output from eventflow.workflows"):
        notes = world.sql('select note from effects where "group" = %s', workflow_id)
        wanted = [f"{words[at // 8]} {at % 8}: {n}" for at, n in enumerate(json.loads(output))]
        assert sorted(note for (note,) in notes) == sorted(wanted)
    assert len({commit for _, _, commit in effects}) < 32, "many share a commit"

    assert world.sql("select kind, subject, detail from eventflow.incidents") == []


@pytest.mark.parametrize("seed", seeds())
def test_two_workers_one_of_which_dies(world: World, seed: int) -> None:
    """All scenarios at once; what the dead one had put to sleep needs no takeover."""
    point = pick(seed, "two", choices=["journal.before_commit", "journal.after_commit", "recovery.after_claim_woken"])
    for scenario in SCENARIOS:
        begin(world, scenario)
    world.start(APP, **SOON)
    victim = world.start(APP, crash=f"{point}:{pick(seed, choices=range(1, 5))}", **SOON)
    world.wait(
        lambda: (
            not victim.alive
            or world.one("select count(*) from eventflow.workflows where parent is null and finished_at is null") == 0
        ),
        "it died, or had nothing to do",
    )
    left = "select count(*) from eventflow.workflows where parent is null and status <> 'succeeded'"
    world.wait(lambda: world.one(left) == 0, "all have succeeded", 30)
    wanted = sorted(note for notes in EFFECTS.values() for note in notes for _ in COLOURS)
    assert sorted(note for (note,) in world.sql("select note from effects")) == wanted
    assert world.sql("select workflow_id from eventflow.messages where not consumed") == []
    assert world.sql("select kind, subject, detail from eventflow.incidents") == []


@pytest.mark.parametrize("seed", few_seeds())
def test_attempts_far_apart_survive_the_process(world: World, seed: int) -> None:
    point = pick(seed, "attempts", choices=["journal.before_flush", "journal.before_commit", "journal.after_commit"])
    for colour in COLOURS:
        insert(world, f"retries {colour}", colour, [])
    tried = "select count(*) from eventflow.checkpoints where position like '1.1~_'"
    first = world.start(APP, crash=f"{point}:{pick(seed, 'attempts count', choices=range(1, 5))}", **SOON)
    assert world.wait_death(first, 20) == -signal.SIGKILL
    world.start(APP, **SOON)
    world.wait(lambda: world.unfinished() == 0, "both have ended")
    assert [json.loads(o) for (o,) in world.sql("select output from eventflow.workflows")] == [
        "eventflow: step '_flaky' failed in each of 3 attempts"
    ] * 2
    assert world.one(tried) == 4, "one record for each that was followed by another"
    assert world.one("select count(*) from effects") == 2


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("point", ["journal.before_commit", "journal.after_commit"])
def test_a_step_goes_on_from_what_it_told_before_it_was_killed(world: World, point: str, seed: int) -> None:
    """Its first flush is that of its start, the second tells of the first page, and from then on there is one a second."""
    count = pick(seed, point, choices=range(2, 5))
    for colour in COLOURS:
        insert(world, f"pages {colour}", colour, [])
    victim = world.start(APP, crash=f"{point}:{count}", **SOON)
    assert world.wait_death(victim, 20) == -signal.SIGKILL
    told = {
        i: int(d)
        for i, d in world.sql("select workflow_id, output from eventflow.checkpoints where position like '%~d'")
    }
    world.start(APP, **SOON)
    world.wait(lambda: world.unfinished() == 0, "both have ended", 30)
    for colour in COLOURS:
        begun = [note for (note,) in world.sql('select note from effects where "group" = %s order by at', colour)]
        wanted = "begins at 0", f"begins at {told.get(colour, 0)}"
        assert begun in ([wanted[0], wanted[1]], [wanted[1]]), "one that had not begun begins once"
    assert world.sql("select output from eventflow.workflows") == [("6",)] * 2
    assert world.one("select count(*) from eventflow.checkpoints where position like '%~d'") == 0


# Who is frozen for a while is not taken over; a short one's first flush holds all that it does.
LONG_LEASE = SOON | {"EVENTFLOW_LEASE": "30", "EVENTFLOW_ACCEPT_AFTER": "5"}


@pytest.mark.parametrize(("colour", "frozen"), [("async", "listener"), ("sync", "teller")])
def test_an_event_that_is_set_while_its_listener_falls_asleep(world: World, colour: str, frozen: str) -> None:
    """Neither commit sees the other's rows; the listener is told all the same."""
    insert(world, f"listens {colour}", "listener", ["teller"])
    if frozen == "listener":
        one = world.start(APP, stop="journal.before_commit:1", **LONG_LEASE)
        world.wait(lambda: one.frozen, "it is about to commit that it sleeps")
        insert(world, f"tells {colour}", "teller", [])
        world.start(APP, **LONG_LEASE)
        world.wait(lambda: world.one("select count(*) from eventflow.events"), "the event is set")
        one.thaw()
    else:
        insert(world, f"tells {colour}", "teller", [])
        world.sql("update eventflow.workflows set executor = 0 where id = 'listener'")  # kept from the teller's worker
        one = world.start(APP, stop="journal.before_commit:1", **LONG_LEASE)
        world.wait(lambda: one.frozen, "it is about to commit that it has told")
        assert world.one("select count(*) from eventflow.events") == 0
        world.sql("update eventflow.workflows set executor = null where id = 'listener'")
        world.start(APP, **LONG_LEASE)
        asleep = "select count(*) from eventflow.workflows where id = 'listener' and status = 'waiting'"
        world.wait(lambda: world.one(asleep), "the listener sleeps")
        one.thaw()
    heard = "select count(*) from eventflow.workflows where id = 'listener' and status = 'succeeded'"
    world.wait(lambda: world.one(heard), "the listener has heard", 5)


@pytest.mark.parametrize("colour", COLOURS)
def test_an_event_whose_teller_dies_before_it_looks_again(world: World, colour: str) -> None:
    """It has found no watch, and its commit comes after the listener's: a look at all finds what has met (ADR 7)."""
    insert(world, f"tells {colour}", "teller", [])
    world.sql("update eventflow.workflows set executor = 0 where id = 'teller'")  # it is this test
    world.start(APP, **SOON)
    with psycopg.connect(world.database_url) as told, told.transaction():
        told.execute("insert into eventflow.events (workflow_id, key, value) values ('teller', 'said', '5')")
        assert told.execute("select count(*) from eventflow.watches").fetchone() == (0,)
        insert(world, f"listens {colour}", "listener", ["teller"])
        asleep = "select count(*) from eventflow.watches w join eventflow.workflows s on s.id = w.workflow_id where s.status = 'waiting'"
        world.wait(lambda: world.one(asleep), "the listener sleeps")
    heard = "select count(*) from eventflow.workflows where id = 'listener' and status = 'succeeded'"
    world.wait(lambda: world.one(heard), "the listener has heard", 10)
