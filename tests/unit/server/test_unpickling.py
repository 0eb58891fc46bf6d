"""The allow list and the readers around it; models themselves are loaded by contract tests."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model_server.allowed_globals import AllowedGlobals
from server.model_server.failures import ModelFailure
from server.model_server.unpickling import load_pickle

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = {"rows": [1, 2.5, "текст", None, {3}], "big": b"\x00" * 100_000}


def written(folder: Path, content: bytes) -> str:
    path = folder / "model.bin"
    path.write_bytes(content)
    return str(path)


def refusal(folder: Path, content: bytes) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        load_pickle(written(folder, content))
    return caught.value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_load_under_every_protocol(tmp_path: Path, protocol: int) -> None:
    value, made_with = load_pickle(written(tmp_path, pickle.dumps(PLAIN, protocol)))

    assert (value, made_with) == (PLAIN, None)


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_load(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    assert load_pickle(written(tmp_path, compress(pickle.dumps(PLAIN))))[0] == PLAIN


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_a_cut_compressed_file_is_named(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    failure = refusal(tmp_path, compress(pickle.dumps(os.urandom(5000)))[:-900])

    assert failure.code == "pickle_truncated"


def test_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, pickle.dumps(PLAIN) + b"x").code == "pickle_trailing_bytes"
    twice = zlib.compress(pickle.dumps(PLAIN) + pickle.dumps(PLAIN))
    assert refusal(tmp_path, twice).code == "pickle_trailing_bytes"


def test_a_compression_that_is_not_read_is_named(tmp_path: Path) -> None:
    failure = refusal(tmp_path, b"\x04\x22\x4d\x18 and so on")

    assert (failure.code, failure.params) == (
        "pickle_compression_unsupported",
        {"compression": "lz4"},
    )


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_off_the_list_runs_under_any_protocol(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    for call in (Call(os.mkdir, str(marker)), Call(subprocess.check_call, ["touch", str(marker)])):
        failure = refusal(tmp_path, pickle.dumps([call], protocol))

        assert failure.code == "unsafe_pickle"
        assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("builtins", "object.__subclasses__"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("collections", "abc"),
        ("sklearn", "os"),
        ("sklearn.utils._testing", "_delete_folder"),
        ("sklearn.datasets", "load_files"),
        ("sklearn.externals.array_api_compat", "numpy"),
        ("scipy.stats._distn_infrastructure", "rv_frozen"),
        ("joblib", "load"),
        ("", ""),
        ("..", "x"),
    ],
)
def test_a_name_off_the_list_is_refused_before_anything_is_imported(module: str, name: str) -> None:
    with pytest.raises(ModelFailure) as caught:
        AllowedGlobals().find(module, name)

    assert caught.value.code == "unsafe_pickle"


def test_the_name_that_is_shown_cannot_break_a_sentence() -> None:
    with pytest.raises(ModelFailure) as caught:
        AllowedGlobals().find("/etc/{passwd}\n" + "x" * 500, "y")

    shown = caught.value.params["name"]
    assert len(shown) <= 120
    assert not set(shown) & set("/{}\n\\")


def test_only_latin1_is_encoded() -> None:
    encode = AllowedGlobals().find("_codecs", "encode")

    assert encode("é", "latin1") == b"\xe9"
    with pytest.raises(ModelFailure):
        encode("x", "rot13")


def test_old_protocols_rebuild_only_plain_objects() -> None:
    rebuild = AllowedGlobals().find("copyreg", "_reconstructor")

    assert rebuild(dict, dict, {"a": 1}) == {"a": 1}
    with pytest.raises(ModelFailure):
        rebuild(Path, Path, None)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_value_or_a_named_failure(content: bytes) -> None:
    code = "pickle_of_plain_values"
    with tempfile.TemporaryDirectory() as folder:
        try:
            load_pickle(written(Path(folder), content))
        except ModelFailure as failure:
            code = failure.code

    assert code.startswith(("pickle_", "unsafe_pickle", "sklearn_"))
