"""The outputs of the program: samples, exported models, what denoise and inspect answer, drawn data sets."""

import hashlib
import re
import shutil
import unittest

import h5py
import numpy as np

import nearest
from command import USAGE, Case, attribute, glyphs, settings, shared, tensors
from pictures import read_png

SHORT = {"sampling.sampler": "ddim", "sampling.steps": 5, "sampling.count": 10, "sampling.chunk": 4}


class Trained(Case):
    def setUp(self):
        super().setUp()
        self.run_folder = shared("trained", lambda run: self.train(run, training__steps=40))

    def sample(self, *flags, ranks=0, **values):
        """Runs `sample` with the settings SHORT and `values`; returns the output folder."""
        output = self.folder / f"samples-{len(list(self.folder.iterdir()))}"
        keys = {key.replace("__", "."): value for key, value in values.items()}
        self.run_laterna(
            "sample", "--run", self.run_folder, "--output", output, *settings({**SHORT, **keys}), *flags, ranks=ranks
        )
        return output

    def images(self, *flags, **options):
        return tensors(self.sample(*flags, **options) / "images.h5")["images"]


class Samples(Trained):
    def test_shard(self):
        with h5py.File(self.sample() / "images.h5") as file:
            images = file["images"]
            self.assertEqual((images.shape, images.dtype), ((10, 1, 8, 8), np.uint8))
            self.assertIsNotNone(images.id.get_offset())
            self.assertIsNone(images.chunks)
            self.assertEqual((attribute(file, "format"), file.attrs["version"]), ("laterna-images", 1))
            self.assertEqual(attribute(file, "sha256"), hashlib.sha256(images[:].tobytes()).hexdigest())
            self.assertEqual(file.attrs["step"], 40)
            self.assertGreater(images[:].std(), 1)

    def test_grid_shows_the_images(self):
        folder = self.sample()
        images, grid = tensors(folder / "images.h5")["images"], read_png(folder / "grid.png")
        scale = 8  # an image of 8 pixels becomes 64 pixels high
        cell = scale * 8 + 2
        for i, image in enumerate(images):
            y, x = cell * (i // 4), cell * (i % 4)
            found = [
                grid[y + dy :, x + dx :][:64, :64][scale // 2 :: scale, scale // 2 :: scale]
                for dy in (0, 2)
                for dx in (0, 2)
            ]
            self.assertTrue(any(np.array_equal(part, image[0]) for part in found), f"image {i} is not in the grid")

    def test_same_images_again(self):
        np.testing.assert_array_equal(self.images(), self.images())

    def test_same_images_from_two_ranks(self):
        np.testing.assert_array_equal(self.images(), self.images(ranks=2))

    def test_same_images_from_more_ranks_than_chunks(self):
        np.testing.assert_array_equal(self.images(), self.images(ranks=4))

    def test_larger_count_begins_with_the_same_images(self):
        np.testing.assert_array_equal(self.images(), self.images(sampling__count=17)[:10])

    def test_seed_changes_the_images(self):
        self.assertFalse(np.array_equal(self.images(), self.images(sampling__seed=1)))

    def test_every_sampler(self):
        found = [self.images(sampling__sampler=name) for name in ("ddpm", "ddim", "dpm-solver++")]
        self.assertFalse(np.array_equal(found[0], found[1]) or np.array_equal(found[1], found[2]))

    def test_raw_weights(self):
        self.assertFalse(np.array_equal(self.images(), self.images("--raw")))

    def test_older_step(self):
        self.assertFalse(np.array_equal(self.images(), self.images("--step", 28)))

    def test_strip(self):
        folder = self.sample("--strip", sampling__steps=20)
        strip = read_png(folder / "strip.png")
        self.assertGreater(strip.shape[1], strip.shape[0])
        read_png(folder / "grid.png")

    def test_no_strip_unless_asked(self):
        self.assertFalse((self.sample() / "strip.png").exists())

    def test_strip_of_few_steps(self):
        for steps in (1, 2, 5):
            with self.subTest(steps):
                read_png(self.sample("--strip", sampling__steps=steps) / "strip.png")

    def test_default_output_is_in_the_run_folder(self):
        self.addCleanup(shutil.rmtree, self.run_folder / "samples")
        self.run_laterna("sample", "--run", self.run_folder, *settings(SHORT))
        read_png(self.run_folder / "samples" / "step-000000040" / "grid.png")

    def test_model_settings_are_refused(self):
        self.refuses(
            "sample",
            "--run",
            self.run_folder,
            "--set",
            "model.spiking_steps=3",
            status=USAGE,
            says=["model.spiking_steps"],
        )

    def test_every_precision(self):
        for precision in ("float64", "bfloat16"):
            with self.subTest(precision):
                self.run_folder = self.folder / precision
                self.train(self.run_folder, training__steps=10, training__precision=precision)
                self.assertGreater(self.images().std(), 1)

    def test_colour(self):
        colour = self.folder / "colour"
        self.run_laterna("data", "make", "glyphs", "--size", 8, "--count", 16, "--colour", "--output", colour)
        self.run_folder = self.folder / "run"
        self.train(self.run_folder, training__steps=5, model__channels=3, data__path=colour)
        folder = self.sample()
        self.assertEqual(tensors(folder / "images.h5")["images"].shape, (10, 3, 8, 8))
        self.assertEqual(read_png(folder / "grid.png").shape[2], 3)


class Exports(Trained):
    def exported(self, *flags):
        path = self.folder / "model.h5"
        self.run_laterna("export", "--run", self.run_folder, "--output", path, *flags)
        return path

    def denoised(self, *flags, ranks=0):
        random = np.random.default_rng(0)
        x, noise = random.standard_normal((2, 5, 1, 8, 8), np.float32)
        with h5py.File(self.folder / "input.h5", "w") as file:
            file["x"], file["t"], file["noise"] = x, np.array([0, 10, 500, 998, 999]), noise
        self.run_laterna(
            "denoise",
            "--model",
            self.exported(),
            "--input",
            self.folder / "input.h5",
            "--output",
            self.folder / "output.h5",
            *flags,
            ranks=ranks,
        )
        return tensors(self.folder / "output.h5")

    def test_holds_the_averaged_weights(self):
        checkpoint = tensors(self.run_folder / "checkpoints" / "step-000000040" / "rank-00000.h5")
        for flags, group in ([], "average"), (["--raw"], "model"):
            weights = tensors(self.exported(*flags))
            for name, array in weights.items():
                self.assertEqual(array.dtype, np.float32)
                np.testing.assert_array_equal(array, checkpoint[name.replace("model", group, 1)])
            self.assertEqual(len(weights), sum(name.startswith(group) for name in checkpoint))

    def test_holds_the_configuration(self):
        with h5py.File(self.exported()) as file:
            self.assertIn("width = 16", attribute(file, "config"))

    def test_denoise(self):
        out = self.denoised()
        self.assertEqual((out["epsilon"].shape, out["epsilon"].dtype), ((5, 1, 8, 8), np.float32))
        self.assertTrue(np.isfinite(out["epsilon"]).all())
        self.assertGreater(out["epsilon"].std(), 0.01)
        np.testing.assert_array_equal(out["selection/layer"], [0, 1])
        self.assertEqual(out["selection/mask"].dtype, np.uint8)
        np.testing.assert_array_equal(out["selection/mask"].sum(-1), np.full((2, 2, 5), 2))
        self.assertFalse(any(name.startswith("gradient") for name in out))

    def test_denoise_with_gradients(self):
        out = self.denoised("--gradients")
        gradients = {
            name.removeprefix("gradient/"): array for name, array in out.items() if name.startswith("gradient/")
        }
        weights = {name.removeprefix("model/"): array for name, array in tensors(self.exported()).items()}
        self.assertEqual(
            {name: array.shape for name, array in gradients.items()},
            {name: array.shape for name, array in weights.items()},
        )
        self.assertTrue(all(np.isfinite(array).all() for array in gradients.values()))
        self.assertGreater(np.abs(gradients["head.bias"]).max(), 0)

    def test_denoise_on_ranks(self):
        """In chunks of 2, epsilon and selections are equal bit for bit, and gradients up to the order of summation."""
        model = self.exported()
        with h5py.File(model, "r+") as file:
            config, changed = re.subn(r"\bchunk = \d+", "chunk = 2", attribute(file, "config"))
            self.assertEqual(changed, 1)
            file.attrs["config"] = config
        self.exported = lambda: model
        one = self.denoised("--gradients", "--precision", "float64")
        for ranks in 2, 4:  # with 3 chunks, one of 4 ranks has none
            out = self.denoised("--gradients", "--precision", "float64", ranks=ranks)
            self.assertEqual(out.keys(), one.keys())
            for name, array in out.items():
                if name.startswith("gradient/"):
                    np.testing.assert_allclose(array, one[name], rtol=1e-10, atol=1e-14)
                else:
                    np.testing.assert_array_equal(array, one[name])

    def test_denoise_with_spikes_refuses_mpirun(self):
        model = self.exported()
        self.refuses(
            "denoise", "--model", model, "--input", model, "--output", self.folder / "output.h5", "--spikes",
            ranks=2, status=USAGE, says=["denoise --spikes", "without mpirun"],
        )

    def test_denoise_in_float64(self):
        self.assertEqual(self.denoised("--precision", "float64")["epsilon"].dtype, np.float64)

    def test_denoise_in_bfloat16(self):
        out = self.denoised("--precision", "bfloat16")
        self.assertEqual(out["epsilon"].dtype, np.float32)
        self.assertTrue(np.isfinite(out["epsilon"]).all())


class Inspect(Trained):
    def test_run(self):
        out = self.run_laterna("inspect", "--run", self.run_folder).out
        for part in (
            self.run_folder,
            "40 of 40 steps",
            "width 16",
            "step 28",
            "step 35",
            "step 40",
            "groups of 1 rank(s)",
            "candidates by layer 0,1,2 | 0,1,2",
            "layer 0",
            "gamma",
        ):
            self.assertIn(str(part), out)

    def test_parameters(self):
        out = self.run_laterna("inspect", "--run", self.run_folder, "--parameters").out
        for part in ("head.weight", "blocks.1.router.lateral.aggregation", "3x3"):
            self.assertIn(part, out)

    def test_spikes(self):
        out = self.run_laterna("inspect", "--run", self.run_folder, "--spikes").out
        table = re.findall(r"^ +\d" + r" +([\d.]+)%" * 7 + r" +(\S+)$", out, re.MULTILINE)
        self.assertEqual(len(table), 2, out)
        rates = [[float(rate) for rate in row[:-1]] for row in table]
        self.assertTrue(all(0 <= rate < 60 for row in rates for rate in row) and all(row[0] > 1 for row in rates), out)
        operations = float(re.search(r"([\d.e+]+) synaptic operations", out)[1])
        self.assertLess(abs(operations - sum(float(row[-1]) for row in table)), 0.01 * operations)
        self.assertIn("moving data, which often costs more, is left out", out)

    def test_data(self):
        out = self.run_laterna("data", "inspect", glyphs(), "--picture", self.folder / "picture.png").out
        for part in ("64 of 1x8x8", "checksum verified"):
            self.assertIn(part, out)
        read_png(self.folder / "picture.png")


class Drawn(Case):
    def make(self, name, *flags, seed=5, count=30):
        folder = self.folder / name
        self.run_laterna(
            "data", "make", "glyphs", "--size", 8, "--count", count, "--seed", seed, "--output", folder, *flags
        )
        with h5py.File(folder / "shard-00000.h5") as file:
            return file["images"][:], file["labels"][:]

    def test_images_depend_on_the_seed_only(self):
        (images, labels), (others, other_labels) = self.make("one"), self.make("two")
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, other_labels)
        self.assertEqual(
            (self.folder / "one" / "dataset.json").read_text(), (self.folder / "two" / "dataset.json").read_text()
        )
        self.assertFalse(np.array_equal(images, self.make("three", seed=6)[0]))

    def test_larger_count_begins_with_the_same_images(self):
        np.testing.assert_array_equal(self.make("few")[0], self.make("many", count=50)[0][:30])

    def test_classes_are_balanced(self):
        self.assertEqual(np.bincount(self.make("set")[1]).tolist(), [3] * 10)

    def test_colour(self):
        self.assertEqual(self.make("set", "--colour")[0].shape, (30, 3, 8, 8))


class Nearest(Case):
    def test_copies_are_found(self):
        known = nearest.pixels_of(glyphs())
        samples = np.stack([255 - known[7], known[23], known[5] // 2])
        distances, places = nearest.nearest(samples, known, 3)
        self.assertEqual((distances[1, 0], places[1, 0]), (0, 23))
        wanted = ((samples[:, None].astype(float) - known) ** 2).mean(axis=(2, 3, 4)) ** 0.5
        self.assertEqual(places[[0, 2], 0].tolist(), wanted.argmin(axis=1)[[0, 2]].tolist())
        self.assertLess(abs(distances - np.sort(wanted, axis=1)[:, :3]).max(), 1e-3)
        drawn = nearest.picture([[sample, *known[row]] for sample, row in zip(samples, places)])
        self.assertEqual(drawn.shape, (4 * 8 + 6 + 3 * 2, 3 * (8 + 2)))


if __name__ == "__main__":
    unittest.main()
