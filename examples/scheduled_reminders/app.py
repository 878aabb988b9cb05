"""Letters about appointments: a schedule finds new ones each morning, and a workflow for each sleeps for days between letters.

`REMINDERS_DAY` is how many seconds a day has: the clock to turn. By default it is a real day; `demo.py` makes it a second.
"""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from pydantic import BaseModel

import eventflow
from eventflow import Fire, durable

DAY = timedelta(seconds=float(os.environ.get("REMINDERS_DAY", "86400")))
BEGAN = datetime.fromtimestamp(float(os.environ.get("REMINDERS_BEGAN", "0")), UTC)  # day 0, and when mornings are

TABLES = """
create table if not exists appointments (
  id int primary key, customer text not null, day int not null, booked_at timestamptz not null
);
create table if not exists letters (
  id serial primary key, appointment int not null, customer text not null, day int not null, text text not null
);
"""  # no constraint on letters: one that was written twice must be seen


class Appointment(BaseModel):
    """Who comes, and on which day."""

    id: int
    customer: str
    day: int


def morning_of(day: int) -> datetime:
    """When a day begins."""
    return BEGAN + day * DAY


@eventflow.transaction
def booked(connection: "psycopg.Connection[Any]", after: datetime | None, until: datetime) -> list[Appointment]:
    """The appointments that were booked within this time: each is in one such range, also where mornings were missed."""
    rows = connection.execute(
        """select id, customer, day from appointments
            where booked_at > coalesce(%s::timestamptz, '-infinity') and booked_at <= %s order by id""",
        [after, until],
    ).fetchall()
    return [Appointment(id=row[0], customer=row[1], day=row[2]) for row in rows]


@eventflow.transaction
def write_letter(connection: "psycopg.Connection[Any]", to: Appointment, day: int, text: str) -> None:
    """The letter and the record that it is written are one commit: no crash writes it twice."""
    connection.execute(
        "insert into letters (appointment, customer, day, text) values (%s, %s, %s, %s)",
        [to.id, to.customer, day, text],
    )


@eventflow.workflow
async def remind(appointment: Appointment) -> int:
    """Three letters, days apart. Between them it is a row in Postgres, and needs no process."""
    letters = ((-3, "in three days"), (-1, "tomorrow"), (1, "how was it?"))
    for days, text in letters:
        day = appointment.day + days
        await durable.sleep_until(morning_of(day))
        await durable.run_step(write_letter, appointment, day, text)
    return len(letters)


@eventflow.scheduled(every=DAY, start=BEGAN, overlap="buffer_all", catch_up=14 * DAY)
async def each_morning(fire: Fire) -> int:
    """Start a reminder for each appointment that was booked since the last morning."""
    new = await durable.run_step(booked, fire.previous, fire.time)
    for appointment in new:
        await eventflow.start(remind, appointment, workflow_id=f"reminder:{appointment.id}")
    return len(new)
