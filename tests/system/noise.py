"""Makes a data set of uniform noise with the shape, number and labels of a real one, for tests of quality metrics.

    tests/system/noise.py data/sets/mnist-test data/sets/noise
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np


def noise_like(data_set, folder):
    shutil.copytree(data_set, folder, ignore=shutil.ignore_patterns("statistics-*", "features.h5"))
    index = json.loads((folder / "dataset.json").read_text())
    dice, whole = np.random.default_rng(0), hashlib.sha256()
    for entry in index["shards"]:
        with h5py.File(folder / entry["file"], "r+") as file:
            file["images"][:] = pixels = dice.integers(0, 256, file["images"].shape, np.uint8)
            file.attrs["sha256"] = entry["sha256"] = hashlib.sha256(pixels.tobytes()).hexdigest()
        whole.update(pixels.tobytes())
    (folder / "dataset.json").write_text(json.dumps({**index, "name": "noise", "sha256": whole.hexdigest()}))
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    noise_like(arguments.data_set, arguments.folder)


if __name__ == "__main__":
    main()
