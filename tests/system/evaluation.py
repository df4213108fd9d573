"""Evaluation of the images that a run makes: the `evaluate` command, and evaluations during training."""

import json
import re
import shutil
import signal
import unittest

import h5py
import numpy as np
import torch

import features
from command import (
    ENVIRONMENT, EVALUATION, FAILURE, INPUT, STOPPED, USAGE, Case, checkpoints, evaluations_of, flip_byte, glyphs,
    glyphs_network, glyphs_with_network, heartbeats_of, last_step, laterna,
)
from noise import noise_like


def effective_classes(counts):
    shares = counts[counts > 0] / counts.sum()
    return np.exp(-(shares * np.log(shares)).sum())


class TakesBlackImagesOnly(torch.nn.Module):
    def forward(self, x):
        if bool(x.any()):
            raise RuntimeError("an image that is not black")
        return torch.zeros(x.size(0), 8)


class Slow(torch.nn.Module):
    """An extractor that takes a few tenths of a second for each chunk."""

    def forward(self, x):
        a = torch.ones(400, 400)
        for _ in range(200):
            a = a.mm(a) / 400
        return x.float().flatten(1)[:, :8] + a[0, 0]


class Means(torch.nn.Module):
    def forward(self, x):
        return x.float().view(-1, 8, 4, 2).mean(dim=[1, 3])


def many_glyphs():
    """A data set of 100 chunks: a feature extractor takes 64 images at a time."""
    return glyphs(count=6400)


class Evaluated(Case):
    def setUp(self):
        super().setUp()
        self.run_folder = self.folder / "run"
        self.data = glyphs_with_network(self.folder / "data")
        self.values = {**EVALUATION, "data.path": self.data}

    def figures(self, *arguments, **options):
        found = json.loads(self.run_laterna("evaluate", *arguments, **options).out.splitlines()[-1])
        self.assertGreater(found.pop("images_per_second"), 0)
        return found


class InTraining(Evaluated):
    def best(self):
        return json.loads((self.run_folder / "checkpoints" / "best.json").read_text())

    def kept(self):
        return {int(path.name[-9:]) for path in checkpoints(self.run_folder)}

    def test_best_checkpoint_is_recorded_and_kept(self):
        values = {**self.values, "evaluation.every": 10, "checkpoint.keep": 1, "training.steps": 40}
        self.train(self.run_folder, ranks=2, **values)
        found = evaluations_of(self.run_folder)
        self.assertEqual(sorted(found), [10, 20, 30, 40])
        best = min(found, key=lambda step: found[step]["fid"])
        self.assertEqual((self.best()["step"], self.best()["fid"]), (best, found[best]["fid"]))
        self.assertEqual(self.kept(), {best, 40})
        for step in (best, 40):  # `evaluate` finds what training has logged
            again = self.figures("--run", self.run_folder, "--step", step)
            self.assertEqual(again, {key: found[step][key] for key in again})
        shown = self.run_laterna("inspect", "--run", self.run_folder).out
        self.assertIn(f"FID          {found[40]['fid']:.3f}", shown)
        self.assertIn(f"the best, {found[best]['fid']:.3f}, at step {best}", shown)

    def test_best_checkpoint_outlives_worse_ones(self):
        values = {**self.values, "evaluation.every": 10, "checkpoint.keep": 1}
        self.train(self.run_folder, **values, training__steps=10)
        file = self.run_folder / "checkpoints" / "best.json"
        unbeaten = {**self.best(), "fid": 1e-9}
        file.write_text(json.dumps(unbeaten))
        self.train(self.run_folder, **values, training__steps=30)
        self.assertEqual(self.best(), unbeaten)
        self.assertEqual(self.kept(), {10, 30})
        # With another number of samples, FIDs are not compared with those before: step 40 becomes the best.
        self.train(self.run_folder, **{**values, "evaluation.samples": 160}, training__steps=40)
        self.assertEqual(self.best()["step"], 40)
        self.assertEqual(self.kept(), {40})

    def test_does_not_change_training(self):
        plain = self.folder / "plain"
        self.train(self.run_folder, ranks=2, **self.values, evaluation__every=5, training__steps=15)
        self.train(plain, ranks=2, **self.values, training__steps=15)
        self.assert_same_run(self.run_folder, plain)

    def test_failure_is_a_warning(self):
        network, reference = self.folder / "network.pt", self.folder / "reference.npz"
        torch.jit.script(TakesBlackImagesOnly()).save(network)
        np.savez(reference, mu=np.zeros(8), sigma=np.eye(8))
        names = {"evaluation.extractor": network, "evaluation.reference": reference}
        training = self.start(self.run_folder, ranks=2, **self.values, **names, evaluation__every=10)
        training.at_step(25)
        back = b"between two operations of training"
        training.until(lambda: back in heartbeats_of(self.run_folder), "return from the evaluation")
        shown = self.run_laterna("inspect", "--run", self.run_folder).out
        self.assertIn("no evaluation", shown)
        self.run_laterna("stop", "--run", self.run_folder)
        result = training.wait()
        self.assertEqual(result.status, STOPPED, result.text)
        self.assertIn(f"no evaluation: step 10: {network}: fails on a chunk", result.text)
        self.assertEqual(evaluations_of(self.run_folder), {})

    def test_stop_during_an_evaluation(self):
        values = {**self.values, "evaluation.every": 10, "training.steps": 20}
        slow = {"sampling.sampler": "ddpm", "sampling.steps": 1000, "evaluation.samples": 100000}  # takes hours
        training = self.start(self.run_folder, ranks=2, **{**values, **slow})
        training.until(lambda: checkpoints(self.run_folder), "checkpoint that is evaluated")
        self.run_laterna("stop", "--run", self.run_folder)
        self.assertEqual(training.wait().status, STOPPED)
        self.assertEqual(last_step(self.run_folder), 10)
        self.assertEqual(evaluations_of(self.run_folder), {})
        self.train(self.run_folder, ranks=1, **values)  # evaluates step 10 first, then resumes
        self.assertEqual(sorted(evaluations_of(self.run_folder)), [10, 20])
        # Each checkpoint has its step's number, also the one that the first evaluation of the resumed run saves.
        self.assertEqual(self.kept(), {10, 20})

    def test_stop_while_the_reference_is_read(self):
        network = self.folder / "network.pt"
        torch.jit.script(Slow()).save(network)
        names = {"evaluation.extractor": network, "evaluation.reference": many_glyphs()}
        training = self.start(self.run_folder, ranks=2, **self.values, **names, evaluation__every=10)
        training.until(lambda: b"features of a data set" in heartbeats_of(self.run_folder), "reading of the reference")
        self.assertIn("features of a data set", self.run_laterna("inspect", "--run", self.run_folder).out)
        self.run_laterna("stop", "--run", self.run_folder)
        result = training.wait()
        self.assertEqual(result.status, STOPPED, result.text)
        self.assertIn("before training began", result.out)
        self.assertEqual(list(many_glyphs().glob("statistics-*")), [])

    def test_an_evaluation_that_ends_the_job_twice_is_not_begun_again(self):
        values = {**self.values, "evaluation.every": 10, "evaluation.samples": 4000, "training.steps": 12}
        for attempt in (1, 2):
            training = self.start(self.run_folder, **values)
            begun, says = self.run_folder / "evaluation-begun", f"10 {attempt}\n"
            training.until(lambda begun=begun, says=says: begun.exists() and begun.read_text() == says, "evaluation")
            training.signal(signal.SIGKILL)
            training.wait()
        result = self.train(self.run_folder, **values)
        self.assertIn("no evaluation: step 10: the job ended 2 times in this evaluation", result.err)
        self.assertEqual((last_step(self.run_folder), evaluations_of(self.run_folder)), (12, {}))

    def test_errors_show_before_the_first_step(self):
        (self.data / "features.h5").unlink()
        wrong = [
            ({}, INPUT, [self.data / "features.h5", "features train"]),
            ({"evaluation.extractor": glyphs_network(), "evaluation.samples": 64}, USAGE, ["evaluation.samples", "64"]),
            ({"evaluation.extractor": glyphs_network(), "evaluation.samples": 19}, USAGE, ["evaluation.samples", "20"]),
            ({"evaluation.extractor": glyphs_network(), "evaluation.reference": "nowhere"}, INPUT, ["nowhere"]),
            ({"evaluation.reference": "nowhere"}, INPUT, ["nowhere", "no such data set"]),
            ({"evaluation.reference": "statistics.npz"}, USAGE, ["statistics.npz", "evaluation.extractor"]),
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
            glyphs_with_network(self.data)
            figures = self.figures(
                "--run", self.run_folder, "--output", output, "--set", "sampling.chunk=70", ranks=ranks
            )
            (cache,) = self.data.glob("statistics-*.npz")
            found.append((figures, output.read_bytes(), cache.read_bytes()))
        for other in found[1:]:
            self.assertEqual(found[0], other)
        self.assertEqual(found[0][0]["samples"], 150)

    def test_images_give_same_bits_on_any_number_of_threads(self):
        found = []
        for ranks, threads in ((0, 1), (0, 2), (0, 3), (2, 2)):
            environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
            reference = glyphs_with_network(self.folder / f"{ranks}-{threads}")
            output = self.folder / f"{ranks}-{threads}.npz"
            figures = self.figures("--images", many_glyphs(), "--reference", reference, "--output", output,
                                   ranks=ranks, env=environment)
            (cache,) = reference.glob("statistics-*.npz")
            found.append((figures, output.read_bytes(), cache.read_bytes()))
        for other in found[1:]:
            self.assertEqual(found[0], other)

    def test_statistics(self):
        """NumPy reads the statistics that the program writes, and the program reads those that NumPy writes."""
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
        self.assertLess(itself["fid"], 1e-9 * made)  # not 0: rounding differs between processors
        self.assertEqual((itself["precision"], itself["recall"]), (1, 1))

    def test_named_share(self):
        """The named share is reported beside that of the network's test images; noise falls into fewer classes."""
        reference, digits = self.folder / "digits", features.digits(500, 3)
        shutil.copytree(features.digits(4000, 1), reference)
        shutil.copy(features.network(), reference / "features.h5")
        noise = noise_like(digits, self.folder / "noise")
        with h5py.File(features.network()) as file:
            assigned, named = file["test/assigned"][()], file["test/named"][()]
        real = {"named_share_real": named.sum() / 500, "effective_classes_real": effective_classes(assigned)}
        found = {}
        for images in digits, noise:
            out = self.run_laterna("evaluate", "--images", images, "--reference", reference, ranks=2).out
            figures = json.loads(out.splitlines()[-1])
            classify = ["features", "classify", "--features", features.network(), "--data", images]
            alone = json.loads(self.run_laterna(*classify).out.splitlines()[-1])
            for name in "named_share", "effective_classes":
                self.assertEqual(figures[name], alone[name])
            for name, value in real.items():
                self.assertAlmostEqual(figures[name], value, delta=1e-12)
            self.assertRegex(out, rf"named +{figures['named_share']:.4f} .* real images \(glyphs seed-2\) "
                                  rf"{real['named_share_real']:.4f}\n")
            for counts, label in (np.array(alone["class_assigned"]), "in each"), (assigned, "of real"):
                (row,) = re.findall(rf"{label}, % +(.*)", out)
                self.assertEqual(row.split(), [f"{100 * count / 500:.1f}" for count in counts])
            self.assertIn("a proxy", out)
            found[images] = figures
        self.assertGreater(found[digits]["named_share"], 0.9)
        self.assertGreater(real["named_share_real"], 0.9)
        self.assertGreater(found[digits]["effective_classes"], 9)
        self.assertLess(found[noise]["effective_classes"], 5)

    def test_network_that_is_no_classifier(self):
        network = self.folder / "network.pt"
        torch.jit.script(Means()).save(network)
        images = ["--images", glyphs(seed=2), "--reference", self.data]
        out = self.run_laterna("evaluate", *images, "--extractor", network).out
        found = json.loads(out.splitlines()[-1])
        for name in "named_share", "named_share_real", "effective_classes", "effective_classes_real":
            self.assertIsNone(found[name])
        self.assertIn("the network is not a classifier", out)

    def test_statistics_of_other_data_or_another_network(self):
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
        network = self.data / "features.h5"
        self.refuses(*refused, "--reference", other, "--extractor", network, status=INPUT, says=[other])

    def test_damaged_reference(self):
        shard = self.data / "shard-00000.h5"
        with h5py.File(shard) as file:
            offset = file["images"].id.get_offset()
        flip_byte(shard, offset + 99)
        self.refuses("evaluate", "--run", self.run_folder, status=INPUT, says=[shard, "damaged"], ranks=2)
        self.assertEqual(list(self.data.glob("statistics-*")), [])

    def test_reference_of_wrong_image_size(self):
        other = glyphs(size=16)
        self.refuses("evaluate", "--run", self.run_folder, "--reference", other, status=INPUT,
                     says=[other, "1x16x16", "1x8x8"])

    def test_output_that_cannot_be_written(self):
        output = self.folder / "none" / "statistics.npz"
        self.refuses("evaluate", "--run", self.run_folder, "--output", output, status=FAILURE, says=[output])
        self.assertEqual(list(self.data.glob("statistics-*")), [])  # the error came before any statistics were computed

    def test_too_few_images(self):
        few = ["--run", self.run_folder, "--samples", 64]
        self.refuses("evaluate", *few, status=USAGE, says=["64", "--force"])
        self.refuses("evaluate", "--run", self.run_folder, "--samples", 19, "--force", status=USAGE, says=["19", "20"])
        self.assertEqual(self.figures(*few, "--force")["samples"], 64)

    def test_incompatible_flags(self):
        for flags in ([], ["--run", "a", "--images", "b"], ["--statistics", "a"], ["--images", self.data],
                      ["--statistics", "a", "b", "--run", "c"], ["--images", self.data, "--samples", 5]):
            self.assertEqual(laterna("evaluate", *flags).status, USAGE, flags)


if __name__ == "__main__":
    unittest.main()
