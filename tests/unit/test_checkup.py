"""What `eventflow doctor` makes of what it sees. On real servers: tests/integration/test_doctor.py."""

import dataclasses
import json
from typing import Any

import pytest

from eventflow.checkup import ServerFacts, TopicFacts, of_server, of_topic

GOOD = ServerFacts(
    "18.6", False, 1000.0, json.dumps({"max_connections": "100", "fsync": "on"}), 10, 5.0, True, 1000.2, 10
)
TOPIC = {
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
}


def test_nothing_is_wrong() -> None:
    found = list(of_server(GOOD))
    assert {one.verdict for one in found} == {"ok"}
    assert found[-1].text == "10 of 100 connections are used; a process takes up to 18: there is room for 5 more"
    assert [one.verdict for one in of_topic(TopicFacts("orders", 3, 3, TOPIC))] == ["ok"]


@pytest.mark.parametrize(
    ("change", "verdict", "said"),
    [
        ({"standby": True}, "wrong", "it is a standby: nothing can be written"),
        ({"settings": {"default_transaction_read_only": "on"}}, "wrong", "read only (default_transaction_read_only)"),
        ({"settings": {"fsync": "off"}}, "wrong", "fsync is off"),
        ({"settings": {"full_page_writes": "off"}}, "wrong", "full_page_writes is off"),
        ({"settings": {"autovacuum": "off"}}, "wrong", "autovacuum is off"),
        ({"settings": {"track_counts": "off"}}, "wrong", "track_counts is off"),
        ({"settings": {"statement_timeout": "1000"}}, "note", "statement_timeout is 1 s, which ends transactions"),
        ({"settings": {"idle_session_timeout": "60000"}}, "note", "idle_session_timeout ends connections"),
        ({"here": 1005.0}, "wrong", "this machine's clock is 5 s ahead of the server's"),
        ({"here": 940.0}, "wrong", "this machine's clock is 1 min behind the server's"),
        ({"connections": 90}, "wrong", "there is no room for one more"),
        ({"settings": {"superuser_reserved_connections": "80"}}, "wrong", "there is no room for one more"),
        ({"oldest": 7200.0}, "note", "a transaction has been open for 2 h"),
        ({"timeline": False}, "note", "the role may not read the timeline"),
    ],
)
def test_a_server(change: dict[str, Any], verdict: str, said: str) -> None:
    change["settings"] = json.dumps({"max_connections": "100"} | change.get("settings", {}))
    [found] = [one for one in of_server(dataclasses.replace(GOOD, **change)) if one.verdict != "ok"]
    assert (found.verdict, found.advice != "") == (verdict, True)
    assert said in found.text


@pytest.mark.parametrize(
    ("copies", "settings", "verdict", "said"),
    [
        (1, {}, "note", "it is on one broker"),
        (3, {"min.insync.replicas": "1"}, "note", "min.insync.replicas is 1"),
        (3, {"cleanup.policy": "compact"}, "note", "it is compacted"),
        (3, {"retention.ms": "3600000"}, "note", "it keeps messages for 1 h"),
        (3, {"unclean.leader.election.enable": "true"}, "wrong", "an unclean leader may be elected"),
    ],
)
def test_a_topic(copies: int, settings: dict[str, str], verdict: str, said: str) -> None:
    [found] = [one for one in of_topic(TopicFacts("orders", 3, copies, TOPIC | settings)) if one.verdict != "ok"]
    assert (found.verdict, found.about) == (verdict, "topic orders")
    assert said in found.text
    assert found.advice
