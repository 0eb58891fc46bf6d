"""Writes small ONNX models byte by byte, so that tests need no onnx package."""

from __future__ import annotations

import struct

FLOAT, UINT8, INT32, INT64, STRING, BOOL, FLOAT16, DOUBLE, BFLOAT16 = 1, 2, 6, 7, 8, 9, 10, 11, 16


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def tensor_type(element: int, shape: list[int | str] | None) -> bytes:
    """Type of a tensor; a dimension of text is symbolic, no shape at all an unknown rank."""
    inner = number_field(1, element)
    if shape is not None:
        dims = b"".join(
            bytes_field(1, number_field(1, dim) if isinstance(dim, int) else bytes_field(2, dim))
            for dim in shape
        )
        inner += bytes_field(2, dims)
    return bytes_field(1, inner)


def map_sequence_type(key: int, value: int) -> bytes:
    """Type of a sequence of maps, which is what ZipMap answers."""
    pairs = number_field(1, key) + bytes_field(2, tensor_type(value, []))
    return bytes_field(4, bytes_field(1, bytes_field(5, pairs)))


def value(name: str, kind: bytes) -> bytes:
    return bytes_field(1, name) + bytes_field(2, kind)


def tensor(name: str, shape: list[int], values: list[float], element: int = FLOAT) -> bytes:
    code = {FLOAT: "f", INT64: "q", DOUBLE: "d"}[element]
    return (
        b"".join(number_field(1, size) for size in shape)
        + number_field(2, element)
        + bytes_field(8, name)
        + bytes_field(9, struct.pack(f"<{len(values)}{code}", *values))
    )


def external_tensor(name: str, shape: list[int], location: str, length: int = 0) -> bytes:
    """A tensor whose values lie in another file, of which it may name the length."""
    entry = bytes_field(1, "location") + bytes_field(2, location)
    entries = bytes_field(13, entry)
    if length:
        entries += bytes_field(13, bytes_field(1, "length") + bytes_field(2, str(length)))
    return (
        b"".join(number_field(1, size) for size in shape)
        + number_field(2, FLOAT)
        + bytes_field(8, name)
        + entries
        + number_field(14, 1)
    )


def attribute(name: str, given: float | str | list[int] | list[str]) -> bytes:
    head = bytes_field(1, name)
    if isinstance(given, list):
        if given and isinstance(given[0], str):
            body = b"".join(bytes_field(9, str(item)) for item in given)
            return head + body + number_field(20, 8)
        body = b"".join(number_field(8, int(item)) for item in given)
        return head + body + number_field(20, 7)
    if isinstance(given, str):
        return head + bytes_field(4, given) + number_field(20, 3)
    if isinstance(given, float):
        return head + varint(2 << 3 | 5) + struct.pack("<f", given) + number_field(20, 1)
    return head + number_field(3, given) + number_field(20, 2)


def node(
    kind: str, inputs: list[str], outputs: list[str], *, domain: str = "", **attributes: object
) -> bytes:
    return (
        b"".join(bytes_field(1, name) for name in inputs)
        + b"".join(bytes_field(2, name) for name in outputs)
        + bytes_field(4, kind)
        + b"".join(bytes_field(5, attribute(n, v)) for n, v in attributes.items())  # type: ignore[arg-type]
        + (bytes_field(7, domain) if domain else b"")
    )


def model(
    nodes: list[bytes],
    inputs: list[bytes],
    outputs: list[bytes],
    *,
    initializers: list[bytes] | None = None,
    opset: int = 17,
    ir_version: int = 8,
) -> bytes:
    graph = (
        b"".join(bytes_field(1, item) for item in nodes)
        + bytes_field(2, "g")
        + b"".join(bytes_field(5, item) for item in initializers or [])
        + b"".join(bytes_field(11, item) for item in inputs)
        + b"".join(bytes_field(12, item) for item in outputs)
    )
    default = bytes_field(1, "") + number_field(2, opset)
    machine_learning = bytes_field(1, "ai.onnx.ml") + number_field(2, 3)
    return (
        number_field(1, ir_version)
        + bytes_field(2, "tests")
        + bytes_field(7, graph)
        + bytes_field(8, default)
        + bytes_field(8, machine_learning)
    )


def linear(opset: int = 17, ir_version: int = 8) -> bytes:
    """Model ``y = x @ w + b`` over rows of four features, two answers each."""
    return model(
        [node("MatMul", ["x", "w"], ["xw"]), node("Add", ["xw", "b"], ["y"])],
        [value("x", tensor_type(FLOAT, ["batch", 4]))],
        [value("y", tensor_type(FLOAT, ["batch", 2]))],
        initializers=[
            tensor("w", [4, 2], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, -0.5]),
            tensor("b", [2], [0.25, -0.25]),
        ],
        opset=opset,
        ir_version=ir_version,
    )


def unary(
    kind: str, element: int = FLOAT, shape: list[int | str] | None = None, answered: int = 0
) -> bytes:
    """Model with one operator from ``x`` to ``y``."""
    wanted: list[int | str] | None = ["n", 3] if shape is None else shape
    return model(
        [node(kind, ["x"], ["y"])],
        [value("x", tensor_type(element, wanted))],
        [value("y", tensor_type(answered or element, wanted))],
    )


def zipmap() -> bytes:
    """Classifier as converters write it by default: labels, and a map per row."""
    return model(
        [
            node("Softmax", ["x"], ["p"], axis=1),
            node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
            node(
                "ZipMap",
                ["p"],
                ["probability"],
                domain="ai.onnx.ml",
                classlabels_int64s=[10, 20, 30],
            ),
        ],
        [value("x", tensor_type(FLOAT, ["n", 3]))],
        [
            value("label", tensor_type(INT64, ["n"])),
            value("probability", map_sequence_type(INT64, FLOAT)),
        ],
    )


def sequence_output() -> bytes:
    """Model that answers a sequence of tensors, which no protocol tensor can be."""
    sequence = bytes_field(4, bytes_field(1, tensor_type(FLOAT, None)))
    return model(
        [node("SplitToSequence", ["x"], ["parts"], axis=0)],
        [value("x", tensor_type(FLOAT, ["n", 3]))],
        [value("parts", sequence)],
    )


def with_external_data(location: str) -> bytes:
    """Model whose weights are in a file that was not uploaded."""
    return model(
        [node("MatMul", ["x", "w"], ["y"])],
        [value("x", tensor_type(FLOAT, ["n", 4]))],
        [value("y", tensor_type(FLOAT, ["n", 2]))],
        initializers=[external_tensor("w", [4, 2], location)],
    )


def never_finite() -> bytes:
    """Model that answers NaN to everything: the logarithm of minus one."""
    return model(
        [
            node("Mul", ["x", "zero"], ["nothing"]),
            node("Sub", ["nothing", "one"], ["minus"]),
            node("Log", ["minus"], ["y"]),
        ],
        [value("x", tensor_type(FLOAT, ["n", 3]))],
        [value("y", tensor_type(FLOAT, ["n", 3]))],
        initializers=[tensor("zero", [1], [0.0]), tensor("one", [1], [1.0])],
    )


def image_model() -> bytes:
    """Convolution over images of any size from 5 by 5 pixels on."""
    weights = [float(number % 5) / 10 for number in range(2 * 3 * 5 * 5)]
    return model(
        [node("Conv", ["x", "w"], ["y"])],
        [value("x", tensor_type(FLOAT, ["n", 3, "height", "width"]))],
        [value("y", tensor_type(FLOAT, ["n", 2, "rows", "columns"]))],
        initializers=[tensor("w", [2, 3, 5, 5], weights)],
    )


def shifted(amount: float) -> bytes:
    """Model ``y = x + amount`` over rows of two features: models of one shape, told apart by answers."""
    return model(
        [node("Add", ["x", "b"], ["y"])],
        [value("x", tensor_type(FLOAT, ["batch", 2]))],
        [value("y", tensor_type(FLOAT, ["batch", 2]))],
        initializers=[tensor("b", [2], [amount, amount])],
    )


def busy(layers: int, width: int = 512) -> bytes:
    """Model that multiplies with one matrix again and again: its time grows with ``layers``."""
    names = ["x", *(f"x{layer}" for layer in range(1, layers)), "y"]
    return model(
        [node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(layers)],
        [value("x", tensor_type(FLOAT, ["batch", width]))],
        [value("y", tensor_type(FLOAT, ["batch", width]))],
        initializers=[tensor("w", [width, width], [1.0 / width] * width * width)],
    )
