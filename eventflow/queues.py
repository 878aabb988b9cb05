"""Queues: workflows that wait in line until some process takes them, and what is said of one when it is put there.

A queue is defined in code, where it is made; people change it live through a `Client`. "default" is always there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from eventflow.codec import codec_for, joined
from eventflow.errors import UnreadableError, UsageError, WorkflowExistsError
from eventflow.idempotency import check_workflow_id
from eventflow.payloads import unread
from eventflow.registry import check_name, registry
from eventflow.retry import Seconds, seconds

IfExists = Literal["attach", "reject"]
DEFAULT = "default"
_LIMITS = ("concurrency", "concurrency_per_process", "concurrency_per_key")
_RATES = ("rate", "rate_per_key")
_TEXT = 500  # characters of a key or a deduplication id
_LARGEST = 2**31 - 1


class Queue:
    """A queue and its limits, known to this process, and to the ledger once the process has begun `running()`.

    `concurrency` is how many of its workflows may have begun and not ended at a time, over all processes (one that waits
    has not ended); `concurrency_per_process` how many one process may hold in memory when it takes more;
    `concurrency_per_key` how many of one key, over all processes. `rate` is how many may begin within a time,
    `(100, timedelta(minutes=1))`, whichever moment the time begins at; `rate_per_key` how many of one key. Without a
    limit a process takes what it has room for.

    The smallest priority goes first. Keys of one priority take turns; of one key, whoever came first goes first.
    """

    def __init__(
        self, name: str, /, *, concurrency: int | None = None, concurrency_per_process: int | None = None,
        concurrency_per_key: int | None = None, rate: tuple[int, timedelta] | None = None,
        rate_per_key: tuple[int, timedelta] | None = None,
    ) -> None:  # fmt: skip
        """Define it.

        Raises:
            UsageError: a name or limit that cannot be, or another queue of this name.

        """
        self._name = check_name(name)
        given = {
            "concurrency": concurrency, "concurrency_per_process": concurrency_per_process,
            "concurrency_per_key": concurrency_per_key, "rate": rate, "rate_per_key": rate_per_key,
        }  # fmt: skip
        self.settings = settings_json({key: value for key, value in given.items() if value is not None}, name)
        registry.add_queue(name, self.settings)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    def __repr__(self) -> str:
        return f"Queue({self._name!r})"


@dataclass(frozen=True, slots=True)
class QueueRecord:
    """A queue as the ledger has it.

    Attributes:
        settings: its limits by name; a rate is `[how many, seconds]`. paused: whether nothing begins.
        changed_by, changed_at: who changed it last, and when, if anyone has.
        waiting: how many stand in line. delayed: how many are to come. running: how many have begun and not ended.
        oldest: since when the first of those in line waits; None: none does.

    """

    name: str
    settings: dict[str, Any]
    paused: bool
    changed_by: str | None
    changed_at: datetime | None
    waiting: int
    delayed: int
    running: int
    oldest: datetime | None = None


def settings_json(given: Mapping[str, object], queue: str) -> str:
    """Limits as the ledger keeps them; None: no limit, whatever code says.

    Raises:
        UsageError: one that cannot be, by name.

    """
    settings: dict[str, object] = {}
    for name, value in given.items():
        if name in _LIMITS:
            settings[name] = None if value is None else _count(value, f"queue {queue!r}: {name}")
        elif name in _RATES:
            settings[name] = None if value is None else _rate(value, f"queue {queue!r}: {name}")
        else:
            raise UsageError(f"a queue has no {name!r}; it has {', '.join((*_LIMITS, *_RATES))}")
    return json.dumps(settings)


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST:
        raise UsageError(f"{what} is a number from 1, not {value!r}")
    return value


def _rate(value: object, what: str) -> list[float]:
    if not isinstance(value, tuple | list) or len(value) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise UsageError(f"{what} is how many and in which time, as (100, timedelta(minutes=1)), not {value!r}")
    many, period = value  # pyright: ignore[reportUnknownVariableType]
    length = seconds(period, what)  # pyright: ignore[reportUnknownArgumentType]
    if not length:
        raise UsageError(f"{what}: its time is none: {value!r}")
    return [_count(many, what), length]  # pyright: ignore[reportUnknownArgumentType]


@dataclass(frozen=True, slots=True)
class Order:
    """A workflow to be put in line.

    Attributes:
        arguments, attributes: encoded. wait: seconds that it waits before; until: or until then, in seconds since 1970.
        settle: seconds without another call with its deduplication id until it is in line; settle_limit: in all.
        timeout: seconds that it has once it has begun. deadline: when it is over in any case.
        cause: the span of whoever puts it there, where that is recorded.

    """

    name: str
    arguments: str
    workflow_id: str
    given: bool
    queue: str = DEFAULT
    key: str | None = None
    priority: int = 0
    wait: float | None = None
    until: float | None = None
    deduplication_id: str | None = None
    settle: float | None = None
    settle_limit: float | None = None
    if_exists: IfExists = "attach"
    timeout: float | None = None
    deadline: float | None = None
    attributes: str | None = None
    parent: str | None = None
    cause: str | None = None

    @property
    def shared(self) -> str:
        """What others may have, too: its deduplication id, or its id where that is given; "" where nobody else may."""
        return self.deduplication_id or (self.workflow_id if self.given else "")

    def row(self, application: str) -> tuple[object, ...]:
        """The values of `enqueue.sql`, in its order."""
        return (
            self.workflow_id, self.name, application, self.queue, self.arguments, self.key, self.priority, self.wait,
            self.until, self.deduplication_id, self.settle, self.settle_limit, self.timeout, self.deadline,
            self.attributes, self.parent,
        )  # fmt: skip

    def answered(self, row: tuple[Any, ...]) -> str:
        """The id of the workflow that there is now: this one, or the one that was in its way.

        Raises:
            WorkflowExistsError: that is another workflow, or none was to be.
            UnreadableError: whether it is another one cannot be told here.

        """
        workflow_id, added, name, status, arguments, created_at = row
        if added:
            return workflow_id
        about = f"{workflow_id!r}: {name!r} is {status}, created at {created_at:%Y-%m-%d %H:%M:%S}"
        if workflow_id == self.workflow_id and not self.given:
            return workflow_id  # ours, by a commit whose answer was lost
        if workflow_id != self.workflow_id:
            if self.if_exists == "reject" or name != self.name:
                raise WorkflowExistsError(f"the deduplication id {self.deduplication_id!r} is that of {about}")
        elif name == self.name and (unreadable := unread([arguments])) is not None:
            raise UnreadableError(f"whether {workflow_id!r} has the same arguments: {unreadable}")
        elif name != self.name or not _same(arguments, self.arguments):
            raise WorkflowExistsError(f"the id {about}, with other arguments or another name")
        elif self.if_exists == "reject":
            raise WorkflowExistsError(f"the id {about}")
        return workflow_id


def _same(one: str | None, other: str) -> bool:
    return one == other or (one is not None and json.loads(one) == json.loads(other))


def place_in_line(
    queue: str, key: str | None, priority: int, delay: Seconds | datetime | None, deduplication_id: str | None,
    debounce: Seconds | None, debounce_limit: Seconds | None, if_exists: IfExists, workflow_id: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What an `Order` says of its place, checked.

    Raises:
        UsageError: one that cannot be, by name.

    """
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > _LARGEST:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"a priority is a whole number, the smallest goes first; not {priority!r}")
    if if_exists not in {"attach", "reject"}:
        raise UsageError(f"if_exists is 'attach' or 'reject', not {if_exists!r}")
    for text, what in ((key, "key"), (deduplication_id, "deduplication id")):
        if text is not None and not _is_text(text):
            raise UsageError(f"not a {what}: {text!r}; it is a text of 1 to {_TEXT} characters")
    if debounce is not None and (deduplication_id is None or delay is not None or workflow_id is not None):
        raise UsageError("debounce goes by a deduplication_id, and without a delay or a workflow_id")
    if debounce_limit is not None and debounce is None:
        raise UsageError("debounce_limit is a limit of debounce, which is not given")
    if workflow_id is not None:
        check_workflow_id(workflow_id)
    wait, until = delayed(delay)
    return {
        "queue": check_name(queue), "key": key, "priority": priority, "wait": wait, "until": until,
        "deduplication_id": deduplication_id, "if_exists": if_exists,
        "settle": None if debounce is None else seconds(debounce, "debounce"),
        "settle_limit": None if debounce_limit is None else seconds(debounce_limit, "debounce_limit"),
    }  # fmt: skip


def _is_text(text: object) -> bool:
    return (
        isinstance(text, str) and 0 < len(text) <= _TEXT and "\0" not in text
        and text.encode(errors="replace").decode() == text
    )  # fmt: skip


def delayed(delay: Seconds | datetime | None) -> tuple[float | None, float | None]:
    """A delay as seconds from now, or as a moment.

    Raises:
        UsageError: a time without a zone, or one that cannot be.

    """
    if isinstance(delay, datetime):
        if delay.tzinfo is None:
            raise UsageError(f"a delay is in seconds, or until a time with a zone, not {delay!r}")
        return None, delay.timestamp()
    return (None if delay is None else seconds(delay, "delay")), None


def plain_arguments(args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    """Arguments of a workflow whose code is not here, each by its own type, as the ledger keeps them.

    Raises:
        CodecError: one that is no plain value, model or dataclass.

    """
    encoded = [codec_for(type(value)).named(f"argument {n}").encode(value) for n, value in enumerate(args, 1)]
    keyed = {name: codec_for(type(v)).named(f"argument {name!r}").encode(v) for name, v in kwargs.items()}
    return joined(encoded, keyed, "the arguments")
