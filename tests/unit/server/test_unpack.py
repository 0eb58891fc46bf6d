"""Archives: only plain files come out, limits count real bytes, nothing leaves the folder."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from server.artifacts import unpack
from server.artifacts.failures import InspectionError
from server.artifacts.inspect import inspect
from server.artifacts.limits import Limits
from tests.support.onnx_files import linear
from tests.support.pickle_files import (
    sklearn_pickle,
    state_dict,
    torch_saved,
    torchscript,
    write,
    zipped,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.artifacts.inspect import Report

    Inspect = Callable[..., Report]

ONNX = linear()
NPY = (
    b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }".ljust(79)
    + b"\n"
    + bytes(8)
)


@pytest.fixture
def take(tmp_path: Path) -> Inspect:
    def run(content: bytes, **limits: Any) -> Report:
        folder = tmp_path / "out"
        folder.mkdir()
        return inspect(write(tmp_path, "upload", content), folder, Limits(**limits))

    return run


def refused(take: Inspect, content: bytes, **limits: Any) -> InspectionError:
    with pytest.raises(InspectionError) as caught:
        take(content, **limits)
    return caught.value


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return target.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (ONNX, ("onnx", "onnx")),
        (torchscript(), ("torchscript", "torchscript")),
        (sklearn_pickle(), ("sklearn", "pickle")),
        (gzip.compress(sklearn_pickle()), ("sklearn", "joblib")),
    ],
)
@pytest.mark.parametrize("pack", ["zip", "deflated", "tar", "tar.gz"])
def test_the_one_model_of_an_archive_is_found_by_content(
    take: Inspect, tmp_path: Path, content: bytes, told: tuple[str, str], pack: str
) -> None:
    files = {"README.md": b"# hi", "m/weights.bin": content, "m/requirements.txt": b"scipy==1.15\n"}
    packed = {
        "zip": lambda: zipped(files),
        "deflated": lambda: zipped(files, zipfile.ZIP_DEFLATED),
        "tar": lambda: tar_of(*files.items()),
        "tar.gz": lambda: gzip.compress(tar_of(*files.items())),
    }[pack]()
    report = take(packed)
    assert ((report.kind, report.format), report.is_archive) == (told, True)
    assert report.requirements == "scipy==1.15\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [report.file]
    assert (tmp_path / "out" / report.file).read_bytes() == content


def test_a_sample_comes_along_and_the_nearest_files_are_taken(
    take: Inspect, tmp_path: Path
) -> None:
    sample = zipped({"x.npy": NPY})
    files = {
        "sample.json": b'{"x": [1]}',
        "m/model.onnx": ONNX,
        "m/sample.npz": sample,
        "m/requirements.txt": b"near",
        "requirements.txt": b"far",
        "other/requirements.txt": b"elsewhere",
        "other/data.npz": sample,
    }
    report = take(zipped(files))
    assert (report.sample, report.requirements) == ("sample.npz", "near")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.onnx", "sample.npz"]
    assert (tmp_path / "out" / "sample.npz").read_bytes() == sample


def test_requirements_written_by_powershell_are_read(take: Inspect) -> None:
    text = "numpy==2.0\r\n"
    archive = zipped({"model.onnx": ONNX, "requirements.txt": text.encode("utf-16")})
    assert take(archive).requirements == text


def test_several_models_are_listed_and_files_that_are_none_do_not_count(take: Inspect) -> None:
    failure = refused(take, zipped({"a.onnx": ONNX, "b/c.pkl": sklearn_pickle()}))
    assert failure.code == "archive_several_models"
    assert failure.params == {"models": ["a.onnx", "b/c.pkl"]}


def test_weights_beside_a_model_do_not_make_two_models(take: Inspect) -> None:
    archive = zipped({"a.onnx": ONNX, "w.pt": torch_saved(state_dict())})
    assert take(archive).kind == "onnx"


def test_an_archive_without_a_model_says_what_is_in_it(take: Inspect) -> None:
    failure = refused(take, tar_of(("README.md", b"hi"), ("main.py", b"print(1)")))
    assert (failure.code, failure.params) == (
        "archive_no_model",
        {"members": ["README.md", "main.py"]},
    )


def test_an_archive_of_weights_only_is_named(take: Inspect) -> None:
    failure = refused(take, zipped({"w.pt": torch_saved(state_dict())}))
    assert failure.code == "state_dict_not_torchscript"


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "/model.onnx",
        "a/../../b",
        "a\\b",
        "C:/model.onnx",
        "a\nb",
        "a\u202eb",
        "a\x85b",
    ],
)
def test_unsafe_names_are_refused(take: Inspect, tmp_path: Path, name: str) -> None:
    assert refused(take, tar_of((name, ONNX))).code == "archive_name_unsafe"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 256, "/".join(["n" * 200] * 6)])
def test_names_that_are_too_long_are_refused(take: Inspect, name: str) -> None:
    assert refused(take, tar_of((name, ONNX))).code == "archive_name_too_long"


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a\\b"])
def test_unsafe_names_in_a_zip_are_refused(take: Inspect, name: str) -> None:
    assert refused(take, zipped({name: ONNX})).code == "archive_name_unsafe"


def test_a_nul_in_a_zip_name_is_refused(take: Inspect) -> None:
    archive = zipped({"model.onnx#.txt": ONNX}).replace(b"model.onnx#", b"model.onnx\x00")
    assert refused(take, archive).code == "archive_name_unsafe"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (tarfile.SYMTYPE, "archive_link_refused"),
        (tarfile.LNKTYPE, "archive_link_refused"),
        (tarfile.CHRTYPE, "archive_special_refused"),
        (tarfile.FIFOTYPE, "archive_special_refused"),
        (tarfile.GNUTYPE_SPARSE, "archive_special_refused"),
    ],
)
def test_links_devices_and_sparse_files_are_refused_by_name(
    take: Inspect, kind: bytes, code: str
) -> None:
    failure = refused(take, tar_of(("model.onnx", ONNX), special("odd", kind, "/etc/passwd")))
    assert (failure.code, failure.params["name"]) == (code, "odd")


def test_a_sparse_file_declared_in_a_pax_header_is_refused(take: Inspect) -> None:
    info = tarfile.TarInfo("model.onnx")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    assert refused(take, tar_of(info)).code == "archive_special_refused"


def test_a_link_in_a_zip_is_refused(take: Inspect) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        info = zipfile.ZipInfo("model.onnx")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert refused(take, target.getvalue()).code == "archive_link_refused"


@pytest.mark.parametrize(
    "names", [("a", "a"), ("A.onnx", "a.ONNX"), ("é", "e\u0301"), ("a", "./a")]
)
def test_names_that_differ_only_in_case_or_form_are_refused(
    take: Inspect, names: tuple[str, str]
) -> None:
    archive = tar_of(*((name, b"x") for name in names))
    assert refused(take, archive).code == "archive_name_repeated"


def test_depth_and_number_of_entries_are_limited(take: Inspect) -> None:
    assert take(tar_of(("1/2/3/4/5/6/7/model.onnx", ONNX))).kind == "onnx"


def test_too_deep_is_refused(take: Inspect) -> None:
    assert refused(take, tar_of(("1/2/3/4/5/6/7/8/model.onnx", ONNX))).code == "archive_too_deep"


@pytest.mark.parametrize("pack", [zipped, lambda files: tar_of(*files.items())])
def test_too_many_entries_are_refused(take: Inspect, pack: Any) -> None:
    files = {f"f{number}": b"" for number in range(12)}
    failure = refused(take, pack(files), entries=10)
    assert (failure.code, failure.params) == ("archive_too_many_entries", {"limit": 10})


def test_ten_thousand_and_one_entries_are_too_many(take: Inspect) -> None:
    failure = refused(take, zipped({str(number): b"" for number in range(10_001)}))
    assert failure.params == {"limit": 10_000}


def test_headers_without_entries_do_not_go_on_for_ever(take: Inspect) -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.XGLTYPE
    assert refused(take, header.tobuf() * 50, entries=10).code == "archive_too_many_entries"


@pytest.mark.parametrize("pack", ["zip", "gz"])
def test_real_bytes_are_counted_against_size_and_ratio(take: Inspect, pack: str) -> None:
    zeros = {"zeros": bytes(20 * 1024**2)}
    packed = (
        zipped(zeros, zipfile.ZIP_DEFLATED)
        if pack == "zip"
        else gzip.compress(tar_of(*zeros.items()))
    )
    assert refused(take, packed).code == "archive_ratio"


def test_too_large_a_content_is_refused(take: Inspect) -> None:
    failure = refused(take, zipped({"a": bytes(3 * 1024**2)}), total_bytes=2 * 1024**2)
    assert (failure.code, failure.params) == ("archive_too_large", {"limit_mb": 2})


def test_a_compressed_pickle_that_explodes_is_refused(take: Inspect) -> None:
    data = b"\x80\x04\x8e" + (64 * 1024**2).to_bytes(8, "little") + bytes(64 * 1024**2) + b"."
    assert refused(take, gzip.compress(data)).code == "archive_ratio"


def test_overlapping_entries_are_refused(take: Inspect) -> None:
    archive = bytearray(zipped({"a": b"1" * 100, "b": b"2" * 100}))
    second = archive.rfind(b"PK\x01\x02")
    archive[second + 42 : second + 46] = struct.pack("<I", 0)
    assert refused(take, bytes(archive)).code == "archive_overlapping"


def test_an_entry_that_reaches_into_the_directory_is_refused(take: Inspect) -> None:
    archive = bytearray(zipped({"a": b"1" * 100}))
    entry = archive.find(b"PK\x01\x02")
    for field in (entry + 20, 18):
        archive[field : field + 8] = struct.pack("<II", 120, 120)
    assert refused(take, bytes(archive)).code == "archive_overlapping"


def test_a_wrong_checksum_is_named(take: Inspect) -> None:
    archive = zipped({"model.onnx": ONNX, "note": b"0123456789"})
    failure = refused(take, archive.replace(b"0123456789", b"0123456780"))
    assert (failure.code, failure.params) == ("archive_checksum_wrong", {"name": "note"})


def test_encrypted_entries_are_refused(take: Inspect) -> None:
    archive = bytearray(zipped({"model.onnx": ONNX}))
    archive[archive.find(b"PK\x01\x02") + 8] |= 1
    assert refused(take, bytes(archive)).code == "archive_encrypted"


def test_other_compressions_are_refused(take: Inspect) -> None:
    archive = zipped({"model.onnx": ONNX * 100}, zipfile.ZIP_LZMA)
    assert refused(take, archive).code == "archive_method_unsupported"


@pytest.mark.parametrize(
    "inner",
    [
        zipped({"model.onnx": ONNX}),
        tar_of(("model.onnx", ONNX)),
        gzip.compress(tar_of(("model.onnx", ONNX))),
    ],
)
def test_archives_inside_archives_are_refused(take: Inspect, inner: bytes) -> None:
    failure = refused(take, zipped({"inner.bin": inner}))
    assert (failure.code, failure.params) == ("archive_nested", {"name": "inner.bin"})


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("pack", ["zip", "tar", "tar.gz"])
def test_a_cut_off_archive_is_named(take: Inspect, cut: float, pack: str) -> None:
    # Bytes that do not compress, and so many that every cut goes through them.
    files = {"model.onnx": ONNX, "more": random.Random(1).randbytes(40_000)}
    plain = tar_of(*files.items())[:42_000]
    whole = {"zip": zipped(files), "tar": plain, "tar.gz": gzip.compress(plain)}[pack]
    assert refused(take, whole[: int(len(whole) * cut)]).code == "archive_truncated"


def test_long_names_of_every_tar_format_are_read(tmp_path: Path) -> None:
    name = "folder/" + "n" * 150 + ".onnx"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        folder = tmp_path / str(form)
        folder.mkdir()
        report = inspect(write(tmp_path, "t", tar_of((name, ONNX), form=form)), folder)
        assert report.members == (name,)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"sample.npz": b"no zip"}, "sample_damaged"),
        ({"sample.json": b"{"}, "sample_damaged"),
        ({"sample.json": b"[" * 100_000}, "sample_damaged"),
        ({"requirements.txt": b"#" * 30_000}, "requirements_too_large"),
        ({"requirements.txt": b"\xff\xd8\xff\xe0"}, "requirements_not_text"),
        ({"requirements.txt": b"a\x00b"}, "requirements_not_text"),
    ],
)
def test_damaged_companions_are_named(take: Inspect, files: dict[str, bytes], code: str) -> None:
    assert refused(take, zipped({"model.onnx": ONNX, **files})).code == code


@pytest.mark.parametrize("name", ["sample.npz", "sample.json"])
def test_a_sample_that_is_too_large_says_how_large_it_may_be(
    take: Inspect, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(unpack, "_SAMPLE_BYTES", 64)
    buffer = io.BytesIO()
    np.savez(buffer, x=np.ones(100))
    content = {"sample.npz": buffer.getvalue(), "sample.json": b"[" + b"1, " * 10_000 + b"1]"}
    failure = refused(take, zipped({"model.onnx": ONNX, name: content[name]}))
    assert (failure.code, failure.params) == ("sample_too_large", {"limit_mb": 0})


def test_whatever_bytes_are_changed_the_answer_is_a_report_or_a_named_failure(
    tmp_path: Path,
) -> None:
    numbers = random.Random(3)
    seeds = [
        zipped({"model.onnx": ONNX, "requirements.txt": b"numpy\n"}, zipfile.ZIP_DEFLATED),
        tar_of(("model.onnx", ONNX), ("a", b"b")),
        gzip.compress(tar_of(("model.pkl", sklearn_pickle()))),
        torchscript(),
    ]
    for number in range(400):
        content = bytearray(seeds[number % len(seeds)])
        for _ in range(numbers.randrange(1, 6)):
            content[numbers.randrange(len(content))] = numbers.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        with contextlib.suppress(InspectionError):
            inspect(write(tmp_path, "fuzz", bytes(content)), folder)
