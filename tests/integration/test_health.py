"""Health over HTTP and as functions, and the metrics: what a process says of itself, and that it is so."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import promql_parser
import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from eventflow.local import Postgres
from eventflow.metrics import FAMILIES
from eventflow.readings import GAUGES
from tests.harness import ROOT, Worker, World


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Watcher:
    """A worker with a port, and who asks it."""

    def __init__(self, world: World, app: str = "watched", **settings: str) -> None:
        self.port = free_port()
        if not world.workers:
            world.create_topic(2)
        self.world = world
        self.worker: Worker = world.start(app, EVENTFLOW_HTTP_PORT=str(self.port), **settings)

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            return 0, repr(error).encode()

    def wait(self, path: str, status: int, timeout: float = 40) -> dict[str, Any]:
        found: tuple[int, bytes] = (0, b"")

        def asked() -> bool:
            nonlocal found
            found = self.get(path)
            return found[0] == status

        self.world.wait(asked, f"{path} is {status}", timeout)
        return json.loads(found[1])

    def samples(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Metrics by name and values of labels, in the order of their names."""
        status, body = self.get("/metrics")
        assert status == 200, (status, body)
        text = body.decode()
        return {
            (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples
        }  # fmt: skip


def test_a_process_starts_gets_ready_and_tells_what_it_did(world: World) -> None:
    out = world.create_topic(1, f"{world.topic}-out")
    watcher = Watcher(world, OUT=out)
    watcher.wait("/started", 200)
    assert watcher.wait("/live", 200) == {"ok": True, "reasons": []}
    watcher.wait("/ready", 200)
    world.produce(300)
    world.send({"n": 1, "do": "fail"})
    world.flush()
    world.wait_completed("watched", 300)
    world.wait(lambda: world.one("select count(*) from eventflow.workflows where status = 'failed'") == 1, "one failed")
    world.wait(
        lambda: watcher.samples().get(("eventflow_schedule_lateness_seconds_count", ("tick",)), 0) >= 1, "a fire"
    )
    found = watcher.samples()
    assert found["eventflow_messages_total", ("watch", "succeeded")] == 300
    assert found["eventflow_messages_total", ("watch", "failed")] == 1
    assert found["eventflow_dead_letters_total", ("watch",)] == 1
    assert found["eventflow_retries_total", ("watch",)] == 1
    assert found["eventflow_message_latency_seconds_count", ("watch",)] == 301
    assert found["eventflow_step_seconds_count", ("work",)] == 301
    assert found["eventflow_step_failures_total", ("work",)] >= 1
    assert found["eventflow_in_flight", ("watch",)] == 0
    assert found["eventflow_partitions", ("watch",)] == 2
    assert {found["eventflow_lag_offsets", ("watch", p, world.topic)] for p in "01"} == {0}
    assert {found["eventflow_lag_seconds", ("watch", p, world.topic)] for p in "01"} == {0}
    assert found["eventflow_lease_age_seconds", ()] < 1
    assert found["eventflow_ledger_up", ()] == 1
    assert found["eventflow_flush_seconds_count", ()] == found["eventflow_flush_entries_count", ()] > 0
    world.wait(lambda: watcher.samples()["eventflow_dead_letters_open", ("watch",)] == 1, "the ledger is asked again")
    sent = ("eventflow_events_sent_total", (out,))
    world.wait(lambda: watcher.samples().get(sent) == 300, "what was published is in Kafka")
    text = watcher.get("/metrics")[1].decode()
    assert "secret" not in text
    assert "kafka:" not in text
    assert watcher.get("/nothing")[0] == 404
    assert watcher.worker.stop() == 0


def test_while_a_lifespan_prepares_it_is_live_and_has_not_started(world: World) -> None:
    gate = world.folder / "gate"
    gate.touch()
    watcher = Watcher(world, GATE=str(gate))
    world.wait(lambda: "waits at the gate" in watcher.worker.text, "its lifespan has begun")
    not_begun = {"ok": False, "reasons": ["it has not begun to run"]}
    assert [json.loads(watcher.get(path)[1]) for path in ("/started", "/ready")] == [not_begun] * 2
    assert [watcher.get(path)[0] for path in ("/started", "/ready", "/live")] == [503, 503, 200]
    gate.unlink()
    watcher.wait("/started", 200)
    watcher.wait("/ready", 200)


def test_fire_times_that_are_caught_up_with_are_late(world: World) -> None:
    watcher = Watcher(world)
    watcher.wait("/started", 200)
    bucket = "eventflow_schedule_lateness_seconds_bucket"
    world.wait(lambda: watcher.samples().get((bucket, ("30.0", "tick")), 0) >= 1, "a fire in time")

    def late() -> float:
        found = watcher.samples()
        return found[bucket, ("+Inf", "tick")] - found[bucket, ("30.0", "tick")]

    assert late() == 0
    two_minutes_ago = "next_at = next_at - interval '2 minutes', due_at = due_at - interval '2 minutes'"
    world.sql(f"update eventflow.schedules set {two_minutes_ago}")
    world.wait(lambda: late() >= 1, "a fire of two minutes ago")


def test_a_loop_that_stands_still_is_not_live(world: World) -> None:
    watcher = Watcher(world, EVENTFLOW_LIVE_WITHIN="0.5")
    watcher.wait("/ready", 200)
    world.send({"n": 1, "do": "block", "pad": "4"})
    world.flush()
    [reason] = watcher.wait("/live", 503)["reasons"]
    assert reason.startswith("the event loop stands still for")
    watcher.wait("/live", 200)


def test_who_is_behind_is_live_and_not_ready(world: World) -> None:
    watcher = Watcher(world, EVENTFLOW_READY_WITHIN="0.3", EVENTFLOW_MAX_IN_FLIGHT="2")
    watcher.wait("/ready", 200)
    for n in range(6):
        world.send({"n": n, "do": "slow", "pad": "1"}, partition=0)
    world.flush()
    reasons = watcher.wait("/ready", 503)["reasons"]
    assert any(reason.startswith(f"watch: {world.topic}/0 is ") for reason in reasons)
    found = watcher.samples()
    assert found["eventflow_lag_offsets", ("watch", "0", world.topic)] > 0
    assert found["eventflow_lag_seconds", ("watch", "0", world.topic)] > 0.3
    assert watcher.get("/live")[0] == 200
    world.wait_completed("watched", 6)
    watcher.wait("/ready", 200)


@pytest.mark.crash
def test_without_its_ledger_it_is_not_ready_and_after_a_while_not_live(
    private_world: World, private_postgres: Postgres
) -> None:
    world = private_world
    watcher = Watcher(world, EVENTFLOW_LIVE_WITHIN="2")
    watcher.wait("/ready", 200)
    watcher.wait("/started", 200)
    private_postgres.kill()
    assert any("the lease is not held" in reason for reason in watcher.wait("/ready", 503)["reasons"])
    assert watcher.get("/live")[0] == 200
    assert "the lease was not renewed" in watcher.wait("/live", 503)["reasons"][0]
    assert watcher.samples()["eventflow_ledger_up", ()] == 0
    assert watcher.get("/started")[0] == 200
    private_postgres.start()
    watcher.wait("/ready", 200)
    watcher.wait("/live", 200)
    world.wait(lambda: watcher.samples()["eventflow_ledger_up", ()] == 1, "the ledger answers")


@pytest.mark.crash
def test_a_takeover_is_counted(world: World) -> None:
    world.create_topic(2)
    dying = world.start("watched", crash="executor.after_step:1", ready=True)
    world.send({"n": 1, "do": "slow", "pad": "0.5"})
    world.flush()
    world.wait_death(dying)
    watcher = Watcher(world)
    world.wait_completed("watched", 1)
    found = watcher.samples()
    assert found["eventflow_takeovers_total", ()] == 1
    assert found["eventflow_recoveries_total", ()] >= 1  # a fire of the schedule may have been under way, too


def test_queues_and_events_that_wait_are_told(world: World) -> None:
    watcher = Watcher(world, OUT=f"{world.topic}-gone")  # a topic that is not there
    watcher.wait("/ready", 200)
    world.send({"n": 1, "do": "mail"})
    world.flush()
    wanted = {("eventflow_queue_depth", ("mail",)): 1.0}
    world.wait(lambda: wanted.items() <= watcher.samples().items(), "one waits in the queue")
    world.wait(lambda: watcher.samples()["eventflow_queue_age_seconds", ("mail",)] > 0, "it has waited")
    waiting = ("eventflow_outbox_events", "eventflow_undelivered_events")
    world.wait(lambda: sum(watcher.samples()[name, ()] for name in waiting) == 1, "the event waits")
    with psycopg.connect(world.database_url) as connection:
        connection.execute("select from eventflow.relay for update")  # nobody relays until this ends
        world.sql("select eventflow.publish(%s, 'k', '1')", world.topic)
        world.wait(lambda: watcher.samples()["eventflow_outbox_age_seconds", ()] > 0, "the first event has waited")
    world.sql("insert into eventflow.incidents (kind, subject, detail) values ('retention', 'x', 'it is gone')")
    incidents = ("eventflow_incidents_open", ("retention",))
    world.wait(lambda: watcher.samples().get(incidents) == 1, "the incident is open")
    world.sql("update eventflow.incidents set settled_at = now() where subject = 'x'")
    world.wait(lambda: incidents not in watcher.samples(), "it is settled")


def test_a_port_in_use_is_named_before_anything_starts(world: World) -> None:
    world.create_topic(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = world.start("watched", EVENTFLOW_HTTP_PORT=str(port))
        assert world.wait_death(worker) != 0
    assert f"EVENTFLOW_HTTP_PORT: port {port} of 127.0.0.1: Address already in use" in worker.text
    assert "Traceback" not in worker.text
    assert world.one("select count(*) from eventflow.executors") == 0


def test_without_the_extra_it_is_named(world: World) -> None:
    world.create_topic(1)
    hidden = world.folder / "hidden" / "starlette"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not installed')")
    path = os.pathsep.join([str(hidden.parent), str(hidden.parents[3])])
    world.defaults["PYTHONPATH"] = os.pathsep.join([path, *sys.path])
    worker = world.start("watched", EVENTFLOW_HTTP_PORT="0")
    assert world.wait_death(worker) != 0
    assert "EVENTFLOW_HTTP_PORT needs `pip install 'eventflow[http]'`" in worker.text


PROGRAM = """
import asyncio, json
import eventflow
from eventflow import health
from eventflow.errors import NotRunningError

async def get(app, path):
    sent = []
    async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message): sent.append(message)
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
             "root_path": "", "scheme": "http", "server": ("x", 80), "client": ("x", 1), "http_version": "1.1"}
    await app(scope, receive, send)
    return sent[0]["status"]

async def main():
    try:
        health.live()
    except NotRunningError:
        pass
    async with eventflow.running(consumers=False):
        checks = [health.live(), health.ready(), health.started()]
        app = health.app()
        statuses = [await get(app, path) for path in ("/live", "/ready", "/started", "/metrics")]
        text = await asyncio.to_thread(health.metrics)
    print(json.dumps([[c.ok for c in checks], statuses, b"eventflow_ledger_up 1.0" in text]))

asyncio.run(main())
"""


def test_the_same_as_functions_for_ones_own_server(world: World) -> None:
    file = world.folder / "program.py"
    file.write_text(PROGRAM)
    environment = {**os.environ, "DATABASE_URL": world.database_url}
    found = subprocess.run(
        [sys.executable, str(file)], env=environment, capture_output=True, text=True, timeout=60, cwd=world.folder
    )
    assert json.loads(found.stdout or "null") == [[True] * 3, [200] * 4, True], found.stderr


# ---- dashboard and alerts ----


def expressions() -> dict[str, str]:
    """The expressions of the dashboard's panels and of the alerts, by where they stand."""
    dashboard = json.loads((ROOT / "telemetry" / "grafana" / "dashboard.json").read_text())
    alerts = yaml.safe_load((ROOT / "telemetry" / "alerts.yaml").read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    return found | {rule["alert"]: rule["expr"] for group in alerts["groups"] for rule in group["rules"]}


def names_in(expression: str) -> tuple[set[str], set[str]]:
    """The metrics of an expression, and the labels that it goes by."""
    metrics, labels = set[str](), set[str]()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            metrics.add(node.name)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            labels.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return metrics, labels


def test_what_dashboard_and_alerts_name_is_at_the_endpoint(world: World) -> None:
    watcher = Watcher(world)
    watcher.wait("/ready", 200)
    families = {f.name: f for f in text_string_to_metric_families(watcher.get("/metrics")[1].decode())}
    known = {f"eventflow_{family.name}": family for family in [i.read() for i in FAMILIES.values()]}
    labels_of = {name: set(family.labels) for name, family in known.items()} | {
        f"eventflow_{name}": set(labels) for name, (_, labels) in GAUGES.items()
    }
    assert labels_of.keys() == {name for name in families if name.startswith("eventflow_")}
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    series = {name + end: name for name, family in families.items() for end in suffixes.get(family.type, ())}
    used = set[str]()
    for where, expression in expressions().items():
        metrics, labels = names_in(expression)
        ours = metrics - {"up"}
        assert ours <= series.keys(), (where, ours - series.keys())
        used |= {series[name] for name in ours}
        for name in ours:
            allowed = (
                labels_of[series[name]]
                | {"instance", "job", "le"}
                | ({"workflow"} if "label_replace" in expression else set())
            )
            assert labels <= allowed, (where, name, labels)
    assert used == {name for name in families if name.startswith("eventflow_")}, "a metric that nobody looks at"
