"""What a process says about itself: its loggers, and the points at which a test may kill it.

A *crash point* is a named place between two commits. In production `crash_point` is one look into an empty dict.
A test arms a point through the environment of the process it is about to lose:

    EVENTFLOW_CRASH="journal.before_commit:3"   SIGKILL itself the third time it gets there
    EVENTFLOW_STOP="journal.after_begin:1"      SIGSTOP itself there; SIGCONT from outside lets it go on

Several points are separated by commas. docs/guarantees.md says which point lies between which commits.
"""

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Mapping


def logger(name: str) -> logging.Logger:
    """The logger of one part of eventflow: `logger("journal")` is `eventflow.journal`."""
    return logging.getLogger(name if name.startswith("eventflow") else f"eventflow.{name}")


class Seldom:
    """Which texts may be said now: each once a minute, because a server that is away is away many times a second.

    Numbers do not count: ports, durations and attempts differ while the trouble is the same.
    """

    def __init__(self, every: float = 60.0) -> None:
        self._every = every
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()

    def may_say(self, text: str) -> bool:
        """Whether this was not said within the last minute; if so, it counts as said now."""
        now, text = time.monotonic(), re.sub(r"\d+", "", text)
        with self._lock:
            self._said = {known: at for known, at in self._said.items() if now - at < self._every}
            if text in self._said:
                return False
            self._said[text] = now
            return True

    def say(self, logger: logging.Logger, text: str, level: int = logging.WARNING) -> None:
        """Log it, at this level where it may be said, else for those only who want to see every attempt."""
        logger.log(level if self.may_say(text) else logging.DEBUG, "%s", text)


seldom = Seldom()  # one for the process: a server that is away is so for all consumers


def _parse(setting: str, sent: int) -> dict[str, tuple[int, int]]:
    armed: dict[str, tuple[int, int]] = {}
    for item in filter(None, (part.strip() for part in setting.split(","))):
        name, _, count = item.partition(":")
        armed[name] = (int(count or 1), sent)
    return armed


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    return {
        **_parse(environment.get("EVENTFLOW_CRASH", ""), signal.SIGKILL),
        **_parse(environment.get("EVENTFLOW_STOP", ""), signal.SIGSTOP),
    }


# Point -> how many more times it is passed, and the signal for then. Empty in production.
_armed: dict[str, tuple[int, int]] = _from_environment(os.environ)


def crash_point(name: str) -> None:
    """Send this process the signal armed for the point, if it is the time that was asked for."""
    if not _armed or name not in _armed:
        return
    left, sent = _armed[name]
    if left > 1:
        _armed[name] = (left - 1, sent)
        return
    del _armed[name]
    # Straight to the file descriptor: nothing buffered survives what comes next.
    os.write(2, f"eventflow: crash point {name}: {signal.Signals(sent).name}\n".encode())
    # To this thread: one that is sent to the process stops it only once another thread has woken up for it.
    signal.pthread_kill(threading.get_ident(), sent)
