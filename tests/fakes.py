"""What tests put together without services."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from eventflow.adoption import Adoption
from eventflow.executor import Executor
from eventflow.journal import Identity
from eventflow.recovery import Lease, LedgerClock
from eventflow.registry import Spec
from eventflow.replay import Pace


def new_executor(*, accept_after: float = 10.0, threads: int = 1) -> Executor:
    """One on the running loop, whose waits no ledger answers."""
    return Executor(
        asyncio.get_running_loop(),
        accept_after=accept_after, threads=threads, pace=Pace(time.time, random.random), ask=lambda *_: None,
    )  # fmt: skip


class NoQueues:
    """An executor that serves none."""

    served: list[str] = []

    def params(self) -> dict[str, Any]:
        return {"queues": [], "since": "0", "missed": []}

    def told(self, *, arrived: bool, due: float | None) -> None: ...
    def look_at_all(self) -> None: ...


class NoSchedules:
    """An executor that fires none."""

    def params(self) -> dict[str, Any]:
        return {"scheduled": [], "schedules": None}

    def told(self, due: float | None) -> None: ...


class NoRelay:
    """Nothing is published."""

    def low(self) -> int | None:
        return None

    def told(self, facts: list[Any]) -> None: ...


class NoConsumers:
    """Nothing is read."""

    def told(self, *_: Any) -> None: ...


def new_lease(
    database: Any, identity: Identity, application: str, specs: Mapping[str, Spec], *, beat: float = 1, lease: float = 5,
    adopt: Callable[..., object] = lambda *_: None, running: Callable[[str], bool] = lambda _: False,
    room: Callable[[], int] = lambda: 100, on_fenced: Callable[[Any], object] = lambda _: None,
) -> Lease:  # fmt: skip
    """One whose executor is the test."""
    adoption = Adoption(
        database, identity.executor, application, specs, adopt=adopt, request=lambda *_: None  # type: ignore[arg-type]
    )  # fmt: skip
    return Lease(
        database, identity, application, specs, beat=beat, lease=lease, adoption=adoption, queues=NoQueues(), relay=NoRelay(),
        consumers=NoConsumers(),
        schedules=NoSchedules(), running=running, room=room, suspects=lambda: False, stuck_for=lambda: 0.0, clock=LedgerClock(0.0), on_fenced=on_fenced,  # type: ignore[arg-type]
    )  # fmt: skip
