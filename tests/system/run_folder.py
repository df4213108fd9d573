"""The run folder on the file systems that people have: who may write it, who stops it, and what if it goes away."""

import os
import shutil
import signal
import subprocess
import time
import unittest
from pathlib import Path
from unittest import mock

import h5py

from command import (
    DONE,
    ENDING,
    ENDLESS,
    ENVIRONMENT,
    FAILURE,
    INPUT,
    MPIRUN,
    PROGRAM,
    STOPPED,
    USAGE,
    Case,
    checkpoints,
    flip_byte,
    glyphs,
    laterna,
    last_step,
    log_of,
    newest_checkpoint,
    settings,
    truncate,
)
from signals import blocks_signals

NO_LOCKS = Path(PROGRAM).parent / "tests" / "libno_locks.so"
assert NO_LOCKS.exists(), NO_LOCKS
WITHOUT_LOCKS = {"LD_PRELOAD": str(NO_LOCKS), "ASAN_OPTIONS": "verify_asan_link_order=0"}


class Lock(Case):
    def train_second(self, run, **options):
        return laterna("train", *self.config(training__steps=3), "--run", run, **options)

    def test_a_second_training_is_refused(self):
        training = self.start(self.folder / "run", training__steps=ENDLESS)
        training.at_step(1)
        second = self.train_second(training.run)
        self.assertEqual(second.status, USAGE, second.text)
        self.assertIn(f"process {training.pid}", second.messages[0])
        training.signal(signal.SIGUSR1)
        self.assertEqual(training.wait(ENDING).status, STOPPED)

    @mock.patch.dict(ENVIRONMENT, WITHOUT_LOCKS)
    def test_also_where_the_file_system_has_no_locks(self):
        training = self.start(self.folder / "run", training__steps=ENDLESS)
        training.at_step(1)
        second = self.train_second(training.run)
        self.assertEqual(second.status, USAGE, second.text)
        self.assertIn(f"process {training.pid}", second.messages[0])
        self.assertIn("asked the training to stop", self.run_laterna("stop", "--run", training.run).out)
        self.assertEqual(training.wait(ENDING).status, STOPPED)
        self.assertFalse((training.run / "lock.held").exists())

    @mock.patch.dict(ENVIRONMENT, WITHOUT_LOCKS)
    def test_a_dead_owner_loses_the_folder(self):
        training = self.start(self.folder / "run", training__steps=ENDLESS)
        training.until(lambda: checkpoints(training.run), "checkpoint")
        training.signal(signal.SIGKILL)
        training.wait(ENDING)
        again = self.train(training.run, training__steps=last_step(training.run) + 5)
        self.assertIn("taking over the lock", again.err)
        self.assertIn("resuming from step", again.out)

    def import_twice(self):
        """Starts two imports into one folder; the second must be refused and leave the first alone."""
        line = [PROGRAM, "data", "make", "glyphs", "--size", "16", "--count", "100000", "--output", self.folder / "set"]
        first = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        while not (self.folder / "set" / "lock").exists() or not (self.folder / "set" / "lock").stat().st_size:
            self.assertIsNone(first.poll())
        second = self.run_laterna(*line[1:], status=FAILURE)
        self.assertIn("another data set is being made there", second.messages[0])
        self.assertEqual(first.wait(), DONE)
        self.run_laterna("data", "inspect", self.folder / "set")
        self.assertEqual([path.name for path in (self.folder / "set").glob("lock*")], [])

    def test_two_imports(self):
        self.import_twice()

    @mock.patch.dict(ENVIRONMENT, WITHOUT_LOCKS)
    def test_two_imports_where_the_file_system_has_no_locks(self):
        self.import_twice()


class Stop(Case):
    def stop(self, run, **options):
        return self.run_laterna("stop", "--run", run, **options).out

    def test_says_that_nothing_runs(self):
        self.run_laterna("stop", "--run", self.folder, status=INPUT)
        self.train(self.folder / "run", training__steps=2)
        self.assertIn("no training is running there", self.stop(self.folder / "run"))
        self.assertIn("resuming from step 2", self.train(self.folder / "run", training__steps=4).out)

    def test_a_request_at_the_start_is_not_lost(self):
        """`stop` that finds a training, however young, stops it."""
        for attempt in range(3):
            training = self.start(self.folder / f"run-{attempt}", training__steps=ENDLESS)
            lock = training.run / "lock"
            training.until(lambda lock=lock: lock.exists() and lock.stat().st_size > 0, "lock")
            said = self.stop(training.run)
            self.assertIn("asked the training to stop", said)
            self.assertIn(f"process {training.pid}", said)
            self.assertEqual(training.wait(ENDING).status, STOPPED)
            self.assertFalse((training.run / "stop-requested").exists())

    def test_a_request_is_for_one_training_only(self):
        training = self.start(self.folder / "run", training__steps=ENDLESS)
        training.at_step(8)
        training.signal(signal.SIGKILL)
        training.wait(ENDING)
        self.assertIn("did not end by itself", self.stop(training.run))
        again = self.train(training.run, training__steps=last_step(training.run) + 3)
        self.assertIn("done at step", again.out)

    def test_signals_wait_while_libraries_load(self):
        for delay in (0, 0.02, 0.05, 0.1, 0.2, 0.4):
            training = self.start(self.folder / f"run-{delay}", training__steps=ENDLESS)
            training.until(lambda pid=training.pid: blocks_signals(pid), "blocked signals")
            time.sleep(delay)
            training.signal(signal.SIGUSR1)
            result = training.wait(ENDING)
            self.assertEqual(result.status, STOPPED, result.text)


class OtherFolders(Case):
    def train_apart(self, first, second, environment=("", "")):
        """Two ranks of one training, in two working folders."""
        line = list(MPIRUN)
        for number, (folder, variable) in enumerate(zip((first, second), environment, strict=True)):
            folder.mkdir(exist_ok=True)
            arguments = self.config(training__steps=5, parallel__expert=2)
            env = ["-x", variable] if variable else []
            program = [PROGRAM, "train", *map(str, arguments), "--run", "run"]
            line += [":"] * (number > 0) + ["-n", "1", "-wdir", str(folder), *env, *program]
        done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=180)
        return done.returncode, [text for text in done.stderr.splitlines() if text.startswith("laterna: ")]

    def test_ranks_with_different_run_folders_are_refused(self):
        status, messages = self.train_apart(self.folder / "a", self.folder / "b")
        self.assertEqual(status, USAGE, messages)
        self.assertIn(str(self.folder / "b" / "run"), messages[0])
        self.assertIn(os.uname().nodename, messages[0])

    def test_ranks_with_different_kernels_are_refused(self):
        if " avx2 " not in Path("/proc/cpuinfo").read_text():
            self.skipTest("this processor has one set of kernels")
        together = self.folder / "a"
        status, messages = self.train_apart(together, together, ("LATERNA_KERNELS=portable", "LATERNA_KERNELS=avx2"))
        self.assertEqual(status, USAGE, messages)
        self.assertIn("rank 1 has other CPU kernels than rank 0, which has portable", messages[0])


class Gone(Case):
    def test_a_stop_after_the_folder_was_moved_saves(self):
        """The folder goes while the ranks are halted, and the request is there when they go on."""
        training = self.start(self.folder / "run", training__steps=ENDLESS)
        training.at_step(8)
        training.signal(signal.SIGSTOP)
        training.run.rename(self.folder / "moved")
        training.signal(signal.SIGUSR1)
        training.signal(signal.SIGCONT)
        result = training.wait(ENDING)
        self.assertEqual(result.status, STOPPED, result.text)
        again = self.train(training.run, training__steps=last_step(self.folder / "moved") + 10)
        self.assertRegex(again.out, r"resuming from step \d+")

    def test_another_run_at_the_place_of_a_moved_one_is_left_alone(self):
        first = self.start(self.folder / "run", training__steps=ENDLESS)
        first.at_step(8)
        first.run.rename(self.folder / "moved")
        other = self.folder / "run-with-other-seed"
        self.train(other, training__steps=9, training__seed=5)
        shutil.rmtree(first.run, ignore_errors=True)
        before = None
        while before is None:  # the first training may create the folder again in between
            try:
                shutil.rmtree(first.run, ignore_errors=True)
                other.rename(first.run)
                before = log_of(first.run)
            except OSError:
                continue
        first.until(lambda: "another run's folder" in first.text(), "warning")
        first.signal(signal.SIGUSR1)
        result = first.wait(ENDING)
        self.assertEqual(result.status, FAILURE, result.text)
        self.assertEqual(log_of(first.run), before)
        self.assertEqual(newest_checkpoint(first.run).name, "step-000000009")

    def test_a_removed_folder_is_made_again(self):
        training = self.start(self.folder / "run", training__steps=ENDLESS)
        training.at_step(8)
        training.run.rename(self.folder / "moved")
        training.until(lambda: last_step(training.run) > 20, "steps in a new folder")
        self.run_laterna("stop", "--run", training.run)
        result = training.wait(ENDING)
        self.assertEqual(result.status, STOPPED, result.text)
        self.assertEqual(result.out.count("was moved or removed while the training ran"), 1, result.out)
        step = last_step(training.run)
        self.assertEqual(newest_checkpoint(training.run).name, f"step-{step:09}")
        resumed = self.train(training.run, training__steps=step + 2)
        self.assertIn(f"resuming from step {step}", resumed.out)

    def test_a_data_set_cut_short_in_use_ends_the_run(self):
        images = self.folder / "images"
        shutil.copytree(glyphs(), images)
        for ranks in (0, 2):
            training = self.start(self.folder / f"run-{ranks}", ranks=ranks, data__path=images, training__steps=ENDLESS)
            training.at_step(3)
            truncate(images / "shard-00000.h5")
            result = training.wait(ENDING)
            self.assertEqual(result.status, INPUT, result.text)
            self.assertIn("shard-00000.h5: was changed or cut short while it was in use", result.out)
            shutil.rmtree(images)
            shutil.copytree(glyphs(), images)

    def test_pixels_are_verified_when_a_run_resumes(self):
        images = self.folder / "images"
        shutil.copytree(glyphs(), images)
        self.train(self.folder / "run", data__path=images, training__steps=2)
        shard = images / "shard-00000.h5"
        with h5py.File(shard) as file:
            pixels = file["images"].id.get_offset()
        flip_byte(shard, pixels + 100)
        result = self.train(self.folder / "run", data__path=images, training__steps=4, status=INPUT)
        self.assertIn("shard-00000.h5: damaged", result.messages[0])


class Stored(Case):
    """The configuration that a run was started with counts, whatever became of config.toml."""

    def setUp(self):
        super().setUp()
        self.run_folder = self.folder / "run"
        self.train(self.run_folder, training__steps=8)

    def test_missing_or_empty(self):
        for make in (Path.unlink, lambda path: path.write_text("")):
            make(self.run_folder / "config.toml")
            self.refuses(
                "train", *self.config(training__steps=10, training__batch=16), "--run", self.run_folder,
                status=USAGE, says=["training.batch = 8", "16"],
            )
            self.run_laterna("inspect", "--run", self.run_folder)
            resumed = self.train(self.run_folder, training__steps=last_step(self.run_folder) + 1)
            self.assertIn("the configuration of the checkpoint of step", resumed.err)

    def test_without_checkpoints_it_starts_again_and_says_so(self):
        shutil.rmtree(self.run_folder / "checkpoints")
        (self.run_folder / "config.toml").unlink()
        again = self.train(self.run_folder, training__steps=3, training__batch=16)
        self.assertIn("starts again as configured now", again.err)
        self.assertEqual([line["step"] for line in log_of(self.run_folder)], [1, 2, 3])

    def test_inspect_says_what_is_not_saved(self):
        shutil.rmtree(newest_checkpoint(self.run_folder))
        said = self.run_laterna("inspect", "--run", self.run_folder, *settings({})).out
        self.assertIn("state        not saved: 8 of 8 steps", said)
        self.assertIn("the last 1 are not saved, training resumes from step 7", said)

    def test_damaged_lines_cost_those_lines(self):
        log = self.run_folder / "log.jsonl"
        first, *others = log.read_text().splitlines(keepends=True)
        damaged = '{"step": "nine"}\n{"time": "yesterday"}\n'
        log.write_text("".join([first, damaged, *others]))
        (self.run_folder / "warnings.jsonl").write_text(damaged)
        resumed = self.train(self.run_folder, training__steps=10)
        self.assertIn("2 lines cannot be read", resumed.err)
        self.assertEqual(last_step(self.run_folder), 10)
        self.assertIn("log          2 lines cannot be read", self.run_laterna("inspect", "--run", self.run_folder).out)


if __name__ == "__main__":
    unittest.main()
