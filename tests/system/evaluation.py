"""How good a run's images are: `evaluate`, and evaluations inside training."""

import json
import shutil
import unittest

import numpy as np

from command import (
    INPUT, STOPPED, USAGE, Case, checkpoints, flip_byte, glyphs, glyphs_network, last_step, laterna, log_of,
)

# Small enough for a test, and more images than the network has features.
SETTINGS = {
    "evaluation.samples": 150, "sampling.sampler": "ddim", "sampling.steps": 4, "sampling.chunk": 40,
    "checkpoint.every": 0,
}


def with_network(folder):
    """A data set of digits whose folder has its own network, for a test to change."""
    shutil.copytree(glyphs(), folder)
    for cache in folder.glob("statistics-*"):
        cache.unlink()
    shutil.copy(glyphs_network(), folder / "features.h5")
    return folder


def evaluations(run):
    return {line["step"]: line["evaluation"] for line in log_of(run) if "evaluation" in line}


class Evaluated(Case):
    def setUp(self):
        super().setUp()
        self.run_folder = self.folder / "run"
        self.data = with_network(self.folder / "data")
        self.values = {**SETTINGS, "data.path": self.data}

    def figures(self, *arguments, ranks=0):
        found = json.loads(self.run_laterna("evaluate", *arguments, ranks=ranks).out.splitlines()[-1])
        self.assertGreater(found.pop("images_per_second"), 0)
        return found


class InTraining(Evaluated):
    def test_finds_the_best_and_keeps_it(self):
        values = {**self.values, "evaluation.every": 10, "checkpoint.keep": 1, "training.steps": 40}
        self.train(self.run_folder, ranks=2, **values)
        found = evaluations(self.run_folder)
        self.assertEqual(sorted(found), [10, 20, 30, 40])
        best = min(found, key=lambda step: found[step]["fid"])
        kept = json.loads((self.run_folder / "checkpoints" / "best.json").read_text())
        self.assertEqual(kept, {"step": best, "fid": found[best]["fid"]})
        self.assertEqual({int(path.name[-9:]) for path in checkpoints(self.run_folder)}, {best, 40})
        for step in (best, 40):  # what training found is what anybody finds
            again = self.figures("--run", self.run_folder, "--step", step)
            self.assertEqual(again, {key: found[step][key] for key in again})
        shown = self.run_laterna("inspect", "--run", self.run_folder).out
        self.assertIn(f"FID          {found[40]['fid']:.3f}", shown)
        self.assertIn(f"the best, {found[best]['fid']:.3f}, at step {best}", shown)

    def test_changes_nothing_in_training(self):
        plain = self.folder / "plain"
        self.train(self.run_folder, **self.values, evaluation__every=5, training__steps=15)
        self.train(plain, **self.values, training__steps=15)
        losses = [[line["loss"] for line in log_of(run) if "loss" in line] for run in (self.run_folder, plain)]
        self.assertEqual(*losses)

    def test_stop_during_an_evaluation(self):
        values = {**self.values, "evaluation.every": 10, "training.steps": 20}
        slow = {"sampling.sampler": "ddpm", "sampling.steps": 1000}
        training = self.start(self.run_folder, ranks=2, **{**values, **slow})
        training.until(lambda: checkpoints(self.run_folder), "checkpoint that is evaluated")
        self.run_laterna("stop", "--run", self.run_folder)
        self.assertEqual(training.wait().status, STOPPED)
        self.assertEqual(last_step(self.run_folder), 10)
        self.assertEqual(evaluations(self.run_folder), {})
        self.train(self.run_folder, ranks=1, **values)  # has it before it goes on
        self.assertEqual(sorted(evaluations(self.run_folder)), [10, 20])
        # Each step is saved under its own number, also what the evaluation of a resumed run asks for.
        self.assertEqual([path.name[-2:] for path in checkpoints(self.run_folder)], ["10", "20"])

    def test_what_is_wrong_shows_before_the_first_step(self):
        (self.data / "features.h5").unlink()
        wrong = [
            ({}, INPUT, [self.data / "features.h5", "features train"]),
            ({"evaluation.extractor": glyphs_network(), "evaluation.samples": 64}, USAGE, ["evaluation.samples", "64"]),
            ({"evaluation.extractor": glyphs_network(), "evaluation.reference": "nowhere"}, INPUT, ["nowhere"]),
        ]
        for changes, status, says in wrong:
            config = self.config(**{**self.values, "evaluation.every": 5, **changes})
            self.refuses("train", *config, "--run", self.run_folder, status=status, says=says, ranks=2)
            self.assertFalse((self.run_folder / "log.jsonl").exists())


class Evaluate(Evaluated):
    def setUp(self):
        super().setUp()
        values = {**self.values, "training.steps": 20}
        self.train(self.run_folder, **values)

    def test_same_bits_on_any_number_of_ranks(self):
        found = []
        for ranks in (0, 1, 2, 3):
            output = self.folder / f"{ranks}.npz"
            shutil.rmtree(self.data)
            with_network(self.data)
            figures = self.figures("--run", self.run_folder, "--output", output, ranks=ranks)
            (cache,) = self.data.glob("statistics-*.npz")
            found.append((figures, output.read_bytes(), cache.read_bytes()))
        for other in found[1:]:
            self.assertEqual(found[0], other)
        self.assertEqual(found[0][0]["samples"], 150)

    def test_statistics(self):
        """Ours are read by numpy, and theirs by us."""
        ours, theirs = self.folder / "ours.npz", self.folder / "theirs.npz"
        figures = self.figures("--run", self.run_folder, "--output", ours)
        (cache,) = self.data.glob("statistics-*.npz")
        found = json.loads(self.run_laterna("evaluate", "--statistics", ours, cache).out.splitlines()[-1])
        self.assertAlmostEqual(found["fid"] / figures["fid"], 1, delta=1e-12)
        with np.load(cache) as file:
            self.assertEqual(file["mu"].shape, (64,))
            np.savez(theirs, mu=file["mu"], sigma=file["sigma"])
        self.assertEqual(self.figures("--run", self.run_folder, "--reference", theirs, "--extractor",
                                      self.data / "features.h5")["fid"], figures["fid"])

    def test_real_images_are_nearer_than_made_ones(self):
        made = self.figures("--run", self.run_folder)["fid"]
        others = self.figures("--images", glyphs(seed=2), "--reference", self.data, "--force")["fid"]
        self.assertLess(others, made / 10)
        itself = self.figures("--images", glyphs(), "--reference", self.data, "--force")
        self.assertEqual((itself["fid"], itself["precision"], itself["recall"]), (0, 1, 1))

    def test_statistics_of_something_else(self):
        self.figures("--run", self.run_folder)
        (cache,) = self.data.glob("statistics-*.npz")
        with np.load(cache) as file:
            facts = dict(file)
        np.savez(cache, **{**facts, "data_sha256": "0" * 64})
        refused = ["evaluate", "--run", self.run_folder]
        self.refuses(*refused, status=INPUT, says=[cache, "remove it"], ranks=2)
        flip_byte(cache, 300)
        self.refuses(*refused, status=INPUT, says=[cache])
        cache.unlink()
        self.figures("--run", self.run_folder)
        other = self.folder / "other.npz"
        np.savez(other, **{**facts, "extractor_sha256": "0" * 64})
        self.refuses(*refused, "--reference", other, "--extractor", self.data / "features.h5", status=INPUT, says=[other])

    def test_too_few_images(self):
        few = ["--run", self.run_folder, "--samples", 64]
        self.refuses("evaluate", *few, status=USAGE, says=["64", "--force"])
        self.assertEqual(self.figures(*few, "--force")["samples"], 64)

    def test_flags_that_do_not_go_together(self):
        for flags in ([], ["--run", "a", "--images", "b"], ["--statistics", "a"], ["--images", self.data],
                      ["--statistics", "a", "b", "--run", "c"], ["--images", self.data, "--samples", 5]):
            self.assertEqual(laterna("evaluate", *flags).status, USAGE, flags)


if __name__ == "__main__":
    unittest.main()
