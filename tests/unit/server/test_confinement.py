"""The pure parts of confining a process: plans, rights, who may pass which folder."""

from __future__ import annotations

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

from server.kinds import KINDS
from server.sandbox import interpreter
from server.sandbox.bubblewrap import Bubblewrap, View
from server.sandbox.inside import landlock
from server.sandbox.inside.plan import KERNEL, Plan
from server.sandbox.inside.reach import barrier
from server.sandbox.interpreter import copy_interpreter
from server.sandbox.levels import LAYERS, Level, needs_confinement
from server.sandbox.users import open_the_way, take_back

STRANGER = 4_000_000


def test_a_plan_survives_the_way_through_a_command_line() -> None:
    plan = Plan(
        level=KERNEL,
        limits={"CORE": 0, "CPU": 120},
        user=60706,
        read=("/usr", "/a b/ü"),
        groups=(7, 8),
        has_gpu=True,
    )

    assert Plan.of(plan.text()) == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"level": 2, "unknown": 1}', "null"])
def test_what_is_no_plan_is_not_carried_out(text: str) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        Plan.of(text)


def test_newer_interfaces_of_landlock_refuse_more() -> None:
    rights = [landlock.rights_of(version) for version in range(1, 8)]

    assert [size for *_, size in rights] == [8, 8, 8, 16, 16, 24, 24]
    assert [network for _, network, _, _ in rights] == [0, 0, 0, 3, 3, 3, 3]
    assert [scopes for _, _, scopes, _ in rights] == [0, 0, 0, 0, 0, 3, 3]
    files = [asked for asked, *_ in rights]
    assert all(later & earlier == earlier for earlier, later in pairwise(files))
    # Nothing that may be written may be run, and no device is made anywhere.
    assert landlock.WRITE & (landlock.EXECUTE | 1 << 6 | 1 << 11) == 0


def test_the_topmost_closed_folder_is_what_keeps_a_user_out() -> None:
    # Every user passes the folders above this one; above pytest's own only its user does.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        outer, inner = Path(made), Path(made) / "inner"
        inner.mkdir()
        below = inner / "file"

        assert barrier(below, STRANGER) == outer
        outer.chmod(0o711)
        assert barrier(below, STRANGER) is None
        inner.chmod(0o700)
        assert barrier(below, STRANGER) == inner
        assert barrier(below, inner.stat().st_uid) is None


def test_the_way_through_a_data_folder_shows_nothing_on_it(tmp_path: Path) -> None:
    for name in ("blobs/incoming", "environments", "models", "other", "replicas", "trees"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "persephone.db").write_bytes(b"secret")

    open_the_way(tmp_path)

    modes = {
        str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777
        for path in (tmp_path, *tmp_path.rglob("*"))
    }
    assert modes == {
        ".": 0o711,
        "blobs": 0o711,
        "blobs/incoming": 0o700,
        "environments": 0o755,
        "models": 0o711,
        "other": 0o700,
        "persephone.db": 0o600,
        "replicas": 0o711,
        "trees": 0o755,
    }


def test_what_is_gone_already_need_not_be_taken_back(tmp_path: Path) -> None:
    take_back([tmp_path / "gone"])


def test_a_copy_of_the_interpreter_is_made_once_and_read_by_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "prefix"
    library = prefix / sys.platlibdir / f"python3.{sys.version_info.minor}"
    for name in ("os.py", "json/decoder.py", "site-packages/stranger.py", "test/test_os.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text("")
    (prefix / "lib" / "libpython3.so").write_bytes(b"library")
    (prefix / "bin").mkdir()
    (prefix / "bin" / "python3").write_bytes(b"program")
    (prefix / "bin" / "python3").chmod(0o700)
    monkeypatch.setattr(interpreter, "base_prefix", lambda: prefix)
    monkeypatch.setattr(interpreter, "base_python", lambda: str(prefix / "bin" / "python3"))

    program = copy_interpreter(tmp_path / "copies")
    again = copy_interpreter(tmp_path / "copies")

    copy = program.parents[1]
    made = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    inside = f"{sys.platlibdir}/{library.name}"
    assert made == {
        "bin/python",
        "lib/libpython3.so",
        f"{inside}/os.py",
        f"{inside}/json/decoder.py",
    }
    assert again == program
    assert program.stat().st_mode & 0o777 == 0o744
    (prefix / "bin" / "python3").write_bytes(b"a newer program")
    newer = copy_interpreter(tmp_path / "copies")
    assert newer != program
    assert not program.exists()


def test_only_models_that_are_data_need_no_confinement() -> None:
    assert [kind for kind in ("", *KINDS) if not needs_confinement(kind)] == ["onnx"]
    assert set(LAYERS) == set(Level)


def test_root_leaves_bubblewrap_the_right_to_become_somebody_else_and_no_other() -> None:
    view = View(argv=["python"], env={"A": "b"}, read=[Path("/a/b")], write=[], devices=())

    as_root = Bubblewrap("bwrap", frozenset(), changes_user=True).command(view)
    as_user = Bubblewrap("bwrap", frozenset({"--disable-userns"}), changes_user=False).command(view)

    added = [as_root[at + 1] for at, word in enumerate(as_root) if word == "--cap-add"]
    assert added == ["CAP_SETUID", "CAP_SETGID"]
    assert "--unshare-user" not in as_root
    assert "--cap-add" not in as_user
    assert {"--unshare-user", "--disable-userns"} <= set(as_user)
    for argv in (as_root, as_user):
        assert argv[argv.index("--cap-drop") + 1] == "ALL"
        assert argv[-2:] == ["--", "python"]
        assert " ".join(argv).count("--perms 0755 --dir /a ") == 1
