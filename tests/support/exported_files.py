"""Archives with the layout of torch.export's, without its weights."""

from __future__ import annotations

import json
from typing import Any

from tests.support.pickle_files import zipped


def program(*outputs: dict[str, Any], version: Any = "2.13.0+cpu") -> bytes:
    """Return the JSON of a program as far as the inspection reads it."""
    signature = {"input_specs": [], "output_specs": [{"user_output": {}}, *outputs]}
    return json.dumps({"graph_module": {"signature": signature}, "torch_version": version}).encode()


def exported(said: bytes | None = None, **files: bytes) -> bytes:
    """Return a program's archive; further files by their names below its folder."""
    return zipped(
        {
            "net/archive_format": b"pt2",
            "net/models/model.json": program() if said is None else said,
            # Numbers that begin as a pickle does.
            "net/data/weights/weight_0": b"\x80\x02" + bytes(62),
            **{f"net/{name}": content for name, content in files.items()},
        }
    )
