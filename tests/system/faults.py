"""Kills and other faults: power cuts, file calls that fail (by faults.c), full disks, damaged checkpoints.

The tests judge the outcome: whatever has failed, no complete checkpoint is lost or damaged, and the same command, run
again, ends with the same bits as an undisturbed training.
"""

import os
import random
import re
import shutil
import subprocess
import unittest
from pathlib import Path

from command import (
    DONE,
    ENVIRONMENT,
    FAILURE,
    INPUT,
    PATIENCE,
    PROGRAM,
    Case,
    Result,
    checkpoints,
    command,
    flip_byte,
    shared,
    truncate,
)
from disk import MANIFEST, Disk, committed, is_whole, numbered, read_journal, read_tree, write_tree
from kills import Killer

SHIM = Path(PROGRAM).parent / "tests" / "libfaults.so"
STEPS, KEEP = 22, 2  # checkpoints after steps 7, 14, 21 (which removes the one of step 7) and 22
EXPERT = {0: 1, 2: 2}  # {ranks: parallel.expert}; 0 ranks: without mpirun. With 2, both ranks write a file


def name_of(step):
    return f"step-{step:09}"


class Faults(Case):
    def train_on(self, run, ranks, status=DONE, **values):
        """Runs the training of all these tests, which resumes where the run has a checkpoint."""
        defaults = {"training__steps": STEPS, "checkpoint__keep": KEEP, "parallel__expert": EXPERT[ranks]}
        return self.train(run, ranks=ranks, status=status, **{**defaults, **values})

    def undisturbed(self, ranks):
        return shared(f"faultless-{ranks}", lambda run: self.train_on(run, ranks))

    def train_under(self, folder, run, ranks, journal=os.devnull, fault="", rank=0, keep=KEEP):
        """Trains with faults.c preloaded for `folder`. The training may end with any status, but must not hang."""
        values = {"training__steps": STEPS, "checkpoint__keep": keep, "parallel__expert": EXPERT[ranks]}
        line = command("train", *self.config(**values), "--run", run, ranks=ranks)
        self.assertTrue(SHIM.exists(), SHIM)
        preload = {
            "LD_PRELOAD": SHIM,
            "LATERNA_FAULT_FOLDER": folder,
            "LATERNA_FAULT_JOURNAL": journal,
            "LATERNA_FAULT": fault,
            "LATERNA_FAULT_RANK": rank,
            "ASAN_OPTIONS": "verify_asan_link_order=0",  # in sanitizer builds: SHIM is loaded before ASan
        }
        at = line.index(PROGRAM)
        line[at:at] = ["env", *(f"{key}={value}" for key, value in preload.items())]
        done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE)
        return Result(done.returncode, done.stdout, done.stderr)

    def journal(self, ranks):
        """Returns the calls of a training on an empty disk, its run folder's path in them, and the resulting disk."""

        def make(folder):
            disk, journal = self.folder.resolve() / "disk", self.folder / "journal"
            disk.mkdir()
            journal.touch()
            result = self.train_under(disk, disk / "run", ranks, journal)
            self.assertEqual(result.status, DONE, result.text)
            folder.mkdir()
            (folder / "was").write_text(str(disk))
            shutil.move(journal, folder)
            shutil.move(disk, folder)

        folder = shared(f"journal-{ranks}", make)
        return read_journal(folder / "journal"), (folder / "was").read_text() + "/run", folder / "disk"

    def resumes(self, run, ranks):
        """Runs the command again without faults: resumes from the newest checkpoint, ends like the undisturbed run."""
        before = checkpoints(run)
        out = self.train_on(run, ranks).out
        if before:
            self.assertIn(f"resuming from step {int(before[-1].name[5:])}\n", out)
        else:
            self.assertNotIn("resuming from", out)
        self.assert_same_run(run, self.undisturbed(ranks))
        self.assert_whole(read_tree(run))

    def assert_whole(self, run):
        """Returns the names of the checkpoints that have a manifest, after checking that each is whole."""
        found = committed(run)
        self.assertEqual([name for name, content in found.items() if not is_whole(content)], [])
        return set(found)


class PowerCuts(Faults):
    def sweep(self, ranks):
        """A power cut after any call loses no complete checkpoint; resumes from cuts during the third checkpoint."""
        calls, run, _ = self.journal(ranks)
        disk, dice, complete, removed, left = Disk(run), random.Random(ranks), set(), set(), []
        third = False
        for call in calls:
            disk.apply(call)
            if call.kind == "write":  # neither makes anything safe nor loses anything that is
                continue
            if call.kind == "unlink" and call.path.endswith(MANIFEST):
                removed.add(Path(call.path).parent.name)
            for lost in (lambda: True, lambda: dice.random() < 0.5):
                tree = disk.after_power_cut(lost)
                whole = self.assert_whole(tree)
                self.assertLessEqual(complete - removed, whole, call)
                self.assertGreaterEqual(len(whole), min(KEEP, len(complete)), call)
                third = third or name_of(21) in call.path
                if third and name_of(22) not in call.path and tree not in left:
                    left.append(tree)
            complete |= set(committed(disk.after_power_cut()))
        self.assertEqual(complete, {name_of(step) for step in (7, 14, 21, 22)})
        self.assertGreater(len(left), 4)
        for number, tree in enumerate(left[:1] + dice.sample(left[1:-1], 4) + left[-1:]):
            write_tree(tree, self.folder / f"run-{number}")
            self.resumes(self.folder / f"run-{number}", ranks)

    def test_during_a_checkpoint(self):
        self.sweep(0)

    def test_during_a_checkpoint_on_two_ranks(self):
        self.sweep(2)

    def test_before_the_first_checkpoint(self):
        calls, run, _ = self.journal(0)
        disk, left = Disk(run), []
        for call in calls:
            if "checkpoints" in call.path:
                break
            disk.apply(call)
            if (tree := disk.after_power_cut()) not in left:
                left.append(tree)
        self.assertGreater(len(left), 2)
        for number, tree in enumerate(left):
            write_tree(tree, self.folder / f"run-{number}")
            self.resumes(self.folder / f"run-{number}", 0)

    def test_of_running_ranks(self):
        """Really kills all ranks at the same call, the rename of a manifest; the other tests only replay a journal."""
        calls, run, _ = self.journal(2)
        ours = [call for call in calls if call.rank == 0 and call.path.startswith(run)]
        renamed = next(i for i, call in enumerate(ours) if call.other.endswith(f"{name_of(21)}/{MANIFEST}"))
        folder, journal = self.folder.resolve() / "run", self.folder / "journal"
        journal.touch()
        result = self.train_under(folder, folder, 2, journal, fault=f"power-cut:{renamed + 1}")
        self.assertNotIn(result.status, (DONE, FAILURE), result.text)
        self.assertIn("fault: power-cut: ", result.err)
        disk = Disk(folder)
        for call in read_journal(journal):
            disk.apply(call)
        write_tree(disk.after_power_cut(), self.folder / "left")
        self.resumes(self.folder / "left", 2)

    def test_new_run_folder(self):
        """The run folder's entry in its parent folder must be safe too once the first checkpoint is complete."""
        calls, run, _ = self.journal(0)
        disk = Disk(Path(run).parent)
        for call in calls:
            disk.apply(call)
        self.assertIn("run", disk.after_power_cut())

    def test_journal_is_complete(self):
        """The premise of these tests: everything that both ranks wrote went through faults.c."""
        for ranks in EXPERT:
            calls, run, folder = self.journal(ranks)
            disk = Disk(Path(run).parent)
            for call in calls:
                disk.apply(call)
            told, real = disk.after_power_cut(lost=lambda: False)["run"], read_tree(folder)["run"]
            for tree in (told, real):
                del tree["heartbeat"]  # written through mmap, so not in the journal; resuming does not need it
            self.assertEqual(told, real)
            self.assertEqual({call.rank for call in calls if call.path.endswith(".h5")}, set(range(max(1, ranks))))


class FailingCalls(Faults):
    """File calls of the second checkpoint, in the folder checkpoints/, fail one at a time."""

    def second(self, ranks, rank, kind):
        """Returns [(N, path)] of the rank's calls of `kind` during the second checkpoint."""
        calls, run, _ = self.journal(ranks)
        found = numbered(calls, f"{run}/checkpoints", rank)
        begin, end = (
            next(i for i, (_, call) in enumerate(found) if name_of(step) in call.path) for step in (14, 21)
        )
        return [(number, call.path) for number, call in found[begin:end] if call.kind == kind]

    def survives(self, fault, number, ranks=0, rank=0):
        with self.subTest(fault=f"{fault}:{number}", rank=rank):
            run = self.folder.resolve() / f"{fault}-{number}-{rank}"
            result = self.train_under(run / "checkpoints", run, ranks, fault=f"{fault}:{number}", rank=rank, keep=9)
            self.assertIn(f"fault: {fault}: ", result.err)
            whole = self.assert_whole(read_tree(run))
            self.assertIn(name_of(7), whole)
            if fault == "rename-missing":
                self.assertNotIn(result.status, (DONE, FAILURE), result.text)
                self.assertEqual(whole, {name_of(7)})
            else:
                self.assertIn(result.status, (DONE, FAILURE), result.text)
                said = re.sub("(?m)^fault: .*", "", result.text)
                self.assertTrue(name_of(14) in whole or str(run / "checkpoints") in said, result.text)
            self.resumes(run, ranks)

    def test_short_write(self):
        writes = self.second(0, 0, "write")
        data = [number for number, path in writes if path.endswith(".h5")]
        manifest = [number for number, path in writes if MANIFEST in path]
        for number in (data[0], data[len(data) // 2], data[-1], manifest[-1]):
            self.survives("short-write", number)

    def test_no_space_left(self):
        writes = self.second(0, 0, "write")
        self.survives("no-space", writes[len(writes) // 2][0])

    def test_failing_sync(self):
        syncs = self.second(0, 0, "sync")
        self.assertGreaterEqual(len(syncs), 5)  # file, its folder, the parent folder, manifest, its folder
        for number, _ in syncs:
            self.survives("sync-fails", number)

    def test_failing_close(self):
        closes = self.second(0, 0, "close")
        first = {path: number for number, path in reversed(closes) if path.endswith((".h5", ".part"))}
        self.assertEqual(len(first), 2)
        for number in first.values():
            self.survives("close-fails", number)

    def test_missing_rename(self):
        for number, _ in self.second(0, 0, "rename"):
            self.survives("rename-missing", number)

    def test_on_the_second_rank(self):
        writes, syncs = self.second(2, 1, "write"), self.second(2, 1, "sync")
        self.survives("short-write", writes[len(writes) // 2][0], ranks=2, rank=1)
        self.survives("sync-fails", syncs[0][0], ranks=2, rank=1)


class Damage(Faults):
    """A damaged checkpoint is reported, and training resumes from the one before it."""

    def three(self, ranks):
        """Returns a run folder and the folders of its checkpoints after steps 7, 14 and 21."""
        run = self.folder / "run"

        def make(folder):
            self.train_on(folder, ranks, training__steps=21, checkpoint__keep=9)

        shutil.copytree(shared(f"three-{ranks}", make), run)
        self.assertEqual([path.name for path in checkpoints(run)], [name_of(step) for step in (7, 14, 21)])
        return run, checkpoints(run)

    def goes_on_before(self, run, step, *says, ranks=0):
        text = self.train_on(run, ranks).text
        self.assertIn(f"resuming from step {step}\n", text)
        warnings = [line for line in text.splitlines() if "warning" in line]
        for file, reason in says:
            self.assertTrue(any(str(file) in line and reason in line for line in warnings), text)
        self.assert_same_run(run, self.undisturbed(ranks))
        self.assert_whole(read_tree(run))

    def test_file_cut_short(self):
        run, (*_, newest) = self.three(0)
        truncate(newest / "rank-00000.h5")
        self.goes_on_before(run, 14, (newest / "rank-00000.h5", "bytes"))

    def test_flipped_bit(self):
        run, (*_, newest) = self.three(0)
        flip_byte(newest / "rank-00000.h5", (newest / "rank-00000.h5").stat().st_size // 2)
        self.goes_on_before(run, 14, (newest / "rank-00000.h5", "SHA-256"))

    def test_missing_file(self):
        run, (*_, newest) = self.three(2)
        (newest / "rank-00001.h5").unlink()
        self.goes_on_before(run, 14, (newest / "rank-00001.h5", "missing"), ranks=2)

    def test_manifest_cut_short(self):
        run, (*_, newest) = self.three(0)
        truncate(newest / MANIFEST)
        self.goes_on_before(run, 14, (newest / MANIFEST, "manifest"))

    def test_missing_manifest(self):
        run, (*_, newest) = self.three(0)
        (newest / MANIFEST).unlink()
        self.goes_on_before(run, 14)

    def test_two_damaged(self):
        run, (_, older, newest) = self.three(0)
        truncate(newest / "rank-00000.h5")
        flip_byte(older / "rank-00000.h5", 5000)
        says = (newest / "rank-00000.h5", "bytes"), (older / "rank-00000.h5", "SHA-256")
        self.goes_on_before(run, 7, *says)

    def test_all_damaged(self):
        run, damaged = self.three(0)
        for checkpoint in damaged:
            truncate(checkpoint / "rank-00000.h5")
        before = read_tree(run / "checkpoints")
        result = self.train_on(run, 0, status=INPUT)
        for checkpoint in damaged:
            self.assertIn(str(checkpoint / "rank-00000.h5"), result.err)
        self.assertEqual(read_tree(run / "checkpoints"), before)


class Kills(Faults):
    """At least fifteen kills in all; kills.py makes any number."""

    def test_without_mpirun(self):
        Killer(self, seed=1).kill(3, [(0, 1)])

    def test_two_ranks(self):
        Killer(self, seed=2).kill(3, [(2, 1), (2, 2)])

    def test_three_ranks(self):
        Killer(self, seed=3).kill(3, [(3, 1), (3, 3)])

    def test_four_ranks(self):
        Killer(self, seed=4).kill(3, [(4, 1), (4, 2)])

    def test_in_an_evaluation(self):
        killer = Killer(self, seed=5)
        for kills in range(3, 9):  # an evaluation may just have ended when the kill comes
            killer.kill(kills, [(2, 2, 10)], ["an evaluation"])
            if killer.counts["in an evaluation"]:
                break
        self.assertGreater(killer.counts["in an evaluation"], 0)


if __name__ == "__main__":
    unittest.main()
