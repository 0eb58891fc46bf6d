"""The first look at an upload: leading bytes decide, names do not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import random
import tarfile
import zlib

import pytest

from server.artifacts.recognise import HEAD_BYTES, recognise
from server.artifacts.sniff import sniff_head
from server.errors import UnsupportedTypeError
from tests.support.onnx_files import bytes_field, number_field, tensor
from tests.support.pickle_files import sklearn_pickle, torchscript, zipped

NODE = bytes_field(1, "x") + bytes_field(2, "y") + bytes_field(4, "Relu")
GRAPH = bytes_field(1, NODE) + bytes_field(2, "main")
OPSET = bytes_field(8, bytes_field(1, "") + number_field(2, 17))


def model(*fields: bytes) -> bytes:
    return b"".join(fields)


def tar_of(name: str, content: bytes, form: int = tarfile.USTAR_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def found(head: bytes) -> str:
    with pytest.raises(UnsupportedTypeError) as caught:
        sniff_head(head)
    assert caught.value.code == "artifact_type_unsupported"
    return str(caught.value.params["found"])


@pytest.mark.parametrize(
    "fields",
    [
        (number_field(1, 8), bytes_field(2, "pytorch"), bytes_field(7, GRAPH), OPSET),
        (bytes_field(2, "skl2onnx"), bytes_field(7, GRAPH), number_field(1, 10), OPSET),
        (bytes_field(7, GRAPH), number_field(1, 3)),
        (OPSET, bytes_field(7, GRAPH)),
        (bytes_field(6, "Модель для проверки"), number_field(1, 8)),
        (number_field(5, 2**64 - 1), OPSET, bytes_field(14, bytes_field(1, "author"))),
        (bytes_field(7, bytes_field(5, tensor("w", [2, 2], [1, 2, 3, 4]))), number_field(1, 8)),
    ],
)
def test_onnx_is_recognised_whatever_the_order_of_its_fields(fields: tuple[bytes, ...]) -> None:
    assert sniff_head(model(*fields)) == "onnx"


def test_a_model_whose_first_field_is_larger_than_the_head_is_recognised() -> None:
    weights = bytes_field(5, tensor("w", [5000], [0.5] * 5000))
    for graph in (GRAPH + weights, weights + GRAPH):
        head = model(bytes_field(7, graph), number_field(1, 8))[:4096]
        assert sniff_head(head) == "onnx"


@pytest.mark.parametrize("cut", [2, 3, 9, 20, 40])
def test_a_cut_head_of_onnx_is_still_onnx(cut: int) -> None:
    whole = model(number_field(1, 8), bytes_field(2, "pytorch"), bytes_field(7, GRAPH), OPSET)
    assert sniff_head(whole[:cut]) == "onnx"


@pytest.mark.parametrize(
    "fields",
    [
        (number_field(1, 0), bytes_field(7, GRAPH)),
        (number_field(1, 900), bytes_field(7, GRAPH)),
        (bytes_field(1, "node"), bytes_field(2, "input")),
        (number_field(1, 1), bytes_field(2, b"\x0a\x04\xff\xfeab")),
        (number_field(1, 1), bytes_field(500, b"neural network")),
        (bytes_field(2, "only a name"),),
        (tensor("x", [1, 3], [1, 2, 3]),),
        (bytes_field(7, bytes_field(1, bytes_field(4, "no operator!"))),),
    ],
)
def test_other_protobuf_messages_are_not_onnx(fields: tuple[bytes, ...]) -> None:
    found(model(*fields))


def test_random_bytes_and_cut_messages_never_pass_as_onnx_or_raise_otherwise() -> None:
    numbers = random.Random(7)
    accepted = []
    for _ in range(3000):
        head = numbers.randbytes(numbers.randrange(1, 400))
        kind = recognise(head).kind
        if kind == "onnx":
            accepted.append(head)
    assert all(len(head) < 4 for head in accepted)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_recognised(protocol: int) -> None:
    assert sniff_head(sklearn_pickle(protocol)) == "pickle"


def test_containers_are_recognised() -> None:
    assert sniff_head(zipped({"a": b"1"})) == "zip"
    assert sniff_head(zipped({})) == "zip"
    assert sniff_head(torchscript()) == "zip"
    assert sniff_head(tar_of("model.onnx", b"x")) == "tar"
    assert sniff_head(tar_of("model.onnx", b"x", tarfile.GNU_FORMAT)) == "tar"
    assert sniff_head(gzip.compress(tar_of("model.onnx", b"x"))) == "gzip"


def test_an_old_tar_without_magic_is_recognised_by_its_checksum() -> None:
    block = bytearray(tar_of("model.onnx", b"x")[:512])
    block[257:265] = bytes(8)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\x00 " % sum(block)
    assert sniff_head(bytes(block)) == "tar"
    block[0] ^= 1
    found(bytes(block))


def test_compressed_pickles_are_recognised_by_what_is_inside() -> None:
    data = sklearn_pickle()
    assert sniff_head(zlib.compress(data)) == "zlib"
    assert sniff_head(gzip.compress(data)) == "gzip"
    assert sniff_head(bz2.compress(data)) == "bz2"
    assert sniff_head(lzma.compress(data)) == "xz"
    assert sniff_head(lzma.compress(data, format=lzma.FORMAT_ALONE)) == "lzma"


def test_compressed_files_without_a_pickle_say_what_is_inside() -> None:
    assert found(gzip.compress(b"a,b\n1,2\n" * 50)) == "gzip (text)"
    assert found(gzip.compress(b"%PDF-1.7 ...")) == "gzip (PDF)"
    assert found(lzma.compress(tar_of("a", b"b"))) == "xz (tar)"
    assert found(gzip.compress(b"x")[:10] + b"\xff" * 40) == "damaged gzip"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "PNG"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "JPEG"),
        (b"\x89HDF\r\n\x1a\n\x00", "HDF5/Keras"),
        (b"GGUF\x03\x00\x00\x00", "gguf"),
        ((64).to_bytes(8, "little") + b'{"__metadata__":{}}', "safetensors"),
        (b"\x93NUMPY\x01\x00", "NumPy (.npy)"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"\x7fELF\x02\x01", "ELF"),
        (b"MZ\x90\x00\x03", "Windows EXE"),
        (b"Rar!\x1a\x07\x01\x00", "RAR"),
        (b"7z\xbc\xaf\x27\x1c\x00", "7z"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"import torch\n\nmodel = 1\n", "text"),
        ("Привет, мир\n".encode(), "text"),
        (b'{"learners": {}}', "JSON"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"#!/bin/sh\necho hi\n", "script"),
        (b"BMW and MZ are words too\n", "text"),
        (b"\x00" * 700, "zeros"),
        (b"\xfa\x9b\x03\x81" * 9, "unknown binary data"),
        (b"\x08\x01\x12\xae\x03\n\x05serve", "TensorFlow SavedModel"),
    ],
)
def test_what_is_refused_is_named(head: bytes, name: str) -> None:
    assert found(head) == name


def test_a_text_cut_in_the_middle_of_a_letter_is_still_text() -> None:
    assert found(("Ж" * HEAD_BYTES).encode()[: HEAD_BYTES - 1]) == "text"


def test_a_pickle_of_python_data_passes_the_first_look() -> None:
    # Only the inspection can tell what a pickle is about.
    assert sniff_head(pickle.dumps({"a": 1})) == "pickle"
