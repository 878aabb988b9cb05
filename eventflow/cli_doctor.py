"""`eventflow doctor`: whether this environment is fit to run, and what to change. Exit status 1 where something is wrong."""

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import typer

from eventflow.checkup import Finding, ServerFacts, TopicFacts, of_server, of_topic
from eventflow.errors import SchemaError, SettingsError, UnavailableError
from eventflow.settings import Settings, load_settings
from eventflow.terminal import say_json, table
from eventflow.words import counted, one_line

if TYPE_CHECKING:
    from eventflow.database import Connection, Database

_MIGRATE = "eventflow migrate, and eventflow migrate --roles NAME"


def examine(topics: Iterable[str], *, as_json: bool) -> None:
    """Look at everything, say it, and exit with 1 where something is wrong."""
    settings = load_settings()
    findings = list(_findings(settings, list(topics)))
    for one in findings if as_json else ():
        say_json(one)
    if not as_json:
        for line in table([_cells(one) for one in findings]):
            typer.echo(line)
        wrong = sum(one.verdict == "wrong" for one in findings)
        typer.echo("nothing is wrong" if not wrong else f"{wrong} wrong: see what to change", err=True)
    if any(one.verdict == "wrong" for one in findings):
        raise typer.Exit(1)


def _cells(one: Finding) -> list[str]:
    verdict = {"ok": "ok", "note": "note", "wrong": "WRONG"}[one.verdict]
    return [verdict, one.about, one_line(f"{one.text}{f'; {one.advice}' if one.advice else ''}", 1000)]


def _findings(settings: Settings, topics: list[str]) -> Iterator[Finding]:
    yield _versions()
    try:
        known = yield from _of_ledger(settings)
    except UnavailableError as error:
        known = []
        yield Finding("server", "wrong", str(error), "start it, or mend DATABASE_URL")
    for name, url in settings.databases.items():
        yield from _of_other(settings, name, url)
    if settings.schema_registry_url:
        yield _of_registry(settings)
    if not settings.kafka_bootstrap_servers:
        yield Finding("Kafka", "note", "KAFKA_BOOTSTRAP_SERVERS is not set: consumers need it", "set it, and ask again")
        return
    yield from _of_kafka(settings, sorted({*topics, *known}))


def _versions() -> Finding:
    from eventflow.brokers import library_version
    from eventflow.database import client_version

    text = f"eventflow {version('eventflow')}, librdkafka {library_version()}, libpq {client_version()}"
    return Finding("versions", "ok", text)


def _of_ledger(settings: Settings) -> Generator[Finding, None, list[str]]:
    """Its server, its schema and its rights; returns the topics that it knows."""
    from eventflow.database import database_of
    from eventflow.migrations import check_schema

    database = database_of(settings)
    with database.connect("doctor") as connection:
        yield from _of_server(settings, database, connection)
        try:
            check_schema(connection, database.schema)
        except SchemaError as error:
            yield Finding("schema", "wrong", str(error), _MIGRATE)
            return []
        yield Finding(
            "schema", "ok", f"{settings.safe_database_url}, schema {database.schema}: version and rights are right"
        )
        return _known_topics(database, connection)


def _of_server(settings: Settings, database: "Database", connection: "Connection") -> Iterator[Finding]:
    from eventflow.incarnation import lane_count

    [row] = database.run(connection, "doctor")
    return of_server(ServerFacts(*row, here=time.time(), lanes=lane_count(settings)))


def _of_other(settings: Settings, name: str, url: str) -> Iterator[Finding]:
    """A database in which transactions are made: its server, and whether their results may be left there."""
    from eventflow.database import database_of
    from eventflow.elsewhere import check_results, other_database

    about = f"database {name}"
    server = replace(database_of(settings), url=url)
    database = other_database(name, url, prepared=server.prepared, payloads=server.payloads)
    try:
        with server.connect("doctor") as connection:
            found = list(_of_server(settings, server, connection))
        yield from (replace(one, about=f"{about}: {one.about}") for one in found if one.about != "rights")
        check_results(database)
    except UnavailableError as error:
        yield Finding(about, "wrong", str(error), "start it, or mend EVENTFLOW_DATABASES")
    except SchemaError as error:
        yield Finding(about, "wrong", str(error), _MIGRATE)
    else:
        yield Finding(about, "ok", f"schema {database.schema}: version and rights are right")


def _of_registry(settings: Settings) -> Finding:
    from eventflow.schema_registry import SchemaRegistry

    try:
        registry = SchemaRegistry(settings.schema_registry_url, settings.schema_registry)
        count = registry.count()
    except (SettingsError, UnavailableError) as error:
        advice = "start it, or mend EVENTFLOW_SCHEMA_REGISTRY_URL or EVENTFLOW_SCHEMA_REGISTRY"
        return Finding("schema registry", "wrong", str(error), advice)
    return Finding("schema registry", "ok", f"{registry.url} answers, and knows {counted(count, 'subject')}")


def _known_topics(database: "Database", connection: "Connection") -> list[str]:
    return [topic for (topic,) in database.run(connection, "known_topics")]


def _of_kafka(settings: Settings, topics: list[str]) -> Iterator[Finding]:
    from eventflow.brokers import Brokers, UnknownTopicError, describe

    servers = settings.kafka_bootstrap_servers
    brokers = Brokers(servers, settings.kafka, {}, "eventflow-doctor", "eventflow-doctor", lambda _: None)
    try:
        brokers.check("doctor")
        identities = brokers.identities(topics)
        count, described = describe(brokers, [name for name in topics if isinstance(identities[name], tuple)])
    except UnavailableError as error:
        yield Finding("Kafka", "wrong", str(error), "start it, or mend KAFKA_BOOTSTRAP_SERVERS or EVENTFLOW_KAFKA")
        return
    yield Finding("Kafka", "ok", f"{servers} answers, with {count} broker{'s' if count != 1 else ''}")
    for name in topics:
        identity = identities[name]
        if isinstance(identity, UnknownTopicError):
            yield Finding(
                f"topic {name}", "wrong", "there is no such topic", "create it; it is read as soon as it exists"
            )
        elif isinstance(identity, UnavailableError):
            yield Finding(f"topic {name}", "wrong", str(identity), "Apache Kafka 3.7 or newer is needed")
        else:
            yield from of_topic(TopicFacts(name, *described[name]))
    if not topics:
        yield Finding("topics", "note", "none is known yet: --app names a program whose topics are looked at")
