"""`python prepare.py`: the program's tables and topics, where there are none yet. `eventflow migrate` makes eventflow's own."""

import os

from app import Base
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from settings import settings
from sqlalchemy import create_engine


def prepare(database_url: str, servers: str) -> None:
    """Make what is missing."""
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://", 1))
    Base.metadata.create_all(engine)
    engine.dispose()
    admin = AdminClient({"bootstrap.servers": servers})
    topics = [NewTopic(name, num_partitions=3) for name in (settings.orders, settings.receipts)]
    for made in admin.create_topics(topics).values():
        try:
            made.result(timeout=30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


if __name__ == "__main__":
    prepare(os.environ["DATABASE_URL"], os.environ["KAFKA_BOOTSTRAP_SERVERS"])
