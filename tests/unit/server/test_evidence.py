from __future__ import annotations

import pytest

from server.model_server.evidence import (
    is_out_of_memory,
    missing_module,
    one_line,
    package_of,
)


def test_an_exception_without_words_is_its_class() -> None:
    assert one_line(MemoryError()) == "MemoryError"


def test_the_first_line_says_the_cause() -> None:
    assert one_line(ValueError("bad shape\n  in layer 3")) == "ValueError: bad shape"


def test_a_torchscript_error_says_its_cause_last() -> None:
    text = (
        "The following operation failed in the TorchScript interpreter.\n"
        'Traceback of TorchScript, serialized code (most recent call last):\n  File "code/x.py"\n'
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied\n"
    )

    assert one_line(RuntimeError(text)).endswith("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Add"
            " node. Name:'add' Status Message: /src/core/math/element_wise_ops.h:563 void"
            " onnxruntime::BroadcastIterator::Append(ptrdiff_t, ptrdiff_t) axis == 1 || axis == largest"
            " was false. Attempting to broadcast an axis by a dimension other than 1. 2 by 3\n",
            "Add: Attempting to broadcast an axis by a dimension other than 1. 2 by 3",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Gemm node."
            " Name:'' Status Message: Gemm: Invalid bias shape for broadcast",
            "Gemm: Invalid bias shape for broadcast",
        ),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x.",
            "Got invalid dimensions for input: x",
        ),
    ],
)
def test_of_what_onnxruntime_says_the_cause_is_told(said: str, told: str) -> None:
    assert one_line(RuntimeError(said)) == f"RuntimeError: {told}"


@pytest.mark.parametrize(
    ("said", "is_lack"),
    [
        ("Load model from m.onnx failed:std::bad_alloc", True),
        ("BFCArena: Failed to allocate memory for requested buffer of size 8", True),
        ("CUDA out of memory. Tried to allocate 2 GiB", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),
        ("CUDA error: no kernel image is available", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_lack_of_memory_is_told_by_what_frameworks_say(said: str, *, is_lack: bool) -> None:
    assert is_out_of_memory(RuntimeError(said)) == is_lack
    assert is_out_of_memory(MemoryError())


def test_a_missing_module_is_found_behind_the_error_of_a_library() -> None:
    try:
        try:
            __import__("no_such_module.inner")
        except ImportError as error:
            raise ImportError("output to frames needs it") from error
    except ImportError as error:
        assert missing_module(error) == "no_such_module"
    assert missing_module(ValueError("no")) == ""
    assert (package_of("sklearn"), package_of("no_such")) == ("scikit-learn", "no-such")
