"""What the workers' apps share: the topic, the order, and the table in which they leave their traces.

An app is run by `eventflow run APP` in a process that the test kills, freezes or stops.
"""

import contextlib
import os
import threading
from typing import Any

import psycopg
from pydantic import BaseModel

from eventflow import Message

TOPIC = os.environ["TOPIC"]

INSERT = 'insert into effects ("group", topic, partition, "offset", note, pid) values (%s, %s, %s, %s, %s, %s)'


class Order(BaseModel):
    """A message of the tests; `do` tells some apps what to do with it."""

    n: int
    do: str = ""
    pad: str = ""


def row(group: str, message: Message[Any], note: str) -> tuple[Any, ...]:
    """The effect of one message."""
    return (group, message.topic, message.partition, message.offset, note, os.getpid())


class Outside:
    """The world outside the ledger: rows committed at once, in a connection of its own, by any thread.

    A lost connection is opened anew, once: what a step does outside may happen twice, and the tests allow for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None

    def act(self, group: str, message: Message[Any], note: str) -> None:
        self.act_all([row(group, message, note)])

    def act_all(self, rows: list[tuple[Any, ...]]) -> None:
        """Several, in order."""
        with self._lock:
            for last in (False, True):
                try:
                    if self._connection is None:
                        self._connection = psycopg.connect(os.environ["EFFECTS_URL"], autocommit=True)
                    with self._connection.cursor() as cursor:
                        cursor.executemany(INSERT, rows)
                    return
                except psycopg.OperationalError:
                    with contextlib.suppress(Exception):
                        if self._connection is not None:
                            self._connection.close()
                    self._connection = None
                    if last:
                        raise


outside = Outside()
