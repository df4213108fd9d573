"""Compares whole training steps of Laterna with PyTorch: random draws, weighted loss, clipping, AdamW, weight average.

    training.py [--laterna build/laterna] [--weighting uniform|min_snr]...

`laterna train` takes steps in float64 on two ranks. From a checkpoint, the steps that follow are computed here by the
reference model and torch.optim.AdamW on the same data set, with an independent implementation of the random numbers
(Philox4x32-10 in numpy). Losses and gradient norms must agree to 1e-10; weights, averages and moments to 1e-8.
Exit status 0: they agree.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

from export import model_config
from laterna_reference import DIFFUSION_STEPS, Denoiser

BATCH, IMAGES, SIZE, SEED, RATE, CLIP, EMA = 6, 10, 8, 3, 1e-2, 0.1, 0.6
FIRST, LAST = 12, 17  # the reference starts from the checkpoint of FIRST
LOSS, STATE = 1e-10, 1e-8
NOISE, TIMESTEP, PERMUTATION = 0, 1, 2  # random streams (data/philox.h)
CONFIG = f"""
[model]
image_size = {SIZE}
patch = 2
width = 32
depth = 2
heads = 2
gamma_start = 0.5
[training]
batch = {BATCH}
micro_batch = 2
learning_rate = {RATE}
clip_norm = {CLIP}
ema = {EMA}
seed = {SEED}
precision = "float64"
[metrics]
port = 0
"""


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011). Maps counter [n,4] and key (low, high) to words [n,4], uint64 below 2^32."""
    c = [column.astype(np.uint64) for column in np.asarray(counter, dtype=np.uint64).T]
    low, high = key
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(low), b & mask,
             (a >> np.uint64(32)) ^ c[3] ^ np.uint64(high), a & mask]
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1)


def words(stream, step, sample, count):
    """Returns the first `count` words at an address (data/philox.h)."""
    counter = [[block, sample, step, stream << 24] for block in range((count + 3) // 4)]
    return philox(counter, (SEED, 0)).ravel()[:count]


def normal(stream, step, sample, count):
    """Returns the first `count` normal numbers at an address: Box-Muller in float64, from pairs of words."""
    u = (words(stream, step, sample, -(-count // 4) * 4).astype(np.float64) + 0.5) * 2.0**-32
    radius, angle = np.sqrt(-2 * np.log(u[0::2])), 2 * np.pi * u[1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:count]


def permutation(epoch):
    """Returns an epoch's order: Fisher-Yates from the end, places drawn by Lemire's multiplication with rejection."""
    order, stream = list(range(IMAGES)), iter(words(PERMUTATION, epoch, 0, 64 * IMAGES))
    for last in range(IMAGES - 1, 0, -1):
        bound = last + 1
        while True:
            product = int(next(stream)) * bound
            if product & 0xFFFFFFFF >= 2**32 % bound:
                break
        place = product >> 32
        order[last], order[place] = order[place], order[last]
    return order


def batch_of(step, pixels):
    """Returns x0 [B,1,8,8] in [-1,1], t [B] and noise [B,1,8,8] of a step, which counts from 0."""
    orders = {}
    images, t, noise = [], [], []
    for i in range(BATCH):
        epoch, place = divmod(step * BATCH + i, IMAGES)
        images.append(orders.setdefault(epoch, permutation(epoch))[place])
        t.append(int(words(TIMESTEP, step, i, 1)[0]) * DIFFUSION_STEPS >> 32)
        noise.append(normal(NOISE, step, i, SIZE * SIZE).reshape(1, SIZE, SIZE))
    x0 = torch.from_numpy(pixels[images].astype(np.float64)) / 127.5 - 1
    return x0, torch.tensor(t), torch.from_numpy(np.stack(noise))


def checkpoint(run, step):
    """Returns {group/parameter: tensor} from all files of a checkpoint."""
    state = {}
    for path in (run / "checkpoints" / f"step-{step:09}").glob("*.h5"):
        with h5py.File(path) as file:
            for group in ("model", "average", "adam/first", "adam/second"):
                for name, item in file.get(group, {}).items():
                    state[f"{group}/{name}"] = torch.from_numpy(np.asarray(item[()]))
    return state


def train_steps(model, state, weighting, pixels):
    """Computes steps FIRST .. LAST-1 from `state`. Returns [(loss, gradient norm)] and the state afterwards."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    average = {}
    for name, p in model.named_parameters():
        average[name] = state[f"average/{name}"].clone()
        optimizer.state[p] = {"step": torch.tensor(float(FIRST)), "exp_avg": state[f"adam/first/{name}"].clone(),
                              "exp_avg_sq": state[f"adam/second/{name}"].clone()}
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, DIFFUSION_STEPS, dtype=torch.float64), 0)
    steps, least = [], 1.0
    for step in range(FIRST, LAST):
        x0, t, noise = batch_of(step, pixels)
        kept = alpha_bar[t].view(-1, 1, 1, 1)
        squares = (noise - model(kept.sqrt() * x0 + (1 - kept).sqrt() * noise, t)).square()
        snr = alpha_bar[t] / (1 - alpha_bar[t])
        weight = snr.clamp(max=5) / snr if weighting == "min_snr" else torch.ones_like(snr)
        optimizer.zero_grad(set_to_none=False)
        (weight * squares.mean(dim=(1, 2, 3))).mean().backward()
        for p in model.parameters():  # a candidate that no sample selected: zero, not None
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                average[name].lerp_(p, 1 - min(EMA, (1 + step) / (10 + step)))
        steps.append((squares.mean().item(), norm.item()))
        least = min(least, weight.min().item())
    assert (least < 0.1) == (weighting == "min_snr"), "no diffusion step with a small weight was drawn"
    assert (1 + FIRST) / (10 + FIRST) < EMA < LAST / (9 + LAST), "the steps must span the end of the EMA's warm-up"
    after = {}
    for name, p in model.named_parameters():
        moments = optimizer.state[p]
        after |= {f"model/{name}": p.detach(), f"average/{name}": average[name],
                  f"adam/first/{name}": moments["exp_avg"], f"adam/second/{name}": moments["exp_avg_sq"]}
    return steps, after


def compare(program, weighting):
    """Returns a row of the table and whether it is within the limits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, run, config = folder / "glyphs", folder / "run", folder / "config.toml"
        config.write_text(CONFIG)
        mpirun = [os.environ.get("MPIEXEC", "mpirun"), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
        command = [*mpirun, "-n", "2", program, "train", "--config", config, "--run", run,
                   "--set", f"data.path={data}", "--set", f"training.weighting={weighting}"]

        def execute(*line):
            subprocess.run([str(part) for part in line], check=True, stdout=subprocess.DEVNULL,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})

        execute(program, "data", "make", "glyphs", "--size", SIZE, "--count", IMAGES, "--output", data)
        for last in FIRST, LAST:
            execute(*command, "--set", f"training.steps={last}")
        with h5py.File(data / "shard-00000.h5") as file:
            pixels = file["images"][()]
        before, theirs = checkpoint(run, FIRST), checkpoint(run, LAST)
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    model = Denoiser(model_config(CONFIG)).double()
    model.load_state_dict({name: before[f"model/{name}"] for name, _ in model.named_parameters()})
    steps, ours = train_steps(model, before, weighting, pixels)
    logged = [(line["loss"], line["grad_norm"]) for line in log if FIRST < line["step"] <= LAST]
    loss, norm = (abs(np.array(logged) / np.array(steps) - 1)).max(axis=0)
    assert max(norm for _, norm in steps) > CLIP, "no gradient norm was large enough to be clipped"
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    moved = max(((ours[key] - before[key]).norm() / before[key].norm().clamp_min(1e-3)).item() for key in ours)
    assert moved > 1e-2, "the weights hardly moved"
    state = max(((ours[key] - theirs[key]).norm() / ours[key].norm().clamp_min(1e-6)).item() for key in ours)
    good = loss <= LOSS and norm <= LOSS and state <= STATE
    return f"{weighting:<10} {loss:>8.1e} {norm:>8.1e} {state:>8.1e}  {'ok' if good else 'FAILED'}", good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laterna", default="build/laterna", help="the program (default: build/laterna)")
    parser.add_argument("--weighting", action="append", choices=("uniform", "min_snr"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'weighting':<10} {'loss':>8} {'norm':>8} {'state':>8}")
    good = True
    for weighting in options.weighting or ("uniform", "min_snr"):
        row, within = compare(options.laterna, weighting)
        print(row, flush=True)
        good &= within
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
