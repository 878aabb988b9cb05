"""The guards in SQL, each met in the one interleaving that it exists for: the files that the workers run, two sessions.

The crash tests show that nothing goes wrong; these show why: without the guard that a test names, it fails.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from eventflow.database import Connection, Database
from eventflow.migrations import migrate

Rows = list[tuple[Any, ...]]


class Session:
    """One session on the ledger that runs the named queries, in a transaction where it began one."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.connection: Connection = database.connect("guards")

    def run(self, name: str, /, **params: object) -> Rows:
        return self.database.run(self.connection, name, params)

    def begin(self, isolation: str = "read committed") -> None:
        self.connection.execute(f"begin isolation level {isolation}".encode())

    def commit(self) -> None:
        assert self.connection.execute("commit").statusmessage == "COMMIT"

    def rollback(self) -> None:
        self.connection.execute("rollback")

    def waits(self, watcher: "Session") -> bool:
        """Whether this session waits for a lock."""
        return bool(
            watcher.connection.execute(
                "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
                [self.connection.info.backend_pid],
            ).fetchall()
        )


class Ledger:
    """A migrated database, two executors, one claim held by the first, and any number of sessions."""

    def __init__(self, url: str) -> None:
        migrate(url)
        self.database = Database(url)
        self.sessions: list[Session] = []
        self.observer = self.session()
        self.a, self.b = self.birth(), self.birth()
        [(self.source, *_)] = self.observer.run("register_source", topic="t", cluster_id="c", topic_id="i", policy=None)
        self.observer.run(
            "insert_claims", group="g", source=self.source, partition=[0], position=[0], began=["earliest"]
        )
        self.claim = self.observer.connection.execute("select id from eventflow.claims").fetchall()[0][0]
        self.epoch = self.take(self.observer, self.a)

    def session(self) -> Session:
        self.sessions.append(Session(self.database))
        return self.sessions[-1]

    def birth(self) -> int:
        [(executor, _)] = self.observer.run(
            "birth", application="x", names="{}", host="h", pid=1, lanes=2, version=None, queues=None, schedules=None
        )
        return executor

    def take(self, session: Session, executor: int) -> int:
        [(_, _, epoch)] = session.run("take_claims", executor=executor, in_flight=10, claims=[self.claim])
        return epoch

    def guard(
        self, session: Session, executor: int, n: int, *, nonce: int = 7, claim: bool = False, lane: int = 0,
        acknowledged: list[int] | None = None,
    ) -> None:  # fmt: skip
        session.run(
            "guard", executor=executor, lane=lane, n=n, nonce=nonce,
            claims=[self.claim] if claim else [], epochs=[self.epoch] if claim else [], acknowledged=acknowledged,
        )  # fmt: skip

    def accept(self, session: Session, low: int, high: int) -> None:
        session.run(
            "insert_deltas",
            claims=[self.claim],
            epochs=[self.epoch],
            ranges=[f"{{[{low},{high})}}"],
            leader_epochs=[3],
            epochs_to=[high],
        )

    def release(self, session: "Session") -> None:
        """Executor a lets go of its claim, of which it has verified up to 9 and read up to 8 under leader epoch 3."""
        session.run(
            "release_claims", claims=[self.claim], epochs=[self.epoch], verified=[9], leader_epochs=[3], epochs_to=[8],
            executor=self.a,
        )  # fmt: skip

    def fold(self, session: Session, verified: int = 0) -> Rows:
        return session.run(
            "fold_claim", executor=self.a, claim=self.claim, epoch=self.epoch, verified=verified, leader_epoch=-1, epoch_to=0,
        )  # fmt: skip

    def take_over(self, session: Session, dead: int, taker: int) -> None:
        """R9, statement by statement, as recovery does it."""
        session.begin()
        session.run("fence", executor=taker)
        assert session.run("lock_dead", dead=dead)
        session.run("mark_dead", dead=dead, executor=taker)
        session.run("orphan_rows", dead=dead)
        session.commit()

    def blocked(self, session: Session, action: Callable[[], object]) -> threading.Thread:
        """Start an action that has to wait for another session's lock, and see that it does."""
        thread = threading.Thread(target=action, daemon=True)
        thread.start()
        until = time.monotonic() + 10
        while not session.waits(self.observer):
            assert thread.is_alive(), "it did not wait"
            assert time.monotonic() < until
            time.sleep(0.01)
        return thread


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    made = Ledger(database_url)
    yield made
    for session in made.sessions:
        session.connection.close()


def refused(state: str) -> Any:
    return pytest.raises(psycopg.Error, check=lambda error: error.sqlstate == state)


# ---- the fence (R2, R9) ----------------------------------------------------------------------------


def test_a_dead_executor_writes_nothing(ledger: Ledger) -> None:
    ledger.take_over(ledger.session(), ledger.a, ledger.b)
    zombie = ledger.session()
    with refused("EF001"):
        zombie.run("fence", executor=ledger.a)
    with refused("EF001"):
        ledger.guard(zombie, ledger.a, 1)


def test_a_takeover_waits_for_an_open_flush(ledger: Ledger) -> None:
    """`FOR UPDATE` on the identity excludes the flush's KEY SHARE; an UPDATE alone would pass it by."""
    flush, taker = ledger.session(), ledger.session()
    flush.begin()
    ledger.guard(flush, ledger.a, 1)
    waiting = ledger.blocked(taker, lambda: ledger.take_over(taker, ledger.a, ledger.b))
    flush.commit()
    waiting.join(10)
    with refused("EF001"):
        ledger.guard(flush, ledger.a, 2)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_a_zombie_with_an_old_snapshot_is_refused(ledger: Ledger, isolation: str) -> None:
    """Its snapshot is older than the takeover: it must not see itself alive in it."""
    zombie = ledger.session()
    zombie.begin(isolation)
    zombie.connection.execute("select count(*) from eventflow.executors")
    ledger.take_over(ledger.session(), ledger.a, ledger.b)
    with pytest.raises(psycopg.Error) as caught:
        zombie.run("fence", executor=ledger.a)
    assert caught.value.sqlstate in ({"EF001"} if isolation == "read committed" else {"EF001", "40001"})


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_a_zombie_that_meets_an_open_takeover_is_refused(ledger: Ledger, isolation: str) -> None:
    zombie, taker = ledger.session(), ledger.session()
    zombie.begin(isolation)
    zombie.connection.execute("select count(*) from eventflow.executors")
    taker.begin()
    taker.run("lock_dead", dead=ledger.a)
    taker.run("mark_dead", dead=ledger.a, executor=ledger.b)
    caught: list[psycopg.Error] = []

    def fence() -> None:
        try:
            zombie.run("fence", executor=ledger.a)
        except psycopg.Error as error:
            caught.append(error)

    waiting = ledger.blocked(zombie, fence)
    taker.commit()
    waiting.join(10)
    assert [error.sqlstate in {"EF001", "40001"} for error in caught] == [True]


def test_a_takeover_sees_what_the_last_flush_accepted(ledger: Ledger) -> None:
    """The rows are freed in a statement after the lock: a flush that it waited for leaves none behind."""
    flush, taker = ledger.session(), ledger.session()
    flush.begin()
    ledger.guard(flush, ledger.a, 1)
    flush.connection.execute(
        "insert into eventflow.workflows (id, name, application, status, executor) values ('w', 'n', 'x', 'running', %s)",
        [ledger.a],
    )
    waiting = ledger.blocked(taker, lambda: ledger.take_over(taker, ledger.a, ledger.b))
    flush.commit()
    waiting.join(10)
    assert ledger.observer.connection.execute("select executor from eventflow.workflows").fetchall() == [(None,)]


def test_a_dead_taker_takes_nothing_over(ledger: Ledger) -> None:
    third = ledger.birth()
    ledger.take_over(ledger.session(), ledger.b, third)
    taker = ledger.session()
    with refused("EF001"):
        ledger.take_over(taker, ledger.a, ledger.b)
    taker.rollback()
    assert ledger.observer.run("lock_dead", dead=ledger.a)


def test_two_takers_do_not_both_take(ledger: Ledger) -> None:
    third = ledger.birth()
    first, second = ledger.session(), ledger.session()
    first.begin()
    assert first.run("try_lock_dead", dead=ledger.a)
    assert second.run("try_lock_dead", dead=ledger.a) == [], "it skips what another one is taking over"
    first.run("mark_dead", dead=ledger.a, executor=third)
    first.commit()
    assert second.run("lock_dead", dead=ledger.a) == []


# ---- numbered flushes (R3) -------------------------------------------------------------------------


def test_a_flush_number_commits_once(ledger: Ledger) -> None:
    """The second sender of a number waits for the first, and learns from the nonce whose it was."""
    first, second = ledger.session(), ledger.session()
    first.begin()
    ledger.guard(first, ledger.a, 1, nonce=11)
    caught: list[psycopg.Error] = []

    def resend() -> None:
        try:
            ledger.guard(second, ledger.a, 1, nonce=12)
        except psycopg.Error as error:
            caught.append(error)

    waiting = ledger.blocked(second, resend)
    first.commit()
    waiting.join(10)
    assert [error.sqlstate for error in caught] == ["23505"]
    assert second.run("read_nonce", executor=ledger.a, lane=0, n=1) == [(11,)]


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_an_orphan_of_the_first_flush_commits_never_again(ledger: Ledger, isolation: str) -> None:
    """Old rows are deleted, so the primary key no longer refuses it: the missing predecessor does, also for flush 1."""
    orphan, writer = ledger.session(), ledger.session()
    orphan.begin(isolation)
    orphan.connection.execute("select count(*) from eventflow.flushes")  # its snapshot still has row 0
    for n in (1, 2, 3):
        ledger.guard(writer, ledger.a, n)
    writer.connection.execute("delete from eventflow.flushes where executor = %s and n < 3", [ledger.a])
    with pytest.raises(psycopg.Error) as caught:
        ledger.guard(orphan, ledger.a, 1)
    assert caught.value.sqlstate in {"EF003", "40001", "23505"}


def test_lost_commits_are_found(ledger: Ledger) -> None:
    """Flush 2 was acknowledged and is gone: 3 finds no predecessor."""
    session = ledger.session()
    ledger.guard(session, ledger.a, 1)
    with refused("EF003"):
        ledger.guard(session, ledger.a, 3)


def test_an_executor_of_another_timeline_writes_nothing(ledger: Ledger) -> None:
    """After a promotion whatever it has learnt may be of a history that is gone."""
    session = ledger.session()
    ledger.guard(session, ledger.a, 1)
    session.connection.execute("update eventflow.executors set timeline = '000000FF' where id = %s", [ledger.a])
    with refused("EF003"):
        ledger.guard(session, ledger.a, 2)


def test_rows_of_another_executor_are_not_written(ledger: Ledger) -> None:
    """Taken over in the meantime: the update writes none of them, not even those that are still its own."""
    session = ledger.session()
    for workflow_id in ("one", "two"):
        session.run(
            "start_workflow",
            id=workflow_id,
            name="n",
            application="x",
            executor=ledger.a,
            arguments="{}",
            deadline=None,
            attributes=None,
            parent=None,
        )
    session.connection.execute("update eventflow.workflows set executor = %s where id = 'two'", [ledger.b])
    with refused("EF004"):
        session.run(
            "update_workflows", executor=ledger.a, id=["one", "two"], status=["succeeded"] * 2, held=[True] * 2,
            attempt=[1, 1], retries=[0, 0], recoveries=[0, 0], wake_in=[None, None], output=["1", "1"],
            error=[None, None], reason=[None, None], arguments=[None, None], failed_seq=[None, None], generation=[None, None],
        )  # fmt: skip
    found = session.connection.execute("select distinct status::text from eventflow.workflows").fetchall()
    assert found == [("running",)]


def test_a_name_belongs_to_one_program(ledger: Ledger) -> None:
    session = ledger.session()
    here = {"host": "h", "pid": 2, "lanes": 1, "version": None, "queues": None, "schedules": None}
    session.run("birth", application="shop", names='{"bill": "billing"}', **here)
    session.run("birth", application="shop", names='{"bill": "billing"}', **here)
    session.run("birth", application="other", names='{"bill": "elsewhere"}', **here)
    with refused("EF006"):
        session.run("birth", application="shop", names='{"bill": "elsewhere"}', **here)


def test_commits_lost_in_another_lane_are_found_where_the_timeline_cannot_be_read(ledger: Ledger) -> None:
    """Lane 0 has its predecessor still; what lane 1 was told is gone."""
    session = ledger.session()
    ledger.guard(session, ledger.a, 1)
    ledger.guard(session, ledger.a, 1, lane=1)
    ledger.guard(session, ledger.a, 2, acknowledged=[1, 1])
    session.connection.execute("delete from eventflow.flushes where executor = %s and lane = 1 and n = 1", [ledger.a])
    with refused("EF003"):
        ledger.guard(session, ledger.a, 3, acknowledged=[2, 1])
    with refused("EF003"):
        session.run(
            "beat",
            executor=ledger.a,
            application="x",
            names=[],
            acknowledged=[2, 1],
            queues=[],
            since="0",
            missed=[],
            scheduled=[],
            schedules=None,
            low=None,
        )
    ledger.guard(session, ledger.a, 3, acknowledged=None)


# ---- claims, deltas, folds (R5, R7) ----------------------------------------------------------------


def test_a_claim_waits_for_an_open_flush_and_sees_its_deltas(ledger: Ledger) -> None:
    """`FOR SHARE` in the flush, a plain UPDATE in the claim: with KEY SHARE it would pass, and miss the deltas."""
    flush, claimer = ledger.session(), ledger.session()
    flush.begin()
    ledger.guard(flush, ledger.a, 1, claim=True)
    ledger.accept(flush, 0, 10)
    positions: Rows = []

    def claim() -> None:
        claimer.begin()
        ledger.take(claimer, ledger.b)
        positions.extend(claimer.run("read_positions", claims=[ledger.claim]))
        claimer.commit()

    waiting = ledger.blocked(claimer, claim)
    flush.commit()
    waiting.join(10)
    assert [(accepted[0].upper, *last) for _, accepted, *last in positions] == [(10, 3, 10)]


def test_a_claim_that_was_lost_accepts_nothing(ledger: Ledger) -> None:
    session = ledger.session()
    ledger.take(ledger.session(), ledger.b)
    with pytest.raises(psycopg.Error) as caught:
        ledger.guard(session, ledger.a, 1, claim=True)
    assert caught.value.sqlstate == "EF002"
    assert caught.value.diag.message_detail == str(ledger.claim)


def test_a_claim_of_another_owner_under_the_same_epoch_accepts_nothing(ledger: Ledger) -> None:
    session = ledger.session()
    session.connection.execute("update eventflow.claims set owner = %s where id = %s", [ledger.b, ledger.claim])
    with refused("EF002"):
        ledger.guard(session, ledger.a, 1, claim=True)


def test_the_same_owner_under_an_older_epoch_accepts_nothing(ledger: Ledger) -> None:
    """Lost and regained: what was fetched before belongs to the old epoch."""
    ledger.take(ledger.session(), ledger.a)
    with refused("EF002"):
        ledger.guard(ledger.session(), ledger.a, 1, claim=True)


def test_a_fold_loses_no_delta_of_an_open_flush(ledger: Ledger) -> None:
    """It waits for the flush, reads afterwards, and deletes exactly what it read."""
    flush, folder = ledger.session(), ledger.session()
    ledger.guard(flush, ledger.a, 1)
    ledger.accept(flush, 0, 5)
    flush.begin()
    ledger.guard(flush, ledger.a, 2, claim=True)
    ledger.accept(flush, 5, 9)
    folded: Rows = []

    def fold() -> None:
        folded.extend(ledger.fold(folder))

    waiting = ledger.blocked(folder, fold)
    flush.commit()
    waiting.join(10)
    assert [accepted[0].upper for (accepted,) in folded] == [9]
    assert ledger.observer.connection.execute("select count(*) from eventflow.deltas").fetchall() == [(0,)]


def again(ledger: Ledger, first: int) -> dict[str, Any]:
    """What asks for the partition to be run again from there on."""
    return {"who": "w", "group": "g", "source": ledger.source, "partitions": [0], "firsts": [first], "rate": None}


def test_what_is_run_again_is_what_the_last_open_flush_has_accepted_too(ledger: Ledger) -> None:
    """And nothing else: a gap is the live consumer's, as is what lies behind. In its place there are no gaps, but the end is its."""
    flush, asking = ledger.session(), ledger.session()
    flush.begin()
    ledger.guard(flush, ledger.a, 1, claim=True)
    ledger.accept(flush, 0, 5)
    ledger.accept(flush, 7, 9)
    asked = again(ledger, 2)
    waiting = ledger.blocked(asking, lambda: asking.run("reprocess", **asked, instead=False))
    flush.commit()
    waiting.join(10)
    made = "select accepted::text, first, past from eventflow.claims c join eventflow.reprocessed p on p.claim = c.id"
    assert ledger.observer.connection.execute(made.encode()).fetchall() == [("{(,2),[5,7),[9,)}", 2, 9)]
    asking.run("stop_reprocessing", reprocessing=1, who="w")
    asking.run("reprocess", **asked, instead=True)
    found = ledger.observer.connection.execute(f"{made} where p.reprocessing = 2".encode()).fetchall()
    assert found == [("{(,2)}", 2, 5)]


def test_who_runs_a_topic_again_does_not_wait_for_ever(ledger: Ledger) -> None:
    flush, asking = ledger.session(), ledger.session()
    ledger.guard(flush, ledger.a, 1)
    ledger.accept(flush, 0, 5)
    flush.begin()
    ledger.guard(flush, ledger.a, 2, claim=True)
    asked = again(ledger, 0)
    asking.connection.execute("set lock_timeout = '200ms'")
    with pytest.raises(psycopg.Error, match="somebody has held claims of group 'g' for 200ms; nothing was done") as one:
        asking.run("reprocess", **asked, instead=False)
    assert one.value.sqlstate == "EF009"
    flush.commit()
    asking.begin()
    assert asking.run("reprocess", **asked, instead=False) == [(1,)]
    assert asking.connection.execute("show lock_timeout").fetchall() == [("200ms",)]
    asking.commit()


@pytest.mark.parametrize("ranges", ["{[3,4)}", "{[7,11)}"], ids=["already folded", "another delta"])
def test_a_fold_finds_an_overlap(ledger: Ledger, ranges: str) -> None:
    session = ledger.session()
    ledger.accept(session, 0, 5)
    ledger.fold(session)
    ledger.accept(session, 5, 10)
    session.run(
        "insert_deltas", claims=[ledger.claim], epochs=[ledger.epoch], ranges=[ranges], leader_epochs=[3], epochs_to=[0]
    )
    with refused("EF005"):
        ledger.fold(session)


def test_only_the_owner_folds(ledger: Ledger) -> None:
    with refused("EF002"):
        ledger.session().run(
            "fold_claim",
            executor=ledger.b,
            claim=ledger.claim,
            epoch=ledger.epoch,
            verified=0,
            leader_epoch=-1,
            epoch_to=0,
        )


def test_a_release_after_the_claim_has_gone_changes_nothing(ledger: Ledger) -> None:
    session = ledger.session()
    ledger.take(session, ledger.b)
    ledger.release(session)
    assert session.connection.execute("select released from eventflow.claims").fetchall() == [(False,)]


# ---- sources (R16) ---------------------------------------------------------------------------------


def test_a_recreated_topic_supersedes_the_old_one(ledger: Ledger) -> None:
    session = ledger.session()
    [(second, incarnation, foreign, _)] = session.run(
        "register_source", topic="t", cluster_id="c", topic_id="j", policy=None
    )
    assert (incarnation, foreign) == (2, False)
    assert session.run("register_source", topic="t", cluster_id="c", topic_id="j", policy=None) == [
        (second, 2, False, None)
    ]
    assert session.run("lock_source", source=ledger.source) == [], "the old one is not claimed any more"
    assert session.run("lock_source", source=second)


def test_a_claim_on_a_new_topic_ends_those_on_the_old_one(ledger: Ledger) -> None:
    """It waits for their open flush, and nothing more is accepted under them: what was read early is complete."""
    [(new, *_)] = ledger.observer.run("register_source", topic="t", cluster_id="c", topic_id="j", policy=None)
    flush, claimer = ledger.session(), ledger.session()
    flush.begin()
    ledger.guard(flush, ledger.a, 1, claim=True)
    former = {"source": new, "group": "g", "partitions": [0]}
    ended: Rows = []
    waiting = ledger.blocked(claimer, lambda: ended.extend(claimer.run("end_former_claims", **former)))
    flush.commit()
    waiting.join(10)
    assert ended == [(ledger.claim, 1, 0, 0, 1, False)]
    with refused("EF002"):
        ledger.guard(flush, ledger.a, 2, claim=True)


def test_a_superseded_source_is_not_folded(ledger: Ledger) -> None:
    session = ledger.session()
    ledger.accept(session, 0, 5)
    session.run("register_source", topic="t", cluster_id="c", topic_id="j", policy=None)
    with refused("EF007"):
        ledger.fold(session)


def test_what_a_dead_owner_may_have_read_of_the_new_topic_is_an_incident(ledger: Ledger) -> None:
    """It had seen the topic to be the same after it read up to 5, and accepted up to 9: who finds the new one tells."""
    session = ledger.session()
    ledger.accept(session, 0, 7)
    ledger.fold(session, verified=5)
    ledger.accept(session, 7, 9)
    incidents = "select subject, detail, times from eventflow.incidents where kind = 'recreated'"
    for topic_id in ("j", "i2"):
        session.run("register_source", topic="t", cluster_id="c", topic_id=topic_id, policy=None)
    [(subject, detail, times)] = session.connection.execute(incidents).fetchall()
    assert (subject, times) == ("g t/0", 1)
    assert "offsets 5 to 9 may be those of the new one" in detail


def test_a_partition_that_was_let_go_of_is_no_incident_of_a_new_topic(ledger: Ledger) -> None:
    session = ledger.session()
    ledger.release(session)
    session.run("register_source", topic="t", cluster_id="c", topic_id="j", policy=None)
    assert session.connection.execute("select released, verified from eventflow.claims").fetchall() == [(True, 9)]
    assert session.connection.execute("select * from eventflow.incidents").fetchall() == []


def test_another_cluster_is_told_apart(ledger: Ledger) -> None:
    [(_, _, foreign, _)] = ledger.session().run("register_source", topic="t", cluster_id="d", topic_id="i", policy=None)
    assert foreign
