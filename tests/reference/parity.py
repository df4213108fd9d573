"""Compares Laterna with the reference: the same weights and inputs must give the same numbers in float64.

    parity.py --laterna build/laterna [--case NAME]...      parity.py --list

For each case of cases.py: draw a model, write it and its inputs as HDF5, run `laterna denoise --gradients` on them,
compute the same here with the plain neuron, and compare. Limits: epsilon 1e-10 and the gradient of every parameter
1e-8, as norm of the difference over norm of the reference; probabilities 1e-12, as the largest difference; selections
and spikes exact. In float32 rounding flips a spike now and then, and that sample then differs everywhere: such
differences are counted, and a few are allowed. Exit status 0: all cases are within the limits.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

from cases import CASES, is_live, make
from export import save_export, toml_text
from laterna_reference import index_lists
from neurons import PlainLIF

EPSILON, PROBABILITY, GRADIENT = 1e-10, 1e-12, 1e-8
# A parameter's gradient below this share of the whole gradient's norm is rounding of terms that cancel: its error is
# measured relative to that share of the whole.
CANCELLED = 1e-7
# An element of epsilon is off if it differs by more than FLOAT32_OFF times the RMS; this share of elements may be off.
FLOAT32_OFF, FLOAT32_SHARE = 1e-4, 0.25
FLOAT32_SPIKES = 1e-3  # this share of all spikes may differ


def reference(model, x, t, noise):
    """Returns epsilon [B,C,H,W], {layer: (P, mask)}, {name: gradient}, firing rates."""
    rates = []
    for module in model.modules():
        if isinstance(module, PlainLIF):
            module.register_forward_hook(lambda _, __, spikes: rates.append(spikes.detach().mean().item()))
    routes = model.routes(t)
    epsilon = model(x, t, routes)
    (epsilon - noise).square().mean().backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return epsilon.detach(), {r: (p.detach(), m) for r, (p, m) in routes.items()}, gradients, rates


def spikes_of(model, x, t):
    """Returns every spike of one call: {"<layer>/<site>": uint8 [T,B,M,width], for hidden [T,B,N,M,width]}."""
    seen, routes = {}, model.routes(t)
    assignments = index_lists(routes)

    def watch(neuron, name, place=lambda spikes: spikes):
        return neuron.register_forward_hook(
            lambda _, __, spikes: seen.setdefault(name, []).append(place(spikes.detach())))

    def in_place(assignment, j, count):  # scatters spikes of candidate j, [T,n,M,width]
        def place(spikes):
            out = spikes.new_zeros(spikes.shape[0], len(t), count, *spikes.shape[2:])
            out[:, slice(None) if assignment is None or assignment.samples is None else assignment.samples, j] = spikes
            return out
        return place

    hooks = []
    for r, block in enumerate(model.blocks):
        attention, candidates = block.attention, block.candidates
        sites = {"input": attention.lif, "q": attention.lif_q, "k": attention.lif_k, "v": attention.lif_v,
                 "attention": attention.lif_out, "z": candidates.lif}
        hooks += [watch(neuron, f"{r}/{site}") for site, neuron in sites.items()]
        for j in range(candidates.count):
            place = in_place(assignments[r][j] if r in assignments else None, j, candidates.count)
            hooks.append(watch(candidates.get_submodule(str(j)).lif, f"{r}/hidden", place))
    with torch.no_grad():
        model(x, t, routes)
    for hook in hooks:
        hook.remove()
    spikes = {name: sum(parts) for name, parts in seen.items()}  # candidates fill disjoint slices
    for r in range(len(model.blocks)):
        spikes[f"{r}/qkv"] = torch.cat([spikes.pop(f"{r}/{part}") for part in "qkv"], -1)
    return {name: s.numpy().astype(np.uint8) for name, s in spikes.items()}


def spikes_off(spikes, out):
    """Returns the number of spikes that differ and the number compared; infinite where a site or its shape differs."""
    theirs = {name.removeprefix("spikes/"): a for name, a in out.items() if name.startswith("spikes/")}
    if theirs.keys() != spikes.keys() or any(theirs[n].shape != s.shape for n, s in spikes.items()):
        return float("inf"), 1
    return sum(int((theirs[n] != s).sum()) for n, s in spikes.items()), sum(s.size for s in spikes.values())


def laterna(program, folder, precision, gradients):
    """Runs the program on folder/model.h5 and folder/input.h5. Returns the output as {path: array}."""
    output = folder / f"output-{precision}.h5"
    command = [program, "denoise", "--model", folder / "model.h5", "--input", folder / "input.h5",
               "--output", output, "--precision", precision, "--spikes"] + ["--gradients"] * gradients
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed with status {done.returncode}:\n{done.stdout}{done.stderr}")
    arrays = {}
    with h5py.File(output, "r") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def write(folder, case, model, x, t, noise):
    chosen = [key for key in CASES[case]]  # other keys are left out: the program has to know the defaults
    save_export(folder / "model.h5", model, toml_text(model.config, chosen))
    with h5py.File(folder / "input.h5", "w") as file:
        file["x"], file["t"], file["noise"] = x.numpy(), t.numpy().astype(np.int64), noise.numpy()


def off(ours, theirs):
    """Returns the norm of the difference over the norm of the reference; infinite where shapes or dtypes differ."""
    theirs = torch.as_tensor(theirs)
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return float("inf")
    return ((theirs - ours).norm() / ours.norm().clamp_min(1e-300)).item()


def selection_off(routes, out):
    """Returns the largest difference of a probability and the number of mask entries that differ.

    Both are infinite where layers, shapes or dtypes differ.
    """
    if not routes:
        return (0.0, 0) if np.size(out.get("selection/layer", [])) == 0 else (float("inf"), float("inf"))
    probability = torch.stack([p for p, _ in routes.values()])  # [layers,T,B,N]
    mask = torch.stack([m for _, m in routes.values()]).numpy()
    theirs, their_mask = torch.as_tensor(out["selection/probability"]), out["selection/mask"]
    same = theirs.shape == probability.shape and theirs.dtype == probability.dtype and their_mask.shape == mask.shape
    if not same or list(out["selection/layer"]) != list(routes):
        return float("inf"), float("inf")
    return (theirs - probability).abs().max().item(), int((their_mask.astype(bool) != mask).sum())


def gradients_off(gradients, out):
    """Returns the largest relative difference and its parameter; infinite where the parameters themselves differ."""
    theirs = {name.removeprefix("gradient/"): a for name, a in out.items() if name.startswith("gradient/")}
    if different := theirs.keys() ^ gradients.keys():
        return float("inf"), f"only in one: {', '.join(sorted(different)[:3])}"
    whole = sum(g.square().sum() for g in gradients.values()).sqrt()
    worst = (0.0, "")
    for name, g in gradients.items():
        their = torch.as_tensor(theirs[name])
        if their.shape != g.shape or their.dtype != g.dtype or (not g.any() and their.norm() > 1e-14 * whole):
            return float("inf"), name
        worst = max(worst, (((their - g).norm() / g.norm().clamp_min(CANCELLED * whole)).item(), name))
    return worst


def assert_live(case, routes, gradients, rates):
    """Asserts that the case exercises what it is meant to: firing rates, and for live cases the lateral path."""
    assert 0.01 < min(rates) and 0.03 < sum(rates) / len(rates) < 0.4, f"{case}: firing rates {rates}"
    if not is_live(case):
        return
    assert any((mask != mask[:1]).any() for _, mask in routes.values()), f"{case}: no selection differs between steps"
    for part in ("gamma", "aggregation", "threshold"):
        assert any(g.any() for name, g in gradients.items() if name.endswith(part)), f"{case}: no gradient of {part}"


def compare(program, case):
    """Returns a row of the table and whether the case is within the limits."""
    model, x, t, noise = make(case)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, case, model, x, t, noise)
        wide = laterna(program, folder, "float64", True)
        narrow = laterna(program, folder, "float32", False)
    with torch.no_grad():
        epsilon32, routes32 = model(x, t), model.routes(t)
    flipped32, neurons = spikes_off(spikes_of(model, x, t), narrow)
    epsilon, routes, gradients, rates = reference(model.double(), x.double(), t, noise.double())
    assert_live(case, routes, gradients, rates)
    flipped, _ = spikes_off(spikes_of(model, x.double(), t), wide)

    e = off(epsilon, wide["epsilon"])
    p, choices = selection_off(routes, wide)
    g, where = gradients_off(gradients, wide)
    their32 = torch.as_tensor(narrow["epsilon"])
    size = epsilon32.square().mean().sqrt()
    share = ((their32 - epsilon32).abs() > FLOAT32_OFF * size).float().mean().item()
    _, choices32 = selection_off(routes32, narrow)
    good = (e <= EPSILON and p <= PROBABILITY and choices == 0 and g <= GRADIENT and flipped == 0
            and their32.dtype == torch.float32 and share <= FLOAT32_SHARE and choices32 == 0
            and flipped32 <= FLOAT32_SPIKES * neurons)
    row = (f"{case:<17} {e:>8.1e} {p:>8.1e} {choices:>7} {flipped:>6} {g:>8.1e} {share:>9.4f} {choices32:>9}"
           f" {flipped32 / neurons:>8.1e}  {sum(rates) / len(rates):>6.3f}  {'ok' if good else 'FAILED'}")
    return row + (f"  worst gradient: {where}" if g > GRADIENT else ""), good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laterna", default="build/laterna", help="the program (default: build/laterna)")
    parser.add_argument("--case", action="append", choices=CASES, help="run only this case; can be repeated")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(CASES))
        return 0
    torch.set_num_threads(1)
    print(f"{'':17} {'-' * 15} float64 {'-' * 17}  {'-------- float32 --------':>27}")
    print(f"{'case':<17} {'epsilon':>8} {'P':>8} {'choices':>7} {'spikes':>6} {'gradient':>8}"
          f" {'share off':>9} {'choices':>9} {'spikes':>8}  {'rate':>6}")
    all_good = True
    for case in arguments.case or CASES:
        row, good = compare(arguments.laterna, case)
        print(row, flush=True)
        all_good &= good
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
