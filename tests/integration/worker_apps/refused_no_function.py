"""Refused at import: a handler that is no function."""

from common import TOPIC

import eventflow

eventflow.kafka_consumer(TOPIC, group="billing")(len)  # type: ignore[type-var]
