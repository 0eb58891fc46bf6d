"""FastAPI on uvicorn with uvloop and httptools: the body taken raw, orjson in place of pydantic."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request, Response
from oip import HEADER_LENGTH, THREADS, Predictor

app = FastAPI()
# Each of uvicorn's workers imports this file anew.
predictor = Predictor(os.environ["MODEL_PATH"] if "MODEL_PATH" in os.environ else sys.argv[1])
threads = ThreadPoolExecutor(THREADS)


# Without a response model FastAPI leaves the answer as it is.
@app.post("/v2/models/model/infer", response_model=None)
async def infer(request: Request) -> Response:
    length = request.headers.get(HEADER_LENGTH)
    feed = predictor.read(await request.body(), length)
    if predictor.is_quick:
        answers = predictor.run(feed)
    else:
        answers = await asyncio.get_running_loop().run_in_executor(threads, predictor.run, feed)
    body, length_of_json = predictor.write(answers, length is not None)
    if length_of_json is None:
        return Response(body, media_type="application/json")
    headers = {HEADER_LENGTH: str(length_of_json)}
    return Response(body, headers=headers, media_type="application/octet-stream")


if __name__ == "__main__":
    os.environ["MODEL_PATH"] = sys.argv[1]
    workers = int(sys.argv[3])
    uvicorn.run(
        app if workers == 1 else "fastapi_server:app",
        host="127.0.0.1",
        port=int(sys.argv[2]),
        workers=workers,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
        backlog=1024,
    )
