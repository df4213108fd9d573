"""The metrics of a job in Prometheus, its rules and the Grafana dashboard: a real Prometheus scrapes real processes."""

import json
import math
import re
import signal
import socket
import subprocess
import time
import unittest
from pathlib import Path

from command import DONE, PROGRAM, STOPPED, Case, glyphs_network, last_step, log_of
from prometheus_server import CONFIGURATION, ROOT, Prometheus, free_port, get, promtool

# The metric families that the program serves, without the prefix laterna_.
FAMILIES = set(
    """
    build_info train_steps_total train_samples_total train_loss train_grad_norm train_learning_rate
    train_step_duration_seconds train_phase_duration_seconds train_last_step_timestamp_seconds data_wait_seconds_total
    nonfinite_steps_total exchange_bytes_total exchange_seconds_total candidate_assignments_total spike_rate_ratio
    lateral_gamma lateral_threshold lateral_offdiagonal_sum lateral_trace ranks rank_step_seconds rank_memory_bytes
    slowest_rank checkpoint_duration_seconds checkpoint_bytes checkpoint_last_success_timestamp_seconds fid fid_interval
    watchdog_timeouts_total
    """.split()
)
DASHBOARD = ROOT / "monitoring" / "grafana" / "dashboards" / "laterna.json"
RULES = sorted((CONFIGURATION / "rules").glob("*.yml"))


class Watched(Case):
    def prometheus(self, targets):
        server = Prometheus(self.folder / "prometheus", targets)
        self.addCleanup(server.end)
        return server

    def made_up_job(self):
        """Starts a server of made-up metrics, which lines on its stdin change; returns (process, port)."""
        program = Path(PROGRAM).parent / "tests" / "metrics_server"
        server = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(server.communicate)
        return server, int(server.stdout.readline())

    def watched_made_up_job(self):
        """Returns the process of made_up_job() and a Prometheus that scrapes it as the run "made-up"."""
        server, port = self.made_up_job()
        targets = self.folder / "targets.json"
        targets.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {"run": "made-up"}}]))
        prometheus = self.prometheus(targets)
        prometheus.until(lambda: prometheus.query("laterna_train_steps_total"), "the first scrape")
        return server, prometheus

    def text(self):
        server, port = self.made_up_job()
        return get(f"http://127.0.0.1:{port}/metrics")


class Configuration(Watched):
    def clean(self, *arguments, **options):
        result = promtool(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def test_promtool_accepts_the_metrics(self):
        self.assertEqual(self.clean("check", "metrics", input=self.text()), "")

    def test_promtool_accepts_configuration_and_rules(self):
        self.clean("check", "config", "--lint=all", "--lint-fatal", CONFIGURATION / "prometheus.yml")
        self.clean("check", "rules", "--lint=all", "--lint-fatal", *RULES)

    def test_rules_pass_their_unit_tests(self):
        tests = sorted((CONFIGURATION / "tests").glob("*.yml"))
        self.assertEqual(len(tests), 3)
        self.clean("test", "rules", *tests)
        rules = (CONFIGURATION / "rules" / "alerts.yml").read_text()
        alerts = re.findall(r"alert: (\w+)", rules)
        self.assertEqual(len(alerts), 9)
        for part in ("severity:", "summary:", "description:"):
            self.assertEqual(rules.count(part), len(alerts), part)
        fired = re.findall(r'alertname="(\w+)"', (CONFIGURATION / "tests" / "alerts.yml").read_text())
        self.assertEqual(set(fired), set(alerts), "alerts that no test makes fire")


class Dashboard(Watched):
    def setUp(self):
        super().setUp()
        self.dashboard = json.loads(DASHBOARD.read_text())
        self.panels = [panel for panel in self.dashboard["panels"] if panel["type"] != "row"]

    def expressions(self):
        return [target["expr"] for panel in self.panels for target in panel["targets"]]

    def test_dashboard_and_rules_name_the_served_families(self):
        types = dict(re.findall(r"^# TYPE laterna_(\w+) (\w+)$", self.text(), re.MULTILINE))
        self.assertEqual(types.keys(), FAMILIES)

        def families(text):
            """The families that `text` names, histograms without their suffixes."""
            found = set(re.findall(r"\blaterna_(\w+)", text))
            return {re.sub("_(bucket|sum|count)$", "", name) if name not in types else name for name in found}

        rules = "\n".join(path.read_text() for path in RULES)
        shown = families("\n".join(self.expressions()))
        self.assertEqual(families(rules) - FAMILIES, set())
        self.assertEqual(shown, FAMILIES, "families without a panel, or panels without a family")
        recorded = set(re.findall(r"record: (laterna:\S+)", rules))
        self.assertEqual(set(re.findall(r"laterna:[\w:]+", rules + DASHBOARD.read_text())) - recorded, set())
        asked = json.dumps(self.dashboard["templating"]) + json.dumps(self.dashboard["annotations"])
        self.assertEqual(families(asked) - FAMILIES, set())

    def test_every_panel_has_unit_data_source_and_place(self):
        self.assertEqual(len({panel["id"] for panel in self.dashboard["panels"]}), len(self.dashboard["panels"]))
        sources = (ROOT / "monitoring/grafana/provisioning/datasources/laterna.yml").read_text()
        taken = set()
        for panel in self.panels:
            self.assertTrue(panel["fieldConfig"]["defaults"]["unit"], panel["title"])
            self.assertIn(f"uid: {panel['datasource']['uid']}\n", sources)
            place = panel["gridPos"]
            area = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
            self.assertLessEqual(place["x"] + place["w"], 24)
            self.assertEqual(area & taken, set(), f"{panel['title']} overlaps another panel")
            taken |= area

    def test_every_panel_shows_data(self):
        _, prometheus = self.watched_made_up_job()
        values = {"$run": "made-up", "$layer": ".+", "$site": ".+", "$__rate_interval": "1s", "[1h]": "[2s]"}
        for expression in self.expressions():
            for name, value in values.items():
                expression = expression.replace(name, value)

            def is_shown():
                found = prometheus.query(expression)
                return found and all(math.isfinite(value) for _, value in found)

            prometheus.until(is_shown, f"finite values of {expression}")


class Alerts(Watched):
    def test_each_fault_raises_its_alert(self):
        server, prometheus = self.watched_made_up_job()
        for alert in ("LaternaTargetDown", "LaternaLossNotFinite", "LaternaCheckpointTooOld"):
            prometheus.is_quiet(alert)

        def tell(line):
            server.stdin.write(line + "\n")
            server.stdin.flush()

        tell("skip")
        self.assertIn("made-up: the loss", prometheus.fires("LaternaLossNotFinite"))
        prometheus.until(lambda: [nan for _, nan in prometheus.query("laterna_train_loss") if math.isnan(nan)], "NaN")
        tell("go")
        prometheus.is_quiet("LaternaLossNotFinite")
        tell("hang")
        self.assertIn("made-up has not finished a step", prometheus.fires("LaternaTrainingStalled"))
        self.assertIn("made-up has saved no checkpoint", prometheus.fires("LaternaCheckpointTooOld"))
        tell("go")
        prometheus.is_quiet("LaternaTrainingStalled")
        prometheus.is_quiet("LaternaCheckpointTooOld")
        server.kill()
        self.assertIn("made-up does not answer", prometheus.fires("LaternaTargetDown"))


class Jobs(Watched):
    """Trainings on three ranks, and a Prometheus that finds them through the target file that they write."""

    def setUp(self):
        super().setUp()
        self.run_folder = self.folder / "run"
        self.target = self.run_folder / "metrics-target.json"
        self.values = {"metrics.port": free_port(), "training.steps": 1000000, "checkpoint.every": 50}

    def job(self, **values):
        training = self.start(self.run_folder, ranks=3, **self.values, **values)
        training.at_step(last_step(self.run_folder) + 20)
        return training

    def test_every_family_has_sensible_values(self):
        # An evaluation that is fast enough for a test; it needs more samples than the extractor has features.
        evaluation = {"every": 20, "samples": 200, "extractor": glyphs_network()}
        sampling = {"sampling.sampler": "ddim", "sampling.steps": 2, "sampling.chunk": 50}
        settings = {f"evaluation.{key}": value for key, value in evaluation.items()}
        prometheus, begin = self.prometheus(self.target), time.time()
        self.job(**{"parallel.expert": 3}, **settings, **sampling)
        known = prometheus.until(lambda: self.all_families(prometheus), "all families")
        self.check_values(known, begin)
        before = known["train_steps_total"][()]
        prometheus.until(
            lambda: prometheus.query(f"laterna_train_steps_total > {before}"), "steps after the first scrape"
        )
        prometheus.until(lambda: [count for _, count in prometheus.query("count(up == 1)")] == [1], "one target")
        logged = sorted(line["samples_per_second"] for line in log_of(self.run_folder) if "loss" in line)
        # Saving and evaluating take time, so that the rate over some two seconds may be 0.
        lowest, highest = logged[len(logged) // 2] / 20, 2 * logged[len(logged) * 9 // 10]
        rate = "rate(laterna_train_samples_total[2s])"
        prometheus.until(
            lambda: any(lowest < value < highest for _, value in prometheus.query(rate)),
            f"{rate} between {lowest} and {highest}",
        )

    def families_of(self, prometheus):
        """Returns {family: {labels as a tuple of pairs: value}}; the value of a histogram is its _count."""
        found = {}
        for labels, value in prometheus.query(f'{{__name__=~"laterna_.+", instance="{self.run_folder}"}}'):
            name = re.sub("_seconds_count$", "_seconds", labels.pop("__name__").removeprefix("laterna_"))
            own = {key: value for key, value in labels.items() if key not in ("instance", "job", "run")}
            found.setdefault(name, {})[tuple(sorted(own.items()))] = value
        return {name: series for name, series in found.items() if name in FAMILIES}

    def all_families(self, prometheus):
        """Returns families_of() once all families have values and a checkpoint is saved, None before."""
        found = self.families_of(prometheus)
        done = found.keys() == FAMILIES and found["checkpoint_last_success_timestamp_seconds"][()] > 0
        return found if done else None

    def check_values(self, known, begin):
        """Checks an expert-parallel job on three ranks, begun at that Unix time: 2 layers, 3 candidates."""
        number = {name: series[()] for name, series in known.items() if () in series}
        labels = {name: {value for pairs in series for _, value in pairs} for name, series in known.items()}
        self.assertEqual(number["ranks"], 3)
        steps = number["train_steps_total"]
        some = steps / 5  # steps that end during a scrape are counted in some families only
        self.assertAlmostEqual(number["train_samples_total"] / 8, steps, delta=some)
        self.assertAlmostEqual(number["train_step_duration_seconds"], steps, delta=some)
        self.assertLess(0, number["train_loss"])
        self.assertLess(number["train_loss"], 3)
        self.assertLess(0, number["train_grad_norm"])
        self.assertAlmostEqual(number["train_learning_rate"], 1e-3)
        self.assertEqual(number["nonfinite_steps_total"], 0)
        self.assertEqual(number["watchdog_timeouts_total"], 0)
        self.assertGreaterEqual(number["data_wait_seconds_total"], 0)
        for name in ("train_last_step_timestamp_seconds", "checkpoint_last_success_timestamp_seconds"):
            self.assertLess(begin, number[name])
            self.assertLess(number[name], time.time())
        self.assertGreater(number["checkpoint_bytes"], 10_000)
        self.assertEqual(labels["checkpoint_duration_seconds"], {"snapshot", "write", "commit"})
        phases = {"data", "plan", "forward", "backward", "reduce", "optimizer"}
        self.assertEqual(labels["train_phase_duration_seconds"], phases)
        for name in ("rank_step_seconds", "rank_memory_bytes"):
            least, middle, most = (known[name][(("stat", stat),)] for stat in ("min", "median", "max"))
            self.assertTrue(0 < least <= middle <= most, known[name])
        self.assertGreater(known["rank_memory_bytes"][(("stat", "min"),)], 20e6)
        self.assertIn(number["slowest_rank"], (0, 1, 2))
        self.assertEqual(len(known["exchange_bytes_total"]), 4)
        self.assertGreater(min(known["exchange_bytes_total"].values()), 0)
        self.assertEqual(known["exchange_seconds_total"].keys(), known["exchange_bytes_total"].keys())
        assignments = known["candidate_assignments_total"]
        self.assertEqual(len(assignments), 2 * 3)
        # In both layers each sample selects two of three candidates at each of two spiking steps.
        self.assertAlmostEqual(sum(assignments.values()) / (8 * 2 * 2 * 2), steps, delta=some)
        rates = known["spike_rate_ratio"]
        sites = {"input", "q", "k", "v", "attention", "z", "hidden"}
        self.assertEqual(labels["spike_rate_ratio"], sites | {"0", "1"})
        self.assertTrue(all(0 <= rate <= 1 for rate in rates.values()) and sum(rates.values()) > 0, rates)
        for name in ("gamma", "threshold", "offdiagonal_sum", "trace"):
            self.assertEqual(labels[f"lateral_{name}"], {"0", "1"})
        for value in known["lateral_offdiagonal_sum"].values():
            self.assertAlmostEqual(value, 6, delta=1)  # at the start the 3x3 matrix is all ones minus I
        low, high = (known["fid_interval"][(("bound", bound),)] for bound in ("lower", "upper"))
        self.assertLess(0, number["fid"])
        self.assertLess(low, high)
        ((build, one),) = known["build_info"].items()
        self.assertEqual((dict(build).keys(), one), ({"version", "torch", "mpi", "nccl"}, 1))

    def test_death_raises_the_alert_and_a_normal_end_does_not(self):
        prometheus = self.prometheus(self.target)
        training = self.job()
        prometheus.until(lambda: prometheus.query("up == 1"), "the job")
        prometheus.is_quiet("LaternaTargetDown")
        training.signal(signal.SIGKILL, training.ranks()[1])
        self.assertNotEqual(training.wait().status, DONE)
        self.assertIn(f"{self.run_folder} does not answer", prometheus.fires("LaternaTargetDown"))
        again = self.job()
        prometheus.is_quiet("LaternaTargetDown")
        again.signal(signal.SIGUSR1)
        self.assertEqual(again.wait().status, STOPPED)
        self.assertEqual(json.loads(self.target.read_text()), [])
        prometheus.until(lambda: not prometheus.query("up"), "the empty list of targets")
        prometheus.is_quiet("LaternaTargetDown")

    def test_busy_port_is_a_warning(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            result = self.train(self.run_folder, ranks=2, training__steps=20, metrics__port=port)
        warnings = [line for line in result.err.splitlines() if "warning" in line]
        self.assertEqual(len(warnings), 1, result.text)
        self.assertIn(f"127.0.0.1:{port}", warnings[0])
        self.assertIn("metrics.port", warnings[0])
        self.assertEqual(last_step(self.run_folder), 20)


if __name__ == "__main__":
    unittest.main()
