"""What users write in sync workflows must check under pyright strict, without a cast or an ignore."""

from functools import partial
from typing import assert_type

import eventflow
from eventflow import sync


@eventflow.step
async def fetch(url: str) -> bytes:
    return url.encode()


@eventflow.step(retries=3)
def weigh(page: bytes) -> float:
    return len(page) / 2


@eventflow.workflow
def crawl(url: str) -> float:
    page = sync.run_step(fetch, url)
    assert_type(page, bytes)
    assert_type(sync.run_step(weigh, page, name="weigh twice", retries=1), float)
    pages = sync.gather(lambda: sync.run_step(fetch, url), lambda: sync.run_step(fetch, url + "/2"))
    assert_type(pages, list[bytes])
    weights = sync.gather(partial(weigh, page), lambda: weigh(page))
    assert_type(weights, list[float])
    return sum(weights)
