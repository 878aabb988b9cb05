"""eventflow measured against what a team would use instead, in one run on one machine.

    python -m benchmarks [--quick] [--only NAME,...] [--rounds N] [--count N] [--memory 2000000]

The story in four lines: `services` gives a real Kafka and a real PostgreSQL, `orders` fills topics, `catalogue`
names who competes, and `runs` lets each compete alone: its own process, a fresh database, a fresh consumer group,
in turns, round after round. `verify` reads every run's database before its figure counts; `measures` takes what
is no rate (latency, round trips, idle transactions, memory); `report` writes tables, ratios, and JSON.

Two more have programs of their own: `benchmarks.workflows`, durable workflows that a program starts, beside DBOS; and
`benchmarks.sleepers`, 100,000 of them asleep.
"""
