"""``playbooks/monitoring.yml`` on a real host: comes, changes nothing the second time, sees a real run, goes without a trace.

Prometheus is Debian's package, handed over as a file, as where no repository has it; what it depends on comes from a repository,
which lies on the host itself. So does Grafana, but that can't be had: a package of its name stands in for it, with its user, its
directories and a service of its name.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.hosts.lab import Fleet, Host, HostSpec
from tests.hosts.test_run import SNAPSHOT

pytestmark = pytest.mark.hosts

REPO = Path(__file__).parents[2]
ROLE = REPO / "roles/fury_monitoring"
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
PORT = 19478
"""The collector's: of its own, since the controller is this machine, where others may be at the usual one."""
GONE = "10.91.0.99"
"""An address where nobody is."""

STAND_IN = {
    "DEBIAN/control": """Package: grafana
Version: 0~standin
Architecture: all
Maintainer: The Fury authors <nobody@localhost>
Description: stands in for Grafana
""",
    "DEBIAN/postinst": """#!/bin/sh
set -e
getent passwd grafana >/dev/null || useradd --system --user-group --home-dir /usr/share/grafana --shell /bin/false grafana
""",
    "lib/systemd/system/grafana-server.service": """[Service]
User=grafana
ExecStart=/usr/bin/python3 -c "import signal; signal.pause()"
[Install]
WantedBy=multi-user.target
""",
    "etc/grafana/provisioning/datasources/.keep": "",
    "etc/grafana/provisioning/dashboards/.keep": "",
}

# Asked on the host itself, where alone Prometheus listens.
QUERY = """
import json, sys, urllib.parse, urllib.request
url = "http://127.0.0.1:9490/api/v1/query?" + urllib.parse.urlencode({"query": sys.argv[1]})
print(json.dumps([[one["metric"], one["value"][1]] for one in json.load(urllib.request.urlopen(url))["data"]["result"]]))
"""

# Key and value a line: what is there while it is set up.
LOOK = r"""
state() { echo "$(systemctl is-active $1) $(systemctl is-enabled $1 2>/dev/null)"; }
pid=$(systemctl show -p MainPID --value fury-prometheus)
echo "unit=$(state fury-prometheus)"
echo "package=$(state prometheus)"
echo "listening=$(ss -ltnpH | grep "pid=$pid," | awk '{print $4}' | xargs)"
echo "user=$(ps -o user:32= -p $pid)"
echo "capabilities=$(awk '/CapEff/ {print $2}' /proc/$pid/status)"
echo "no_new_privileges=$(awk '/NoNewPrivs/ {print $2}' /proc/$pid/status)"
echo "credentials=$(stat -c '%a %U:%G' /etc/fury-monitoring/credentials)"
echo "files=$(stat -c '%a %U:%G' /etc/fury-monitoring/credentials/* | xargs)"
echo "data=$(stat -c '%a %U:%G' /var/lib/fury-monitoring)"
echo "exposure=$(systemd-analyze security --no-pager fury-prometheus | sed -n 's/.*exposure level.*: \([0-9.]*\) .*/\1/p')"
echo "dashboards=$(ls /etc/grafana/fury/dashboards | xargs)"
echo "datasource=$(sed -n 's/^ *url: \([^ ]*\).*/\1/p' /etc/grafana/provisioning/datasources/fury.yml)"
echo "provider=$(sed -n 's/^ *path: //p' /etc/grafana/provisioning/dashboards/fury.yml)"
echo "grafana=$(state grafana-server)"
echo "password=$(stat -c '%a %U:%G' /etc/grafana/fury/admin-password)"
echo "environment=$(tr '\0' '\n' < /proc/$(systemctl show -p MainPID --value grafana-server)/environ | grep ^GF_)"
"""


def snapshot(host: Host) -> set[str]:
    """What is on the host, line by line, but what the packager itself remembers of having been called."""
    own = ("__pycache__", "/var/lib/dpkg/", "/var/lib/apt/", "/.ansible")
    lines = host.run(["sh", "-c", SNAPSHOT + "dpkg-query -W; ls -d /etc/systemd/system/*.d 2>/dev/null; true"]).stdout
    return {line for line in lines.splitlines() if not any(one in line for one in own)}


def fetch_packages(host: Host, directory: Path) -> None:
    """Debian's prometheus and all that the host lacks of what it depends on, as files."""
    (directory / "partial").mkdir(parents=True)
    command = ["apt-get", "-o", f"Dir::State::status={host.root}/var/lib/dpkg/status"]
    command += ["-o", f"Dir::Cache::archives={directory}", "-o", "Debug::NoLocking=1", "--no-install-recommends"]
    command += ["--download-only", "--yes", "--quiet", "install", "prometheus"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:  # without lists of packages, or with old ones
        subprocess.run(["apt-get", "--quiet", "update"], capture_output=True, check=True, timeout=120)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def build_stand_in(directory: Path, package: Path) -> None:
    for name, content in STAND_IN.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (directory / "DEBIAN/postinst").chmod(0o755)
    command = ["dpkg-deb", "--root-owner-group", "--build", str(directory), str(package)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)


def give_repository(host: Host, packages: Iterable[Path]) -> None:
    """A repository on the host, the only one that it knows."""
    repository = host.root / "srv/repository"
    repository.mkdir(parents=True)
    index = ""
    for number, package in enumerate(packages):
        content = package.read_bytes()
        (repository / f"{number}.deb").write_bytes(content)
        told = subprocess.run(
            ["dpkg-deb", "--field", str(package)], capture_output=True, text=True, check=True, timeout=60
        )
        index += f"{told.stdout}Filename: ./{number}.deb\nSize: {len(content)}\n"
        index += f"SHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    (repository / "Packages").write_text(index)
    for known in (host.root / "etc/apt").glob("sources.list*/*"):
        known.unlink()
    (host.root / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/srv/repository ./\n")


@dataclass
class Played:
    """What one call of the playbook changed and said."""

    changed: int
    said: str


@dataclass
class Site:
    """A host with an agent and Prometheus, and a monitoring host that nobody answers for."""

    fleet: Fleet
    inventory: Path
    credentials: Path
    variables: Path

    @property
    def host(self) -> Host:
        return self.fleet.hosts[0]

    def play(self, *more: str) -> Played:
        """Apply the playbook to the host that is there. Fails the test if the play fails."""
        argv = [PLAYBOOK, "-v", "-i", str(self.inventory), "playbooks/monitoring.yml", "--limit", self.host.name]
        done = self.fleet.controller_run([*argv, "-e", f"@{self.variables}", *more], cwd=REPO)
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.search(rf"^{self.host.name} +: ok=\d+ +changed=(\d+)", done.stdout, re.M)
        assert found, done.stdout
        return Played(int(found[1]), done.stdout)

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series that the host's Prometheus has for the expression."""
        told = json.loads(self.host.run(["python3", "-c", QUERY, expression]).stdout)
        return [(labels, float(value)) for labels, value in told]


@dataclass
class Story:
    """What was seen at a site, in order."""

    before: set[str]
    checked: Played
    after_check: set[str]
    credentials_after_check: bool
    first: Played
    second: Played
    seen: dict[str, str]
    run: subprocess.CompletedProcess[str]
    run_id: str
    series: dict[str, list[tuple[dict[str, str], float]]]
    removed: Played
    after: set[str]
    removed_again: Played


@pytest.fixture(scope="module")
def site(lab: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("monitoring")
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    with Fleet([HostSpec("mon1", release["VERSION_CODENAME"])]) as fleet:  # whose packages this machine can fetch
        host = fleet.hosts[0]
        packages = directory / "packages"
        fetch_packages(host, packages)
        build_stand_in(directory / "stand-in", packages / "grafana.deb")
        (prometheus,) = packages.glob("prometheus_*.deb")
        give_repository(host, sorted({*packages.glob("*.deb")} - {prometheus}))
        variables = directory / "variables.json"
        given = {
            "fury_credentials": f"{directory}/credentials",
            "fury_collector_port": PORT,
            "fury_monitoring_prometheus_packages": [str(prometheus)],
        }
        variables.write_text(json.dumps(given))
        group = f"[fury_monitoring]\n{host.name}\ngone1 ansible_host={GONE}\n"
        inventory = fleet.inventory(directory / "inventory", group, user="operator")
        yield Site(fleet, inventory, directory / "credentials", variables)


@pytest.fixture(scope="module")
def story(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Checked, set up twice, a run of twelve seconds, removed twice."""
    results = tmp_path_factory.mktemp("results")
    host = site.host
    host.run(["true"], user="operator")
    before = snapshot(host)
    checked = site.play("--check")
    after_check, credentials_after_check = snapshot(host), site.credentials.exists()
    first, second = site.play(), site.play()
    seen = dict(line.split("=", 1) for line in host.run(["sh", "-c", LOOK]).stdout.splitlines())
    argv = [PLAYBOOK, "-i", str(site.inventory), "run.yml", "-e", "chunk_mb=5", "-e", "seconds=12"]
    argv += ["-e", f"fury_results={results}", "-e", f"fury_credentials={site.credentials}"]
    argv += ["-e", f"fury_collector_port={PORT}"]
    run = site.fleet.controller_run(argv, cwd=REPO)
    assert run.returncode == 0, run.stdout + run.stderr
    names = ("fury_run_info", "fury_written_bytes_total", "fury_collector_agents")
    series = {name: site.query(f"last_over_time({name}[5m])") for name in names}
    removed = site.play("-e", "fury_monitoring_state=absent")
    after = snapshot(host)
    return Story(
        before, checked, after_check, credentials_after_check, first, second, seen, run, (results / "latest").resolve().name,
        series, removed, after, site.play("-e", "fury_monitoring_state=absent"),
    )  # fmt: skip


def test_check_mode_tells_of_changes_and_makes_none(story: Story) -> None:
    """On a host that has nothing yet; on the controller no credentials are made either."""
    assert story.checked.changed > 0
    assert story.after_check == story.before
    assert not story.credentials_after_check


def test_the_second_time_nothing_changes(story: Story) -> None:
    assert story.first.changed > 0
    assert story.second.changed == 0


def test_it_says_where_prometheus_and_grafana_are(story: Story, site: Site) -> None:
    """Also where the collector is expected: where run.yml would have it."""
    address = f"{site.fleet.address}:{PORT}"
    assert "mon1: Prometheus at http://127.0.0.1:9490 (on that host; unit fury-prometheus)" in story.first.said
    assert f"whose collector is at {address}\n" in story.first.said
    assert f"-e fury_grafana_url=http://{site.host.address}:3000\n" in story.first.said


def test_prometheus_runs_beside_the_packages_own_which_stays_off(story: Story) -> None:
    """Its unit is enabled, the package's is neither enabled nor running; it listens on loopback at its own port only."""
    assert story.seen["unit"] == "active enabled"
    assert story.seen["package"] == "inactive disabled"
    assert story.seen["listening"] == "127.0.0.1:9490"


def test_prometheus_has_exactly_these_privileges(story: Story) -> None:
    """A user of its own without capabilities, which reads the credentials and nobody else does, and writes its data only."""
    assert story.seen["user"] == "fury-prometheus"
    assert story.seen["capabilities"] == "0000000000000000"
    assert story.seen["no_new_privileges"] == "1"
    assert story.seen["credentials"] == "750 root:fury-prometheus"
    assert story.seen["files"] == "640 root:fury-prometheus 640 root:fury-prometheus"
    assert story.seen["data"] == "700 fury-prometheus:fury-prometheus"
    assert float(story.seen["exposure"]) < 1.6


def test_grafana_is_provisioned_as_far_as_files_go(story: Story) -> None:
    """Data source, provider and dashboards where a packaged Grafana looks for them; it is told of a password of its own."""
    assert story.seen["dashboards"] == "agent.json compare.json fleet.json"
    assert story.seen["datasource"] == "http://127.0.0.1:9490"
    assert story.seen["provider"] == "/etc/grafana/fury/dashboards"
    assert story.seen["grafana"] == "active enabled"
    assert story.seen["password"] == "640 root:grafana"
    assert story.seen["environment"] == "GF_SECURITY_ADMIN_PASSWORD=$__file{/etc/grafana/fury/admin-password}"


def test_prometheus_sees_a_run_that_starts_after_it(story: Story) -> None:
    """Service discovery, TLS with the run's own authority and the password work: the run's figures are there afterwards."""
    assert [labels["run_id"] for labels, _ in story.series["fury_run_info"]] == [story.run_id]
    ((labels, written),) = story.series["fury_written_bytes_total"]
    assert labels["agent"] == "mon1"
    assert written > 0
    assert story.series["fury_collector_agents"]


def test_a_monitoring_host_that_is_gone_is_a_line_and_no_failure(story: Story) -> None:
    """The run is told about it and passes."""
    told = [line for line in story.run.stderr.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1, story.run.stderr
    assert told[0].startswith("warning: gone1: Prometheus there will not see this run: ")
    assert story.run.stdout.splitlines()[-1].startswith("PASS: ")


def test_removal_leaves_nothing_and_may_be_repeated(story: Story) -> None:
    """Files, users, units, sockets and packages are as they were."""
    assert story.removed.changed > 0
    assert story.after - story.before == set()
    assert story.before - story.after == set()
    assert story.removed_again.changed == 0


def test_defaults_argument_specs_and_readme_agree() -> None:
    """Every default is specified with the same value, and the README lists exactly the variables that are specified."""
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert {name: spec["default"] for name, spec in options.items()} == defaults
    assert re.findall(r"^\| `(fury_monitoring_\w+)` \|", (ROLE / "README.md").read_text(), re.M) == list(options)


def test_the_places_of_the_collector_are_marked_in_the_scrape_configuration() -> None:
    """The role fills in the address where grafana/prometheus.yml says so: nowhere else may one be."""
    source = (REPO / "grafana/prometheus.yml").read_text()
    addresses = [line for line in source.splitlines() if "127.0.0.1:9475" in line and not line.startswith("#")]
    assert len(addresses) == 2
    assert all("# the collector" in line for line in addresses)
    assert "http://127.0.0.1:9090" in (REPO / "grafana/provisioning/datasources/fury.yml").read_text()
