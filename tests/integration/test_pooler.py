"""Workers behind PgBouncer in transaction mode: no statement, lock or setting may outlive its transaction."""

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from tests.harness import Load, World
from tests.services import need

GROUPS = ("billing", "weighing", "ledger", "ordered")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def pgbouncer(url: str, folder: Path, world: World) -> Iterator[str]:
    """Started before this server; the address to use instead."""
    program, parts, port = need("pgbouncer"), urlsplit(url), free_port()
    folder.chmod(0o755)
    users = folder / "users"
    users.write_text(f'"{parts.username}" "{unquote(parts.password or "")}"\n')
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"""[databases]
* = host={parts.hostname} port={parts.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = 12
max_client_conn = 500
server_reset_query_always = 1
server_reset_query = discard all
"""
    )
    users.chmod(0o644)
    log = (folder / "pgbouncer.log").open("wb")
    process = subprocess.Popen([program, "-u", "nobody", configuration], stdout=log, stderr=log, cwd="/")
    pooled = urlunsplit(parts._replace(netloc=re.sub(r":\d+$", f":{port}", parts.netloc)))
    try:
        world.wait(lambda: listens(port), "PgBouncer listens")
        yield pooled
    finally:
        process.kill()
        process.wait()
        log.close()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_workers_behind_pgbouncer(world: World, private_root: Path) -> None:
    """Every kind of handler, with a worker killed in the middle; more lanes than the pool has connections."""
    world.create_topic(4)
    with pgbouncer(world.database_url, private_root, world) as pooled:
        settings = {"DATABASE_URL": pooled, "EVENTFLOW_PREPARED_STATEMENTS": "false"}
        victim = world.start("mixed", **settings)
        world.wait_owner(victim)
        survivor = world.start("mixed", **settings)
        world.wait_owner(survivor)
        with Load(world, 200):
            world.wait(lambda: world.completed("billing") > 200, "messages pass")
            victim.kill()
            before = world.completed("billing")
            world.wait(lambda: world.completed("billing") > before + 200, "messages pass again")
        for group in GROUPS:
            world.wait_completed(group)
            world.check(group, effects=group == "ledger")
        world.check_order("ordered")
        world.check_no_incidents()
        assert survivor.stop() == 0
