"""Times the same model in PyTorch with SpikingJelly's neurons, the opponent that Laterna is compared with.

    opponent.py train|denoise --preset launch/presets/mnist.toml [--batch N] [--threads N] [--seconds S]
    opponent.py train|denoise --model model.h5 ...    weights that laterna export wrote, images of its data.path

`train` is a whole optimiser step: draw t and noise, add the noise, forward, backward, clip, AdamW, EMA. `denoise` is
one evaluation of the denoiser without gradients on noisy images that share one t, as in sampling. Prints one line of
JSON to standard output. The model is eager PyTorch as a competent user writes it: float32, index lists from the
routing, which is known in advance, only selected candidates computed, fused AdamW, multi-tensor clip and EMA,
denormals flushed. --neuron plain times the written-out neuron instead of SpikingJelly's.
"""
import argparse
import json
import os
import time
import tomllib
from pathlib import Path
from statistics import median


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "denoise"])
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--preset", type=Path, help="a configuration file (TOML); weights and images are random")
    subject.add_argument("--model", type=Path, help="a trained model, written by laterna export")
    parser.add_argument("--batch", type=int, help="samples per step (default: training.batch)")
    parser.add_argument("--micro-batch", type=int, help="samples at once; gradients accumulate (default: the batch)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="measure at least this long and three steps")
    parser.add_argument("--neuron", choices=["spikingjelly", "plain"], default="spikingjelly")
    return parser.parse_args()


def dense_gflops(torch, size=2048, seconds=1.0):
    """Returns the float32 matrix-product rate of this machine with these threads: the best of about a second."""
    a, b, c = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        torch.mm(a, b, out=c)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


class Diffusion:
    """Computes x_t of fixed images, as in the specification."""

    def __init__(self, torch, settings, images):
        table = settings.get("diffusion", {})
        beta = torch.linspace(table.get("beta_first", 1e-4), table.get("beta_last", 0.02), table.get("steps", 1000),
                              dtype=torch.float64)
        self.alpha, self.images = torch.cumprod(1 - beta, 0).float(), images

    def corrupt(self, t, noise):
        alpha = self.alpha[t].view(-1, 1, 1, 1)
        return alpha.sqrt() * self.images + (1 - alpha).sqrt() * noise  # [B,C,H,W]


class Training:
    """One optimiser step; loss and schedule as in the specification."""

    def __init__(self, torch, model, settings, diffusion, micro_batch):
        training = settings.get("training", {})
        self.torch, self.model, self.diffusion, self.micro_batch = torch, model, diffusion, micro_batch
        self.parameters = list(model.parameters())
        self.averaged = [p.detach().clone() for p in self.parameters]
        self.clip, self.ema = training.get("clip_norm", 1.0), training.get("ema", 0.9999)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=training.get("learning_rate", 1e-4),
                                           betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)
        self.steps = 0

    def __call__(self):
        torch, images = self.torch, self.diffusion.images
        n = len(images)
        t, noise = torch.randint(0, len(self.diffusion.alpha), (n,)), torch.randn_like(images)
        x = self.diffusion.corrupt(t, noise)
        self.optimiser.zero_grad(set_to_none=True)
        for i in range(0, n, self.micro_batch):
            part = slice(i, i + self.micro_batch)
            loss = (self.model(x[part], t[part]) - noise[part]).square().sum() / noise.numel()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.steps += 1
        decay = min(self.ema, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.parameters, 1 - decay)


def denoising(torch, model, diffusion):
    noise = torch.randn_like(diffusion.images)

    def step():
        with torch.inference_mode():
            t = torch.randint(0, len(diffusion.alpha), (1,)).expand(len(noise))
            model(diffusion.corrupt(t, noise), t)

    return step


def real_images(torch, settings, batch):
    """Returns the first images of the data set at data.path, relative to the working directory: [B,C,H,W], -1..1."""
    import h5py

    shard = sorted(Path(settings["data"]["path"]).glob("shard-*.h5"))[0]
    with h5py.File(shard) as file:
        images = torch.from_numpy(file["images"][:batch]).float() / 127.5 - 1
    if len(images) < batch:
        raise SystemExit(f"{shard}: {len(images)} images are fewer than the batch of {batch}; give a smaller --batch")
    return images


def measure(step, seconds):
    """Returns the seconds of each step, after two warm-up steps."""
    step(), step()
    taken, begin = [], time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return taken


def main():
    options = arguments()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch starts its threads
    import torch

    from export import load_export, model_config
    from laterna_reference import Denoiser

    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    if options.model:
        model, text = load_export(options.model, options.neuron)
    else:
        text = options.preset.read_text()
        model = Denoiser(model_config(text), options.neuron)
    settings, config = tomllib.loads(text), model.config
    batch = options.batch or settings.get("training", {}).get("batch", 128)
    if options.model:
        images = real_images(torch, settings, batch)
    else:
        images = torch.rand(batch, config.channels, config.image_size, config.image_size) * 2 - 1
    diffusion = Diffusion(torch, settings, images)
    if options.what == "train":
        step = Training(torch, model, settings, diffusion, options.micro_batch or batch)
    else:
        step = denoising(torch, model, diffusion)
    dense = dense_gflops(torch)
    taken = measure(step, options.seconds)
    print(json.dumps({
        "benchmark": options.what,
        "program": "pytorch+spikingjelly" if options.neuron == "spikingjelly" else "pytorch",
        "subject": (options.model or options.preset).stem,
        "batch": batch,
        "threads": options.threads,
        "samples_per_second": batch / median(taken),
        "step_seconds": [round(s, 6) for s in taken],
        "dense_gflops": dense,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
