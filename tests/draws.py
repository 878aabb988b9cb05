"""What `test_at_random.py` and its workers draw from a seed, and from nothing else: handlers, messages, faults."""

import random
from dataclasses import dataclass
from typing import Literal

from eventflow.registry import Ordering

Kind = Literal["workflow", "transaction", "batch"]
Colour = Literal["sync", "async"]
What = Literal["kill", "point", "freeze", "leave", "broker", "postgres"]
KINDS: tuple[Kind, ...] = ("workflow", "transaction", "batch")
ORDERINGS: tuple[Ordering, ...] = ("none", "partition", "key")
PARTITIONS, KEYS = 4, 40

# What becomes of a message, and how often in a thousand: slow, asleep, refused at once or after it has acted, refused the
# first time only, of a form that nobody takes.
DOINGS = {"": 940, "slow": 10, "asleep": 5, "fail": 12, "late": 12, "once": 16, "odd": 5}
FATAL = frozenset({"fail", "late", "odd"})

POINTS = (
    "journal.before_flush", "journal.after_begin", "journal.before_commit", "journal.after_commit",
    "consumer.after_claim", "consumer.after_fetch", "consumer.before_release",
    "executor.after_step", "executor.before_finish",
    "transactions.before_guard", "transactions.before_commit", "transactions.after_commit",
    "relay.in_numbering", "relay.after_numbering", "relay.after_produce", "relay.before_commit", "relay.after_commit",
    "relay.after_claim", "relay.after_init",
    "recovery.before_takeover", "recovery.after_takeover", "recovery.after_claim_rows", "recovery.after_claim_woken",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """A consumer: of which kind, in which order, in which colour; a batch is a transaction, or `plain`.

    `pipeline`: a transaction's statements may be kept back, where it is on a connection.
    """

    kind: Kind
    ordering: Ordering
    colour: Colour
    session: bool
    plain: bool
    pipeline: bool

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.ordering}"

    @property
    def once(self) -> bool:
        """Whether its effects are in its transaction."""
        return self.kind != "workflow" and not self.plain

    def scope(self, partition: int, key: str | None) -> str | None:
        """In which order a message is, or None."""
        match self.ordering:
            case "partition":
                return f"{partition}"
            case "key":
                return None if key is None else f"{partition}/{key}"
            case _:
                return None


def groups(seed: int) -> list[Group]:
    """Each kind in each order, nine in all."""
    chance, pipelines = random.Random(f"groups {seed}"), random.Random(f"pipelines {seed}")
    return [
        Group(kind, ordering, chance.choice(["sync", "async"]), chance.random() < 0.5,
              plain=kind == "batch" and chance.random() < 0.3, pipeline=pipelines.random() < 0.5)
        for kind in KINDS for ordering in ORDERINGS
    ]  # fmt: skip


def settings(seed: int) -> dict[str, str]:
    """Of all its workers."""
    chance = random.Random(f"settings of {seed}")
    return {
        "EVENTFLOW_KEEP_MESSAGES": chance.choice(["all", "slow"]),
        "EVENTFLOW_MAX_IN_FLIGHT": chance.choice(["60", "3000"]),
        "EVENTFLOW_SUSPEND_AFTER": chance.choice(["0.1", "5"]),
        "EVENTFLOW_TRANSACTION_LANES": chance.choice(["1", "3"]),
    }


@dataclass(frozen=True)
class Draw:
    """A message to be produced."""

    n: int
    key: str | None
    partition: int
    do: str

    @property
    def value(self) -> dict[str, object]:
        return {"n": self.n, "do": 7 if self.do == "odd" else self.do}


def message(seed: int, n: int) -> Draw:
    """The n-th message: of few keys, or without one."""
    chance = random.Random(f"message {seed} {n}")
    do = chance.choices(list(DOINGS), list(DOINGS.values()))[0]
    if chance.random() < 0.05:
        return Draw(n, None, chance.randrange(PARTITIONS), do)
    key = chance.randrange(KEYS)
    return Draw(n, f"k{key}", key % PARTITIONS, do)


@dataclass(frozen=True)
class Fault:
    """What is done after a turn of messages.

    `who` chooses among the workers, from 0 to 1; `wait` is which part of the turn's messages is handled before, 0: it
    waits for nothing; `late` whether who is frozen thaws after the next fault only; `point` and `count` arm a new worker.
    """

    what: What
    who: float
    wait: float
    late: bool
    point: str
    count: int


def faults(seed: int, kills: int) -> list[Fault]:
    """So many SIGKILLs, of workers at any moment or at a point, of the broker and of Postgres; and half as many others."""
    chance = random.Random(f"faults {seed}")
    servers = max(1, kills // 12)
    at_points = (kills - 2 * servers + 1) // 2
    others = max(2, kills // 2)
    times: dict[What, int] = {
        "broker": servers, "postgres": servers, "point": at_points, "kill": kills - 2 * servers - at_points,
        "freeze": others // 2, "leave": others - others // 2,
    }  # fmt: skip
    whats: list[What] = [what for what, count in times.items() for _ in range(count)]
    chance.shuffle(whats)
    return [
        Fault(
            what,
            chance.random(),
            0 if turn and chance.random() < 0.25 else 0.3 + 0.7 * chance.random(),
            chance.random() < 0.5,
            chance.choice(POINTS),
            chance.randint(1, 6),
        )
        for turn, what in enumerate(whats)
    ]
