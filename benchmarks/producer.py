"""Sends orders at a steady rate, each with the wall time of its sending; a process of its own.

python -m benchmarks.producer --bootstrap HOST:PORT --topic NAME --rate 1000 --count 10000
"""

import argparse
import time

from confluent_kafka import Producer

from benchmarks import orders


def send(producer: Producer, topic: str, rate: float, count: int) -> None:
    """One message every 1/rate seconds, by the clock and not by the last one's delay."""
    started = time.perf_counter()
    for order_id in range(count):
        wait = started + order_id / rate - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        value = orders.stamped(order_id, time.time())
        producer.produce(topic, value, partition=order_id % orders.PARTITIONS)
        producer.poll(0)
    if producer.flush(30):
        raise SystemExit("some messages were not delivered")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    producer = Producer({"bootstrap.servers": arguments.bootstrap, "linger.ms": 0})
    producer.list_topics(arguments.topic, timeout=10)
    send(producer, arguments.topic, arguments.rate, arguments.count)


if __name__ == "__main__":
    main()
