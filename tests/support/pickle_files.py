"""Writes pickles that name scikit-learn, PyTorch and joblib, without any of them installed."""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from contextlib import contextmanager
from io import BytesIO
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def pretending(full_name: str) -> Iterator[type]:
    """Lend a class ``module.Name`` that pickles by this name and vanishes afterwards."""
    module_name, _, name = full_name.rpartition(".")
    parts = module_name.split(".")
    names = [".".join(parts[: count + 1]) for count in range(len(parts))]
    before = {each: sys.modules.get(each) for each in names}
    for each in names:
        sys.modules.setdefault(each, ModuleType(each))
    kind = type(name, (), {"__module__": module_name})
    setattr(sys.modules[module_name], name, kind)
    try:
        yield kind
    finally:
        for each, old in before.items():
            if old is None:
                del sys.modules[each]


def pickled(full_name: str, state: dict[str, Any] | None = None, protocol: int = 4) -> bytes:
    """Return the pickle of an object of a class that need not exist."""
    with pretending(full_name) as kind:
        thing = kind()
        thing.__dict__.update(state or {"fitted": True})
        return pickle.dumps(thing, protocol=protocol)


def sklearn_pickle(protocol: int = 4) -> bytes:
    state = {"coef_": [1.0, 2.0], "_sklearn_version": "1.5.2"}
    return pickled("sklearn.linear_model._logistic.LogisticRegression", state, protocol)


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def joblib_array(dtype: str, shape: tuple[int, ...], body: bytes, *, flags: int = 0) -> bytes:
    """Return opcodes of one of joblib's arrays, followed by the bytes that lie between opcodes."""
    axes = b"".join(b"J" + struct.pack("<i", axis) for axis in shape)
    return (
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}("
        + text("subclass")
        + b"cnumpy\nndarray\n"
        + text("shape")
        + b"("
        + axes
        + b"t"
        + text("dtype")
        + b"cnumpy\ndtype\n("
        + text(dtype)
        + b"\x89\x88tR(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
        + bytes([flags])
        + b"tb"
        + text("numpy_array_alignment_bytes")
        + b"K\x10ub"
        + body
    )


def joblib_file(array: bytes) -> bytes:
    """Return a scikit-learn model with one joblib array."""
    return b"\x80\x02csklearn.svm._classes\nSVC\n)\x81}(" + text("support_") + array + b"ub."


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def torchscript(name: str = "net") -> bytes:
    """Return a zip with the layout of a TorchScript file."""
    return zipped(
        {
            f"{name}/data.pkl": pickled("__torch__.Net", protocol=2),
            f"{name}/code/__torch__.py": b"class Net(Module):\n",
            f"{name}/constants.pkl": b"\x80\x02).",
            f"{name}/version": b"3\n",
            f"{name}/data/0": b"\x00" * 64,
        }
    )


def torch_saved(data: bytes) -> bytes:
    """Return a zip as ``torch.save`` writes it, around a pickle."""
    return zipped({"net/data.pkl": data, "net/version": b"3\n", "net/data/0": b"\x00" * 64})


def state_dict() -> bytes:
    return (
        b"\x80\x02ccollections\nOrderedDict\n)R("
        + text("weight")
        + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text("0")
        + b"tQtRu."
    )


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path
