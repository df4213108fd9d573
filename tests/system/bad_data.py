"""Invalid data sets and import sources: each is refused with one message that names the file, usually with status 3."""

import json
import shutil
import struct
import unittest

import h5py
import numpy as np

from command import FAILURE, INPUT, USAGE, Case, flip_byte, glyphs, truncate
from pictures import write_png


class DataSets(Case):
    def setUp(self):
        super().setUp()
        self.set = self.folder / "set"
        shutil.copytree(glyphs(), self.set)
        self.shard = self.set / "shard-00000.h5"

    def refuses_training(self, status=INPUT, says=(), **values):
        self.refuses(
            "train", *self.config(data__path=self.set, **values), "--run", self.folder / "run", status=status, says=says
        )

    def offset_of_pixels(self):
        with h5py.File(self.shard) as file:
            return file["images"].id.get_offset()

    def test_missing_folder(self):
        shutil.rmtree(self.set)
        self.refuses_training(says=[self.set])
        self.refuses("data", "inspect", self.set, status=INPUT, says=[self.set])

    def test_folder_without_index(self):
        (self.set / "dataset.json").unlink()
        self.refuses_training(says=[self.set / "dataset.json"])

    def test_damaged_index(self):
        truncate(self.set / "dataset.json")
        self.refuses_training(says=[self.set / "dataset.json"])

    def test_index_without_a_field(self):
        index = json.loads((self.set / "dataset.json").read_text())
        del index["sha256"]
        (self.set / "dataset.json").write_text(json.dumps(index))
        self.refuses_training(says=[self.set / "dataset.json", "sha256"])

    def test_image_size_differs_from_the_model(self):
        self.refuses_training(
            status=USAGE, says=["data.path", "1x8x8", "1x16x16", "model.image_size"], model__image_size=16
        )

    def test_channels_differ_from_the_model(self):
        self.refuses_training(status=USAGE, says=["data.path", "3x8x8", "model.channels"], model__channels=3)

    def test_missing_shard(self):
        self.shard.unlink()
        self.refuses_training(says=[self.shard])

    def test_truncated_shard(self):
        truncate(self.shard)
        self.refuses_training(says=[self.shard])
        self.refuses("data", "inspect", self.set, status=INPUT, says=[self.shard])

    def test_shard_that_is_not_hdf5(self):
        self.shard.write_bytes(b"not HDF5 at all" * 1000)
        self.refuses_training(says=[self.shard])

    def test_shard_from_another_data_set(self):
        shutil.copy(glyphs(seed=2) / self.shard.name, self.shard)
        self.refuses_training(says=[self.shard])

    def test_flipped_byte(self):
        flip_byte(self.shard, self.offset_of_pixels() + 1000)
        result = self.refuses("data", "inspect", self.set, status=INPUT, says=[f"laterna: {self.shard}: ", "SHA-256"])
        self.assertIn("DAMAGED", result.out)

    def test_numbers_of_labels_and_images_differ(self):
        with h5py.File(self.shard, "r+") as file:
            labels = file["labels"][:-1]
            del file["labels"]
            file["labels"] = labels
        self.refuses_training(says=[self.shard, "63", "64"])

    def test_missing_labels(self):
        with h5py.File(self.shard, "r+") as file:
            del file["labels"]
        self.refuses_training(says=[self.shard, "labels"])

    def test_make_into_an_existing_data_set(self):
        before = self.shard.read_bytes()
        self.refuses(
            "data", "make", "glyphs", "--size", 8, "--count", 8, "--output", self.set, status=FAILURE, says=[self.set]
        )
        self.assertEqual(self.shard.read_bytes(), before)


class Imports(Case):
    def setUp(self):
        super().setUp()
        self.source, self.output = self.folder / "source", self.folder / "set"
        self.source.mkdir()

    def refuses_import(self, kind, *flags, says):
        self.refuses("data", "import", kind, self.source, "--output", self.output, *flags, status=INPUT, says=says)
        self.assertFalse((self.output / "dataset.json").exists())

    def idx(self, images=6, labels=6):
        """Writes an IDX data set; returns the paths of its images file and its labels file."""
        pixels, classes = self.source / "train-images-idx3-ubyte", self.source / "train-labels-idx1-ubyte"
        pixels.write_bytes(struct.pack(">4I", 0x803, images, 8, 8) + bytes(range(64)) * images)
        classes.write_bytes(struct.pack(">2I", 0x801, labels) + bytes(labels))
        return pixels, classes

    def pictures(self):
        """Writes two folders with two PNG files each; returns the path of one of the files."""
        for name in ("cat", "dog"):
            (self.source / name).mkdir()
            for i in range(2):
                write_png(self.source / name / f"{i}.png", np.full((8, 8), 40 * i, np.uint8))
        return self.source / "dog" / "1.png"

    def test_valid_idx(self):
        self.idx()
        self.run_laterna("data", "import", "idx", self.source, "--output", self.output)
        self.assertIn("6 of 1x8x8", self.run_laterna("data", "inspect", self.output).out)

    def test_idx_missing(self):
        self.refuses_import("idx", says=[self.source, "train-images-idx3-ubyte"])

    def test_idx_labels_missing(self):
        _, labels = self.idx()
        labels.unlink()
        self.refuses_import("idx", says=[self.source, "train-labels-idx1-ubyte"])

    def test_idx_truncated(self):
        images, _ = self.idx()
        truncate(images)
        self.refuses_import("idx", says=[images, "cut short"])

    def test_idx_empty(self):
        images, _ = self.idx()
        images.write_bytes(b"")
        self.refuses_import("idx", says=[images])

    def test_idx_that_is_html(self):
        images, _ = self.idx()
        images.write_bytes(b"<html>404 not found</html>" * 20)
        self.refuses_import("idx", says=[images, "not an IDX file"])

    def test_idx_numbers_of_labels_and_images_differ(self):
        _, labels = self.idx(labels=5)
        self.refuses_import("idx", says=[labels, "5 labels", "6 images"])

    def test_valid_folder(self):
        self.pictures()
        self.run_laterna("data", "import", "folder", self.source, "--output", self.output)
        self.assertIn("0 (2)  1 (2)", self.run_laterna("data", "inspect", self.output).out)

    def test_folder_missing(self):
        self.source.rmdir()
        self.refuses_import("folder", says=[self.source])

    def test_folder_without_pictures(self):
        (self.source / "notes.txt").write_text("none here")
        self.refuses_import("folder", says=[self.source])

    def test_png_truncated(self):
        picture = self.pictures()
        truncate(picture)
        self.refuses_import("folder", says=[picture])

    def test_png_that_is_a_gif(self):
        picture = self.pictures()
        picture.write_bytes(b"GIF89a, with the name of another")
        self.refuses_import("folder", says=[picture])

    def test_png_sizes_differ(self):
        picture = self.pictures()
        write_png(picture, np.zeros((8, 10), np.uint8))
        self.refuses_import("folder", says=[picture, "8x10", "8x8"])

    def test_cifar10_missing(self):
        self.refuses_import("cifar10", says=[self.source, "data_batch_1.bin"])

    def test_cifar10_truncated(self):
        for i in range(1, 6):
            (self.source / f"data_batch_{i}.bin").write_bytes(bytes(3073 * 2))
        truncate(self.source / "data_batch_1.bin", 0.6)
        self.refuses_import("cifar10", says=[self.source / "data_batch_1.bin"])


if __name__ == "__main__":
    unittest.main()
