"""The base of the system tests: runs the program as users do, with or without mpirun, on files in a scratch folder.

Environment variables: LATERNA is the program (default: build/laterna of this tree), MPIEXEC is mpirun (default: the
one on PATH), and LATERNA_SHARED is a folder for what tests in several processes share.
"""

import atexit
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from dataclasses import dataclass
from pathlib import Path

import h5py

PROGRAM = os.environ.get("LATERNA", str(Path(__file__).parents[2] / "build" / "laterna"))
MPIRUN = [os.environ.get("MPIEXEC", "mpirun"), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
# Ranks that wait for a message leave the core to others, whatever their number.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
DONE, FAILURE, USAGE, INPUT, STOPPED = 0, 1, 2, 3, 75  # exit statuses of the program
PATIENCE = 180  # seconds after which a command counts as hanging; it may be slow where other programs use the cores
ENDING = 60  # seconds within which all processes of a training must have ended after a death or a stop request
ENDLESS = 10**6  # training steps, for a training that cannot end by itself before the test ends it

TINY = """
[model]
image_size = 8
patch = 2
width = 16
depth = 2
heads = 2
[training]
batch = 8
micro_batch = 2
learning_rate = 1e-3
warmup = 10
ema = 0.9
[checkpoint]
every = 7
[metrics]
port = 0
"""


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def text(self):
        return f"status {self.status}\n{self.out}\n{self.err}"

    @property
    def messages(self):
        """The error messages: the lines of stderr that begin with the program's name."""
        return [line for line in self.err.splitlines() if line.startswith("laterna: ")]


def command(*arguments, ranks=0):
    """The command line of the program with these arguments; ranks=0 means without mpirun."""
    launcher = [*MPIRUN, "-n", str(ranks)] if ranks else []
    return [*launcher, PROGRAM, *map(str, arguments)]


def laterna(*arguments, ranks=0, **options):
    done = subprocess.run(
        command(*arguments, ranks=ranks),
        **{"capture_output": True, "text": True, "env": ENVIRONMENT, "timeout": PATIENCE, **options},
    )
    return Result(done.returncode, done.stdout, done.stderr)


def settings(values):
    """The --set arguments for {"training.steps": 3} or, from Python keywords, {"training__steps": 3}."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


class Case(unittest.TestCase):
    """A test with its own scratch folder, in which each command must end with an expected exit status.

    What a test draws from `dice` differs between tests, but is the same each time that the test runs.
    """

    maxDiff = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="laterna-", ignore_cleanup_errors=True)
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.dice = random.Random(self.id())

    def run_laterna(self, *arguments, status=DONE, **options):
        result = laterna(*arguments, **options)
        self.assertEqual(result.status, status, result.text)
        return result

    def refuses(self, *arguments, status, says=(), **options):
        """Runs a command that must end with `status` and exactly one error message, which contains all of `says`."""
        result = self.run_laterna(*arguments, status=status, **options)
        self.assertEqual(len(result.messages), 1, result.text)
        for part in says:
            self.assertIn(str(part), result.messages[0])
        return result

    def config(self, text=TINY, **values):
        """Writes a configuration file; returns the arguments that name it and set `values` and a data set."""
        path = self.folder / "config.toml"
        path.write_text(text)
        return ["--config", path, *settings({"data.path": glyphs(), **values})]

    def train(self, run, ranks=0, status=DONE, **values):
        return self.run_laterna("train", *self.config(**values), "--run", run, ranks=ranks, status=status)

    def start(self, run, ranks=0, **values):
        training = Training(run, command("train", *self.config(**values), "--run", run, ranks=ranks))
        self.addCleanup(training.end)
        return training

    def assert_same_run(self, run, other):
        """Both runs log each step once; losses, gradient norms and the final state are the same, bit for bit."""
        losses, others = losses_of(run), losses_of(other)
        self.assertEqual([step for step, *_ in losses], list(range(1, len(others) + 1)))
        self.assertEqual(losses, others)
        files, others = ({path.name: path for path in newest_checkpoint(r).glob("*.h5")} for r in (run, other))
        self.assertEqual(files.keys(), others.keys())
        for name, path in files.items():
            state = tensors(path)
            self.assertEqual({key.split("/")[0] for key in state}, {"model", "average", "adam"})
            self.assert_same_tensors(state, tensors(others[name]))

    def assert_same_tensors(self, left, right):
        self.assertEqual(left.keys(), right.keys())
        differ = [name for name in left if left[name].tobytes() != right[name].tobytes()]
        self.assertEqual(differ, [])


class Training:
    """A training that runs in the background while the test watches it, sends signals or kills it."""

    def __init__(self, run, line):
        self.run = Path(run)
        self._output = tempfile.TemporaryFile()
        self._process = subprocess.Popen(line, stdout=self._output, stderr=subprocess.STDOUT, env=ENVIRONMENT)
        self._ours = {self._process.pid}

    @property
    def pid(self):
        """The process ID of mpirun, or of the program where it runs without mpirun."""
        return self._process.pid

    def ranks(self):
        """{rank: process ID} of the ranks that mpirun has started."""
        found = {}
        for pid in children(self.pid):
            try:
                rank = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
            except OSError:
                continue
            if rank:
                found[int(rank[1])] = pid
        self._ours.update(found.values())
        return found

    def at_step(self, step):
        """Waits until the log has reached that step."""
        self.until(lambda: last_step(self.run) >= step, f"step {step}")

    def until(self, condition, what):
        until = time.monotonic() + PATIENCE
        while not condition():
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"no {what}:\n{self.text()}")
            time.sleep(0.001)
        self.ranks()  # adds their process IDs to self._ours

    def signal(self, number, pid=None):
        os.kill(pid or self.pid, number)

    def text(self):
        """What the training has printed so far; leaves the file offset alone, at which the processes go on writing."""
        return os.pread(self._output.fileno(), 1 << 30, 0).decode(errors="replace")

    def wait(self, seconds=PATIENCE):
        self._process.wait(seconds)
        return Result(self._process.returncode, self.text(), self.text())

    def all_gone(self, seconds):
        """Whether all processes of this training end within that time."""
        until = time.monotonic() + seconds
        while left := [pid for pid in self._ours if is_alive(pid)]:
            if time.monotonic() > until:
                return False
            self._process.poll()
            time.sleep(0.01)
        return not left

    def end(self):
        if self._process.poll() is None:
            self.ranks()
        for pid in self._ours:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_alive(pid):
    """Whether the process still runs this program (or its mpirun): no zombie, no other process that reuses its ID."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return state != "Z" and (not line or PROGRAM.encode() in line)  # no line yet: just starting


def log_of(run):
    try:
        lines = (Path(run) / "log.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(run):
    """The step of the log's last complete line; reads only the end of the log, so that tests can poll it."""
    try:
        with (Path(run) / "log.jsonl").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 1000))
            steps = re.findall(rb'"step":(\d+)[^\n]*}\n', log.read())
    except FileNotFoundError:
        return 0
    return int(steps[-1]) if steps else 0


def losses_of(run):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in log_of(run) if "loss" in record]


def heartbeats_of(run):
    """The heartbeats of all ranks: the bytes of their files, concatenated."""
    return b"".join(file.read_bytes() for file in (Path(run) / "heartbeat").glob("rank-*"))


def checkpoints(run):
    """The folders of the complete checkpoints, oldest first."""
    found = (path.parent for path in (Path(run) / "checkpoints").glob("step-*/manifest.json"))
    return sorted(path for path in found if path.suffix == "")  # not those renamed to step-N.damaged


def newest_checkpoint(run):
    return checkpoints(run)[-1]


def tensors(path):
    """{name: array} of an HDF5 file."""
    arrays = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def attribute(file, name):
    """A string attribute of an open HDF5 file, as str also where h5py returns bytes (fixed-length strings)."""
    value = file.attrs[name]
    return value.decode() if isinstance(value, bytes) else value


@functools.cache
def _shared_folder():
    if folder := os.environ.get("LATERNA_SHARED"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        return Path(folder)
    folder = tempfile.mkdtemp(prefix="laterna-shared-")
    atexit.register(shutil.rmtree, folder, True)
    return Path(folder)


def shared(name, make):
    """A folder that make(folder) creates once and tests only read, once per process or once per LATERNA_SHARED."""
    folder = _shared_folder() / name
    if not folder.exists():
        aside = Path(tempfile.mkdtemp(prefix="making-", dir=_shared_folder()))
        make(aside / name)
        try:
            (aside / name).rename(folder)
        except OSError:
            assert folder.exists()  # another process has created it meanwhile
        shutil.rmtree(aside)
    return folder


def glyphs(seed=1, size=8, count=64):
    """The folder of a data set of small digits."""

    def make(folder):
        made = laterna("data", "make", "glyphs", "--size", size, "--count", count, "--seed", seed, "--output", folder)
        assert made.status == DONE, made.text

    return shared(f"glyphs-{seed}-{size}-{count}", make)


def glyphs_network():
    """The file of a feature network trained on glyphs()."""

    def make(folder):
        folder.mkdir()
        made = laterna("features", "train", "--data", glyphs(), "--output", folder / "features.h5")
        assert made.status == DONE, made.text

    return shared("glyphs-network", make) / "features.h5"


# Settings of an evaluation that is fast enough for a test; it needs more images than the network has features.
EVALUATION = {
    "evaluation.samples": 150, "sampling.sampler": "ddim", "sampling.steps": 4, "sampling.chunk": 40,
    "checkpoint.every": 0,
}


def glyphs_with_network(folder):
    """Copies glyphs() and its feature network into `folder`, without cached statistics, for a test to change."""
    shutil.copytree(glyphs(), folder)
    for cache in folder.glob("statistics-*"):
        cache.unlink()
    shutil.copy(glyphs_network(), folder / "features.h5")
    return folder


def evaluations_of(run):
    return {line["step"]: line["evaluation"] for line in log_of(run) if "evaluation" in line}


def flip_byte(path, position):
    data = bytearray(Path(path).read_bytes())
    data[position] ^= 1
    Path(path).write_bytes(data)


def truncate(path, share=0.5):
    os.truncate(path, int(Path(path).stat().st_size * share))
