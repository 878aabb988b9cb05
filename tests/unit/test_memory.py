"""The topics of the test harness."""

from eventflow.testing.memory import Consumer, Place, Topics


def test_what_is_taken_is_read_when_more_is_asked_for() -> None:
    """Between the two it may be in no list of what runs."""
    topics = Topics()
    consumer = Consumer(topics)
    consumer.subscribe(
        ["t"], on_assign=lambda its, places: its.incremental_assign([Place("t", 0, 0)]), on_revoke=None, on_lost=None
    )
    assert not topics.read()
    assert consumer.poll(0) is None
    assert topics.read()
    topics.append("t", b"1", None, None, 0)
    assert not topics.read()
    assert consumer.poll(0) is not None
    assert not topics.read(), "it is in the hands of who took it"
    assert consumer.consume(10, 0) == []
    assert not topics.read()
    assert consumer.poll(0) is None
    assert topics.read()
