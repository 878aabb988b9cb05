"""Earthquakes: a schedule fetches a GeoJSON feed, what is new in it goes through Kafka, and a table has the newest of each.

`EARTHQUAKES_FEED` is the feed's address, and `EARTHQUAKES_EVERY` how many seconds lie between two looks. By default the feed
is `feed.json` beside this file: six looks, one after the other, in the form of the feeds of the U.S. Geological Survey.
"""

import json
import os
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from pydantic import BaseModel

import eventflow
from eventflow import Fire, Message, Retry, sync

FEED = os.environ.get("EARTHQUAKES_FEED", Path(__file__).with_name("feed.json").as_uri())
EVERY = timedelta(seconds=float(os.environ.get("EARTHQUAKES_EVERY", "60")))
LOOKS = 6  # that are kept
TOPIC = "earthquakes"

TABLES = """
create table if not exists looks (at timestamptz primary key);
create table if not exists announced (id text, updated bigint, primary key (id, updated));
create table if not exists earthquakes (
  id text primary key, updated bigint not null, magnitude float8 not null, place text not null, at timestamptz not null
);
create table if not exists revisions (id text not null, updated bigint not null, magnitude float8 not null);
"""  # no constraint on revisions: one that is handled twice must be seen


class Quake(BaseModel):
    """What is known of an earthquake; it is revised now and then."""

    id: str
    updated: int  # milliseconds since 1970: which revision it is
    magnitude: float
    place: str
    time: int  # milliseconds since 1970


def parse(feed: Any) -> list[Quake]:
    """The earthquakes of a GeoJSON FeatureCollection; those without a magnitude yet are left for a later look."""
    return [
        Quake(id=f["id"], updated=p["updated"], magnitude=p["mag"], place=p["place"], time=p["time"])
        for f in feed["features"]
        if (p := f["properties"])["mag"] is not None
    ]


@eventflow.transaction
def count(connection: "psycopg.Connection[Any]", at: datetime) -> int:
    """How many looks there were before this one."""
    connection.execute("insert into looks values (%s) on conflict do nothing", [at])
    [(before,)] = connection.execute("select count(*) from looks where at < %s", [at]).fetchall()
    return before


@eventflow.step(retries=Retry(5, delay=1.0))
def fetch(number: int) -> list[Quake]:
    """Read the feed; of kept looks, the one with this number, and the last one again and again."""
    with urllib.request.urlopen(FEED, timeout=10) as answer:  # noqa: S310 - the operator's own setting
        feed: Any = json.load(answer)
    return parse(feed[min(number, LOOKS - 1)] if "EARTHQUAKES_FEED" not in os.environ else feed)


@eventflow.transaction
def announce(connection: "psycopg.Connection[Any]", quakes: list[Quake]) -> int:
    """Publish those that were not, and note that they are: one commit, so a crash neither loses nor doubles one."""
    new = 0
    for quake in quakes:
        noted = connection.execute(
            "insert into announced values (%s, %s) on conflict do nothing", [quake.id, quake.updated]
        )
        if noted.rowcount:
            sync.publish(TOPIC, quake, key=quake.id)
            new += 1
    return new


@eventflow.scheduled(every=EVERY, overlap="skip")
def look(fire: Fire) -> int:
    """Each look is a workflow: what it fetched is recorded, and announced once."""
    return announce(fetch(count(fire.time)))


@eventflow.kafka_consumer(TOPIC, group="tracker", ordering="key")
@eventflow.transaction
def track(connection: "psycopg.Connection[Any]", message: Message[Quake]) -> None:
    """The revisions of an earthquake come in order, and each is entered once, whoever dies."""
    quake = message.value
    at = datetime.fromtimestamp(quake.time / 1000, UTC)
    connection.execute("insert into revisions values (%s, %s, %s)", [quake.id, quake.updated, quake.magnitude])
    connection.execute(
        """insert into earthquakes (id, updated, magnitude, place, at) values (%s, %s, %s, %s, %s)
           on conflict (id) do update set updated = excluded.updated, magnitude = excluded.magnitude, place = excluded.place""",
        [quake.id, quake.updated, quake.magnitude, quake.place, at],
    )
