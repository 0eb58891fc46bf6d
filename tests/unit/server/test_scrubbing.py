"""What is taken out of text that people read: paths, secrets, addresses; and what has to stay."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.scrubbing import LIMIT, scrubbed, without_paths

SECRET = "s3cr3t-Pa55word.value"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("cannot open /var/lib/data/m.onnx: gone", "cannot open …: gone"),
        ("файл /tmp/модель не найден", "файл … не найден"),
        ("at /srv/x/my model.onnx, line 3", "at …, line 3"),
        ("/srv/my dear user/model.onnx: gone", "…: gone"),
        ("open('/srv/my dear user/a, b/m.onnx') failed", "open('…') failed"),
        ("/srv/o'brien/x.onnx: no", "…: no"),
        ("'/srv/o'brien/x y.onnx': no", "'…': no"),
        ("/data/a,b/model(1).onnx, gone", "…, gone"),
        ("copy /a/b /c/d now", "copy … … now"),
        ("see./etc/passwd", "see.…"),
        ("at /srv/my_secret: no", "at …: no"),
        ("path:/etc/passwd", "path:…"),
        ("../secret/x and ./y", "… and …"),
        ("~/x ~me/z", "… …"),
        ("in 'C:\\models\\m.onnx'", "in '…'"),
        ("C:\\Program Files\\My Name\\m.onnx not found", "… not found"),
        ("C:/models/me", "…"),
        ("\\\\server\\share\\x.bin", "…"),
        ("//server/share/x.bin", "…"),
        ("/tmp/x float32/int64", "… float32/int64"),
        ("(/usr/lib/x.so+0x12)", "(…)"),
        ("object at 0x7f26b4ed7d80", "object at 0x…"),
        ("\x1b[1;31mred\x1b[m\tand\x00 \u202etabs", "red and tabs"),
    ],
)
def test_paths_addresses_and_controls_are_taken_out(text: str, left: str) -> None:
    assert scrubbed(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"https://user:{SECRET}@host/x?a=1", "https://…"),
        (f"https://user:pa/{SECRET}@host", "https://…"),
        (f"postgresql+psycopg2://u:{SECRET}@db/x", "postgresql+psycopg2://…"),
        (f"see https://host.org:80/a?token={SECRET}).", "see https://host.org:80/…)."),
        ("https://pypi.org is down", "https://pypi.org is down"),
        ("http://[::1]:80/x", "http://[::1]:80/…"),
        ("file:///srv/me/x.onnx", "file://…"),
        (f"?token={SECRET}&size=3", "?token=…&size=3"),
        (f"token={SECRET}", "token=…"),
        (f"DB_PASSWORD = {SECRET}", "DB_PASSWORD = …"),
        (f"{{'api_key': '{SECRET}'}}", "{'api_key': …}"),
        (f"Authorization: Bearer {SECRET}", "Authorization: …"),
        (f"header Bearer {SECRET}", "header Bearer …"),
        (f'Authorization: Digest username="me", response="{SECRET}"', "Authorization: …"),
        (f"login --password {SECRET} -v", "login --password … -v"),
        (f"login --hub-token {SECRET}", "login --hub-token …"),
        (f"DB_PASS={SECRET}, n=1", "DB_PASS=…, n=1"),
        (f"Uid=me;Pwd={SECRET};Port=1", "Uid=me;Pwd=…;Port=1"),
        (f"HF_TOKEN={SECRET}", "HF_TOKEN=…"),
        (f"{{'GITHUB_TOKEN': '{SECRET}', 'a': 1}}", "{'GITHUB_TOKEN': …, 'a': 1}"),
        (f"{{'token': '{SECRET}'}}", "{'token': …}"),
        (f"SECRET_KEY = {SECRET}", "SECRET_KEY = …"),
        (f"password=b'{SECRET}', n=1", "password=…, n=1"),
        (f'secret="a\\"{SECRET} b"', "secret=…"),
        (f"password => {SECRET}", "password => …"),
        ("psk_0123456789abcdef_abcdefghijklmnop", "psk_…"),
        ("hf_abcdefghijklmnopqrst", "hf_…"),
        ("AKIAABCDEFGHIJKLMNOP", "AKIA…"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2ln", "eyJ…"),
    ],
)
def test_secrets_are_taken_out(text: str, left: str) -> None:
    assert scrubbed(text) == left
    assert SECRET not in without_paths(text)


@pytest.mark.parametrize(
    "text",
    [
        "expected float32/int64 and/or N/A, 3/4 of [2, 3]/[4] or (2,)/(3,)",
        "special token </s>, a / b, 1./3., x[0]/2, f(x)/2, 24/7",
        "unexpected token: 'x', key: 5, signature=(int), code: 3, max_tokens=512",
        "pass=2 of 3, --password --verbose, pwd",
        "eos_token='<|endoftext|>', pad_token: padding_of_words",
        "shape [-1, 224, 224, 3] and {'a': 1}; 10:30:05",
        "at layers/conv1/weights (parts/helper.py, line 3)",
        "torch==2.13.0+cpu ~3/4 ... and … stay",
        "opset 29 is beyond the 28 of onnxruntime 1.32",
    ],
)
def test_what_only_looks_like_a_path_or_a_secret_stays(text: str) -> None:
    assert scrubbed(text) == without_paths(text) == text


def test_names_of_files_stay_in_logs() -> None:
    said = 'File "/srv/my user/nn.py", line 3, loads /a/b/lib.so.2 and C:\\x\\m.onnx in /srv/me'
    left = 'File "…/nn.py", line 3, loads …/lib.so.2 and …/m.onnx in …'
    assert without_paths(said) == left


def test_evidence_is_bounded() -> None:
    assert len(scrubbed("x" * 1000)) == LIMIT
    assert scrubbed("x" * 1000).endswith("…")


NAMES = st.text("abcxyzQ0189_.-+%@é", min_size=4, max_size=8).map(lambda name: f"Zq{name}z")
SPACED = st.lists(NAMES, min_size=1, max_size=2).map(" ".join)
AWKWARD = st.text("abc ,;:()[]&=#!", min_size=1, max_size=8).map(lambda name: f"Zq{name.strip()}z")
STYLES = [("/", "/"), ("../", "/"), ("~/", "/"), ("C:\\", "\\"), ("D:/", "/"), ("\\\\srv\\", "\\")]
BEFORE = ["", "cannot open ", "in (", "x=", "file: ", "файл "]
AFTER = ["", ": gone", ", line 3", ") failed", " нет"]


@given(
    st.sampled_from(STYLES),
    st.lists(SPACED, min_size=1, max_size=4),
    NAMES,
    st.sampled_from(BEFORE),
    st.sampled_from(AFTER),
)
def test_no_part_of_a_path_is_left(
    style: tuple[str, str], folders: list[str], name: str, before: str, after: str
) -> None:
    start, separator = style
    path = start + separator.join([*folders, f"{name}.onnx"])
    left = scrubbed(before + path + after)
    assert "Zq" not in left
    assert left == f"{before}…{after}".strip()


@given(st.sampled_from(STYLES), st.lists(AWKWARD, min_size=2, max_size=4), st.sampled_from("'\"`"))
def test_no_part_of_a_quoted_path_is_left(
    style: tuple[str, str], names: list[str], quote: str
) -> None:
    start, separator = style
    said = f"open({quote}{start}{separator.join(names)}{quote}): gone"
    assert scrubbed(said) == f"open({quote}…{quote}): gone"


@given(
    st.sampled_from(["https", "http", "s3", "redis", "mongodb+srv"]),
    st.text("abc0189:/?#@%", max_size=8),
    st.sampled_from(["", "/path", ":80/x?y=1"]),
)
def test_no_password_of_an_address_is_left(scheme: str, odd: str, after: str) -> None:
    assert SECRET not in scrubbed(f"get {scheme}://me:{odd}{SECRET}{odd}@host.org{after} failed")


@given(st.text("ab/\\.:~'\"` (),;=@?&-_0…\n", max_size=60))
@example("'/a/b' /c d/e/f.onnx")
def test_what_was_scrubbed_stays_as_it_is(text: str) -> None:
    once = scrubbed(text)
    assert scrubbed(once) == once


@given(
    st.sampled_from(["/a", "'/", "a-", "eyJ-", ")", "/a b/c.d ", "?key=", "\\\\a\\", "(", "a.b/"])
)
def test_long_lines_are_scrubbed_at_once(part: str) -> None:
    text = (part * 20_000)[:20_000]
    assert len(without_paths(text)) <= len(text)


@given(st.lists(st.from_regex(re.compile(r"[a-z]{1,6}[0-9]?", re.ASCII), fullmatch=True)))
def test_words_stay_as_they_are(words: list[str]) -> None:
    text = " ".join(words)[: LIMIT - 1].strip()
    assert without_paths(text) == text
