"""One server that is measured, or one publisher, in a process of its own; peers run it in their environments.

    python serve.py server NAME --ws … --http … [--loop uvloop] [--url redis://…]
    python serve.py publisher NAME --url redis://…

It prints the port (a publisher: "ready"), then takes orders as lines of JSON on standard input, answers each with one
line, and ends with its input.
"""

import argparse
import asyncio
import gc
import importlib
import itertools
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # not the project's folder: a peer may have its own `socketspec`

apps: Any = importlib.import_module("apps")

Batch = Callable[[list[str], dict[str, Any]], Awaitable[object]]


async def publish(send: Batch, *, count: int, size: int, paced: bool, rate: float, rooms: int) -> dict[str, Any]:
    """Publish `count` messages with a text of `size`, to each of `rooms` in turn.

    `paced`: after each message the event loop turns until it has been written out. `rate`: so many a second; the times
    of publishing are then part of the answer.
    """
    payload = {"text": "x" * size}
    names = itertools.cycle([f"r{number}" for number in range(rooms)])
    if not paced and not rate:
        for start in range(0, count, 200):
            await send(list(itertools.islice(names, min(200, count - start))), payload)
        return {}
    times: list[int] = []
    began = time.monotonic()
    for number in range(count):
        if rate:
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            times.append(time.monotonic_ns())
        await send([next(names)], payload)
        if paced:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    return {"times": times}


async def obey(send: Batch, app: Any) -> None:
    """Take orders until the input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        do = order.pop("do")
        answer: dict[str, Any] = {}
        if do == "publish":
            answer = await publish(send, **order)
        elif do == "collect":
            gc.collect()
        elif app is not None:
            answer = {"joined": app.joined[0]} if do == "count" else await app.orders[do]()
        print(json.dumps(answer), flush=True)
    os._exit(0)  # at once: whoever gave the orders is gone, and the connections with it


async def serve(app: Any, options: argparse.Namespace) -> None:
    import uvicorn

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # or asyncio leaves Nagle on
    if options.send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)  # connections inherit it
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        app.asgi,
        ws=options.ws,
        http=options.http,
        log_level="error",
        access_log=False,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        backlog=4096,
        lifespan=options.lifespan,
    )
    orders = asyncio.create_task(obey(apps.one_by_one(app.send), app))
    gc.collect()
    gc.freeze()  # as `socketspec serve` does; for every server alike
    await uvicorn.Server(config).serve(sockets=[listener])
    orders.cancel()


async def run_publisher(options: argparse.Namespace) -> None:
    send = apps.PUBLISHERS[options.name](options.url)
    print("ready", flush=True)
    await obey(send, None)


async def run_server(options: argparse.Namespace) -> None:
    await serve(apps.APPS[options.name](options.url), options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("server", "publisher"))
    parser.add_argument("name")
    parser.add_argument("--url", default="")
    parser.add_argument("--ws", default="auto")
    parser.add_argument("--http", default="auto")
    parser.add_argument("--send-buffer", type=int, default=0)
    parser.add_argument("--lifespan", default="auto")
    parser.add_argument("--loop", default="asyncio")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who gives the orders
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    factory = importlib.import_module("uvloop").new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run_server(options) if options.role == "server" else run_publisher(options))


if __name__ == "__main__":
    main()
