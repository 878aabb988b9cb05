r"""Kill this program between step one and step two of an order, start it again, and the order goes on at step two.

README.md beside this file says how. Ctrl-\ sends SIGQUIT, of which a Python program dies at once: no handler runs, nothing
is saved. What the workflow has recorded stands in Postgres, and whichever process comes next goes on from there.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

import eventflow
from eventflow import durable
from eventflow.client import Client
from eventflow.errors import WorkflowNotFoundError

PAUSE = int(os.environ.get("CRASH_DEMO_PAUSE", "10"))  # seconds between the steps: time to press Ctrl-\
STEPS = ("step_one", "step_two")


def say(order: str, what: str) -> None:
    """So that the terminal shows what is done, and where."""
    print(f"order {order}: {what}, in process {os.getpid()}", flush=True)


@eventflow.step
async def step_one(order: str) -> str:
    """Reserve what was ordered."""
    say(order, "step one")
    return "reserved"


@eventflow.step
async def step_two(order: str) -> str:
    """Ship it."""
    say(order, "step two")
    return "shipped"


@eventflow.workflow
async def fulfil(order: str) -> str:
    """Two steps, and a countdown between them that everyone can see."""
    one = await step_one(order)
    for seconds in range(PAUSE, 0, -1):
        await durable.set_event("countdown", seconds)
        await durable.sleep(1)
    await durable.set_event("countdown", 0)
    return f"{one} and {await step_two(order)}"


# ---- the page --------------------------------------------------------------------------------------


class Progress(BaseModel):
    """How far an order is."""

    status: str
    done: list[str]
    countdown: int
    process: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Run workflows while the web server runs."""
    async with eventflow.running(consumers=False), Client() as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders/{order}", status_code=202)
async def place(order: str) -> dict[str, str]:
    """Start the order's workflow; placed again it is the same one."""
    handle = await eventflow.start(fulfil, order, workflow_id=f"order:{order}")
    return {"workflow_id": handle.workflow_id}


@app.get("/orders/{order}")
async def show(order: str, request: Request) -> Progress:
    """How far the order is, as Postgres has it."""
    client: Client = request.app.state.client
    handle = client.handle(f"order:{order}", str)
    try:
        status = (await handle.get()).status
    except WorkflowNotFoundError:
        raise HTTPException(404, f"there is no order {order}") from None
    done = [step.name for step in await handle.steps() if step.name in STEPS]
    countdown = await handle.event("countdown", int, timeout=1) if done else PAUSE
    return Progress(status=status, done=done, countdown=countdown, process=os.getpid())


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    """A button and what came of it."""
    return PAGE


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>crash demo</title>
<style>
  body { font: 1.1rem system-ui; max-width: 34rem; margin: 4rem auto; }
  li { margin: .4rem 0; } li.done { color: green; } #lost { color: crimson; }
</style>
<h1>An order that survives</h1>
<p>Place an order, and press <kbd>Ctrl-\\</kbd> in the program's terminal before step two. Then start the program again.</p>
<p><button id="place">Place an order</button> <span id="order"></span></p>
<ol><li id="step_one">step one</li><li id="pause">a pause</li><li id="step_two">step two</li></ol>
<p id="status"></p><p id="lost"></p>
<script>
  const at = id => document.getElementById(id);
  let order = location.hash.slice(1);
  at("place").onclick = async () => {
    order = Math.random().toString(36).slice(2, 8);
    location.hash = order;
    await fetch(`/orders/${order}`, {method: "POST"});
  };
  setInterval(async () => {
    if (!order) return;
    at("order").textContent = `order ${order}`;
    try {
      const answer = await fetch(`/orders/${order}`);
      if (!answer.ok) return;
      const found = await answer.json();
      for (const step of ["step_one", "step_two"])
        at(step).className = found.done.includes(step) ? "done" : "";
      at("pause").className = found.countdown ? "" : "done";
      at("pause").textContent = found.countdown ? `${found.countdown} s until step two` : "a pause";
      at("status").textContent = `${found.status}, says process ${found.process}`;
      at("lost").textContent = "";
    } catch {
      at("lost").textContent = "The program is gone. Start it again.";
    }
  }, 300);
</script>
</html>
"""
