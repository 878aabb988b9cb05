"""eventflow's durable workflows measured beside DBOS 3.4, in one run on one machine; no Kafka.

    python -m benchmarks.workflows [--quick] [--only WORK,...] [--rounds N] [--callers N] [--sleepers N] [--write-page]

`catalogue` names each kind of work, who competes in it, and what is compared to what. Work after work, its contestants
take turns, round after round, each in a process of its own on a fresh database, which is read back before its figure
counts (`checks`). The 100,000 sleepers are those of `benchmarks.sleepers`; a tenth as many wait for a message. `report`
writes tables, ratios and JSON, and says which bars are met; one that is not makes the exit status 1.
"""
