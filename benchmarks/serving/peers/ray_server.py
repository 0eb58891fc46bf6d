"""Ray Serve with one replica behind one proxy, without dashboard and access log."""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson
import ray
from oip_session import RowsModel
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request  # noqa: TC002 - Ray looks at the annotations
from starlette.responses import Response

QUIET = LoggingConfig(enable_access_log=False, log_level="ERROR")


@serve.deployment(num_replicas=1, max_ongoing_requests=128)
class Model:
    def __init__(self, path: str) -> None:
        self.model = RowsModel(path)

    async def __call__(self, request: Request) -> Response:
        outputs: Any = self.model(orjson.loads(await request.body())["inputs"])
        body = orjson.dumps({"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")


def main() -> None:
    ray.init(include_dashboard=False, configure_logging=True, logging_level="error")
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[2])), logging_config=QUIET
    )
    serve.run(Model.bind(sys.argv[1]), logging_config=QUIET)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
