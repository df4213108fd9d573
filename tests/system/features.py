"""The built-in feature network: trained on drawn digits, then used to classify others."""

import json
import shutil
import unittest

import h5py
import numpy as np

from command import DONE, FAILURE, INPUT, USAGE, Case, attribute, flip_byte, glyphs, laterna, shared, tensors
from noise import noise_like


def digits(count, seed):
    """The folder of a data set of 16x16 digits, large enough to tell the classes apart."""

    def make(folder):
        made = laterna(
            "data", "make", "glyphs", "--size", 16, "--count", count, "--seed", seed, "--split", f"seed-{seed}",
            "--output", folder,
        )
        assert made.status == DONE, made.text

    return shared(f"digits-{count}-{seed}", make)


def network():
    """The file of a feature network trained on 4,000 digits and tested on 500 others."""

    def make(folder):
        folder.mkdir()
        made = laterna(
            "features", "train", "--data", digits(4000, 1), "--test", digits(500, 2), "--epochs", 4,
            "--output", folder / "features.h5",
        )
        assert made.status == DONE, made.text
        (folder / "said").write_text(made.out)

    return shared("features", make) / "features.h5"


class Train(Case):
    def setUp(self):
        super().setUp()
        self.file = self.folder / "features.h5"

    def without_labels(self):
        folder = self.folder / "unlabelled"
        shutil.copytree(glyphs(), folder)
        index = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**index, "labels": False}))
        return folder

    def refuses_training(self, data, *flags, status=INPUT, says=()):
        self.refuses("features", "train", "--data", data, "--output", self.file, *flags, status=status, says=says)
        self.assertEqual(list(self.folder.glob("features.h5*")), [])

    def test_learns(self):
        with h5py.File(network()) as file:
            self.assertEqual((attribute(file, "format"), file.attrs["version"]), ("laterna-features", 2))
            self.assertEqual([file.attrs[key] for key in ("channels", "height", "width", "classes")], [1, 16, 16, 10])
            index = json.loads((digits(4000, 1) / "dataset.json").read_text())
            for key in ("name", "split", "sha256"):
                self.assertEqual(attribute(file, f"data_{key}"), index[key])
            self.assertEqual(attribute(file, "test_data"), "glyphs seed-2")
            self.assertEqual(file.attrs["test_count"], 500)
            correct = file.attrs["test_correct"]
            assigned, named = file["test/assigned"][()], file["test/named"][()]
        self.assertGreaterEqual(correct, 490)
        found = json.loads(self.run_laterna("features", "classify", "--features", network(), "--data", digits(500, 2))
                           .out.splitlines()[-1])
        self.assertEqual((found["class_assigned"], found["class_named"]), (assigned.tolist(), named.tolist()))
        self.assertIn(f"{correct / 5:.2f}%", (network().parent / "said").read_text())
        weights = {name: array for name, array in tensors(network()).items() if not name.startswith("test/")}
        self.assertTrue(all(array.dtype == np.float32 for array in weights.values()))
        self.assertEqual(tensors(network())["classes.weight"].shape, (10, 64))

    def test_same_seed_same_network(self):
        def trained(seed):
            self.run_laterna("features", "train", "--data", glyphs(), "--output", self.file, "--seed", seed)
            return self.file.read_bytes()

        self.assertEqual(trained(0), trained(0))
        self.assertNotEqual(trained(0), trained(1))

    def test_holds_out_a_tenth(self):
        made = self.run_laterna("features", "train", "--data", glyphs(), "--output", self.file)
        self.assertIn("a held-out tenth of glyphs train (6 images)", made.out)

    def test_data_without_labels(self):
        self.refuses_training(self.without_labels(), says=[self.folder / "unlabelled", "no labels"])

    def test_unsuitable_test_data(self):
        self.refuses_training(glyphs(), "--test", self.without_labels(), says=[self.folder / "unlabelled", "no labels"])
        self.refuses_training(glyphs(), "--test", digits(500, 2), says=[digits(500, 2), "1x16x16", "1x8x8"])

    def test_output_with_wrong_suffix(self):
        self.file = self.folder / "features.pt"
        self.refuses_training(glyphs(), status=USAGE, says=["--output", ".h5"])

    def test_output_in_a_missing_folder(self):
        self.file = self.folder / "none" / "features.h5"
        self.refuses_training(glyphs(), status=FAILURE, says=[self.file])


class Classify(Case):
    def classified(self, data):
        out = self.run_laterna("features", "classify", "--features", network(), "--data", data).out
        return json.loads(out.splitlines()[-1]), out

    def test_unseen_digits(self):
        found, out = self.classified(digits(500, 3))
        self.assertEqual(found["images"], 500)
        self.assertGreater(found["accuracy"], 0.98)
        self.assertGreater(found["named_share"], 0.9)
        self.assertGreater(found["mean_probability"], 0.95)
        counts = np.array(found["class_assigned"])
        self.assertEqual(counts.sum(), 500)
        self.assertAlmostEqual(sum(found["class_named"]) / 500, found["named_share"], delta=1e-12)
        self.assertLess(max(abs(counts - 50)), 10)
        entropy = -(counts / 500 * np.log(counts / 500)).sum()
        self.assertAlmostEqual(found["effective_classes"], np.exp(entropy), delta=1e-12)
        self.assertIn(f"{100 * found['named_share']:.1f}% named", out)

    def test_shard(self):
        """A shard without labels gives the same figures as its data set, except for the accuracy."""
        shard = self.folder / "images.h5"
        with h5py.File(digits(500, 3) / "shard-00000.h5") as source, h5py.File(shard, "w") as file:
            source.copy("images", file)
            for key in ("format", "version", "sha256"):
                file.attrs[key] = source.attrs[key]
        whole = self.classified(digits(500, 3))[0]
        del whole["accuracy"]
        self.assertEqual(self.classified(shard)[0], whole)
        with h5py.File(shard) as file:
            offset = file["images"].id.get_offset()
        flip_byte(shard, offset + 999)
        self.refuses(
            "features", "classify", "--features", network(), "--data", shard, status=INPUT, says=[shard, "damaged"]
        )

    def test_noise_is_not_recognised(self):
        noise = noise_like(digits(500, 3), self.folder / "noise")
        self.assertLess(self.classified(noise)[0]["accuracy"], 0.3)

    def test_images_of_wrong_shape(self):
        self.refuses(
            "features", "classify", "--features", network(), "--data", glyphs(), status=INPUT,
            says=[network(), "1x16x16", "1x8x8"],
        )

    def test_file_that_is_no_network(self):
        shard = glyphs() / "shard-00000.h5"
        self.refuses(
            "features", "classify", "--features", shard, "--data", glyphs(), status=INPUT,
            says=[shard, "features train"],
        )

    def test_file_without_images(self):
        self.refuses(
            "features", "classify", "--features", network(), "--data", network(), status=INPUT,
            says=[network(), "no images"],
        )


if __name__ == "__main__":
    unittest.main()
