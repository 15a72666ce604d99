"""The shipped rules in promtool: they load with the shipped configuration, fire for their causes and only for them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.prometheus

GRAFANA = Path(__file__).resolve().parents[2] / "grafana"


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs promtool; its exit code says what it found."""
    program = shutil.which("promtool")
    assert program is not None, "promtool is not on PATH: install the prometheus package"
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The rules and their test, side by side in a directory of their own."""
    for path in (*(GRAFANA / "rules").glob("*.yml"), Path(__file__).with_name("rules_test.yml")):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_configuration_finds_the_rules() -> None:
    """`promtool check config` reads both files of rules through prometheus.yml."""
    done = promtool("check", "config", str(GRAFANA / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    for path in (GRAFANA / "rules").glob("*.yml"):
        assert path.name in done.stdout


def test_every_rule_does_what_it_says(rules: Path) -> None:
    """Recorded values and alerts are as written in rules_test.yml."""
    done = promtool("test", "rules", str(rules / "rules_test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("recording.yml", "fury_written_bytes_total[30s]", "fury_write_bytes_total[30s]"),
        ("recording.yml", "quantile by (run_id) (0.5,", "max by (run_id) ("),
        ("recording.yml", "rate(fury_fsync_duration_seconds_bucket", "rate(fury_write_duration_seconds_bucket"),
        ("recording.yml", "0.99, sum by (run_id, le)\n          (rate(fury_w",
         "0.9, sum by (run_id, le)\n          (rate(fury_w"),
        ("alerting.yml", "(0.8 * run:", "(0.7 * run:"),
        ("alerting.yml", 'health="lost"} > 0', 'health="lost"} > 2'),
        ("alerting.yml", '"late|suspect"', '"late"'),
        ("alerting.yml", "fury_collector_agents_failed > 0", "fury_collector_failed_agents > 0"),
        ("alerting.yml", " and on (run_id) run:fury_collector_run_state:running == 1", ""),
        ("alerting.yml", "fury_journal_events > 1000", "fury_journal_events > 10000"),
        ("alerting.yml", " and on () sum(rate(fury_written_bytes_total[30s])) > 0", ""),
        ("alerting.yml", "up{job=\"fury_agents\"} == 0 and on ()", "up{job=\"fury_agents\"} == 0 or on ()"),
    ],
)  # fmt: skip
def test_a_seeded_defect_is_found(rules: Path, file: str, right: str, wrong: str) -> None:
    """A misspelt metric, another threshold or a missing condition makes the rules' test fail."""
    path = rules / file
    text = path.read_text()
    assert text.count(right) == 1, right
    path.write_text(text.replace(right, wrong))
    assert promtool("test", "rules", str(rules / "rules_test.yml")).returncode != 0
