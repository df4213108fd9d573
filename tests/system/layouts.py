"""Compares every parallel layout with one rank: EP 1,2,3,4,7 x DP 1,2 for N = 2,3,5,7 candidates, in float64.

    layouts.py [--laterna build/laterna]

Each layout trains ten steps, with uneven batches and, for DP 2, with micro-batches. Losses, gradient norms and all
weights afterwards must agree to a relative 1e-10. This takes minutes on two cores; the ctest tests ranks.* cover the
most telling layouts. Exit status 0: all within the limit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).parents[2]
LIMIT = 1e-10
STEPS = 10
CONFIG = """
[model]
image_size = 8
patch = 4
width = 16
depth = 3
heads = 2
spiking_steps = 3
hidden_ratio = 2
gamma_start = 0.5
[training]
batch = 11
steps = 10
learning_rate = 1e-2
precision = "float64"
"""


def run(program, *arguments, ranks=1):
    line = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", ranks, program, *arguments]
    done = subprocess.run([str(part) for part in line], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, line))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


def outcome(folder):
    """Returns losses [steps], gradient norms [steps] and {parameter: array} of the last checkpoint."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    weights = {}
    for path in (folder / "checkpoints" / f"step-{STEPS:09}").glob("*.h5"):
        with h5py.File(path) as file:
            for name, item in file["model"].items():
                weights[name] = item[()]
    return np.array([r["loss"] for r in log]), np.array([r["grad_norm"] for r in log]), weights


def off(mine, one):
    """Returns the largest relative difference of losses and gradient norms, and that of weights (ratio of norms)."""
    assert mine[2].keys() == one[2].keys(), mine[2].keys() ^ one[2].keys()
    weights = max(np.linalg.norm(a - one[2][name]) / max(np.linalg.norm(one[2][name]), 1e-3)
                  for name, a in mine[2].items())
    return max(abs(mine[0] / one[0] - 1).max(), abs(mine[1] / one[1] - 1).max()), weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laterna", type=Path, default=ROOT / "build" / "laterna")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.toml").write_text(CONFIG)
        run(options.laterna, "data", "make", "glyphs", "--size", 8, "--count", 40, "--output", folder / "glyphs")
        bad = 0
        for candidates, selected in (2, 1), (3, 2), (5, 2), (7, 3):
            one = None
            for expert in 1, 2, 3, 4, 7:
                for data in 1, 2:
                    micro = 0 if data == 1 else 2
                    where = folder / f"{candidates}-{expert}-{data}"
                    settings = {"data.path": folder / "glyphs", "model.candidates": candidates,
                                "model.selected": selected, "parallel.expert": expert, "training.micro_batch": micro}
                    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
                    run(options.laterna, "train", "--config", folder / "config.toml", "--run", where, *flags,
                        ranks=expert * data)
                    mine = outcome(where)
                    one = one or mine
                    losses, weights = off(mine, one)
                    good = max(losses, weights) <= LIMIT
                    bad += not good
                    print(f"N {candidates} k {selected}  EP {expert} x DP {data}  losses {losses:.1e}  "
                          f"weights {weights:.1e}  {'ok' if good else 'FAILED'}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
