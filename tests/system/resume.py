"""Training that ends early resumes as if it had never ended: after crashes, stop requests, and for more steps."""

import re
import shutil
import signal
import unittest

from command import (
    ENDING,
    ENDLESS,
    INPUT,
    STOPPED,
    USAGE,
    Case,
    checkpoints,
    glyphs,
    last_step,
    losses_of,
    newest_checkpoint,
    shared,
    tensors,
)

STEPS = 60


class Interrupted(Case):
    def uninterrupted(self, ranks, steps=STEPS, **values):
        """The run folder of a training that was never interrupted."""
        name = "-".join(map(str, ("uninterrupted", ranks, steps, *values.values())))
        return shared(name, lambda run: self.train(run, ranks=ranks, training__steps=steps, **values))

    def resumes(self, run, ranks, **values):
        """Resumes the run to step STEPS or beyond, compares it with an uninterrupted one, and returns the latter."""
        steps = max(STEPS, last_step(run) + 1)
        result = self.train(run, ranks=ranks, training__steps=steps, **values)
        self.assertIn("resuming from step", result.out)
        whole = self.uninterrupted(ranks, steps, **values)
        self.assert_same_run(run, whole)
        return whole

    def interrupted(self, ranks, **values):
        """Starts a training that does not end by itself; returns it for the caller to interrupt, at a step of its log
        that differs between tests."""
        training = self.start(self.folder / "run", ranks=ranks, training__steps=ENDLESS, **values)
        training.at_step(self.dice.randint(15, STEPS // 2))  # from step 14 on, the checkpoint of step 7 is complete
        return training


class Deaths(Interrupted):
    def rank_lines(self, run):
        """The lines of `laterna inspect` about the ranks."""
        out = self.run_laterna("inspect", "--run", run).out
        return [line for line in out.splitlines() if line.startswith("rank")]

    def killed(self, ranks, victim, **values):
        """Kills a running training: the rank `victim`, or for None mpirun or, without mpirun, the only process."""
        training = self.interrupted(ranks, **values)
        training.signal(signal.SIGKILL, None if victim is None else training.ranks()[victim])
        result = training.wait(ENDING)
        self.assertTrue(training.all_gone(ENDING), "some ranks are still running after a death")
        self.assertNotEqual(result.status, 0)
        return training.run, result

    def test_kill_of_a_rank(self):
        run, result = self.killed(3, 1)
        self.assertRegex(result.out, r"rank 1\b")
        self.resumes(run, 3)

    def test_kill_of_the_first_rank(self):
        run, result = self.killed(3, 0)
        self.assertRegex(result.out, r"rank 0\b")
        self.resumes(run, 3)

    def test_kill_of_mpirun(self):
        run, _ = self.killed(3, None)
        self.resumes(run, 3)

    def test_kill_without_mpirun(self):
        run, _ = self.killed(0, None)
        self.resumes(run, 0)

    def test_kill_of_an_expert_parallel_rank(self):
        run, result = self.killed(3, 2, parallel__expert=3)
        self.assertRegex(result.out, r"rank 2\b")
        lines = self.rank_lines(run)
        self.assertEqual(len(lines), 3, lines)
        for rank, line in enumerate(lines):
            since = r"since \d\d:\d\d:\d\d \(\d+ s\)"
            self.assertRegex(line, rf"^rank {rank} +died \(.+, pid \d+\): step \d+, [a-z].*, {since}$")
        self.resumes(run, 3, parallel__expert=3)
        self.assertEqual(self.rank_lines(run), ["ranks        3 of 3 ended normally"])
        self.assertEqual(len(list(newest_checkpoint(run).glob("rank-*.h5"))), 3)
        done = last_step(run)
        out = self.train(run, ranks=2, parallel__expert=2, training__steps=done + 5).out
        self.assertIn(f"resuming from step {done}\n", out)

    def test_stopped_rank_is_named(self):
        training = self.interrupted(3)
        still = training.ranks()[1]
        training.signal(signal.SIGSTOP, still)
        # Rank 2 waits for rank 1, or for rank 0, which cannot send before it receives from rank 1.
        wanted = re.compile(
            r"rank 0 +running .* waiting for rank 1, since .*\n"
            r"rank 1 +running .* step \d+.*\n"
            r"rank 2 +running .* waiting for rank [01], since .*"
        )
        training.until(lambda: wanted.fullmatch("\n".join(self.rank_lines(training.run))), f"match of {wanted.pattern}")
        training.signal(signal.SIGCONT, still)
        training.signal(signal.SIGUSR1)
        self.assertEqual(training.wait().status, STOPPED)
        self.assertEqual(self.rank_lines(training.run), ["ranks        3 of 3 ended normally"])

    def test_unreadable_heartbeat(self):
        run = self.folder / "run"
        shutil.copytree(self.uninterrupted(0), run)
        (run / "heartbeat" / "rank-00000").write_text("something else")
        self.assertIn("rank-00000 is not a rank's heartbeat", self.rank_lines(run)[0])

    def test_repeated_kills(self):
        run = self.folder / "run"
        for _ in range(4):
            training = self.start(run, training__steps=ENDLESS, checkpoint__every=1)
            training.at_step(last_step(run) + self.dice.randint(1, 8))
            training.signal(signal.SIGKILL)
            training.wait(ENDING)
        self.resumes(run, 0)

    def test_exported_weights_after_a_kill(self):
        run, _ = self.killed(0, None)
        whole = self.resumes(run, 0)
        for flags in ([], ["--raw"]):
            files = []
            for i, source in enumerate((run, whole)):
                files.append(self.folder / f"model-{i}.h5")
                self.run_laterna("export", "--run", source, "--output", files[i], *flags)
            self.assert_same_tensors(*map(tensors, files))


class Requests(Interrupted):
    def stopped(self, training):
        result = training.wait(ENDING)
        self.assertEqual(result.status, STOPPED, result.text)
        self.assertTrue(training.all_gone(ENDING))
        self.assertIn("stopped on request at step", result.out)
        done = last_step(training.run)
        self.assertEqual(newest_checkpoint(training.run).name, f"step-{done:09}")

    def test_usr1_to_mpirun(self):
        training = self.interrupted(3)
        training.signal(signal.SIGUSR1)
        self.stopped(training)
        self.resumes(training.run, 3)

    def test_usr1_to_a_rank(self):
        training = self.interrupted(3)
        training.signal(signal.SIGUSR1, training.ranks()[2])
        self.stopped(training)
        self.resumes(training.run, 3)

    def test_usr1_without_mpirun(self):
        training = self.interrupted(0)
        training.signal(signal.SIGUSR1)
        self.stopped(training)
        self.resumes(training.run, 0)

    def test_term_without_mpirun(self):
        training = self.interrupted(0)
        training.signal(signal.SIGTERM)
        self.stopped(training)
        self.resumes(training.run, 0)

    def test_stop_command(self):
        first = self.start(self.folder / "run", ranks=2, training__steps=ENDLESS)
        first.at_step(8)
        self.run_laterna("stop", "--run", first.run)
        self.stopped(first)
        done = last_step(first.run)
        second = self.start(first.run, ranks=2, training__steps=ENDLESS)
        second.at_step(done + 1)
        second.signal(signal.SIGUSR1)
        self.stopped(second)
        self.assertEqual([step for step, *_ in losses_of(first.run)], list(range(1, last_step(first.run) + 1)))

    def test_stop_command_without_a_run(self):
        self.refuses("stop", "--run", self.folder / "none", status=INPUT, says=[self.folder / "none"])

    def test_old_request_does_not_stop_the_next_training(self):
        run = self.folder / "run"
        self.train(run, training__steps=10)
        self.run_laterna("stop", "--run", run)
        self.train(run, training__steps=20)
        self.assertEqual(last_step(run), 20)


class Resuming(Interrupted):
    def test_more_steps(self):
        run = self.folder / "run"
        self.train(run, training__steps=30)
        self.resumes(run, 0)

    def test_finished_run_changes_nothing(self):
        run = self.folder / "run"
        self.train(run, training__steps=15)
        before = self.kept(run)
        self.train(run, training__steps=15)
        self.assertEqual(before, self.kept(run))

    def kept(self, run):
        """{path: bytes} of all files of a run except the heartbeats of its ranks."""
        files = (path for path in run.rglob("*") if path.is_file() and path.parent.name != "heartbeat")
        return {path: path.read_bytes() for path in files}

    def test_changed_width_is_refused(self):
        run = self.folder / "run"
        self.train(run, training__steps=10)
        self.refuses(
            "train",
            *self.config(training__steps=10, model__width=32),
            "--run",
            run,
            status=USAGE,
            says=["model.width", "16", "32", run],
        )

    def test_changed_learning_rate_is_refused(self):
        run = self.folder / "run"
        self.train(run, training__steps=10)
        self.refuses(
            "train",
            *self.config(training__steps=10, training__learning_rate=0.01),
            "--run",
            run,
            ranks=2,
            status=USAGE,
            says=["training.learning_rate", "0.001", "0.01"],
        )

    def test_changed_weighting_is_refused(self):
        run = self.folder / "run"
        self.train(run, training__steps=10)
        self.refuses(
            "train", *self.config(training__steps=20, training__weighting="min_snr"), "--run", run, ranks=2,
            status=USAGE, says=["training.weighting", "'uniform'", "'min_snr'", run],
        )
        self.assertIn("weighting = 'uniform'", (run / "config.toml").read_text())

    def test_weighted_run_resumes(self):
        whole, run = self.folder / "whole", self.folder / "run"
        values = {"training.weighting": "min_snr"}
        self.train(whole, ranks=2, **values, training__steps=30)
        self.train(run, ranks=2, **values, training__steps=17)
        self.train(run, ranks=2, **values, training__steps=30)
        self.assert_same_run(run, whole)

    def test_changed_data_is_refused(self):
        run = self.folder / "run"
        self.train(run, training__steps=10)
        self.refuses(
            "train",
            *self.config(training__steps=20, data__path=glyphs(seed=2)),
            "--run",
            run,
            status=USAGE,
            says=["data.path", glyphs(seed=2)],
        )

    def test_moved_data_is_accepted(self):
        run, copy = self.folder / "run", self.folder / "copy"
        self.train(run, training__steps=30)
        shutil.copytree(glyphs(), copy)
        self.train(run, training__steps=STEPS, data__path=copy)
        self.assert_same_run(run, self.uninterrupted(0))

    def test_second_training_is_refused(self):
        training = self.start(self.folder / "run", training__steps=ENDLESS)
        training.at_step(1)
        self.refuses(
            "train",
            *self.config(training__steps=ENDLESS),
            "--run",
            training.run,
            status=USAGE,
            says=[training.run, "another training", "laterna stop"],
        )
        training.signal(signal.SIGTERM)
        self.assertEqual(training.wait().status, STOPPED)


class Checkpoints(Interrupted):
    def test_keeps_the_newest(self):
        run = self.folder / "run"
        self.train(run, training__steps=40, checkpoint__keep=2)
        self.assertEqual([path.name for path in checkpoints(run)], ["step-000000035", "step-000000040"])

    def test_incomplete_checkpoint_is_ignored_and_removed(self):
        run = self.folder / "run"
        self.train(run, training__steps=30)
        debris = run / "checkpoints" / "step-000000999"
        debris.mkdir()
        shutil.copy(newest_checkpoint(run) / "rank-00000.h5", debris)
        self.resumes(run, 0)
        self.assertFalse(debris.exists())

    def test_log_is_cut_back_to_the_checkpoint(self):
        run = self.folder / "run"
        self.train(run, training__steps=30)
        shutil.rmtree(newest_checkpoint(run))
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 31, "loss"')
        result = self.train(run, training__steps=STEPS)
        self.assertIn("resuming from step 28", result.out)
        self.assert_same_run(run, self.uninterrupted(0))

    def test_checkpoint_by_minutes(self):
        run = self.folder / "run"
        self.train(run, training__steps=40, checkpoint__every=0, checkpoint__minutes=1e-9, checkpoint__keep=50)
        self.assertGreater(len(checkpoints(run)), 1)

    def test_resumes_on_another_number_of_ranks(self):
        run = self.folder / "run"
        self.train(run, training__steps=30)
        self.train(run, ranks=3, training__steps=40)
        self.assertEqual([step for step, *_ in losses_of(run)], list(range(1, 41)))

    def test_resumes_on_other_layouts_with_the_same_losses(self):
        run, whole = self.folder / "run", self.folder / "whole"
        self.train(whole, training__precision="float64", training__steps=30)
        for ranks, expert, steps in ((3, 3, 10), (4, 2, 20), (0, 1, 30)):
            values = {"parallel.expert": expert, "training.steps": steps, "training.precision": "float64"}
            self.train(run, ranks=ranks, **values)
        moved, stayed = losses_of(run), losses_of(whole)
        self.assertEqual([step for step, *_ in moved], list(range(1, 31)))
        for (step, *mine), (_, *theirs) in zip(moved, stayed):
            for value, wanted in zip(mine, theirs):
                self.assertLess(abs(value / wanted - 1), 1e-10, f"step {step}")


if __name__ == "__main__":
    unittest.main()
