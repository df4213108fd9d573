"""Signals at any moment: a request to stop is obeyed or waits, never lost, and never crashes a computing thread."""

import signal
import subprocess
import time
import unittest
from pathlib import Path

from command import ENDING, ENDLESS, STOPPED, Case, command, last_step, newest_checkpoint

REQUESTS = [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP]


def blocks_signals(pid):
    """Whether the process has come to the first line of the program, which blocks the signals."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = int(next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1], 16)
    return all(mask >> (number - 1) & 1 for number in REQUESTS)


class Signals(Case):
    def burst(self, training, pids):
        for _ in range(40):
            for pid in pids:
                training.signal(self.dice.choice(REQUESTS), pid)
            time.sleep(self.dice.uniform(0, 0.002))

    def saved_as_if_it_had_ended_there(self, run, ranks):
        other = self.folder / "other"
        self.train(other, ranks=ranks, training__steps=last_step(run))
        self.assert_same_run(run, other)

    def test_burst(self):
        training = self.start(self.folder / "run", training__steps=ENDLESS)
        training.at_step(self.dice.randint(5, 20))
        self.burst(training, [training.pid])
        self.assertEqual(training.wait(ENDING).status, STOPPED)
        self.saved_as_if_it_had_ended_there(training.run, 0)

    def test_burst_to_two_ranks(self):
        training = self.start(self.folder / "run", ranks=2, training__steps=ENDLESS)
        training.at_step(self.dice.randint(5, 20))
        self.burst(training, training.ranks().values())
        self.assertEqual(training.wait(ENDING).status, STOPPED)
        self.saved_as_if_it_had_ended_there(training.run, 2)

    def test_request_while_starting(self):
        """A signal that arrives at the program's first line still stops the training."""
        for number in [*REQUESTS, signal.SIGINT]:
            training = self.start(self.folder / f"run-{number}", training__steps=ENDLESS)
            training.until(lambda pid=training.pid: blocks_signals(pid), "blocked signals")
            training.signal(number)
            result = training.wait(ENDING)
            self.assertEqual(result.status, STOPPED, result.text)
            self.assertIn("stopped on request", result.out)

    def test_first_interrupt_saves(self):
        training = self.start(self.folder / "run", training__steps=ENDLESS)
        training.at_step(8)
        training.signal(signal.SIGINT)
        result = training.wait(ENDING)
        self.assertEqual(result.status, STOPPED, result.text)
        self.assertIn("Ctrl-C again", result.out)
        self.assertEqual(newest_checkpoint(training.run).name, f"step-{last_step(training.run):09}")

    def test_second_interrupt_ends_at_once(self):
        training = self.start(self.folder / "run", ranks=2, training__steps=ENDLESS)
        training.at_step(8)
        first, second = (training.ranks()[rank] for rank in (0, 1))
        training.signal(signal.SIGSTOP, second)  # so that rank 0 waits for it and cannot save
        training.signal(signal.SIGINT, first)
        training.until(lambda: "Ctrl-C again" in training.text(), "answer to the first signal")
        training.signal(signal.SIGINT, first)
        result = training.wait(ENDING)
        self.assertEqual(result.status, 128 + signal.SIGINT, result.text)
        self.assertIn("the steps since the last checkpoint are lost", result.out)

    def test_verbs_that_do_not_train_end_at_once(self):
        for number in REQUESTS:
            line = command("data", "make", "glyphs", "--count", 5_000_000, "--output", self.folder / f"set-{number}")
            making = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            while not blocks_signals(making.pid):
                self.assertIsNone(making.poll())
            making.send_signal(number)
            said, _ = making.communicate(timeout=ENDING)
            self.assertEqual(making.returncode, 128 + number, said)
            self.assertRegex(said, r"laterna: ended by a signal \(.+\)")


if __name__ == "__main__":
    unittest.main()
