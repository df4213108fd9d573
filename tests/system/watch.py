"""The watchdog names a dead or stuck rank at once, with its operation and step, and no process is left running."""

import os
import signal
import subprocess
import termios
import time
import unittest
from unittest import mock

from command import ENDING, ENDLESS, ENVIRONMENT, PATIENCE, STOPPED, Case, command, last_step


class Watchdog(Case):
    def watched(self, ranks, **values):
        training = self.start(self.folder / "run", ranks=ranks, training__steps=ENDLESS, **values)
        training.at_step(self.dice.randint(1, 20))
        return training

    def ended(self, training):
        result = training.wait(ENDING)
        self.assertTrue(training.all_gone(ENDING), "some ranks are still running")
        self.assertNotEqual(result.status, 0)
        return result.out, self.run_laterna("inspect", "--run", training.run).out

    def test_stuck_rank_is_named_and_ends_the_run(self):
        training = self.watched(3, watchdog__seconds=5)
        stuck = training.ranks()[1]
        training.signal(signal.SIGSTOP, stuck)
        out, inspected = self.ended(training)
        says = (
            "watchdog timeout: no rank made progress for 5 s; "
            rf"stuck: rank 1 \(\S+, pid {stuck}\): step \d+, [a-z ]+"
        )
        for text in (out, inspected):
            self.assertRegex(text, says)
            self.assertRegex(text, r"its process is stopped; waiting: .*rank [02] .*waiting for rank [01]")
        self.assertEqual(out.count("watchdog timeout"), 1, out)
        self.assertIn("state        died", inspected)

    # mpirun kills the other ranks a second after a death; on a loaded machine the report may take longer.
    @mock.patch.dict(ENVIRONMENT, OMPI_MCA_odls_base_sigkill_timeout="5")
    def test_dead_rank_is_named_before_the_others_are_killed(self):
        for victim in (0, 2):
            with self.subTest(rank=victim):
                training = self.watched(3)
                dead = training.ranks()[victim]
                training.signal(signal.SIGKILL, dead)
                out, inspected = self.ended(training)
                for text in (out, inspected):
                    self.assertRegex(text, rf"rank died: rank {victim} \(\S+, pid {dead}\) died: step \d+, [a-z ]+")
                self.assertEqual(out.count("rank died"), 1, out)
                training.run.rename(self.folder / f"run-{victim}")

    def test_slow_rank_does_not_end_the_run(self):
        limit, pause = 10, 1  # seconds: far less at a time than the watchdog allows, but more in all
        training = self.watched(3, watchdog__seconds=limit)
        slow = training.ranks()[2]
        for _ in range(limit // pause + 1):
            training.signal(signal.SIGSTOP, slow)
            time.sleep(pause)
            training.signal(signal.SIGCONT, slow)
            training.at_step(last_step(training.run) + 1)
        training.signal(signal.SIGUSR1)
        result = training.wait()
        self.assertEqual(result.status, STOPPED, result.text)

    def test_suspended_job_goes_on(self):
        """All processes stop for longer than the watchdog allows, as when a laptop sleeps, and wake."""
        training = self.watched(2, watchdog__seconds=4)
        ranks = list(training.ranks().values())
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in ranks:
                training.signal(number, pid)
            if number == signal.SIGSTOP:
                time.sleep(6)
        training.at_step(last_step(training.run) + 5)
        training.signal(signal.SIGUSR1)
        result = training.wait(ENDING)
        self.assertEqual(result.status, STOPPED, result.text)
        self.assertNotIn("watchdog timeout", result.out)

    def test_nobody_reads_the_terminal(self):
        """Ctrl-S on a terminal, or a pipe that nobody empties, does not stop the run."""
        reader, terminal = os.openpty()
        self.addCleanup(os.close, reader)
        run = self.folder / "run"
        line = command("train", *self.config(training__steps=ENDLESS, watchdog__seconds=5), "--run", run)
        training = subprocess.Popen(line, stdin=terminal, stdout=terminal, stderr=terminal, env=ENVIRONMENT)
        self.addCleanup(training.kill)
        until = time.monotonic() + PATIENCE
        while last_step(run) < 1:
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)
        termios.tcflow(terminal, termios.TCOOFF)
        step = last_step(run)
        time.sleep(7)  # longer than the watchdog allows
        self.assertIsNone(training.poll())
        self.assertGreater(last_step(run), step + 10)
        termios.tcflow(terminal, termios.TCOON)
        training.send_signal(signal.SIGUSR1)
        self.assertEqual(training.wait(ENDING), STOPPED)
        os.close(terminal)

    def test_ranks_without_samples(self):
        """Ranks without samples also take part in measuring firing rates, over zero spikes."""
        for expert in (1, 3):
            run = self.folder / f"run-{expert}"
            self.train(run, ranks=3, training__steps=3, training__batch=1, parallel__expert=expert)


if __name__ == "__main__":
    unittest.main()
