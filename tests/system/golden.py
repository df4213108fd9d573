"""Golden losses: twenty float64 steps of three configurations must reproduce stored losses and gradient norms.

A change that is not meant to alter the mathematics must reproduce them to a relative 1e-12 on any instruction set and
compiler. A change that is meant to alter them stores new values with `golden.py --write`, and its commit says why.
"""

import json
import sys
import unittest
from pathlib import Path

from command import Case, losses_of

STORED = Path(__file__).with_name("golden_losses.json")
STEPS, LIMIT = 20, 1e-12
CASES = {  # name: (settings that override command.TINY, ranks)
    "paper": ({"training.batch": 4}, 1),
    "lateral": (
        {"model.candidates": 5, "model.spiking_steps": 3, "model.depth": 4, "model.gamma_start": 0.7,
         "parallel.expert": 2, "training.weighting": "min_snr"}, 2,
    ),
    "variants": (
        {"model.selection": "tail", "model.surrogate": "arctangent", "model.hidden_ratio": 2, "model.patch": 4,
         "data.flip": "true", "training.decay": 0.5, "training.clip_norm": 0.1}, 3,
    ),
}


class Losses(Case):
    def steps_of(self, name):
        values, ranks = CASES[name]
        always = {"training.steps": STEPS, "training.precision": "float64", "training.learning_rate": 1e-2}
        self.train(self.folder / name, ranks=ranks, **always, **values)
        return losses_of(self.folder / name)

    def check(self, name):
        found, stored = self.steps_of(name), json.loads(STORED.read_text())[name]
        self.assertEqual([step for step, *_ in found], list(range(1, STEPS + 1)))
        self.assertEqual(len(stored), STEPS)
        for (step, *values), expected in zip(found, stored):
            for what, value, other in zip(("loss", "gradient norm"), values, expected):
                self.assertLess(abs(value / other - 1), LIMIT, f"{what} of step {step}: {value!r}, stored {other!r}")

    def test_paper(self):
        self.check("paper")

    def test_lateral(self):
        self.check("lateral")

    def test_variants(self):
        self.check("variants")


def write():
    case = Losses()
    case.setUp()
    found = {name: [values for _, *values in case.steps_of(name)] for name in CASES}
    case.doCleanups()
    rows = [f'"{name}": [\n' + ",\n".join(map(json.dumps, values)) + "\n]" for name, values in found.items()]
    STORED.write_text("{" + ",\n".join(rows) + "}\n")


if __name__ == "__main__":
    write() if sys.argv[1:] == ["--write"] else unittest.main()
