"""LitServe with one worker and one API server, its quicker queue, no access log.

It looks at the annotations, which therefore stay what they are.
"""

import sys
from typing import Any

import litserve
from fastapi import Request
from oip_session import RowsModel


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        del device
        self.model = RowsModel(sys.argv[1])

    def decode_request(self, request: Request) -> Any:
        return request["inputs"]

    def predict(self, rows: Any) -> Any:
        return self.model(rows)

    def encode_response(self, output: Any) -> Any:
        return {"outputs": output.tolist()}


def main() -> None:
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
