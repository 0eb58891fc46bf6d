from dataclasses import fields
from pathlib import Path

import pytest

from server.setting_values import SettingsError
from server.settings import Settings


def test_the_defaults_are_for_one_machine() -> None:
    settings = Settings.from_env({})
    assert settings.is_loopback
    assert settings.inference_is_open
    assert settings.endpoint_host == "127.0.0.1"
    assert settings.data_dir == Path.cwd() / "data"


def test_what_is_not_ours_is_ignored() -> None:
    assert Settings.from_env({"PATH": "x", "PORT": "1"}) == Settings.from_env({})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PERSEPHONE_PROT", "8000"),
        ("PERSEPHONE_PORT", "eighty"),
        ("PERSEPHONE_PORT", "65536"),
        ("PERSEPHONE_CORS_ORIGINS", "*"),
        ("PERSEPHONE_CORS_ORIGINS", "http://localhost:3000,*"),
        ("PERSEPHONE_CORS_ORIGINS", "null"),
        ("PERSEPHONE_CORS_ORIGINS", "localhost:3000"),
        ("PERSEPHONE_ENVIRONMENTS", ""),
        ("PERSEPHONE_ENVIRONMENTS", "dev,upload"),
        ("PERSEPHONE_ENVIRONMENTS", "Dev"),
        ("PERSEPHONE_ENDPOINT_PORTS", "20000"),
        ("PERSEPHONE_ENDPOINT_PORTS", "29999-20000"),
        ("PERSEPHONE_OFFER_CPU", "maybe"),
        ("PERSEPHONE_MAX_UPLOAD_BYTES", "0"),
        ("PERSEPHONE_PROMETHEUS_URL", "ftp://x"),
        ("PERSEPHONE_ENGINE", "ray"),
        ("PERSEPHONE_COOKIE_SAMESITE", "open"),
        ("PERSEPHONE_PREDICT_SECONDS", "nan"),
        ("PERSEPHONE_SLO_AVAILABILITY", "100"),
        ("PERSEPHONE_SLO_AVAILABILITY", "dev=40"),
        ("PERSEPHONE_SLO_AVAILABILITY", "dev=95,dev=96"),
        ("PERSEPHONE_SLO_AVAILABILITY", "production=99"),
        ("PERSEPHONE_SLO_LATENCY_MS", "0"),
        ("PERSEPHONE_SLO_LATENCY_MS", "soon"),
        ("PERSEPHONE_SLO_LATENCY_SHARE", "nan"),
        ("PERSEPHONE_SLO_WINDOW", "31d"),
        ("PERSEPHONE_SLO_WINDOW", "30 days"),
        ("PERSEPHONE_PROBE_SECONDS", "-1"),
        ("PERSEPHONE_PROBE_SECONDS", "nan"),
        ("PERSEPHONE_SCRAPE_SECONDS", "0"),
        ("PERSEPHONE_SCRAPE_SECONDS", "5"),
        ("PERSEPHONE_DATABASE_URL", "nonsense"),
        ("PERSEPHONE_DATABASE_URL", "nonsense://host/name"),
        ("PERSEPHONE_DATABASE_URL", "sqlite:///synchronous.db"),
        ("PERSEPHONE_DATABASE_URL", "sqlite+aiosqlite://host:port/name"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_env({name: text})


# Where every text is a value, none is expected.
ANY_TEXT = {"host", "data_dir", "allowed_hosts", "wheel_links", "pythons", "environments"}


@pytest.mark.parametrize("text", ["abc", "1O", "²", "9" * 5000, "http://[x", "http://x:port"])
@pytest.mark.parametrize(
    "name", sorted(spec.name for spec in fields(Settings) if spec.name not in ANY_TEXT)
)
def test_every_reader_says_what_was_expected_and_not_what_python_says(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({f"PERSEPHONE_{name.upper()}": text})
    said = str(raised.value)
    _, _, expected = said.partition(" cannot be used: expected ")
    assert expected, said
    for word in ("literal", "convert", "int()", "float", "Invalid", "digits;", "Exceeds", "Port"):
        assert word not in expected, said


def test_off_loopback_predictions_need_identification_unless_opened() -> None:
    away = {"PERSEPHONE_HOST": "0.0.0.0"}
    assert not Settings.from_env(away).inference_is_open
    assert Settings.from_env({**away, "PERSEPHONE_INFERENCE_AUTH": "open"}).inference_is_open
    assert not Settings.from_env({"PERSEPHONE_INFERENCE_AUTH": "token"}).inference_is_open


@pytest.mark.parametrize(
    ("public_url", "is_open"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("http://[::1]:80", True),
        ("https://models.example", False),
        ("https://127.0.0.1.evil.example", False),
        ("http://10.0.0.7", False),
    ],
)
def test_behind_a_public_name_predictions_need_identification(
    public_url: str, *, is_open: bool
) -> None:
    settings = {"PERSEPHONE_PUBLIC_URL": public_url}
    assert Settings.from_env(settings).inference_is_open == is_open
    assert Settings.from_env({**settings, "PERSEPHONE_INFERENCE_AUTH": "open"}).inference_is_open


@pytest.mark.parametrize(
    ("host", "listens", "reached"),
    [
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("::1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
        ("::", "::", "::1"),
        ("[::]", "::", "::1"),
        ("", "", "127.0.0.1"),
        ("10.0.0.7", "10.0.0.7", "10.0.0.7"),
        ("[fd00::7]", "fd00::7", "fd00::7"),
    ],
)
def test_replicas_are_reached_where_they_listen(host: str, listens: str, reached: str) -> None:
    settings = Settings.from_env({"PERSEPHONE_HOST": host})
    assert (settings.endpoint_host, settings.replica_host) == (listens, reached)


def test_a_refused_database_url_does_not_show_its_password() -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env({"PERSEPHONE_DATABASE_URL": "nonsense://me:secret@host/name"})
    assert "secret" not in str(raised.value)


def test_objectives_are_for_one_environment_or_for_all() -> None:
    usual = Settings.from_env({})
    assert usual.objective_in("prod").availability == 99.9
    assert usual.objective_in("stage").availability == 99.0
    assert usual.objective_in("dev").availability == 95.0
    assert usual.objective_in("prod").seconds == 30 * 86_400
    assert usual.objective_in("elsewhere").availability == 99.0

    own = Settings.from_env(
        {
            "PERSEPHONE_SLO_AVAILABILITY": "98, prod=99.95",
            "PERSEPHONE_SLO_LATENCY_MS": "250",
            "PERSEPHONE_SLO_LATENCY_SHARE": "dev=90",
            "PERSEPHONE_SLO_WINDOW": "7d",
            "PERSEPHONE_PROBE_SECONDS": "0",
        }
    )
    assert own.objective_in("prod").availability == 99.95
    assert own.objective_in("dev").availability == 98
    assert own.objective_in("dev").latency_seconds == 0.25
    assert own.objective_in("dev").latency_share == 90
    assert own.objective_in("prod").seconds == 7 * 86_400
    assert own.probe_seconds == 0


def test_other_environments_need_no_objectives_of_their_own() -> None:
    assert Settings.from_env({"PERSEPHONE_ENVIRONMENTS": "a,b"}).objective_in("a") is not None


def test_programs_of_this_machine_find_the_api_whatever_it_listens_on() -> None:
    def address(host: str) -> str:
        return Settings(host=host, port=81).own_address

    assert address("127.0.0.1") == address("0.0.0.0") == address("") == "127.0.0.1:81"
    assert address("::") == address("::1") == "[::1]:81"
    assert address("10.0.0.7") == "10.0.0.7:81"
