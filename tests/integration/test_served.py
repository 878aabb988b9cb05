"""`eventflow run --only` and `--no-…`: what a process is told to serve runs, and the rest waits."""

import pytest

from eventflow import sync
from tests.harness import World

NEW = "select distinct coalesce(queue, name) from eventflow.workflows where not starts_with(id, 'left')"
RAN, BEGAN = f"{NEW} and status = 'succeeded'", f"{NEW} and status <> 'queued'"
# Of each queue one that a process let go of when it left, one that sleeps and is signalled, and one whose time has come.
LEFT = """
with signalled as (
  insert into eventflow.signals (workflow_id) select 'left signalled ' || queue from unnest(%s::text[]) queue
)
insert into eventflow.workflows (id, name, application, status, arguments, attempt, queue, queue_key, priority, wake_at)
select 'left ' || how || ' ' || queue, 'letter', 'default', status::eventflow.status, '{"args": [], "kwargs": {}}', 0, queue,
       '', 0, wake_at
  from unnest(%s::text[]) queue,
       (values ('by one that left', 'queued', null), ('signalled', 'waiting', null), ('due', 'waiting', now()))
         as t (how, status, wake_at)
"""


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
    queues = ["mail", "default"]
    world.sql(LEFT, queues, queues)
    for queue in queues:
        client.enqueue("letter", queue=queue)
    world.wait(lambda: {name for (name,) in world.sql(RAN)} >= served, f"{served} run")
    since = world.one("select clock_timestamp()")
    world.wait(lambda: world.one("select clock_timestamp() > %s + interval '2 seconds'", since), "two seconds")
    assert {name for (name,) in world.sql(BEGAN)} == served
    left = "select queue, count(*) from eventflow.workflows where starts_with(id, 'left') and attempt > 0 group by 1"
    assert dict(world.sql(left)) == {queue: 3 for queue in queues if queue in served}
    assert world.one("select count(*) from eventflow.claims") == ("bill" in served)
    assert worker.stop() == 0
