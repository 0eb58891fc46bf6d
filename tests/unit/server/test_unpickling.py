"""The allow list and the readers around it; models themselves are loaded by contract tests."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lz4 import frame

from server.model_server.allowed_globals import AllowedGlobals
from server.model_server.array_states import check_state
from server.model_server.failures import ModelFailure
from server.model_server.unpickling import load_pickle

if TYPE_CHECKING:
    from collections.abc import Callable

COMPRESSIONS = [zlib.compress, gzip.compress, bz2.compress, lzma.compress, frame.compress]
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


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_compressed_files_load(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    assert load_pickle(written(tmp_path, compress(pickle.dumps(PLAIN))))[0] == PLAIN


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_a_cut_compressed_file_is_named(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    failure = refusal(tmp_path, compress(pickle.dumps(os.urandom(5000)))[:-900])

    assert failure.code == "pickle_truncated"


def test_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, pickle.dumps(PLAIN) + b"x").code == "pickle_trailing_bytes"
    twice = zlib.compress(pickle.dumps(PLAIN) + pickle.dumps(PLAIN))
    assert refusal(tmp_path, twice).code == "pickle_trailing_bytes"


def test_a_compression_that_is_not_read_is_named(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "lz4.frame", None)
        failure = refusal(tmp_path, frame.compress(pickle.dumps(PLAIN)))

    assert (failure.code, failure.params) == (
        "pickle_compression_unsupported",
        {"compression": "lz4"},
    )


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_bytes_behind_a_compressed_stream_are_refused(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    packed = compress(pickle.dumps(PLAIN))

    assert refusal(tmp_path, packed + b"more").code.startswith("pickle_")
    assert refusal(tmp_path, packed + packed).code == "pickle_trailing_bytes"
    assert load_pickle(written(tmp_path, packed + bytes(100)))[0] == PLAIN


def test_a_booster_is_given_its_state_and_no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    class Booster:
        def __init__(self, path: str) -> None:
            self.path = path

    module = ModuleType("xgboost.core")
    module.Booster = Booster  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xgboost", ModuleType("xgboost"))
    monkeypatch.setitem(sys.modules, "xgboost.core", module)
    found = AllowedGlobals().find("xgboost.core", "Booster")
    rebuild = AllowedGlobals().find("copyreg", "_reconstructor")

    assert type(found.__new__(found)) is Booster
    assert type(rebuild(found, object, None)) is Booster
    for call in (found, found.__new__):
        with pytest.raises(TypeError):
            call(found, "/etc/passwd")
    with pytest.raises(TypeError):
        found("/etc/passwd")


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


F8, OBJECT, PAIR = np.dtype("f8"), np.dtype("O"), np.dtype([("a", "f8"), ("b", "O")])
FIELDS = {"a": (F8, 0), "b": (OBJECT, 8)}


@pytest.mark.parametrize(
    ("target", "state"),
    [
        (np.empty(0), (1, (2,), OBJECT, False, ["a"])),
        (np.empty(0), (1, (2,), OBJECT, False, ("a", "b"))),
        (np.empty(0), (1, (2,), F8, False, bytes(8))),
        (np.empty(0), (1, (2,), F8, False, ["a", "b"])),
        (np.empty(0), (1, (-1,), F8, False, b"")),
        (np.empty(0), (1, (True,), F8, False, bytes(8))),
        (np.empty(0), (1, [1], F8, False, bytes(8))),
        (np.empty(0), (1, (1,), "f8", False, bytes(8))),
        (np.empty(0), ["a"]),
        (np.ma.array([1.0]), (1, (2,), F8, False, bytes(16), bytes(1), None)),
        (np.ma.array([1.0]), (1, (2,), F8, False, bytes(8), bytes(2), None)),
        (np.ma.array([1.0]), (1, (2,), F8, False, bytes(16))),
        (F8, (3, "<", None, None, None, -1, -1, 63)),
        (F8, (3, "<", None, None, None, 99, -1, 0)),
        (F8, (3, "<", None, None, None, -1, 4096, 0)),
        (F8, (3, "<", (F8, (2,)), None, None, -1, -1, 0)),
        (F8, (3, "<", None, ("a",), {"a": (F8, 0)}, 8, -1, 0)),
        (F8, (3, "!", None, None, None, -1, -1, 0)),
        (F8, {"a": 1}),
        (PAIR, (3, "|", None, ("a", "b"), FIELDS, 16, 1, 16)),
        (PAIR, (3, "|", None, ("a", "b"), {**FIELDS, "b": (OBJECT, 99)}, 16, 1, 63)),
        (PAIR, (3, "|", None, ("a", "b"), {**FIELDS, "b": (OBJECT, -8)}, 16, 1, 63)),
        (PAIR, (3, "|", None, ("a", "b"), {**FIELDS, "b": ("O", 8)}, 16, 1, 63)),
        (PAIR, (3, "|", None, ("a", "c"), FIELDS, 16, 1, 63)),
        (PAIR, (3, "|", 1, None, None, 16, 1, 63)),
        (np.random.MT19937(), {"state": {"key": [0], "pos": 625}}),
        (np.random.MT19937(), ({"state": {"pos": "1"}}, None)),
        (np.random.Philox(), {"buffer_pos": -1}),
    ],
)
def test_a_state_that_no_pickler_writes_is_refused(target: Any, state: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="none that is ever written"):
        check_state(target, state)


def test_a_forged_array_ends_as_a_failure_with_a_name(tmp_path: Path) -> None:
    sound = pickle.dumps(np.array(["a", "b"], dtype=object), protocol=2)
    assert sound.count(b"K\x02\x85") == 1
    forged = sound.replace(b"K\x02\x85", b"K\x0a\x85")

    assert refusal(tmp_path, forged).code == "pickle_not_loadable"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_generators_of_every_kind_are_sound(tmp_path: Path, protocol: int) -> None:
    structured = np.zeros(3, dtype=[("a", "<f4"), ("b", "O"), ("c", "U5", (2,)), ("d", "M8[ns]")])
    masked = np.ma.array([("x", 1.5)], mask=[(True, False)], dtype=[("n", "U3"), ("v", ">f8")])
    values: list[Any] = [
        *(np.arange(6).astype(kind).reshape(2, 3) for kind in ("i1", ">u4", "<f2", "c16", "bool")),
        *(np.array(["é", "ab"]), np.array([b"x"]), np.array(["a", {"b": None}], dtype=object)),
        *(structured, masked, np.ma.array([1, 2], mask=[0, 1]), np.zeros((0, 3)), np.array(1.5)),
        *(
            np.asfortranarray(np.eye(3)),
            np.dtype("V16"),
            np.dtype({"names": ["a"], "formats": ["f8"]}),
        ),
        *(np.dtype([("a", "i1"), ("b", "f8")], align=True), np.timedelta64(3, "s"), np.float32(1)),
    ]
    for value in values:
        dumped = pickle.dumps(value, protocol)
        loaded = load_pickle(written(tmp_path, dumped))[0]
        # numpy turns other byte orders into the machine's.
        assert pickle.dumps(loaded, protocol) == pickle.dumps(pickle.loads(dumped), protocol)
    generator = np.random.RandomState(3)
    generator.random(7)
    loaded = load_pickle(written(tmp_path, pickle.dumps(generator, protocol)))[0]
    assert loaded.random() == generator.random()


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_value_or_a_named_failure(content: bytes) -> None:
    code = "pickle_of_plain_values"
    with tempfile.TemporaryDirectory() as folder:
        try:
            load_pickle(written(Path(folder), content))
        except ModelFailure as failure:
            code = failure.code
        except MemoryError:
            # A slot far away in the memo makes room for all before it.
            code = "pickle_too_large"

    assert code.startswith(("pickle_", "unsafe_pickle", "sklearn_"))
