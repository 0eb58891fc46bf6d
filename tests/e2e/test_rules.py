"""The shipped rules under promtool: what they say of scenarios, and that each guard is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import prometheus_server
from tests.support.needs import need
from tests.support.rule_files import FOLDER

pytestmark = pytest.mark.e2e

SCENARIOS = sorted((Path(__file__).parent / "rules").glob("*.yml"))
SUM = "sum by (run_id, model, environment)"
COUNTER = 'inference_requests_total{job="persephone-models"}'
HAS_SERVED = "\n          and run_environment:inference_served:bool"
PROBES = '(increase(inference_probes_total{job="persephone-models", result="failed"}'
GATEWAY_IS_THERE = """
          and on (run_id, environment, version) up{job="persephone-models", replica="gateway"}
"""
REPLICA_UP = """
          and on (run_id, environment) up{job="persephone-models", replica!="gateway"} == 1
"""
IS_LISTED = """
            and up{job="persephone-models", replica!="gateway"} >= 0
"""
ALERTMANAGER = Path(__file__).resolve().parents[2] / "examples" / "alertmanager"


def tried(scenario: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    shutil.copy(scenario, folder)
    return prometheus_server.promtool("test", "rules", str(folder / scenario.name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the rules in it, beside which scenarios may lie."""
    shutil.copytree(FOLDER, tmp_path / "rules")
    return tmp_path


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_the_rules_say_what_the_scenario_expects(scenario: Path, folder: Path) -> None:
    result = tried(scenario, folder)

    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_finds_nothing_to_complain_about() -> None:
    files = [str(path) for path in sorted(FOLDER.glob("*.yml"))]
    checked = prometheus_server.promtool("check", "rules", "--lint=all", "--lint-fatal", *files)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("scenario", "file", "part", "instead"),
    [
        ("idle", "alerts", "rate1h * 3600 >= 20", "rate1h * 3600 >= 0"),
        ("idle", "alerts", "rate1h * 3600 > 2.5", "rate1h * 3600 > 0"),
        ("idle", "recording", "or run_environment:inference_requests:rate5m * 0", ""),
        ("fast_burn", "alerts", "ratio_rate5m", "ratio_rate1h"),
        ("fast_burn", "recording", "0.02 *", "0.002 *"),
        ("slow_burn", "recording", "clamp_min(0.1 *", "clamp_min(0.2 *"),
        ("slow_answers", "recording", "on (run_id, environment, le)", "on (run_id, environment)"),
        ("slow_answers", "recording", "/ 259200, 1)", "/ 259200, 0)"),
        ("slow_answers", "recording", "0.02 *", "0.1 *"),
        ("slow_answers", "alerts", "timed:increase1h >= 20", "timed:increase1h >= 0"),
        (
            "reset",
            "recording",
            f"{SUM} (rate({COUNTER}[5m]))",
            f"rate({SUM} ({COUNTER})[5m:1m])",
        ),
        (
            "handover",
            "recording",
            "run_id, model, environment) (inference_avail",
            "model) (inference_avail",
        ),
        ("handover", "alerts", HAS_SERVED, ""),
        ("down", "alerts", 'replica!="gateway"} == 1)', 'replica=~".+"} == 1)'),
        ("down", "recording", "or max_over_time(run_env", "and max_over_time(run_env"),
        ("machine", "alerts", ', route!~".*/v2.*|/sd/.*"', ""),
        ("machine", "alerts", "/v2.*|/sd/.*", "/v2.*"),
        ("gpus", "alerts", "[7d]) == 1", "[1h]) == 1"),
        ("machine", "alerts", 'kind=~"artifacts|models"', 'kind=~".+"'),
        ("gpus", "alerts", "{{ if $labels.run_id }}page", "{{ if $labels.UUID }}page"),
        ("room", "alerts", "keep_firing_for: 15m", "keep_firing_for: 10s"),
        (
            "room",
            "alerts",
            "[6h]) - persephone_disk_free_bytes",
            "[6h]) * 1.2 - persephone_disk_free_bytes",
        ),
        (
            "room",
            "alerts",
            "for: 15m\n        keep_firing_for",
            "for: 5m\n        keep_firing_for",
        ),
        ("down", "alerts", REPLICA_UP, "\n"),
        ("probes", "alerts", f"{PROBES}[5m])) > 0", f"{PROBES}[10m])) > 0"),
        ("probes", "alerts", f"{PROBES}[10m])) > 2.5", f"{PROBES}[10m])) > 0.5"),
        ("probes", "alerts", f"{PROBES}[10m])) > 0.5", f"{PROBES}[10m])) > 50"),
        ("probes", "alerts", GATEWAY_IS_THERE, "\n"),
        ("probes", "alerts", "[15m]) >= 6", "[15m]) >= 1"),
        ("probes", "alerts", "[15m]) >= 2", "[15m]) >= 200"),
        ("probes", "alerts", "[15m]) == 1", "[15m]) >= 0"),
        ("probes", "alerts", IS_LISTED, "\n"),
        ("crashes", "alerts", "> 2.5 * count by", "> 2.5 * 0 * count by"),
        ("crashes", "alerts", "[15m])) > 0.5", "[15m])) > 50"),
        ("crashes", "alerts", GATEWAY_IS_THERE, "\n"),
        ("crashes", "alerts", '"persephone-models"}[5m]) == 1', '"persephone-models"}[10s]) == 1'),
        ("yesterday", "alerts", "offset 1d", "offset 7d"),
    ],
)
def test_a_scenario_notices_when_a_guard_is_gone(
    folder: Path, scenario: str, file: str, part: str, instead: str
) -> None:
    path = folder / "rules" / f"{file}.yml"
    text = path.read_text()
    assert part in text
    path.write_text(text.replace(part, instead))

    result = tried(Path(__file__).parent / "rules" / f"{scenario}.yml", folder)

    assert "FAILED" in result.stdout + result.stderr
    assert "exp:" in result.stdout + result.stderr, "the rules cannot even be read"


# ── the example of Alertmanager


def amtool(*arguments: str) -> str:
    done = subprocess.run(
        [need("amtool", "prometheus-alertmanager"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_of_alertmanager_is_valid() -> None:
    assert "SUCCESS" in amtool("check-config", str(ALERTMANAGER / "alertmanager.yml"))


@pytest.mark.parametrize(
    ("severity", "receivers"), [("page", "chat,mailbox"), ("ticket", "mailbox")]
)
def test_pages_go_to_the_chat_as_well(severity: str, receivers: str) -> None:
    config = f"--config.file={ALERTMANAGER / 'alertmanager.yml'}"

    assert amtool("config", "routes", "test", config, f"severity={severity}").split() == [receivers]


ALERT = {
    "status": "firing",
    "labels": {"alertname": "PersephoneDeploymentDown"},
    "annotations": {
        "summary": "Модель iris не отвечает в prod",
        "description": "Ни одна реплика не отвечает.",
        "summary_en": "Model iris does not answer in prod",
        "description_en": "No replica answers.",
        "runbook_url": "docs/operations.md#persephonedeploymentdown",
    },
    "startsAt": "2026-01-02T03:04:05Z",
    "endsAt": "0001-01-01T00:00:00Z",
}
OVER = {**ALERT, "status": "resolved", "endsAt": "2026-01-02T03:14:05Z"}


@pytest.mark.parametrize(
    ("alert", "template", "shown"),
    [
        (ALERT, "subject.ru", "Сработало (1): Модель iris не отвечает в prod"),
        (OVER, "subject.ru", "Прошло: Модель iris не отвечает в prod"),
        (ALERT, "subject.en", "Firing (1): Model iris does not answer in prod"),
        (OVER, "subject.en", "Over: Model iris does not answer in prod"),
        (ALERT, "text.ru", "Началось: 2026-01-02 03:04:05 UTC."),
        (OVER, "text.ru", ", закончилось: 2026-01-02 03:14:05 UTC."),
        (ALERT, "text.en", "Since 2026-01-02 03:04:05 UTC."),
        (OVER, "text.en", " until 2026-01-02 03:14:05 UTC."),
        (ALERT, "text.ru", "Что делать: docs/operations.md#persephonedeploymentdown\n"),
        (ALERT, "text.en", "What to do: docs/operations.md#persephonedeploymentdown\n"),
        (ALERT, "text.ru", "Ни одна реплика не отвечает."),
        (ALERT, "text.en", "No replica answers."),
    ],
)
def test_the_texts_are_written_in_both_languages(
    alert: dict[str, object], template: str, shown: str, tmp_path: Path
) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"status": alert["status"], "alerts": [alert]}))

    written = amtool(
        "template",
        "render",
        f"--template.glob={ALERTMANAGER / 'texts.tmpl'}",
        f"--template.data={data}",
        f'--template.text={{{{ template "persephone.{template}" . }}}}',
    )

    assert shown in written
