"""`eventflow run --only` and `--no-…`: what a process is told to serve runs, and the rest waits."""

import pytest

from eventflow import sync
from tests.harness import World

RAN = "select distinct coalesce(queue, name) from eventflow.workflows where status = 'succeeded'"
BEGAN = "select distinct coalesce(queue, name) from eventflow.workflows where status <> 'queued'"


@pytest.mark.parametrize(
    ("options", "served"),
    [
        ([], {"bill", "mail", "default", "tick"}),
        (["--only", "bill"], {"bill"}),
        (["--only", "mail"], {"mail"}),
        (["--only", "tick"], {"tick"}),
        (["--only", "queue:default,schedule:tick"], {"default", "tick"}),
        (["--no-consumers"], {"mail", "default", "tick"}),
        (["--no-queues"], {"bill", "tick"}),
        (["--no-schedules"], {"bill", "mail", "default"}),
    ],
    ids=lambda one: " ".join(one) or "all" if isinstance(one, list) else "",
)
def test_what_a_process_is_to_serve_runs_and_nothing_else(
    world: World, client: sync.Client, options: list[str], served: set[str]
) -> None:
    """The schedule is due every second: two seconds after the last thing that was to run, the rest has had its time."""
    world.create_topic(1)
    world.produce(5)
    worker = world.start("every_kind", options=options)
    world.wait(lambda: world.executor(worker), "it runs")
    for queue in ("mail", "default"):
        client.enqueue("letter", queue=queue)
    world.wait(lambda: {name for (name,) in world.sql(RAN)} >= served, f"{served} run")
    since = world.one("select clock_timestamp()")
    world.wait(lambda: world.one("select clock_timestamp() > %s + interval '2 seconds'", since), "two seconds")
    assert {name for (name,) in world.sql(BEGAN)} == served
    assert world.one("select count(*) from eventflow.claims") == ("bill" in served)
    assert worker.stop() == 0
