from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.form import END, FormError, FormParser, PartHead, boundary_of, shown_name

BOUNDARY = b"----b7"


def body(parts: list[tuple[str, bytes]], preamble: bytes = b"") -> bytes:
    out = preamble
    for name, content in parts:
        head = f'Content-Disposition: form-data; name="{name}"; filename="{name}.bin"'
        out += b"--" + BOUNDARY + b"\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"
    return out + b"--" + BOUNDARY + b"--\r\nepilogue"


def parse(pieces: list[bytes]) -> list[tuple[str, bytes]]:
    parser = FormParser(BOUNDARY)
    found: list[tuple[str, bytes]] = []
    is_open = False
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, PartHead):
                assert not is_open
                is_open = True
                found.append((event.name, b""))
            elif event is END:
                assert is_open
                is_open = False
            elif isinstance(event, bytes):
                assert is_open
                found[-1] = (found[-1][0], found[-1][1] + event)
    assert parser.is_closed
    assert not is_open
    return found


# Contents made of what a boundary is made of, so that near misses are common.
CONTENT = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"--", b"-", b"\r\n--", b"----b", b"x", b"\x00\xff"]),
    max_size=30,
).map(b"".join).filter(lambda content: b"\r\n--" + BOUNDARY not in b"\r\n" + content + b"\r\n")  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    contents=st.lists(CONTENT, min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 600), max_size=40),
)
def test_wherever_the_body_is_cut_the_parts_are_the_same(
    contents: list[bytes], cuts: list[int]
) -> None:
    parts = [(f"p{index}", content) for index, content in enumerate(contents)]
    whole = body(parts)
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[start:end] for start, end in pairwise(edges)]
    assert parse(pieces) == parts


def test_a_body_may_come_byte_by_byte() -> None:
    parts = [("a", b"\r\n--" + BOUNDARY[:-1] + b"\r"), ("b", b""), ("c", b"\r\n\r\n")]
    whole = body(parts, preamble=b"hello\r\n")
    assert parse([whole[index : index + 1] for index in range(len(whole))]) == parts


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.binary(max_size=60), max_size=6), framed=st.booleans())
def test_any_bytes_are_parsed_or_refused_by_name(pieces: list[bytes], *, framed: bool) -> None:
    parser = FormParser(BOUNDARY)
    try:
        if framed:
            parser.feed(b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; name=a")
        for piece in pieces:
            parser.feed(piece)
    except FormError:
        return


def test_a_large_piece_without_a_boundary_is_not_copied() -> None:
    parser = FormParser(BOUNDARY)
    parser.feed(b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; name=a\r\n\r\n")
    piece = b"x" * 1_000_000
    [event] = parser.feed(piece)
    assert event is piece


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('multipart/form-data; boundary="a b"', b"a b"),
        ("multipart/form-data; charset=utf-8; BOUNDARY=x", b"x"),
        ("multipart/form-data;boundary=----WebKitFormBoundaryA1b2", b"----WebKitFormBoundaryA1b2"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary", None),
        ("multipart/form-data; boundary=", None),
        ('multipart/form-data; boundary="a\r\nb"', None),
        ("multipart/form-data; boundary=" + "a" * 71, None),
    ],
)
def test_the_boundary_is_read_from_the_content_type(
    content_type: str, boundary: bytes | None
) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [("a/b\\c.pt", "c.pt"), ("..", ".."), ("", "artifact"), ("\x00\x1b[31m", "[31m"), (" ", "artifact")],
)  # fmt: skip
def test_a_file_name_is_shown_without_folders_and_controls(given_name: str, shown: str) -> None:
    assert shown_name(given_name) == shown
