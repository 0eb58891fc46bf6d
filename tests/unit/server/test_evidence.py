from __future__ import annotations

import pytest

from server.model_server.evidence import LIMIT, one_line, scrub


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("cannot open /var/lib/data/m.onnx: gone", "cannot open …: gone"),
        ("in 'C:\\models\\m.onnx'", "in '…'"),
        ("3/4 of N/A stay", "3/4 of N/A stay"),
        ("object at 0x7f26b4ed7d80", "object at 0x…"),
        ("\x1b[1;31mred\x1b[m\tand\x00 tabs", "red and tabs"),
        ("файл /tmp/модель не найден", "файл … не найден"),
    ],
)
def test_a_line_of_evidence_has_no_paths_addresses_or_controls(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


def test_evidence_is_bounded() -> None:
    assert len(scrub("x" * 1000)) == LIMIT


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
