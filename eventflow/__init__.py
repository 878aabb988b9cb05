"""Exactly-once event processing on Kafka and Postgres, on a durable-execution core.

The front door: everything a program needs stands here; verbs are awaited, and `eventflow.sync` has them blocking.
"""

from eventflow.app import running
from eventflow.cron import Fire
from eventflow.errors import EventflowError
from eventflow.handlers import kafka_consumer, lifespan
from eventflow.handles import Handle, enqueue, start
from eventflow.kafka import Message
from eventflow.publishing import publish
from eventflow.retry import Retry
from eventflow.schedules import scheduled
from eventflow.steps import step
from eventflow.workflows import transaction, workflow

__all__ = [
    "EventflowError",
    "Fire",
    "Handle",
    "Message",
    "Retry",
    "enqueue",
    "kafka_consumer",
    "lifespan",
    "publish",
    "running",
    "scheduled",
    "start",
    "step",
    "transaction",
    "workflow",
]
