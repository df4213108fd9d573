"""A real Prometheus for tests: the server and promtool that launch/setup --tests unpacks, and this repository's rules.

A test cannot wait for hours, so all times in the rules are shortened by the same factor.
"""

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from command import PATIENCE

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / ".venv" / "prometheus"
CONFIGURATION = ROOT / "monitoring" / "prometheus"
MINUTE = 0.05  # seconds that a minute of the rules lasts in a test

CONFIG = """
global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}
rule_files: [rules/*.yml]
scrape_configs:
  - job_name: laterna
    scrape_timeout: 200ms
    file_sd_configs: [{{files: ["{targets}"], refresh_interval: 1s}}]
    relabel_configs: [{{source_labels: [run], regex: (.+), target_label: instance}}]
"""


def program(name):
    path = PROGRAMS / name
    assert path.exists(), f"{path} is missing: run launch/setup --tests"
    return path


def promtool(*arguments, **options):
    return subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE, **options
    )


_reservations = []  # sockets that are open as long as this process runs


def free_port():
    """A port that is free now, that no other test gets while this process runs, and that the kernel gives to nobody.

    Tests that run at the same time, as any users, reserve it with the name of an abstract socket, which belongs to one
    network namespace, as the port does, and is gone with its process.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(ephemeral - 1, 1023, -1):
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0laterna-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:  # another test has reserved the port, or another program uses it
            reservation.close()
            continue
        _reservations.append(reservation)
        return port
    raise AssertionError(f"no free port from 1024 to {ephemeral - 1}")


def get(url):
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return answer.read().decode()


def shortened(rules):
    """The text of the rules with each minute shortened to MINUTE seconds, in durations and in limits on ages."""
    seconds = {"s": 1, "m": 60, "h": 3600}

    def duration(found):
        return f"{round(int(found[1]) * seconds[found[2]] / 60 * MINUTE * 1000)}ms"

    rules = re.sub(r"\b(\d+)([smh])\b", duration, rules)
    return re.sub(r"(time\(\) - \w+ > )(\d+)", lambda found: found[1] + str(int(found[2]) / 60 * MINUTE), rules)


class Prometheus:
    """A server that scrapes the targets in a file, which need not exist yet. Callers must call end()."""

    def __init__(self, folder, targets):
        (folder / "rules").mkdir(parents=True)
        for path in (CONFIGURATION / "rules").glob("*.yml"):
            (folder / "rules" / path.name).write_text(shortened(path.read_text()))
        (folder / "prometheus.yml").write_text(CONFIG.format(targets=targets))
        self.address = f"http://127.0.0.1:{free_port()}"
        self._log = (folder / "prometheus.log").open("w+")
        self._process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.address.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def end(self):
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _ask(self, path, **parameters):
        return json.loads(get(f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))["data"]

    def query(self, expression):
        """Returns [(labels, value)] of an expression now."""
        found = self._ask("query", query=expression)["result"]
        return [(item["metric"], float(item["value"][1])) for item in found]

    def firing(self):
        """Returns {name: summary} of the alerts that fire."""
        alerts = self._ask("alerts")["alerts"]
        return {a["labels"]["alertname"]: a["annotations"]["summary"] for a in alerts if a["state"] == "firing"}

    def until(self, condition, what):
        """Waits for condition() and returns its true value."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                if found := condition():
                    return found
            except urllib.error.URLError:
                pass  # the server is still starting
            if self._process.poll() is not None or time.monotonic() > end:
                self._log.seek(0)
                raise AssertionError(f"{what}: not seen by Prometheus, whose log is\n{self._log.read()}")
            time.sleep(0.05)

    def fires(self, alert):
        """Waits until the alert fires; returns its summary."""
        return self.until(lambda: self.firing().get(alert), f"firing {alert}")

    def is_quiet(self, alert):
        """Waits until the alert does not fire."""
        self.until(lambda: alert not in self.firing(), f"end of {alert}")
