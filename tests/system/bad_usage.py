"""Errors of use: each ends the program with one message that names the flag, key or file, usually with status 2."""

import os
import re
import subprocess
import unittest
from pathlib import Path

from command import ENVIRONMENT, INPUT, PATIENCE, TINY, USAGE, Case, command, glyphs


class CommandLine(Case):
    def test_no_subcommand(self):
        self.refuses(status=USAGE, says=["subcommand"])

    def test_unknown_subcommand(self):
        self.refuses("trian", "--config", "x", status=USAGE, says=["trian", "train"])
        self.refuses("data", "improt", "idx", status=USAGE, says=["improt", "import"])

    def test_unknown_flag(self):
        self.refuses("train", *self.config(), "--run", self.folder / "run", "--fast", status=USAGE, says=["--fast"])

    def test_missing_flag(self):
        self.refuses("train", "--run", self.folder / "run", status=USAGE, says=["--config"])

    def test_unknown_kind_of_data(self):
        self.refuses(
            "data", "make", "squiggles", "--output", self.folder / "set", status=USAGE, says=["squiggles", "glyphs"]
        )

    def test_invalid_size_of_glyphs(self):
        self.refuses(
            "data", "make", "glyphs", "--size", 9, "--output", self.folder / "set", status=USAGE, says=["--size 9"]
        )

    def test_help_and_version(self):
        self.assertIn("train", self.run_laterna("--help").out)
        self.assertIn("--config", self.run_laterna("train", "--help").out)
        self.assertRegex(self.run_laterna("--version").out, r"^laterna \d+\.\d+")


class Plan(Case):
    def test_layouts_of_a_cluster(self):
        out = self.run_laterna(
            "inspect", "--plan", *self.config(model__candidates=3), "--ranks", 6, "--link", "1Gbit", "--speed", 10
        ).out
        rows = [line.split() for line in out.splitlines() if re.match(r" +\d", line)]
        self.assertEqual([row[:2] for row in rows], [["1", "6"], ["2", "3"], ["3", "2"]])
        self.assertEqual(out.count("best"), 1)
        self.assertEqual(float(rows[0][3]), 0)

    def test_link_without_a_unit(self):
        self.refuses("inspect", "--plan", *self.config(), "--link", "400", status=USAGE, says=["--link 400", "400Gbit"])

    def test_zero_ranks(self):
        self.refuses("inspect", "--plan", *self.config(), "--ranks", 0, status=USAGE, says=["--ranks"])

    def test_no_configuration(self):
        self.refuses("inspect", "--plan", status=USAGE, says=["--config"])

    def test_neither_run_nor_plan(self):
        self.refuses("inspect", status=USAGE, says=["--run", "--plan"])


class Launcher(Case):
    """Tests of launch/mpirun, which chooses the numbers of ranks and threads."""

    SCRIPT = Path(__file__).parents[2] / "launch" / "mpirun"

    def launched(self, *arguments, **options):
        return subprocess.run([str(part) for part in (self.SCRIPT, *arguments)], capture_output=True, text=True,
                              timeout=PATIENCE, **options)

    def test_ranks_share_the_cores(self):
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        cores = len(os.sched_getaffinity(0))
        for flags, ranks in (([], min(cores, 8)), (["-n", 3], 3)):
            done = self.launched(*flags, *command("train", *self.config(training__steps=1), "--run",
                                                  self.folder / f"run-{ranks}"), env=environment)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(f"{ranks} rank(s) with {max(1, cores // ranks)} thread(s)", done.stdout)

    def test_invalid_launcher_arguments(self):
        for flags in (["-n"], ["-n", 0], ["-n", "two"], [], ["--host", "a", "laterna"]):
            done = self.launched(*flags)
            self.assertEqual(done.returncode, USAGE, flags)
            self.assertIn("mpirun", done.stderr)


class SlurmWithoutMpi(Case):
    """srun without its MPI plug-in starts tasks that do not find each other: each would be a job of one rank."""

    def test_training_is_refused(self):
        self.refuses(
            "train", *self.config(), "--run", self.folder / "run", status=USAGE, says=["4 tasks", "srun --mpi=pmix"],
            env={**ENVIRONMENT, "SLURM_STEP_NUM_TASKS": "4"},
        )

    def test_single_process_commands_run(self):
        self.run_laterna("data", "inspect", glyphs(), env={**ENVIRONMENT, "SLURM_STEP_NUM_TASKS": "4"})


class Configuration(Case):
    def refuses_setting(self, key, value, says=(), **options):
        run = self.folder / "run"
        result = self.refuses(
            "train", *self.config(), "--set", f"{key}={value}", "--run", run, status=USAGE, says=[key, *says], **options
        )
        self.assertFalse(run.exists(), "an invalid configuration has created a run folder")
        return result

    def test_ranks_not_divisible_by_parallel_expert(self):
        for ranks in (0, 3):
            self.refuses(
                "train", *self.config(parallel__expert=2), "--run", self.folder / "run", ranks=ranks, status=USAGE,
                says=["parallel.expert = 2", f"{max(ranks, 1)} rank(s)"],
            )

    def test_a_model_that_cannot_fit(self):
        self.refuses(
            "train", *self.config(model__width=16384, model__depth=100), "--run", self.folder / "run", status=USAGE,
            says=["training needs", "GB on this rank", "fewer ranks"],
        )

    def test_more_threads_than_cores(self):
        line = command("train", *self.config(training__steps=1, parallel__threads=2), "--run", self.folder / "run")
        line = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *line]
        done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, check=True)
        self.assertIn("1 rank(s) of a host have 2 threads in all, but 1 cores", done.stderr)
        self.assertIn("with 2 thread(s)", done.stdout)

    def test_ranks_with_different_configurations(self):
        line = command("train", *self.config(), "--run", self.folder / "run", ranks=1)
        program = line[line.index("-n") :]
        for key, value in (("parallel.expert", 3), ("training.batch", 9)):
            done = subprocess.run(
                [*line, ":", *program, "--set", f"{key}={value}"],
                capture_output=True,
                text=True,
                env=ENVIRONMENT,
                timeout=PATIENCE,
            )
            messages = [text for text in done.stderr.splitlines() if text.startswith("laterna: ")]
            self.assertEqual((done.returncode, len(messages)), (USAGE, 1), done.stderr)
            self.assertIn("rank 1 reads another configuration", messages[0])

    def test_ranks_with_different_images(self):
        """The same relative data.path in two folders, as on two hosts that do not share it."""
        for name, seed in (("one", 1), ("two", 2)):
            (self.folder / name).mkdir()
            (self.folder / name / "set").symlink_to(glyphs(seed=seed))
        line = command("train", *self.config(data__path="set"), "--run", self.folder / "run", ranks=1)
        at = line.index("-n")
        first, second = (
            [*line[at:at + 2], "--wdir", str(self.folder / name), *line[at + 2:]] for name in ("one", "two")
        )
        done = subprocess.run(
            [*line[:at], *first, ":", *second], capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE
        )
        messages = [text for text in done.stderr.splitlines() if text.startswith("laterna: ")]
        self.assertEqual((done.returncode, len(messages)), (INPUT, 1), done.stderr)
        self.assertIn("other images", messages[0])

    def test_unknown_key(self):
        self.refuses_setting("model.widht", 16, says=["width"])

    def test_unknown_weighting(self):
        self.refuses_setting("training.weighting", "snr", says=['"snr"', "uniform, min_snr"])

    def test_unknown_table(self):
        self.refuses_setting("modle.width", 16, says=["model"])

    def test_unknown_key_in_the_file(self):
        config = self.config(TINY.replace("every", "evry"))
        self.refuses("train", *config, "--run", self.folder / "run", status=USAGE, says=[config[1], "checkpoint.evry"])

    def test_file_that_is_not_toml(self):
        config = self.config("[model]\nwidth = = 3\n")
        self.refuses("train", *config, "--run", self.folder / "run", status=USAGE, says=[config[1], "line 2"])

    def test_missing_file(self):
        missing = self.folder / "none.toml"
        self.refuses("train", "--config", missing, "--run", self.folder / "run", status=USAGE, says=[missing])

    def test_folder_as_configuration_file(self):
        self.refuses("train", "--config", self.folder, "--run", self.folder / "run", status=USAGE, says=[self.folder])

    def test_setting_without_value(self):
        self.refuses(
            "train",
            *self.config(),
            "--set",
            "model.width",
            "--run",
            self.folder / "run",
            status=USAGE,
            says=["model.width"],
        )

    def test_string_for_an_integer(self):
        self.refuses_setting("model.width", "wide", says=["wide", "integer"])

    def test_fraction_for_an_integer(self):
        self.refuses_setting("model.width", 16.5, says=["16.5", "integer"])

    def test_number_for_a_boolean(self):
        self.refuses_setting("model.lateral", 1, says=["true or false"])

    def test_number_for_a_string(self):
        self.refuses_setting("sampling.sampler", 3, says=["string"])

    def test_unknown_sampler(self):
        self.refuses_setting("sampling.sampler", "euler", says=["euler", "ddpm", "ddim", "dpm-solver++"])

    def test_heads_do_not_divide_width(self):
        self.refuses_setting("model.heads", 3, says=["model.width", "16"])

    def test_patch_does_not_divide_image(self):
        self.refuses_setting("model.patch", 3, says=["model.image_size", "8"])

    def test_more_selected_than_candidates(self):
        self.refuses_setting("model.selected", 4, says=["model.candidates", "3"])

    def test_more_sampling_steps_than_diffusion_steps(self):
        self.refuses_setting("sampling.steps", 1001, says=["diffusion.steps"])

    def test_two_channels(self):
        self.refuses_setting("model.channels", 2)

    def test_nan(self):
        for key in (
            "training.learning_rate",
            "training.ema",
            "model.gamma_start",
            "diffusion.beta_last",
            "checkpoint.minutes",
        ):
            with self.subTest(key):
                self.refuses_setting(key, "nan", says=["nan"])

    def test_infinite(self):
        for key in ("training.learning_rate", "training.clip_norm"):
            with self.subTest(key):
                self.refuses_setting(key, "inf", says=["inf"])

    def test_negative(self):
        for key in (
            "training.learning_rate",
            "training.batch",
            "training.steps",
            "training.seed",
            "training.decay",
            "checkpoint.every",
            "checkpoint.keep",
            "model.depth",
            "sampling.count",
        ):
            with self.subTest(key):
                self.refuses_setting(key, -1, says=["-1"])

    def test_zero(self):
        for key in (
            "training.batch",
            "training.steps",
            "model.heads",
            "model.patch",
            "model.spiking_steps",
            "sampling.chunk",
        ):
            with self.subTest(key):
                self.refuses_setting(key, 0)

    def test_data_path_is_not_set(self):
        path = self.folder / "config.toml"
        path.write_text(TINY)
        self.refuses("train", "--config", path, "--run", self.folder / "run", status=USAGE, says=["data.path"])

    def test_one_message_from_two_ranks(self):
        result = self.refuses_setting("model.heads", 3, ranks=2)
        self.assertEqual(result.err.count("model.heads"), 1, result.err)
        self.assertNotIn("rank 0: ", result.messages[0])

    def test_one_message_from_two_ranks_without_data(self):
        missing = self.folder / "none"
        self.refuses(
            "train",
            *self.config(data__path=missing),
            "--run",
            self.folder / "run",
            ranks=2,
            status=INPUT,
            says=[missing],
        )


if __name__ == "__main__":
    unittest.main()
