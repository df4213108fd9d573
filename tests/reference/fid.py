"""Compares Laterna's image-quality metrics with numpy and scipy on the same features.

FID is computed as in pytorch-fid (numpy.cov, scipy.linalg.sqrtm); KID, precision and recall are written out from their
definitions. `laterna bench fid` makes the features, writes them with its statistics as .npz, and prints its metrics.

    fid.py --laterna build/laterna            # checks agreement; takes a second
    fid.py --laterna build/laterna --speed    # times both on 10,000 x 2048 features; takes minutes, on an idle machine
"""
import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.linalg


def moments(features):
    wide = features.astype(np.float64)
    return wide.mean(0), np.cov(wide, rowvar=False)


def frechet(mu1, sigma1, mu2, sigma2):
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    return np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root)


def kernel_distance(x, y):
    """Returns KID, the unbiased estimate over all samples."""
    n, d = x.shape

    def kernel(a, b):
        return (a @ b.T / d + 1) ** 3

    within = sum(kernel(a, a).sum() - np.trace(kernel(a, a)) for a in (x, y)) / (n * (n - 1))
    return within - 2 * kernel(x, y).mean()


def distances(x, y):
    return np.array([np.sqrt(((a - y) ** 2).sum(1)) for a in x])


def precision_recall(generated, reference, k=3):
    def reach(x):
        return np.sort(distances(x, x), axis=1)[:, k]  # column 0 is the sample itself

    between = distances(generated, reference)
    precision = (between <= reach(reference)).any(1).mean()
    recall = (between.T <= reach(generated)).any(1).mean()
    return precision, recall


def run_laterna(laterna, samples, dimension, folder):
    command = [laterna, "bench", "fid", "--samples", str(samples), "--features", str(dimension), "--output", folder]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # np.load accepts only plain arrays (allow_pickle is off), as it does in pytorch-fid.
    files = [dict(np.load(Path(folder) / f"{side}.npz")) for side in ("generated", "reference")]
    return json.loads(result.stdout.splitlines()[-1]), files


def close(name, mine, theirs, tolerance):
    difference = np.abs(np.asarray(mine) - theirs).max() / max(1.0, np.abs(theirs).max())
    assert difference <= tolerance, f"{name}: laterna {mine}, reference {theirs}: differ by {difference:.1e}"
    print(f"{name}: within {difference:.1e}")


def agree(laterna, samples=600, dimension=64):
    with tempfile.TemporaryDirectory() as folder:
        figures, files = run_laterna(laterna, samples, dimension, folder)
    features = [file["features"].astype(np.float64) for file in files]
    statistics = [moments(x) for x in features]
    for file, (mu, sigma), side in zip(files, statistics, ("generated", "reference")):
        assert file["features"].shape == (samples, dimension) and file["features"].dtype == np.float32
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert file["count"] == samples and str(file["split"]) == side
        close(f"{side} mu", file["mu"], mu, 1e-13)
        close(f"{side} sigma", file["sigma"], sigma, 1e-13)
    fid = frechet(*statistics[0], *statistics[1])
    close("fid", figures["fid"], fid, 1e-9)
    close("kid", figures["kid"], kernel_distance(*features), 1e-12)
    precision, recall = precision_recall(*features)
    assert 0.05 < precision < 0.95 and 0.05 < recall < 0.95, "precision or recall is too extreme to compare"
    close("precision", figures["precision"], precision, 1e-15)
    close("recall", figures["recall"], recall, 1e-15)
    assert figures["fid_low"] < fid < figures["fid_high"] and figures["fid_infinity"] < fid


def timed(name, work):
    began = time.perf_counter()
    result = work()
    print(f"{name}: {time.perf_counter() - began:.2f} s", flush=True)
    return result


def compare_speed(laterna):
    with tempfile.TemporaryDirectory() as folder:
        figures, files = run_laterna(laterna, 10_000, 2048, folder)
    seconds = figures["seconds"]
    print(f"laterna, {figures['threads']} threads")
    for name, value in seconds.items():
        print(f"  {name}: {value:.2f} s")
    print("numpy and scipy, with their default threads")
    mine = timed("  numpy.mean, numpy.cov", lambda: moments(files[0]["features"]))
    fid = timed("  scipy.linalg.sqrtm and the rest of FID", lambda: frechet(*mine, files[1]["mu"], files[1]["sigma"]))
    close("fid", figures["fid"], fid, 1e-8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laterna", default="build/laterna")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    (compare_speed if arguments.speed else agree)(arguments.laterna)
