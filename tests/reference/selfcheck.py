"""Checks that the reference agrees with itself. Needs no laterna program; takes some seconds.

1. The plain neuron and SpikingJelly's agree on random currents: spikes bit for bit, gradients to 1e-15.
2. Whole models with either neuron in float64 agree in epsilon and gradients.
3. A batch gives the same as each sample computed by itself, so index lists mix nothing up.
4. At a spiking step that does not select a candidate, the candidate's membrane leaks and nothing fires.
5. An export that is written and read again is the same model.
"""
import sys
import tempfile
from pathlib import Path

import torch

from cases import CASES, make
from export import load_export, save_export
from laterna_reference import Candidate, Denoiser, ModelConfig
from neurons import NEURONS, PlainLIF

torch.set_num_threads(1)


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-300)).item()


def neurons_agree():
    worst = 0.0
    for surrogate in ("sigmoid", "arctangent"):
        for threshold in (1.0, 0.5):
            for steps in (1, 2, 4, 7):
                current = 2 * torch.randn(steps, 5, 37, dtype=torch.float64)
                current[:, 0] = current[:, 0].round()  # integers, so that potentials land on the threshold
                weight = torch.randn_like(current)
                results = []
                for make_neuron in NEURONS.values():
                    leaf = current.clone().requires_grad_()
                    spikes = make_neuron(threshold, surrogate)(leaf)
                    (spikes * weight).sum().backward()
                    results.append((spikes, leaf.grad))
                (s1, g1), (s2, g2) = results
                assert torch.equal(s1, s2), "spikes differ"
                worst = max(worst, (g1 - g2).abs().max().item())
    assert worst <= 1e-15, worst
    print(f"neurons: spikes equal, gradients within {worst:.1e}")


def run(model, x, t, noise):
    model.zero_grad()
    epsilon = model(x, t)
    (epsilon - noise).square().mean().backward()
    return epsilon.detach(), {name: p.grad for name, p in model.named_parameters()}


def models_agree(case):
    plain, x, t, noise = make(case)
    jelly = Denoiser(plain.config, "spikingjelly")
    jelly.load_state_dict(plain.state_dict())
    plain, jelly, x, noise = plain.double(), jelly.double(), x.double(), noise.double()
    epsilon, gradients = run(plain, x, t, noise)
    other, other_gradients = run(jelly, x, t, noise)
    worst = relative(other, epsilon)
    for name, g in gradients.items():
        assert (g is None) == (other_gradients[name] is None), name
        if g is not None:
            worst = max(worst, relative(other_gradients[name], g))
    alone = torch.cat([plain(x[i : i + 1], t[i : i + 1]).detach() for i in range(len(x))])
    separate = relative(alone, epsilon)
    assert worst < 1e-12 and separate < 1e-13, (case, worst, separate)
    return max(worst, separate)


def unselected_steps_leak():
    config = ModelConfig(image_size=8, width=32, depth=1, heads=2, spiking_steps=3)
    candidate = Candidate(config, PlainLIF).double()
    z = (torch.rand(3, 2, 16, 32) < 0.3).double()
    steps = torch.tensor([[1, 1], [0, 1], [1, 1]], dtype=torch.bool)[:, :, None, None]
    seen = {}
    candidate.lif.register_forward_hook(lambda _, inputs, spikes: seen.update(current=inputs[0], spikes=spikes))
    candidate(z, steps)
    assert not seen["current"][1, 0].any() and not seen["spikes"][1, 0].any()
    first = candidate.norm(candidate.up(z[0, 0])) / 2
    membrane = torch.where(first >= 1, 0.0, first) / 2  # the unselected second step only leaks, tau 2
    third = (membrane + (candidate.norm(candidate.up(z[2, 0])) - membrane) / 2 >= 1).double()
    assert torch.equal(seen["spikes"][2, 0], third)
    print("unselected steps: the membrane leaks, nothing fires")


def exports_return():
    model, x, t, _ = make("live_tail")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        save_export(path, model)
        again, _ = load_export(path)
    assert again.config == model.config and torch.equal(again(x, t), model(x, t))
    print("export: the model is the same after writing and reading")


if __name__ == "__main__":
    torch.manual_seed(0)
    neurons_agree()
    print(f"models: {len(CASES)} cases within {max(models_agree(case) for case in CASES):.1e}")
    unselected_steps_leak()
    exports_return()
    sys.exit(0)
