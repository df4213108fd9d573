"""The installed tree: it is complete, and its program works after the tree was moved."""

import re
import subprocess
import unittest
from pathlib import Path

from command import DONE, ENVIRONMENT, PATIENCE, PROGRAM, Case, Result, glyphs, last_step, settings

ROOT = Path(__file__).parents[2]
BUILD = Path(PROGRAM).parent


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Install(Case):
    def setUp(self):
        super().setUp()
        there = self.folder / "there"
        self.run_program("cmake", "--install", BUILD, "--prefix", there)
        self.tree = there.rename(self.folder / "moved")
        self.laterna = self.tree / "bin" / "laterna"

    def run_program(self, *line):
        done = subprocess.run(
            list(map(str, line)), capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=False
        )
        result = Result(done.returncode, done.stdout, done.stderr)
        self.assertEqual(result.status, DONE, result.text)
        return result

    def test_moved_program_trains_an_installed_preset(self):
        self.assertTrue(self.run_program(self.laterna, "--version").out.startswith("laterna "))
        run = self.folder / "run"
        self.run_program(
            self.tree / "bin" / "laterna-mpirun", "-n", 2, self.laterna, "train", "--run", run,
            "--config", self.tree / "share" / "laterna" / "presets" / "quickstart.toml",
            *settings({"data.path": glyphs(size=16), "training.steps": 2, "metrics.port": 0}),
        )
        self.assertEqual(last_step(run), 2)

    def test_presets_monitoring_and_documents_are_there(self):
        share = self.tree / "share"
        self.assertEqual(names(share / "laterna" / "presets"), names(ROOT / "launch" / "presets"))
        dashboards = "grafana/dashboards/laterna.json"
        rules = {"prometheus/prometheus.yml", "prometheus/rules/alerts.yml", "prometheus/rules/recording.yml"}
        self.assertLessEqual({dashboards, *rules}, names(share / "laterna" / "monitoring"))
        pages = {"README.md", "LICENSE", *(f"docs/{page}" for page in names(ROOT / "docs"))}
        self.assertLessEqual(pages, names(share / "doc" / "laterna"))

    def test_libraries_are_found_without_the_build_folder(self):
        program_itself = self.laterna.with_name("laterna-program")
        programs = [self.laterna, program_itself]
        if (BUILD / "liblaterna_cuda.so").exists():
            programs.append(self.tree / "lib" / "liblaterna_cuda.so")
        for program in programs:
            self.assertNotIn("not found", self.run_program("ldd", program).out)
            found = re.search(r"\(RUNPATH\).*\[(.*)\]", self.run_program("readelf", "-d", program).out)
            folders = found[1].split(":") if found else []
            self.assertNotIn(str(BUILD), folders)
            if program == program_itself:
                self.assertIn("$ORIGIN/../lib", folders)  # where it looks for liblaterna_cuda.so


if __name__ == "__main__":
    unittest.main()
