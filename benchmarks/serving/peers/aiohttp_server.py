"""aiohttp + uvloop + orjson: quick models run in the event loop, others in as many threads as cores."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import uvloop
from aiohttp import web
from oip import HEADER_LENGTH, THREADS, Predictor


async def serve(path: str, port: int) -> None:
    predictor = Predictor(path)
    threads = ThreadPoolExecutor(THREADS)
    loop = asyncio.get_running_loop()

    async def infer(request: web.Request) -> web.Response:
        length = request.headers.get(HEADER_LENGTH)
        feed = predictor.read(await request.read(), length)
        if predictor.is_quick:
            answers = predictor.run(feed)
        else:
            answers = await loop.run_in_executor(threads, predictor.run, feed)
        body, length_of_json = predictor.write(answers, length is not None)
        if length_of_json is None:
            return web.Response(body=body, content_type="application/json")
        headers = {HEADER_LENGTH: str(length_of_json)}
        return web.Response(body=body, headers=headers, content_type="application/octet-stream")

    app = web.Application()
    app.router.add_post("/v2/models/model/infer", infer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_port=True, backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    # The kernel shares the connections out between the processes that listen on the port.
    for _ in range(int(sys.argv[3]) - 1):
        if os.fork() == 0:
            break
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
