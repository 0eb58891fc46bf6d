"""The operator's commands on a data folder without a service."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from server.cli import main
from server.data_folder import DataFolder
from server.messages import Messages
from server.pipeline.tokens import Tokens
from server.store.database import Database
from server.store.state import Store
from server.store.tokens import TokenStore
from tests.support.tokens import MODEL, OWNER, RUN, a_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = Messages()
TOKEN = re.compile(r"psk_[0-9a-f]{16}_[A-Za-z0-9_-]{43}\n")


class Said(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a run, whose path is too long for the name of a socket."""
    made = tmp_path / ("deep" * 20) / ("deeper" * 10)
    made.mkdir(parents=True)
    monkeypatch.setenv("PERSEPHONE_DATA_DIR", str(made))
    return made


@pytest.fixture
def command(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    async def prepare() -> None:
        database = Database(f"sqlite+aiosqlite:///{folder / 'persephone.db'}")
        await database.open()
        await Store(database).add_run(a_run())
        await database.close()

    def run(*words: str) -> Said:
        try:
            status = main(["tokens", *words])
        except SystemExit as ended:
            status = int(str(ended.code))
        return Said(status, *capsys.readouterr())

    asyncio.run(prepare())
    return run


def create(command: Callable[..., Said], *words: str) -> Said:
    return command("create", "--name", "ci", *words)


def owner_of(folder: Path, secret: str) -> str:
    """Return the owner for whom a secret acts."""

    async def ask() -> str:
        database = Database(f"sqlite+aiosqlite:///{folder / 'persephone.db'}")
        await database.open()
        kept = TokenStore(database)
        await kept.open()
        token = Tokens(Store(database), kept, lambda _owner, _model: asyncio.sleep(0)).identify(
            secret.strip()
        )
        await database.close()
        return token.owner

    return asyncio.run(ask())


@pytest.mark.parametrize("scope", ["api", "metrics"])
def test_the_secret_alone_is_written_where_a_file_takes_it(
    scope: str, folder: Path, command: Callable[..., Said]
) -> None:
    said = create(command, "--scope", scope, "--expires-in", "90d")
    assert said.status == 0, said.err
    assert TOKEN.fullmatch(said.out)
    assert said.out.strip() not in said.err
    assert owner_of(folder, said.out) != OWNER
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "persephone.db"]


def test_a_token_acts_for_the_owner_of_a_run_or_of_another_token(
    folder: Path, command: Callable[..., Said]
) -> None:
    first = create(command, "--scope", "api", "--owner-of", RUN)
    again = create(command, "--scope", "api", "--owner-of", first.out[4:20])
    limited = create(command, "--scope", "inference", "--run", RUN)
    named = create(command, "--scope", "inference", "--model", MODEL, "--owner-of", RUN)
    for said in (first, again, limited, named):
        assert said.status == 0, said.err
        assert owner_of(folder, said.out) == OWNER


def test_the_list_shows_what_is_not_revoked_and_no_secret(command: Callable[..., Said]) -> None:
    kept = create(command, "--scope", "inference", "--run", RUN, "--expires-in", "2h").out
    gone = create(command, "--scope", "api").out
    assert command("revoke", gone[4:20]).status == 0
    said = command("list")
    assert said.status == 0
    heading, line = said.out.splitlines()
    assert heading.split()[:4] == ["id", "scope", "name", "model"]
    assert line.split()[:4] == [kept[4:20], "inference", "ci", MODEL]
    assert kept.strip() not in said.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("revoke 0000000000000000", "There is no such token"),
        ("revoke ../runs/x", "There is no such token"),
        ("create --name x --scope inference", TEXTS.render("token_needs_owner", {}, "en")),
        (
            "create --name x --scope api --owner-of x",
            TEXTS.render("owner_not_found", {"value": "x"}, "en"),
        ),
        (f"create --name x --scope api --run {RUN}", "only with the scope inference"),
        ("create --name x --scope inference --model rose --owner-of " + RUN, "no run of the model"),
        ("create --name x --scope api --expires-in soon", "--expires-in"),
        ("create --name x --scope everything", "--scope"),
        ("create --name " + "x" * 65 + " --scope api", "name"),
        ("forget", "forget"),
        ("", "usage"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(
    words: str, says: str, command: Callable[..., Said]
) -> None:
    said = command(*words.split())
    assert said.status != 0
    assert said.out == ""
    assert says in said.err
    assert "Traceback" not in said.err


def test_a_data_folder_that_is_not_there_is_not_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    monkeypatch.setenv("PERSEPHONE_DATA_DIR", str(folder / "nowhere"))
    said = command("list")
    assert said.status == 1
    assert "PERSEPHONE_DATA_DIR" in said.err
    assert not (folder / "nowhere").exists()


def test_a_service_that_does_not_answer_is_not_waited_for_without_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    monkeypatch.setattr("server.token_commands._START_SECONDS", 0.3)
    owned = DataFolder(folder)
    owned.open()
    try:
        said = command("list")
    finally:
        owned.close()
    assert said.status == 1
    assert "another service" in said.err
    assert command("list").status == 0


def test_the_folder_of_another_user_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    said = command("list")
    assert said.status == 1
    assert "another user" in said.err


def test_a_database_that_cannot_be_used_is_named(
    folder: Path, command: Callable[..., Said]
) -> None:
    (folder / "persephone.db").write_bytes(b"no database" * 100)
    said = command("list")
    assert said.status == 1
    assert "database" in said.err
    assert "Traceback" not in said.err


def test_a_setting_that_cannot_be_used_ends_a_command(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    monkeypatch.setenv("PERSEPHONE_PORT", "http")
    assert command("list").status == 2
