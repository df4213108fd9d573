"""Does a model copy its training images? Shows the training images nearest to each of a few samples, by pixel distance.

    nearest.py runs/R/samples/step-N/images.h5 data/sets/mnist nearest.png [--held-out data/sets/mnist-test]

Each column of the picture has a sample on top and its nearest training images below. Prints the median distance (root
mean square over pixels, 0..255) of all samples to their nearest training image and, with --held-out, the median
distance of as many held-out real images. Copied samples lie far nearer to training images than held-out images do.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np
import torch

from pictures import write_png

BLOCK = 256  # images compared at once
GAP = 2  # pixels between pictures


def pixels_of(path):
    """The images of a shard or of a data set's folder, uint8 [n,C,H,W]."""
    shards = sorted(path.glob("shard-*.h5")) if path.is_dir() else [path]
    parts = []
    for shard in shards:
        with h5py.File(shard) as file:
            parts.append(file["images"][()])
    return np.concatenate(parts)


def nearest(images, training, count):
    """Returns distances [n,count] and indices into `training` [n,count] of the nearest images, nearest first."""
    def flat(pixels):
        return torch.from_numpy(pixels.reshape(len(pixels), -1)).float()

    known, size, found = flat(training), training[0].size, []
    squares = known.square().sum(1)
    for part in flat(images).split(BLOCK):
        between = part.square().sum(1, keepdim=True) - 2 * part @ known.T + squares
        found.append(between.clamp_min(0).topk(count, dim=1, largest=False))
    return (torch.cat([part.values for part in found]) / size).sqrt().numpy(), torch.cat(
        [part.indices for part in found]).numpy()


def picture(columns):
    """Draws images [columns][rows] of [C,H,W] into uint8 [H,W] or [H,W,3], with a wider gap below the first row."""
    def framed(image, gap):
        return np.pad(image, ((0, 0), (0, gap), (0, GAP)), constant_values=128)

    whole = np.concatenate([
        np.concatenate([framed(image, GAP if row else 3 * GAP) for row, image in enumerate(column)], axis=1)
        for column in columns], axis=2)
    return whole[0] if len(whole) == 1 else whole.transpose(1, 2, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("training", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--count", type=int, default=16, help="samples in the picture (16)")
    parser.add_argument("--neighbours", type=int, default=5, help="nearest training images shown below each sample (5)")
    options = parser.parse_args()
    samples, training = pixels_of(options.samples), pixels_of(options.training)
    distances, places = nearest(samples, training, options.neighbours)
    shown = min(options.count, len(samples))
    write_png(options.picture, picture([[samples[i], *training[places[i]]] for i in range(shown)]))
    print(f"{len(samples)} samples: median distance to the nearest of {len(training)} training images "
          f"{np.median(distances[:, 0]):.1f}, smallest {distances[:, 0].min():.1f}")
    if options.held_out:
        real = pixels_of(options.held_out)[: len(samples)]
        distances, _ = nearest(real, training, 1)
        print(f"{len(real)} held-out images: median {np.median(distances):.1f}, smallest {distances.min():.1f}")


if __name__ == "__main__":
    main()
