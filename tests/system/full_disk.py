"""Disks that are full, fill up during training, or are read-only: small file systems that the tests mount."""

import os
import resource
import signal
import subprocess
import unittest

from command import ENDLESS, FAILURE, STOPPED, checkpoints, laterna, last_step, newest_checkpoint, settings
from disk import read_tree
from faults import KEEP, STEPS, Faults


class OnSmallDisk(Faults):
    def mounted(self, size):
        if os.geteuid() != 0:
            self.skipTest("needs root to mount a small disk")
        disk = self.folder / "disk"
        disk.mkdir()
        line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "laterna-test", disk]
        mounted = subprocess.run(line, capture_output=True, text=True)
        if mounted.returncode != 0:
            self.skipTest(f"cannot mount a small disk: {mounted.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", "-l", disk], check=True)
        return disk

    def remount(self, disk, option):
        subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)


class FullDisk(OnSmallDisk):
    """The disk fills up while a checkpoint is saved: training reports it, and earlier checkpoints stay complete."""

    def still_there(self, run, before, failed):
        self.assertEqual(failed.status, FAILURE, failed.text)
        self.assertTrue(failed.messages, failed.text)
        self.assertIn(str(run), failed.messages[0])
        self.assertEqual([path.name for path in checkpoints(run)][: len(before)], before)
        self.run_laterna("export", "--run", run, "--output", self.folder / "model.h5")  # reads the newest checkpoint

    def finish(self, run):
        self.assertIn("resuming from step", self.train(run, training__steps=40).out)
        other = self.folder / "uninterrupted"
        self.train(other, training__steps=40)
        self.assert_same_run(run, other)

    def limited(self, size, *arguments):
        """Runs the program with a limit on file sizes, in bytes: a real write failure that needs no mount."""
        return laterna(
            *arguments,
            restore_signals=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )

    def on_small_disk(self, ranks):
        disk = self.mounted("2m")
        run = disk / "run"
        self.train(run, training__steps=10)
        before = [path.name for path in checkpoints(run)]
        failed = self.train(run, ranks=ranks, training__steps=40, status=FAILURE)
        self.still_there(run, before, failed)
        self.assertIn("No space left", failed.messages[0])
        self.remount(disk, "size=20m")
        return run

    def test_small_disk(self):
        self.finish(self.on_small_disk(ranks=0))

    def test_small_disk_under_mpirun(self):
        self.on_small_disk(ranks=2)

    def test_file_size_limit(self):
        run = self.folder / "run"
        self.train(run, training__steps=10)
        before = [path.name for path in checkpoints(run)]
        self.still_there(run, before, self.limited(300_000, "train", *self.config(training__steps=40), "--run", run))
        self.finish(run)

    def test_samples(self):
        run = self.folder / "run"
        self.train(run, training__steps=10)
        output = self.folder / "samples"
        result = self.limited(1000, "sample", "--run", run, "--output", output, *settings({"sampling.steps": 5}))
        self.assertEqual(result.status, FAILURE, result.text)
        self.assertEqual(len(result.messages), 1, result.text)
        self.assertIn(str(output), result.messages[0])
        self.assertFalse((output / "images.h5").exists())


class Disks(OnSmallDisk):
    def test_disk_that_fills_up_and_grows(self):
        disk = self.mounted("4m")
        run, other = disk / "run", self.folder / "other"
        training = self.start(run, training__steps=ENDLESS, checkpoint__keep=KEEP)
        training.at_step(15)  # from step 14 on, the checkpoint of step 7 is complete
        with (disk / "filler").open("wb", buffering=0) as filler:

            def reported():
                try:
                    while filler.write(bytes(4096)):  # also what the training has freed since
                        pass
                except OSError:
                    return "No space left" in training.text()

            training.until(reported, "report of the full disk")
        self.remount(disk, "size=40m")
        newest = newest_checkpoint(run)
        training.until(lambda: newest_checkpoint(run) > newest, "checkpoint after the disk has grown")
        training.signal(signal.SIGTERM)
        result = training.wait()
        self.assertEqual(result.status, STOPPED, result.text)
        self.assertTrue(self.assert_whole(read_tree(run)))
        values = {"training__steps": last_step(run) + 10, "checkpoint__keep": KEEP}
        self.train(run, **values)
        self.train(other, **values)
        self.assert_same_run(run, other)

    def test_file_in_place_of_the_checkpoint_folder(self):
        run = self.folder / "run"
        run.mkdir()
        (run / "lock").touch()
        (run / "checkpoints").touch()
        result = self.train_on(run, 0, status=FAILURE)
        self.assertIn(str(run / "checkpoints"), " ".join(result.messages))
        (run / "checkpoints").unlink()
        self.resumes(run, 0)

    def test_read_only_disk(self):
        disk = self.mounted("20m")
        self.train_on(disk / "run", 0, training__steps=7)
        self.remount(disk, "ro")
        for run in (disk / "run", disk / "new"):
            line = ["train", *self.config(training__steps=STEPS), "--run", run]
            self.refuses(*line, status=FAILURE, says=[run, "Read-only", "--run"])
        self.remount(disk, "rw")
        self.resumes(disk / "run", 0)


if __name__ == "__main__":
    unittest.main()
