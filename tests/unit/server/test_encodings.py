from __future__ import annotations

import gzip
import os
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from server.model_server import encodings
from server.model_server.failures import BadInputError

DATA = os.urandom(70_000) + bytes(3_000_000)
LARGE = 1 << 30


def refused(body: bytes, encoding: str, limit: int = LARGE) -> str:
    with pytest.raises(BadInputError) as caught:
        encodings.inflate(body, encoding, limit)
    return caught.value.code


@pytest.mark.parametrize("encoding", encodings.ACCEPTED)
def test_a_body_survives_in_pieces(encoding: str) -> None:
    packed = encodings.deflate([DATA[:10], b"", memoryview(DATA)[10:]], encoding)
    assert len(packed) < len(DATA)
    assert encodings.inflate(packed, encoding, len(DATA)) == DATA
    assert encodings.inflate(encodings.deflate([], encoding), encoding, 0) == b""


@pytest.mark.parametrize("encoding", encodings.ACCEPTED)
def test_what_is_cut_off_damaged_or_followed_by_something_is_refused(encoding: str) -> None:
    packed = encodings.deflate([DATA], encoding)
    middle = len(packed) // 2
    broken = [packed[:-1], packed[: middle + 1], packed[:3], packed[:1], b""]
    if encoding != "zstd":
        # Its frames need not have a checksum.
        broken.append(packed[:middle] + bytes(200) + packed[middle + 200 :])
    broken += [packed + b"\0", packed + b"trailing", b"plain text"]
    assert {refused(body, encoding) for body in broken} == {"body_encoding_broken"}


@pytest.mark.parametrize("encoding", encodings.ACCEPTED)
def test_a_bomb_is_stopped_at_the_limit(encoding: str) -> None:
    packed = encodings.deflate([DATA], encoding)
    assert refused(packed, encoding, len(DATA) - 1) == "request_too_large"
    assert refused(packed, encoding, 0) == "request_too_large"


def test_members_and_frames_in_a_row_are_one_body() -> None:
    packed = gzip.compress(b"one") + gzip.compress(b"") + gzip.compress(b"two")
    assert encodings.inflate(packed, "gzip", 6) == b"onetwo"
    assert refused(packed, "gzip", 5) == "request_too_large"
    skipped = b"\x53\x2a\x4d\x18\x04\0\0\0????"
    frames = zstandard.compress(b"one") + skipped + zstandard.compress(b"two")
    assert encodings.inflate(frames, "zstd", 6) == b"onetwo"
    assert refused(frames, "zstd", 5) == "request_too_large"
    assert refused(frames + skipped[:-1], "zstd") == "body_encoding_broken"


def test_endless_empty_parts_are_refused() -> None:
    assert refused(gzip.compress(b"") * 30_000, "gzip") == "body_encoding_broken"
    assert refused(zstandard.compress(b"") * 30_000, "zstd") == "body_encoding_broken"
    empty_blocks = zstandard.compress(b"")[:6] + bytes(3 * 30_000)
    assert refused(empty_blocks, "zstd") == "body_encoding_broken"


def test_deflate_is_taken_with_and_without_zlib_s_header() -> None:
    bare = zlib.compressobj(9, zlib.DEFLATED, -15)
    assert encodings.inflate(bare.compress(DATA) + bare.flush(), "deflate", LARGE) == DATA
    assert encodings.inflate(zlib.compress(DATA), "deflate", LARGE) == DATA


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("size", [False, True])
@pytest.mark.parametrize("data", [b"", b"short", DATA])
def test_zstd_frames_of_every_kind_are_whole_or_refused(
    checksum: bool, size: bool, data: bytes
) -> None:
    packer = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size)
    packed = packer.compress(data)
    assert encodings.inflate(packed, "zstd", LARGE) == data
    for cut in range(1, min(len(packed), 12)):
        assert refused(packed[:-cut], "zstd") == "body_encoding_broken"


def test_a_frame_that_wants_much_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = stream.compress(DATA) + stream.flush()
    assert refused(packed, "zstd") == "body_encoding_broken"


def test_an_unknown_encoding_is_named() -> None:
    assert refused(b"", "br") == "content_encoding_unsupported"


@given(st.sampled_from(encodings.ACCEPTED), st.binary(max_size=100), st.binary(max_size=20))
def test_any_bytes_are_unpacked_or_refused(encoding: str, body: bytes, more: bytes) -> None:
    start = encodings.deflate([b"x"], encoding)[:6]
    for data in (body, start + body, encodings.deflate([body], encoding) + more):
        try:
            assert len(encodings.inflate(data, encoding, 1000)) <= 1000
        except BadInputError as error:
            assert error.code in {"body_encoding_broken", "request_too_large"}


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("deflate, zstd", "zstd"),
        ("deflate;q=1, gzip;q=0.5", "deflate"),
        ("deflate; q=1.0 , zstd;q=0.9", "deflate"),
        ("*", "gzip"),
        ("gzip;q=0, *", "zstd"),
        ("*;q=0", None),
        ("gzip;q=0", None),
        ("identity", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("br", None),
        ("gzip;q=none, deflate;q=0.1", "deflate"),
        ("gzip;q=7", None),
        ("gzip;q=nan", None),
        (",;=,q=1", None),
    ],
)
def test_the_encoding_of_an_answer_is_what_the_caller_weighs_most(
    accepted: str | None, chosen: str | None
) -> None:
    assert encodings.choose(accepted) == chosen
