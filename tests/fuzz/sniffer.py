"""The first look at an upload: an answer or a refusal with a name, whatever the bytes."""

from __future__ import annotations

from tests.fuzz import harness

harness.instrument()

from server.artifacts.recognise import HEAD_BYTES
from server.artifacts.sniff import sniff_head
from server.errors import UnsupportedTypeError
from tests.corpus.every import every_technique

_KINDS = {"onnx", "zip", "tar", "gzip", "zlib", "bz2", "xz", "lzma", "lz4", "pickle"}


def target(data: bytes) -> None:
    try:
        kind = sniff_head(data[:HEAD_BYTES])
    except UnsupportedTypeError as error:
        assert error.params["found"]
        return
    assert kind in _KINDS


def seeds() -> list[bytes]:
    return [each.make("mark")[:HEAD_BYTES] for each in every_technique()]


if __name__ == "__main__":
    harness.fuzz(target, seeds)
