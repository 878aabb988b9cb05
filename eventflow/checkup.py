"""What `eventflow doctor` finds: facts of a server, a ledger and topics in, findings out, each with what to change. Pure."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from eventflow.words import counted, length_text

Verdict = Literal["ok", "note", "wrong"]
_SKEW = 1.0  # seconds between two clocks, from which on people are misled by times
_OLD = 3600.0  # seconds after which an open transaction keeps what was deleted from being cleaned up
_SHORT = 10.0  # seconds below which a server's timeout ends what this needs
_TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout", "lock_timeout")
_BESIDE = 8  # connections of a process beside its lanes: lease, queues, schedules, relay, claims, what people ask
_DAY = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice`: what to change, where something is wrong, or could be better."""

    about: str
    verdict: Verdict
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """A row of `doctor.sql`, and the time here. `lanes`: what one process may hold for its work."""

    version: str
    standby: bool
    clock: float
    settings: str
    connections: int
    oldest: float | None
    timeline: bool
    here: float
    lanes: int

    def known(self) -> dict[str, str]:
        """The server's settings by name."""
        return json.loads(self.settings)


def of_server(facts: ServerFacts) -> Iterator[Finding]:
    """What there is to say of a database server."""
    known = facts.known()
    yield Finding("server", "ok", f"PostgreSQL {facts.version}")
    if facts.standby or known.get("default_transaction_read_only") == "on":
        what = "a standby" if facts.standby else "read only (default_transaction_read_only)"
        yield Finding("server", "wrong", f"it is {what}: nothing can be written", "let DATABASE_URL name the primary")
    for name, advice in (
        ("fsync", "set fsync = on: a crash of the server loses what was committed, and corrupts the rest"),
        ("full_page_writes", "set full_page_writes = on: a crash of the server can corrupt pages"),
        ("autovacuum", "set autovacuum = on: tables grow without end, and queries become slow"),
        ("track_counts", "set track_counts = on: without it autovacuum does nothing"),
    ):
        if known.get(name) == "off":
            yield Finding("settings", "wrong", f"{name} is off", advice)
    for name in _TIMEOUTS:
        seconds = int(known.get(name, "0")) / 1000
        if 0 < seconds < _SHORT:
            text = f"{name} is {length_text(seconds)}, which ends transactions under load, and those of your own steps"
            yield Finding("settings", "note", text, f"give the role {name} = 0, or {_SHORT:g} s and more")
    if int(known.get("idle_session_timeout", "0")):
        yield Finding(
            "settings", "note", "idle_session_timeout ends connections that are kept", "set it to 0 for the role"
        )
    yield _clock(facts)
    yield _connections(facts, known)
    if facts.oldest is not None and facts.oldest > _OLD:
        text = f"a transaction has been open for {length_text(facts.oldest)}: what is deleted meanwhile stays on disk"
        yield Finding(
            "transactions", "note", text, "see pg_stat_activity, and end it; set idle_in_transaction_session_timeout"
        )
    if not facts.timeline:
        text = (
            "the role may not read the timeline: commits that a fail-over lost are found in another way, a little later"
        )
        yield Finding(
            "rights", "note", text, "grant execute on function pg_walfile_name(pg_lsn), and pg_current_wal_insert_lsn()"
        )


def _clock(facts: ServerFacts) -> Finding:
    skew = facts.here - facts.clock
    if abs(skew) < _SKEW:
        return Finding("clock", "ok", f"it is {length_text(abs(skew))} from the server's")
    text = f"this machine's clock is {length_text(abs(skew))} {'ahead of' if skew > 0 else 'behind'} the server's"
    return Finding("clock", "wrong", f"{text}; what is due goes by the server's", "let both keep time by NTP")


def _connections(facts: ServerFacts, known: Mapping[str, str]) -> Finding:
    most = int(known.get("max_connections", "0"))
    kept = sum(int(known.get(name, "0")) for name in ("superuser_reserved_connections", "reserved_connections"))
    left, need = most - kept - facts.connections, facts.lanes + _BESIDE
    text = f"{facts.connections} of {most} connections are used; a process takes up to {need}"
    if left >= need:
        return Finding("connections", "ok", f"{text}: there is room for {left // need} more")
    advice = "raise max_connections, lower EVENTFLOW_TRANSACTION_LANES, or put PgBouncer in transaction mode in between"
    return Finding("connections", "wrong", f"{text}: there is no room for one more", advice)


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What Kafka says of a topic: how many partitions, copies, and its settings by name."""

    name: str
    partitions: int
    copies: int
    settings: Mapping[str, str]


def of_topic(facts: TopicFacts) -> Iterator[Finding]:
    """What there is to say of a topic that is read."""
    about = f"topic {facts.name}"
    yield Finding(about, "ok", f"{counted(facts.partitions, 'partition')}, each on {counted(facts.copies, 'broker')}")
    policy, retention = facts.settings.get("cleanup.policy", ""), int(facts.settings.get("retention.ms", "-1") or "-1")
    if "compact" in policy:
        text = "it is compacted: a message is deleted when its key has a newer one, read or not"
        yield Finding(about, "note", text, "set cleanup.policy=delete where each message counts")
    if "delete" in policy and 0 <= retention < _DAY:
        text = f"it keeps messages for {length_text(retention / 1000)}: what is not read by then is lost"
        yield Finding(about, "note", text, "raise retention.ms above the longest time that nothing may run")
    if facts.copies < 2:
        yield Finding(
            about, "note", "it is on one broker: with that it is gone", "create it with a replication factor of 3"
        )
    elif int(facts.settings.get("min.insync.replicas", "1")) < 2:
        text = "min.insync.replicas is 1: what one broker has acknowledged can be lost with it"
        yield Finding(about, "note", text, "set min.insync.replicas=2")
    if facts.settings.get("unclean.leader.election.enable") == "true":
        text = "an unclean leader may be elected: the log can be cut off, which is an incident"
        yield Finding(about, "wrong", text, "set unclean.leader.election.enable=false")
