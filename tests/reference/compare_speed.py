"""Compares the speed of Laterna with that of PyTorch + SpikingJelly on this machine.

    compare_speed.py [--subjects quickstart:32 mnist:8] [--rounds 3] [--seconds 10] [--json FILE]
    compare_speed.py --subjects model.h5:16 ...    with trained weights, which laterna export wrote, on their data

The programs run in turn (A B A B), so that changes in the machine's load and clock affect both. Both train and denoise
at the preset's size with the same batch and number of threads. The table gives the median samples/s of each, the ratio
(median over the pairs of all rounds), and the share of the machine's dense arithmetic: the operations that the model
takes with dense products, divided by the time, as a share of the float32 matrix-product rate measured in the same
rounds. A program that skips the zeros of spikes, as Laterna may, can exceed 100%.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import h5py

from export import config_text, model_config

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def flops_of_sample(config, what):
    """Returns the floating-point operations of one sample with dense products; a multiply-add counts as two."""
    m, d, t = config.tokens, config.width, config.spiking_steps
    pixels = config.channels * config.patch**2
    block = m * 4 * d * d  # q, k, v and the projection
    block += 2 * m * d * min(m, d // config.heads)  # attention in the cheaper order
    candidate = 2 * config.hidden_ratio * m * d * d  # up and down
    selected = sum(config.selected if config.selects(r) else 1 for r in range(config.depth))
    shift = config.depth * d * d  # time shift: once for all tokens and spiking steps
    inner = t * (config.depth * block + selected * candidate) + shift + m * d * pixels
    embed = m * d * pixels
    if what == "denoise":
        return 2 * (embed + inner)
    return 2 * (2 * embed + 3 * inner)  # backward: gradients of weights and inputs, but not of the image


def last_json(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def rounds(options, what, subject, batch):
    """Returns one pair per round: (Laterna's record, the opponent's record)."""
    common = ["--batch", batch, "--threads", options.threads, "--seconds", options.seconds]
    trained = subject.suffix == ".h5"
    ours = [options.laterna, "bench", what, "--model" if trained else "--config", subject, *common]
    theirs = [sys.executable, HERE / "opponent.py", what, "--model" if trained else "--preset", subject, *common]
    return [(last_json(ours), last_json(theirs)) for _ in range(options.rounds)]


def config_of(subject):
    if subject.suffix == ".h5":
        with h5py.File(subject) as file:
            return model_config(config_text(file))
    return model_config(subject.read_text())


def summary(subject, what, batch, pairs):
    config = config_of(subject)
    ours, theirs = ([record["samples_per_second"] for record in side] for side in zip(*pairs))
    dense = max(record["dense_gflops"] for _, record in pairs)
    gflops = flops_of_sample(config, what) / 1e9
    return {
        "subject": subject.stem,
        "benchmark": what,
        "batch": batch,
        "laterna": median(ours),
        "opponent": median(theirs),
        "ratio": median(a / b for a, b in zip(ours, theirs)),
        "ratio_lowest": min(a / b for a, b in zip(ours, theirs)),
        "firing_rates": pairs[0][0]["firing_rates"],
        "gflop_per_sample": gflops,
        "dense_gflops": dense,
        "laterna_share": median(ours) * gflops / dense,
        "opponent_share": median(theirs) * gflops / dense,
        "pairs": [list(pair) for pair in zip(ours, theirs)],
    }


def print_table(rows):
    dense = max(row["dense_gflops"] for row in rows)
    print(f"float32 matrix products on this machine: {dense:.0f} GFLOP/s")
    print(f"{'':30} {'---- samples/s ----':>19}  {'':>13}  {'-- GFLOP/s (share of dense) --':>32}")
    line = "{:<12} {:<9} {:>6}  {:>9} {:>9}  {:>13}  {:>15} {:>15}"
    print(line.format("subject", "benchmark", "batch", "laterna", "opponent", "ratio (least)", "laterna", "opponent"))
    for row in rows:
        def work(side):
            return f"{row[side] * row['gflop_per_sample']:.0f} ({100 * row[side + '_share']:.0f}%)"

        speeds = f"{row['laterna']:.2f}", f"{row['opponent']:.2f}"
        print(line.format(row["subject"], row["benchmark"], row["batch"], *speeds,
                          f"{row['ratio']:.2f} ({row['ratio_lowest']:.2f})", work("laterna"), work("opponent")))
    print("firing rates over all layers:")
    for row in rows:
        if row["benchmark"] == rows[0]["benchmark"]:
            rates = (f"{site} {100 * rate:.1f}%" for site, rate in row["firing_rates"].items())
            print(f"{row['subject']:<12} {', '.join(rates)}")


def subject_and_batch(text):
    """Parses mnist:8, path/to/file.toml:8 or model.h5:8; returns the path of the file and the batch size."""
    name, _, batch = text.rpartition(":")
    if not name or not batch.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not SUBJECT:BATCH, as in mnist:8")
    return (Path(name) if name.endswith((".toml", ".h5")) else ROOT / "launch" / "presets" / f"{name}.toml"), int(batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laterna", type=Path, default=ROOT / "build" / "laterna")
    parser.add_argument("--subjects", nargs="+", type=subject_and_batch, metavar="SUBJECT:BATCH",
                        help="a preset's name, a configuration file or an exported model; and its batch size",
                        default=[subject_and_batch("quickstart:32"), subject_and_batch("mnist:8")])
    parser.add_argument("--benchmarks", nargs="+", choices=["train", "denoise"], default=["train", "denoise"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="duration of each measurement")
    parser.add_argument("--json", type=Path, help="also write the rows of the table to this file")
    options = parser.parse_args()
    rows = []
    for subject, batch in options.subjects:
        for what in options.benchmarks:
            print(f"{subject.stem} {what} ...", file=sys.stderr, flush=True)
            rows.append(summary(subject, what, batch, rounds(options, what, subject, batch)))
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
