"""What becomes of an order."""

import psycopg
from app import Order, Receipt, charge

from eventflow import testing
from eventflow.testing import Harness

ORDER = Order(order_id=7, customer="Ada", amount=30)


async def test_an_order_is_charged_entered_and_answered(flow: Harness) -> None:
    workflow_id = await flow.deliver("orders", ORDER, key="7")
    await flow.settle()
    assert (await flow.workflow(workflow_id)).status == "succeeded"
    with psycopg.connect(flow.database_url) as connection:
        assert connection.execute("select order_id, amount from entries").fetchall() == [(7, 31)]
    [receipt] = await flow.published("receipts")
    assert receipt.decode(Receipt) == Receipt(order_id=7, charged=31)


async def test_a_bank_that_is_away_is_asked_again(flow: Harness) -> None:
    testing.fail_once(charge, ConnectionError("no route"))
    workflow_id = await flow.deliver("orders", ORDER)
    await flow.advance(60)
    assert (await flow.workflow(workflow_id)).status == "succeeded"


async def test_what_cannot_be_read_is_kept(flow: Harness) -> None:
    await flow.deliver("orders", b"no JSON")
    await flow.settle()
    [letter] = await flow.dead_letters()
    assert letter.message.value == b"no JSON"
