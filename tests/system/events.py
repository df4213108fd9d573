"""TensorBoard's reader on the event files that Laterna writes: scalars, images, and steps that a resumed run repeats.

build/tests/write_events (tests/monitoring/write_events.cpp) writes the files.
"""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from command import PATIENCE, PROGRAM
from pictures import read_png

WRITER = Path(PROGRAM).parent / "tests" / "write_events"


class Events(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="laterna-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, first, last, scale):
        """Writes the event file of steps `first` to `last`, with losses scale/step; returns its path."""
        before = set(self.folder.iterdir())
        subprocess.run([WRITER, self.folder, *map(str, (first, last, scale))], check=True, timeout=PATIENCE)
        (new,) = set(self.folder.iterdir()) - before
        return new

    def read(self):
        everything = {"scalars": 0, "images": 0}  # 0: keep all
        return EventAccumulator(str(self.folder), size_guidance=everything).Reload()

    def assert_scalars(self, events, tag, expected):
        found = {event.step: event.value for event in events.Scalars(tag)}
        self.assertEqual(found, {step: float(np.float32(value)) for step, value in expected.items()})
        self.assertEqual(len(events.Scalars(tag)), len(expected))

    def test_scalars(self):
        self.write(1, 300, 1)
        events, steps = self.read(), range(1, 301)
        self.assertEqual(events.file_version, 2)
        self.assert_scalars(events, "train/loss", {step: 1 / step for step in steps})
        for tag, value in {
            "candidates/5/0": 0.25,
            "candidates/5/1": 0.75,
            "router/5/gamma": -0.5,
            "spikes/5/z": 0.25,
        }.items():
            self.assert_scalars(events, tag, {step: value for step in steps})
        self.assert_scalars(events, "evaluation/fid", {300: 10})
        self.assert_scalars(events, "evaluation/fid_low", {300: 9})

    def test_image(self):
        self.write(1, 8, 1)
        events = self.read()
        self.assertEqual(events.Tags()["images"], ["samples"])
        (image,) = events.Images("samples")
        self.assertEqual((image.step, image.height, image.width), (8, 2, 3))
        (self.folder / "picture.png").write_bytes(image.encoded_image_string)
        np.testing.assert_array_equal(read_png(self.folder / "picture.png"), [[0, 50, 100], [150, 200, 250]])

    def test_repeated_steps_replace_the_old_ones(self):
        self.write(1, 8, 1)
        self.write(6, 7, 2)
        events = self.read()
        kept, new = {step: 1 / step for step in range(1, 6)}, {6: 2 / 6, 7: 2 / 7}
        self.assert_scalars(events, "train/loss", kept | new)
        self.assert_scalars(events, "evaluation/fid", {7: 20})
        self.assertEqual([image.step for image in events.Images("samples")], [7])

    def test_run_restarts_from_the_first_step(self):
        self.write(1, 8, 1)
        self.write(1, 2, 2)
        self.assert_scalars(self.read(), "train/loss", {1: 2, 2: 1})

    def test_reload_while_the_run_continues(self):
        self.write(1, 3, 1)
        events = self.read()
        self.assert_scalars(events, "train/loss", {1: 1, 2: 1 / 2, 3: 1 / 3})
        self.write(3, 4, 1)
        self.assert_scalars(events.Reload(), "train/loss", {1: 1, 2: 1 / 2, 3: 1 / 3, 4: 1 / 4})

    def test_file_truncated_by_a_crash(self):
        torn = self.write(1, 3, 1)
        os.truncate(torn, torn.stat().st_size - 1)
        events = self.read()
        self.assert_scalars(events, "train/loss", {1: 1, 2: 1 / 2, 3: 1 / 3})
        self.assertEqual(events.Tags()["images"], [])  # the image is the last record
        self.write(4, 4, 1)
        self.assert_scalars(events.Reload(), "train/loss", {step: 1 / step for step in range(1, 5)})
        self.assertEqual([image.step for image in events.Images("samples")], [4])


if __name__ == "__main__":
    unittest.main()
