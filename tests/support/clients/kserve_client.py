"""What kserve's REST client gets from the server, as JSON; started in an environment that has it.

Reads from stdin ``{"url", "only echoes", "models", "tensors", "wine"}`` and prints the answers
by topic.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from exact import pack, unpack
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import from_np_dtype

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ENGLISH = {"Accept-Language": "en"}


def is_binary(way: str, place: int) -> bool:
    return way == "binary" or (way == "mixed" and place % 2 == 0)


def inputs_of(arrays: dict[str, Any], way: str = "binary") -> list[Any]:
    made = []
    for place, (name, array) in enumerate(arrays.items()):
        one = InferInput(name, list(array.shape), from_np_dtype(array.dtype))
        # This client sends FP16 in binary only.
        as_bytes = is_binary(way, place) or one.datatype == "FP16"
        one.set_data_from_numpy(array, binary_data=as_bytes)
        made.append(one)
    return made


def outputs_of(names: list[str], way: str) -> Any:
    if way == "unsaid":
        return None
    return [
        RequestedOutput(name, {"binary_data": is_binary(way, place)})
        for place, name in enumerate(names)
    ]


def packed(response: Any, names: list[str]) -> dict[str, Any]:
    return {name: pack(response.get_output_by_name(name).as_numpy()) for name in names}


class Caller:
    """The client and everything it is asked to do."""

    def __init__(self, client: Any, given: dict[str, Any]) -> None:
        self.given = given
        self.url = given["url"]
        self.models = given["models"]
        self.wine = given["models"]["wine"]
        self.rows = np.array(given["wine"], dtype=np.float32)
        self.client = client

    async def infer(self, model: str, inputs: list[Any], **more: Any) -> Any:
        headers = dict(more.pop("headers", {}))
        asked = InferRequest(model, inputs, **more)
        return await self.client.infer(self.url, asked, model_name=model, headers=headers)

    async def echoes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, sent in self.given["tensors"].items():
            arrays = {name: unpack(one) for name, one in sent["arrays"].items()}
            names = [f"{name}_out" for name in arrays]
            for way in sent["ways"]:
                there, back = way.split(" ")
                response = await self.infer(
                    self.models[sent["model"]],
                    inputs_of(arrays, there),
                    request_outputs=outputs_of(names, back),
                )
                found[f"{kind}: {way}"] = packed(response, names)
        return found

    async def described(self) -> dict[str, Any]:
        return {
            "live": await self.client.is_server_live(self.url),
            "ready": await self.client.is_server_ready(self.url),
            "model ready": await self.client.is_model_ready(self.url, self.wine),
            "other model ready": await self.client.is_model_ready(self.url, "other"),
        }

    async def asked(self) -> dict[str, Any]:
        """The parts of a request that are no tensors, and answers that come packed."""
        sent = {"input": np.concatenate([self.rows] * 9)}
        named = await self.infer(self.wine, inputs_of(sent), request_id="call-7 ü")
        headers: dict[str, str] = {}
        asked = InferRequest(
            self.wine, inputs_of(sent), parameters={"binary_data_output": True, "custom": 1}
        )
        binary = await self.client.infer(
            self.url, asked, model_name=self.wine, response_headers=headers
        )
        # Where no request object is given, a dictionary goes as it is.
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 13]}
        plain = await self.client.infer(
            self.url,
            {"inputs": [{**tensor, "data": self.rows[:1].tolist()}]},
            model_name=self.wine,
        )
        return {
            "id": named.id,
            "model": named.model_name,
            "json": packed(named, ["label"]),
            "binary": packed(binary, ["label"]),
            "dictionary": packed(plain, ["label"]),
            "packing": headers.get("content-encoding"),
        }

    async def refusals(self) -> dict[str, Any]:
        async def refusal(inputs: list[Any], **more: Any) -> dict[str, Any]:
            try:
                answer = await self.infer(self.wine, inputs, headers=ENGLISH, **more)
            except httpx.HTTPStatusError as error:
                return {"status": error.response.status_code, "message": str(error)}
            return {"answered": repr(answer)}

        right = inputs_of({"input": self.rows[:1]})
        return {
            "input": await refusal(inputs_of({"wine": self.rows[:1]})),
            "datatype": await refusal(inputs_of({"input": self.rows[:1].astype(np.int64)})),
            "shape": await refusal(inputs_of({"input": self.rows[:1, :12]})),
            "output": await refusal(right, request_outputs=outputs_of(["other"], "json")),
        }

    async def at_once(self) -> list[Any]:
        rows = np.concatenate([self.rows] * 4)
        every = [
            self.infer(self.wine, inputs_of({"input": row[None]}), request_id=str(place))
            for place, row in enumerate(rows)
        ]
        responses = await asyncio.gather(*every)
        return [[one.id, int(one.outputs[0].as_numpy()[0])] for one in responses]


async def attempted(topic: Callable[[], Awaitable[Any]]) -> Any:
    """One topic that fails leaves the others their answers."""
    try:
        return await topic()
    except Exception:  # noqa: BLE001 - shown by the test of this topic
        return {"failed": traceback.format_exc()}


async def main() -> None:
    given = json.load(sys.stdin)
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=120)) as client:
        caller = Caller(client, given)
        topics = {
            "echoes": caller.echoes,
            "described": caller.described,
            "asked": caller.asked,
            "refusals": caller.refusals,
            "at once": caller.at_once,
        }
        if given["only echoes"]:
            topics = {"echoes": caller.echoes}
        found = {name: await attempted(topic) for name, topic in topics.items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
