"""Kills training runs with SIGKILL at instants drawn from a seed, resumes each until it is done, and compares it with
an undisturbed run.

    tests/system/kills.py --kills 200 --seed 1

Half of the kills come during start-up or after some step, half while a checkpoint is being written or images are
evaluated. Each waits for this event, then for a number of visible changes of the run (its processes, heartbeats and
files), and is printed, so that a failure can be repeated. A kill hits one rank, mpirun, or all processes at once. No
complete checkpoint may be lost, no process may outlive its killed job by more than a minute, and each run must end
with the same bits as the undisturbed one.
"""

import argparse
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from command import (
    DONE, ENDING, EVALUATION, PATIENCE, Case, checkpoints, evaluations_of, glyphs_with_network, heartbeats_of,
    last_step, log_of, shared,
)
from disk import committed, is_whole, read_tree

# (ranks, parallel.expert), or with evaluations (ranks, parallel.expert, evaluation.every); ranks 0: without mpirun
LAYOUTS = [(0, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (0, 1, 10), (2, 2, 10)]
STEPS, EVERY = 30, 3
# What a kill waits for, and the most changes that it waits for then. Changes are looked for about once a millisecond.
EVENTS = {"start-up": 12, "a step": 12, "a checkpoint": 8, "an evaluation": 30}


def being_written(run):
    """{folder name: sizes and times of what it holds} of the checkpoints that have no manifest yet."""
    found = {}
    for folder in (Path(run) / "checkpoints").glob("step-*"):
        try:
            if not (folder / "manifest.json").exists():
                files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir()]
                found[folder.name] = (folder.stat().st_mtime_ns, *sorted(files))
        except FileNotFoundError:  # just renamed or removed
            continue
    return found


def is_evaluating(run):
    """Whether the heartbeat of any rank says that it evaluates, or did so when it died."""
    return any(what in heartbeats_of(run) for what in (b"features of a data set", b"an evaluation"))


def processes_of(run):
    """The IDs of the processes that have the run folder on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(run).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # the process has ended meanwhile
            continue
    return found


class Killer:
    """Kills trainings; `counts` holds how many kills hit what."""

    def __init__(self, case, seed):
        self.case, self.seed, self.dice = case, seed, None
        self.counts = Counter()

    def kill(self, kills, layouts=LAYOUTS, events=None):
        """Kills until `counts` holds that many kills, over as many runs as it takes; `events`: at those only."""
        while (left := kills - self.counts["kills"]) > 0:
            self.counts["runs"] += 1
            self.dice = random.Random(f"{self.seed}-{self.counts['runs']}")  # so that no run depends on those before
            layout = self.dice.choice(layouts)
            self.one_run(min(left, self.dice.randint(1, 4)), events, *layout)

    def one_run(self, kills, events, ranks, expert, evaluations=0):
        """Kills one run at most `kills` times, lets it finish, and compares it with an undisturbed run."""
        events = events or ["start-up", "a step", "a checkpoint", "an evaluation" if evaluations else "a checkpoint"]
        values = {
            "training.steps": STEPS,
            "checkpoint.every": EVERY,
            "checkpoint.keep": STEPS,
            "parallel.expert": expert,
        }
        if evaluations:
            values = {**EVALUATION, **values, "evaluation.every": evaluations}
        name = f"unkilled-{ranks}-{expert}-{evaluations}"
        undisturbed = shared(name, lambda folder: self.undisturbed(folder, ranks, values))
        run = self.case.folder / f"run-{self.counts['runs']}"
        if evaluations:  # a data set without cached statistics, so that the run computes them
            values["data.path"] = glyphs_with_network(self.case.folder / f"data-{self.counts['runs']}")
        seen = {}
        for _ in range(kills):
            if not self.one_kill(run, ranks, values, self.dice.choice(events), seen):
                break
        self.case.train(run, ranks=ranks, **values)
        self.nothing_lost(run, seen)
        self.case.assert_same_run(run, undisturbed / "run")
        self.case.assertEqual(*(self.evaluated(folder) for folder in (run, undisturbed / "run")))

    def evaluated(self, run):
        """The evaluations of a run without images_per_second, and the text of best.json (None without evaluations)."""
        found = evaluations_of(run)
        best = run / "checkpoints" / "best.json"
        for figures in found.values():
            del figures["images_per_second"]
        return found, best.read_text() if found else None

    def undisturbed(self, folder, ranks, values):
        folder.mkdir()
        if "evaluation.every" in values:
            values = {**values, "data.path": glyphs_with_network(folder / "data")}
        self.case.train(folder / "run", ranks=ranks, **values)

    def one_kill(self, run, ranks, values, event, seen):
        """Starts the training and kills it at the event; returns False if it had already ended."""
        shutil.rmtree(run / "heartbeat", ignore_errors=True)  # of a training that may have died in an evaluation
        debris, log = being_written(run), log_of(run)
        start = max((int(path.name[5:]) for path in checkpoints(run)), default=0)
        share, changes = self.dice.random(), self.dice.randint(0, EVENTS[event])
        happened = self.detector(event, run, share)
        training = self.case.start(run, ranks=ranks, **values)
        self.wait_for(training, happened, changes, seen)
        evaluating = is_evaluating(run)
        target = self.strike(training, ranks)
        print(f"run {self.counts['runs']} on {ranks} ranks: kill of {target} {changes} changes after {event}, "
              f"with step {last_step(run)} in the log", flush=True)
        status = training.wait(ENDING).status
        until = time.monotonic() + ENDING
        while left_over := processes_of(run):
            self.case.assertLess(time.monotonic(), until, f"processes outlive their job: {left_over}")
            time.sleep(0.01)
        self.nothing_lost(run, seen)
        if not target or status == DONE:
            self.counts["too late"] += 1
            return False
        self.counts["kills"] += 1
        self.counts[f"of {target}"] += 1
        self.counts["in an evaluation"] += evaluating
        self.counts["while a checkpoint was being written"] += being_written(run) != debris
        self.counts["before the first checkpoint"] += not checkpoints(run)
        # Start-up cuts the log back to the newest checkpoint; later steps in the log are from an earlier training.
        self.counts["during start-up"] += log_of(run) == log or last_step(run) <= start
        return True

    def detector(self, event, run, share):
        """Returns a function that tells whether the event has happened in the training that starts next: for steps and
        checkpoints, the one after that share of those that are left."""
        done, debris, met = last_step(run), being_written(run), set()
        step = done + 1 + int(share * (STEPS - 1 - done))
        number = 1 + int(share * (STEPS // EVERY - len(checkpoints(run))))

        def writes():
            met.update(name for name, progress in being_written(run).items() if debris.get(name) != progress)
            return len(met) >= number

        return {
            "start-up": lambda: True,
            "a step": lambda: last_step(run) >= step,
            "a checkpoint": writes,
            # Less often also while the statistics of the reference are computed, which is before the first step.
            "an evaluation": lambda: is_evaluating(run) if share < 0.2 else b"an evaluation" in heartbeats_of(run),
        }[event]

    def wait_for(self, training, happened, changes, seen):
        """Waits for the event and that many changes, or for the end of the training. Remembers in `seen` the
        checkpoints that become complete."""
        last, until = None, time.monotonic() + PATIENCE
        while changes >= 0 and not training.all_gone(0) and time.monotonic() < until:
            self.remember(training.run, seen)
            now = training.ranks(), being_written(training.run), heartbeats_of(training.run)
            if happened() if last is None else now != last:
                last, changes = now, changes - 1
            time.sleep(0.0003)

    def remember(self, run, seen):
        for checkpoint in checkpoints(run):
            if checkpoint.name not in seen:
                seen[checkpoint.name] = (checkpoint / "manifest.json").read_bytes()

    def strike(self, training, ranks):
        """Sends SIGKILL; returns what was killed, or None if no process was left."""
        pids = list(training.ranks().values())
        wanted = self.dice.choice(["a rank", "mpirun", "all at once"])
        if ranks == 0:
            wanted, victims = "the only process", [training.pid]
        elif wanted == "a rank" and pids:
            victims = [self.dice.choice(pids)]
        elif wanted == "all at once" and pids:
            victims = [training.pid, *pids]
            self.dice.shuffle(victims)
        else:  # mpirun has not started its ranks yet
            wanted, victims = "mpirun", [training.pid]
        struck = False
        for pid in victims:
            try:
                training.signal(signal.SIGKILL, pid)
                struck = True
            except ProcessLookupError:
                continue
        return wanted if struck else None

    def nothing_lost(self, run, seen):
        found = committed(read_tree(run)) if run.exists() else {}
        self.case.assertEqual([name for name, content in found.items() if not is_whole(content)], [])
        lost = [name for name, manifest in seen.items() if found.get(name, {}).get("manifest.json") != manifest]
        self.case.assertEqual(lost, [])
        self.remember(run, seen)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"{arguments.kills} kills with seed {arguments.seed}", flush=True)
    case = Case()
    case.setUp()
    killer, start = Killer(case, arguments.seed), time.monotonic()
    try:
        killer.kill(arguments.kills)
    except (AssertionError, subprocess.SubprocessError):
        kept = shutil.copytree(case.folder, tempfile.mkdtemp(prefix="laterna-killed-"), dirs_exist_ok=True)
        print(f"FAILED; the runs are kept in {kept}")
        raise
    finally:
        case.doCleanups()
        for what, count in killer.counts.items():
            print(f"{count:5} {what}")
        print(f"{time.monotonic() - start:5.0f} seconds")
    print("every run resumed and ended with the same bits as an undisturbed run; no complete checkpoint was lost")


if __name__ == "__main__":
    main()
