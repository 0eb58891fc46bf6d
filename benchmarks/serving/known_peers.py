"""The peers, in the order of the table."""

from __future__ import annotations

from benchmarks.serving.servers import Peer

AIOHTTP = "aiohttp"
MLSERVER = "mlserver"
TRITON = "triton"

PEERS = (
    Peer(
        name=AIOHTTP,
        title="aiohttp + uvloop + orjson",
        program="aiohttp_server.py",
        takes_binary=True,
        takes_workers=True,
    ),
    Peer(
        name="fastapi",
        title="FastAPI + uvicorn + orjson",
        program="fastapi_server.py",
        takes_binary=True,
        takes_workers=True,
    ),
    Peer(name=MLSERVER, title="MLServer", program="mlserver_server.py"),
    Peer(
        name=TRITON,
        title="Triton (nvidia-pytriton)",
        program="triton_server.py",
        takes_binary=True,
    ),
    Peer(
        name="litserve",
        title="LitServe",
        program="litserve_server.py",
        form="rows",
        path="/predict",
    ),
    Peer(
        name="bentoml", title="BentoML", program="bentoml_server.py", form="rows", path="/predict"
    ),
    Peer(
        name="mlflow",
        title="MLflow models serve",
        program="mlflow_server.py",
        form="rows",
        path="/invocations",
        start_seconds=90,
    ),
    Peer(
        name="ray",
        title="Ray Serve",
        program="ray_server.py",
        form="rows",
        path="/",
        start_seconds=120,
    ),
)
