"""What an artifact is: told from its content, without running or importing any of it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest
from lz4 import frame

from server.artifacts.child import inspection, main
from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect
from server.environments.trees import build_tree
from tests.support.onnx_files import (
    FLOAT,
    bytes_field,
    external_tensor,
    linear,
    model,
    node,
    number_field,
    tensor,
    tensor_type,
    value,
)
from tests.support.pickle_files import (
    joblib_array,
    joblib_file,
    pickled,
    sklearn_pickle,
    state_dict,
    torch_saved,
    torchscript,
    write,
    zipped,
)

if TYPE_CHECKING:
    from pathlib import Path

    from server.artifacts.inspect import Report


def look(tmp_path: Path, content: bytes) -> Report:
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    return inspect(write(tmp_path, "upload", content), folder)


def refused(tmp_path: Path, content: bytes) -> InspectionError:
    with pytest.raises(InspectionError) as caught:
        look(tmp_path, content)
    return caught.value


def onnx(*initializers: bytes) -> bytes:
    x, y = (value(name, tensor_type(FLOAT, [1])) for name in "xy")
    return model([node("Relu", ["x"], ["y"])], [x], [y], initializers=list(initializers))


@pytest.mark.parametrize(
    ("more", "made_with"),
    [
        ({}, {}),
        ({"version": b"4\n"}, {"torchscript-format": "4"}),
        ({".data/version": b"3"}, {"torchscript-format": "3"}),
        ({"version": b"four"}, {}),
        (
            {"version": b"3\n", "byteorder": b"little"},
            {"torchscript-format": "3", "torch-at-least": "2.1"},
        ),
    ],
)
def test_what_a_torchscript_file_tells_of_its_torch_is_told(
    tmp_path: Path, more: dict[str, bytes], made_with: dict[str, str]
) -> None:
    with zipfile.ZipFile(io.BytesIO(torchscript())) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if "version" not in name}
    files |= {f"net/{name}": content for name, content in more.items()}
    assert look(tmp_path, zipped(files)).made_with == made_with


def test_a_bare_model_is_told_and_its_bytes_are_not_copied(tmp_path: Path) -> None:
    for content, kind, file in [
        (onnx(), "onnx", "model.onnx"),
        (torchscript(), "torchscript", "model.pt"),
        (sklearn_pickle(), "sklearn", "model.pkl"),
    ]:
        report = look(tmp_path, content)
        assert (report.kind, report.file, report.is_archive) == (kind, file, False)
        assert list((tmp_path / "out").iterdir()) == []


def test_a_cut_off_onnx_file_is_damaged(tmp_path: Path) -> None:
    whole = onnx(tensor("w", [100], [1.0] * 100))
    for cut in (20, 100, len(whole) - 1):
        assert refused(tmp_path, whole[:cut]).code == "onnx_damaged"


def test_onnx_without_a_graph_is_damaged(tmp_path: Path) -> None:
    assert refused(tmp_path, number_field(1, 8) + bytes_field(2, "x")).code == "onnx_damaged"


def test_weights_in_other_files_are_named(tmp_path: Path) -> None:
    outside = external_tensor("conv.weight", [4], "w.bin")
    failure = refused(tmp_path, onnx(tensor("w", [1], [1.0]), outside))
    assert (failure.code, failure.params) == ("onnx_external_data", {"tensor": "conv.weight"})


def test_weights_in_other_files_are_found_wherever_a_tensor_can_stand(tmp_path: Path) -> None:
    outside = external_tensor("deep", [4], "w.bin")
    constant = bytes_field(4, "Constant") + bytes_field(5, bytes_field(5, outside))
    several = bytes_field(4, "X") + bytes_field(5, bytes_field(10, outside))
    branch = bytes_field(4, "If") + bytes_field(5, bytes_field(6, bytes_field(5, outside)))
    loops = bytes_field(4, "Y") + bytes_field(5, bytes_field(11, bytes_field(1, constant)))
    sparse = bytes_field(4, "Z") + bytes_field(5, bytes_field(22, bytes_field(1, outside)))
    graph = bytes_field(7, bytes_field(15, bytes_field(2, outside)))
    training = bytes_field(20, bytes_field(2, bytes_field(5, outside)))
    function = bytes_field(25, bytes_field(7, constant))
    # The type's number with a bit that protobuf cuts off, and in more bytes than it needs.
    wide = outside[:-2] + b"\x70\x81\x80\x80\x80\x10"
    padded = outside[:-2] + b"\xf0\x00\x81\x80\x00"
    nodes = [constant, several, branch, loops, sparse]
    for content in [
        *(onnx() + bytes_field(7, bytes_field(1, each)) for each in nodes),
        *(onnx() + each for each in (graph, training, function)),
        onnx(wide),
        onnx(padded),
    ]:
        failure = refused(tmp_path, content)
        assert (failure.code, failure.params) == ("onnx_external_data", {"tensor": "deep"})


def test_a_graph_in_a_graph_without_end_is_damage(tmp_path: Path) -> None:
    inner = bytes_field(5, external_tensor("deep", [4], "w.bin"))
    for _ in range(60):
        inner = bytes_field(1, bytes_field(5, bytes_field(6, inner)))
    assert refused(tmp_path, onnx() + bytes_field(7, inner)).code == "onnx_damaged"


def test_a_model_that_the_checker_refuses_is_named_without_a_path(tmp_path: Path) -> None:
    content = model([node("Relu", ["missing"], ["y"])], [], [value("y", tensor_type(FLOAT, [1]))])
    failure = refused(tmp_path, content)
    assert failure.code == "onnx_check_failed"
    assert "missing" in failure.evidence
    assert str(tmp_path) not in failure.evidence


@pytest.mark.parametrize("versions", [(190, 8), (17, 60)])
def test_versions_that_the_checker_does_not_know_are_left_to_onnxruntime(
    tmp_path: Path, versions: tuple[int, int]
) -> None:
    opset, ir_version = versions
    content = linear(opset=opset, ir_version=ir_version)
    assert look(tmp_path, content).kind == "onnx"


@pytest.mark.parametrize("protocol", range(6))
def test_a_scikit_learn_pickle_tells_its_class_and_the_version_that_wrote_it(
    tmp_path: Path, protocol: int
) -> None:
    report = look(tmp_path, sklearn_pickle(protocol))
    assert (report.kind, report.format) == ("sklearn", "pickle")
    assert report.made_with == {"scikit-learn": "1.5.2"}
    assert report.top == "sklearn.linear_model._logistic.LogisticRegression"
    assert report.top in report.globals


@pytest.mark.parametrize(
    "compress", [zlib.compress, gzip.compress, bz2.compress, lzma.compress, frame.compress]
)
def test_a_compressed_pickle_is_joblib(tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    report = look(tmp_path, compress(sklearn_pickle()))
    assert (report.kind, report.format, report.file) == ("sklearn", "joblib", "model.joblib")


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("f8", (3, 2), 48), ("i4", (0,), 0), ("f4", (), 4), ("U5", (2,), 40), ("V64", (3,), 192)],
)
def test_arrays_of_joblib_are_stepped_over(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], size: int
) -> None:
    # Bytes that would be opcodes of a call if they were read as such.
    body = b"\x05.....cos\nsystem\n(R"[:6] + (b"cos\nsystem\n." * 40)[:size]
    report = look(tmp_path, joblib_file(joblib_array(dtype, shape, body)))
    assert report.format == "joblib"
    assert "os.system" not in report.globals


@pytest.mark.parametrize("flags", [0, 63])
def test_an_array_of_objects_is_a_pickle_whose_globals_count(tmp_path: Path, flags: int) -> None:
    dtype = "O8" if not flags else "V16"
    nested = pickle.dumps(["a"], protocol=2)[:-1] + b"0cdecimal\nDecimal\n."
    report = look(tmp_path, joblib_file(joblib_array(dtype, (1,), nested, flags=flags)))
    assert "decimal.Decimal" in report.globals
    nested = nested.replace(b"decimal\nDecimal", b"os\nsystem")
    failure = refused(tmp_path, joblib_file(joblib_array(dtype, (1,), nested, flags=flags)))
    assert (failure.code, failure.params["name"]) == ("pickle_dangerous", "os.system")


def test_a_pickle_of_something_else_names_what_it_uses(tmp_path: Path) -> None:
    failure = refused(tmp_path, pickled("catboost.core.CatBoostClassifier"))
    assert (failure.code, failure.params) == ("pickle_not_sklearn", {"modules": ["catboost"]})
    failure = refused(tmp_path, pickle.dumps({"a": 1}))
    assert failure.params == {"modules": ["dict"]}


@pytest.mark.parametrize("package", ["xgboost", "lightgbm"])
def test_estimators_of_the_same_interface_say_which_package_they_need(
    tmp_path: Path, package: str
) -> None:
    report = look(tmp_path, pickled(f"{package}.sklearn.Model"))
    assert (report.kind, report.packages) == ("sklearn", (package,))
    assert look(tmp_path, frame.compress(pickled(f"{package}.x.Y"))).packages == (package, "lz4")


def test_a_harmful_pickle_is_named_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    harm = f"cos\nsystem\n(S'touch {mark}'\ntR0".encode()
    clean = sklearn_pickle(2)
    failure = refused(tmp_path, clean[:2] + harm + clean[2:])
    assert (failure.code, failure.params) == (
        "pickle_dangerous",
        {"name": "os.system"},
    )
    assert not mark.exists()


def test_a_harmful_pickle_that_is_cut_off_is_called_harmful(tmp_path: Path) -> None:
    assert refused(tmp_path, b"\x80\x02cos\nsystem\n(").code == "pickle_dangerous"
    assert refused(tmp_path, sklearn_pickle() + b"cos\nsystem\n.").code == "pickle_dangerous"


def test_names_that_a_pickle_computes_are_refused(tmp_path: Path) -> None:
    # STACK_GLOBAL over something that is no text.
    failure = refused(tmp_path, b"\x80\x04NN\x930" + sklearn_pickle(2)[2:])
    assert failure.params["name"] == "unknown.unknown"


def test_what_the_scanner_cannot_read_is_refused(tmp_path: Path) -> None:
    # One name instead of two: the machine stops at it as well.
    assert refused(tmp_path, b"\x80\x04\x93" + sklearn_pickle(2)[2:]).code == "pickle_damaged"
    # A name that is put together from the memo of a value that was never stored.
    odd = b"\x80\x04\x8c\x02osq\x050\x8c\x01x\x94h\x05h\x01\x930"
    assert refused(tmp_path, odd + sklearn_pickle(2)[2:]).code in {
        "pickle_dangerous",
        "pickle_scan_failed",
    }


def test_a_long_pickle_is_scanned_piece_by_piece(tmp_path: Path) -> None:
    words = {f"word {number}": number for number in range(60_000)}
    body = pickle.dumps(words, protocol=4)[:-1] + b"0" + sklearn_pickle(4)[2:]
    assert look(tmp_path, body).kind == "sklearn"
    harm = pickle.dumps(words, protocol=4)[:-1] + b"0\x8c\x02os\x8c\x06system\x930"
    failure = refused(tmp_path, harm + sklearn_pickle(4)[2:])
    assert failure.params["name"] == "os.system"


def test_bytes_behind_a_pickle_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, sklearn_pickle() + b"x").code == "pickle_extra_bytes"
    assert refused(tmp_path, sklearn_pickle() * 2).code == "pickle_extra_bytes"


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04",
        b"\x80\x04.",
        b"\x80\x04\xff.",
        b"\x80\x04h\x07.",
        b"\x80\x04(.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04X\xff\xff\xff\xffabc.",
        b"\x80\x02" + b"(" * 1000,
        b"\x80\x02]h\x00.",
        sklearn_pickle()[:-3],
    ],
)
def test_damaged_pickles_are_named(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path, content).code == "pickle_damaged"


def test_nesting_without_end_neither_crashes_nor_hangs(tmp_path: Path) -> None:
    doubled = b"\x80\x02)" + b"2\x86" * 3000 + b"0" + sklearn_pickle(2)[2:]
    assert look(tmp_path, doubled).kind == "sklearn"
    # Hashing a tuple of tuples of tuples takes exponential time.
    keyed = b"\x80\x02})" + b"2\x86" * 100 + b"Ns0" + sklearn_pickle(2)[2:]
    assert look(tmp_path, keyed).kind == "sklearn"
    arrays = joblib_array("O8", (1,), b"\x80\x02") * 100
    assert refused(tmp_path, b"\x80\x02" + arrays).code == "pickle_damaged"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (torch_saved(state_dict()), "state_dict_not_torchscript"),
        (torch_saved(b"\x80\x02}" + b"(X\x01\x00\x00\x00aK\x01u."), "state_dict_not_torchscript"),
        (torch_saved(pickled("models.Net", protocol=2)), "module_pickle_not_torchscript"),
    ],
)
def test_other_files_of_pytorch_are_named(tmp_path: Path, content: bytes, code: str) -> None:
    assert refused(tmp_path, content).code == code


def test_a_whole_module_says_which_class_it_needs(tmp_path: Path) -> None:
    failure = refused(tmp_path, torch_saved(pickled("models.Net", protocol=2)))
    assert failure.params == {"name": "models.Net"}


def test_files_of_old_pytorch_are_named(tmp_path: Path) -> None:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    facts = pickle.dumps(1001, protocol=2) + pickle.dumps({"little_endian": True}, protocol=2)
    failure = refused(tmp_path, magic + facts + state_dict() + b"\x80\x02]." + bytes(16))
    assert failure.code == "state_dict_not_torchscript"


def test_a_damaged_torchscript_file_is_named(tmp_path: Path) -> None:
    broken = torchscript().replace(b"class Net(Module)", b"class Nat(Module)")
    assert refused(tmp_path, broken).code == "archive_checksum_wrong"


def test_arrays_alone_are_no_model(tmp_path: Path) -> None:
    assert refused(tmp_path, zipped({"x.npy": b"\x93NUMPY"})).code == "archive_no_model"


def test_the_report_of_a_failure_is_one_line_with_code_and_evidence(tmp_path: Path) -> None:
    report = inspection(write(tmp_path, "a", sklearn_pickle()[:-9]), tmp_path)
    assert report["ok"] is False
    assert report["code"] == "pickle_damaged"
    assert "\n" not in str(report["evidence"])
    assert inspection(tmp_path / "missing", tmp_path)["code"] == "artifact_unreadable"
    assert inspection(write(tmp_path, "b", b"%PDF-1"), tmp_path)["params"] == {"found": "PDF"}


def test_the_report_stays_short_whatever_the_archive_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{number:05}" + "я" * 100: b"" for number in range(5000)}
    text = "numpy" + "\n" * (24 * 1024 - 5)
    archive = zipped({**files, "model.onnx": onnx(), "requirements.txt": text.encode()})
    folder = tmp_path / "out"
    folder.mkdir()
    assert main([str(write(tmp_path, "a", archive)), str(folder)]) == 0
    line = capsys.readouterr().out
    assert len(line.encode()) < 64 * 1024
    assert json.loads(line)["requirements"] == text


def test_the_child_runs_from_its_tree_without_anything_else(tmp_path: Path) -> None:
    tree = build_tree(tmp_path / "trees", "inspect")
    artifact = write(
        tmp_path, "a", zipped({"m.pkl": sklearn_pickle(), "requirements.txt": b"scipy"})
    )
    folder = tmp_path / "out"
    folder.mkdir()
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from server.artifacts.child import main; sys.exit(main(sys.argv[2:]))"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(tree), str(artifact), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    report = json.loads(ended.stdout.splitlines()[-1])
    assert (report["kind"], report["requirements"]) == ("sklearn", "scipy")
    assert (folder / "model.pkl").read_bytes() == sklearn_pickle()


def test_random_pickles_end_in_a_report_or_a_named_failure(tmp_path: Path) -> None:
    numbers = random.Random(11)
    seed = joblib_file(joblib_array("f8", (2,), b"\x00" + bytes(16)))
    for _ in range(500):
        content = bytearray(
            numbers.choice([seed, sklearn_pickle(), sklearn_pickle(0), state_dict()])
        )
        for _ in range(numbers.randrange(1, 5)):
            content[numbers.randrange(2, len(content))] = numbers.randrange(256)
        report = inspection(write(tmp_path, "fuzz", bytes(content)), tmp_path)
        assert report.get("code") != "artifact_not_understood", bytes(content)


def test_a_number_of_an_impossible_size_is_stepped_over(tmp_path: Path) -> None:
    huge = b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20)
    assert look(tmp_path, b"\x80\x02" + huge + b"0" + sklearn_pickle(2)[2:]).kind == "sklearn"
