"""What tritonclient gets from the server, as JSON; started in an environment that has it.

Reads from stdin ``{"url", "is_own", "only echoes", "models", "tensors", "wine"}`` and prints
the answers by topic.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from exact import pack, unpack
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

ENGLISH = {"Accept-Language": "en"}
PACKINGS = (None, "gzip", "deflate")


def is_binary(way: str, place: int) -> bool:
    return way == "binary" or (way == "mixed" and place % 2 == 0)


def inputs_of(arrays: dict[str, Any], way: str = "binary") -> list[Any]:
    made = []
    for place, (name, array) in enumerate(arrays.items()):
        one = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        # This client sends BF16 in binary only.
        as_bytes = is_binary(way, place) or one.datatype() == "BF16"
        one.set_data_from_numpy(array, binary_data=as_bytes)
        made.append(one)
    return made


def outputs_of(names: list[str], way: str = "binary") -> Any:
    if way == "unsaid":
        return None
    return [
        triton.InferRequestedOutput(name, binary_data=is_binary(way, place))
        for place, name in enumerate(names)
    ]


def packed(result: Any, names: list[str]) -> dict[str, Any]:
    return {name: pack(result.as_numpy(name)) for name in names}


def refusal(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"answered": repr(call())}
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}


class Caller:
    """The blocking client and everything it is asked to do."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.models = given["models"]
        self.rows = np.array(given["wine"], dtype=np.float32)
        self.client = triton.InferenceServerClient(given["url"], concurrency=4)

    def echoes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, sent in self.given["tensors"].items():
            arrays = {name: unpack(one) for name, one in sent["arrays"].items()}
            names = [f"{name}_out" for name in arrays]
            for way in sent["ways"]:
                there, back = way.split(" ")
                result = self.client.infer(
                    self.models[sent["model"]],
                    inputs_of(arrays, there),
                    outputs=outputs_of(names, back),
                )
                found[f"{kind}: {way}"] = packed(result, names)
        return found

    def described(self) -> dict[str, Any]:
        wine = self.models["wine"]
        return {
            "live": self.client.is_server_live(),
            "ready": self.client.is_server_ready(),
            "model ready": self.client.is_model_ready(wine),
            "other model ready": self.client.is_model_ready("other"),
            "server": self.client.get_server_metadata(),
            "model": self.client.get_model_metadata(wine),
        }

    def own_address(self) -> dict[str, Any]:
        """What is known at a deployment's own address only."""
        wine = self.models["wine"]
        self.client.infer(wine, inputs_of({"input": self.rows[:3]}))
        result = self.client.infer(wine, inputs_of({"input": self.rows[:3]}), model_version="1")
        return {
            "version": self.client.get_model_metadata(wine, "1"),
            "version ready": self.client.is_model_ready(wine, "1"),
            "version 9 ready": self.client.is_model_ready(wine, "9"),
            "by version": packed(result, ["label"]),
            "statistics": self.client.get_inference_statistics(wine, "1"),
            "all statistics": self.client.get_inference_statistics(),
        }

    def asked(self) -> dict[str, Any]:
        """The parts of a request that are no tensors."""
        wine = self.models["wine"]
        sent = inputs_of({"input": self.rows[:2]})
        named = self.client.infer(
            wine,
            sent,
            request_id="call-7 ü",
            outputs=outputs_of(["probabilities"]),
            priority=1,
            timeout=5_000_000,
            sequence_id=3,
            sequence_start=True,
            parameters={"custom": "ignored"},
            query_params={"trace": "1"},
        )
        classes = {
            f"{count} {way}": pack(
                self.client.infer(
                    wine,
                    sent,
                    outputs=[
                        triton.InferRequestedOutput(
                            "probabilities", binary_data=way == "binary", class_count=count
                        )
                    ],
                ).as_numpy("probabilities")
            )
            for count in (1, 2, 9)
            for way in ("binary", "json")
        }
        return {"named": named.get_response(), "classes": classes}

    def packings(self) -> dict[str, Any]:
        """Every packing of requests and answers, and how the answer really came."""
        found = {}
        arrays = {"input": np.concatenate([self.rows] * 9)}
        with triton.InferenceServerClient(self.given["url"], verbose=True) as client:
            for there in PACKINGS:
                for back in PACKINGS:
                    said = io.StringIO()
                    with contextlib.redirect_stdout(said):
                        result = client.infer(
                            self.models["wine"],
                            inputs_of(arrays),
                            request_compression_algorithm=there,
                            response_compression_algorithm=back,
                        )
                    answer = said.getvalue().split("HTTPSocketPoolResponse")[1].lower()
                    came = [name for name in PACKINGS if name and f"'{name}'" in answer]
                    found[f"{there} {back}"] = {"came": came, **packed(result, ["label"])}
        return found

    def refusals(self) -> dict[str, Any]:
        wine = self.models["wine"]
        right = inputs_of({"input": self.rows[:1]})

        def infer(inputs: list[Any], name: str = wine, **more: Any) -> dict[str, Any]:
            return refusal(lambda: self.client.infer(name, inputs, headers=dict(ENGLISH), **more))

        shared = triton.InferInput("input", [1, 13], "FP32")
        shared.set_shared_memory("region", 52)
        return {
            "input": infer(inputs_of({"wine": self.rows[:1]})),
            "datatype": infer(inputs_of({"input": self.rows[:1].astype(np.int64)})),
            "shape": infer(inputs_of({"input": self.rows[:1, :12]})),
            "output": infer(right, outputs=outputs_of(["other"])),
            "classes": infer(right, outputs=[triton.InferRequestedOutput("label", class_count=2)]),
            "shared memory": infer([shared]),
            "russian": refusal(
                lambda: self.client.infer(wine, right, outputs=outputs_of(["other"]))
            ),
            "config": refusal(lambda: self.client.get_model_config(wine, headers=dict(ENGLISH))),
            "repository": refusal(
                lambda: self.client.get_model_repository_index(headers=dict(ENGLISH))
            ),
            "after all that": packed(self.client.infer(wine, right), ["label"]),
        }

    def at_once(self) -> list[Any]:
        """Forty requests on four connections, their answers in the order of the requests."""
        wine = self.models["wine"]
        waiting = [
            self.client.async_infer(wine, inputs_of({"input": row[None]}), request_id=str(place))
            for place, row in enumerate(np.concatenate([self.rows] * 4))
        ]
        results = [one.get_result(timeout=120) for one in waiting]
        return [[one.get_response()["id"], int(one.as_numpy("label")[0])] for one in results]


async def asynchronous(given: dict[str, Any]) -> dict[str, Any]:
    """The client of asyncio, which asks for packed answers by itself."""
    wine = given["models"]["wine"]
    rows = np.array(given["wine"], dtype=np.float32)
    async with triton_aio.InferenceServerClient(given["url"]) as client:
        large = inputs_of({"input": np.concatenate([rows] * 9)})
        every = [client.infer(wine, inputs_of({"input": row[None]})) for row in rows]
        results = await asyncio.gather(*every)
        packings = {}
        for packing in PACKINGS:
            result = await client.infer(
                wine,
                large,
                request_compression_algorithm=packing,
                response_compression_algorithm=packing,
            )
            packings[str(packing)] = packed(result, ["label"])
        json_alone = await client.infer(
            wine, inputs_of({"input": rows}, "json"), outputs=outputs_of(["label"], "json")
        )
        try:
            await client.infer(wine, inputs_of({"wine": rows}), headers=dict(ENGLISH))
        except InferenceServerException as error:
            refused = {"status": error.status(), "message": error.message()}
        return {
            "described": [
                await client.is_server_live(),
                await client.is_server_ready(),
                await client.is_model_ready(wine),
                await client.is_model_ready("other"),
                (await client.get_server_metadata())["name"],
                (await client.get_model_metadata(wine))["name"],
            ],
            "at once": [int(one.as_numpy("label")[0]) for one in results],
            "packings": packings,
            "json": packed(json_alone, ["label"]),
            "refused": refused,
        }


def attempted(topic: Callable[[], Any]) -> Any:
    """One topic that fails leaves the others their answers."""
    try:
        return topic()
    except Exception:  # noqa: BLE001 - shown by the test of this topic
        return {"failed": traceback.format_exc()}


def main() -> None:
    given = json.load(sys.stdin)
    caller = Caller(given)
    topics: dict[str, Callable[[], Any]] = {
        "echoes": caller.echoes,
        "described": caller.described,
        "asked": caller.asked,
        "packings": caller.packings,
        "refusals": caller.refusals,
        "at once": caller.at_once,
        "own address": caller.own_address,
        "asynchronous": lambda: asyncio.run(asynchronous(given)),
    }
    if not given["is_own"]:
        del topics["own address"]
    if given["only echoes"]:
        topics = {"echoes": caller.echoes}
    json.dump({name: attempted(topic) for name, topic in topics.items()}, sys.stdout)


if __name__ == "__main__":
    main()
