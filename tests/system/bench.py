"""The single-process benchmarks: each prints a table for people and, as the last line, its measurements as JSON."""

import json
import shutil
import unittest

import h5py

from command import INPUT, USAGE, Case, glyphs, shared

SITES = {"input", "q", "k", "v", "attention", "z", "hidden"}
FORWARD = {"products", "neurons", "attention", "assignments", "routing", "rest"}
BACKWARD = {"spike_gradients", "weight_gradients", "neurons_backward", "attention_backward", "optimiser"}


class Bench(Case):
    def bench(self, name, *arguments):
        """Runs a benchmark for 0.2 seconds; returns the lines of its table and the JSON object of its last line."""
        done = self.run_laterna("bench", name, *arguments, "--threads", 1, "--seconds", 0.2)
        *table, line = done.out.strip().splitlines()
        return table, json.loads(line)

    def exported(self):
        run = shared("trained", lambda run: self.train(run, training__steps=40))
        self.run_laterna("export", "--run", run, "--output", self.folder / "model.h5")
        return self.folder / "model.h5"

    def check_parts(self, table, line, parts):
        seconds = line["part_seconds"]
        self.assertEqual(seconds.keys(), parts)
        self.assertGreaterEqual(min(seconds.values()), 0)
        self.assertEqual({row.rsplit(maxsplit=3)[0] for row in table}, parts)
        self.assertAlmostEqual(sum(float(row.split()[-1].rstrip("%")) for row in table), 100, delta=1)

    def test_training(self):
        table, line = self.bench("train", *self.config(), "--batch", 4)
        self.check_parts(table, line, FORWARD | BACKWARD)
        self.assertEqual((line["benchmark"], line["batch"], line["micro_batch"]), ("train", 4, 2))
        self.assertGreater(line["samples_per_second"], 0)

    def test_denoising(self):
        table, line = self.bench("denoise", *self.config(), "--batch", 3)
        self.check_parts(table, line, FORWARD)
        self.assertEqual(line["firing_rates"].keys(), SITES)
        self.assertTrue(all(0 <= rate <= 1 for rate in line["firing_rates"].values()), line)

    def test_uses_the_models_weights(self):
        model = self.exported()
        with h5py.File(model, "r+") as file:
            for layer in (0, 1):  # so that no query ever fires
                file[f"model/blocks.{layer}.attention.norm_q.bias"][...] = -100
        for name in ("train", "denoise"):
            _, line = self.bench(name, "--model", model, "--batch", 16)
            self.assertEqual((line["config"], line["batch"]), (str(model), 16))
            self.assertEqual(line["firing_rates"]["q"], 0)
            self.assertGreater(line["firing_rates"]["k"], 0)

    def test_uses_the_models_data(self):
        """Inverted images give other firing rates, so the benchmark reads the data set that data.path names."""
        model = self.exported()
        inverted = self.folder / "inverted"
        shutil.copytree(glyphs(), inverted)
        (shard,) = inverted.glob("shard-*.h5")
        with h5py.File(shard, "r+") as file:
            file["images"][...] = 255 - file["images"][...]
        rates = [self.bench("denoise", "--model", model, "--set", f"data.path={path}")[1]["firing_rates"]
                 for path in (glyphs(), glyphs(), inverted)]
        self.assertEqual(rates[0], rates[1])
        self.assertNotEqual(rates[0], rates[2])

    def test_model_settings_are_refused_with_weights(self):
        self.refuses(
            "bench", "train", "--model", self.exported(), "--set", "model.depth=3", status=USAGE,
            says=["model.depth=3", "model.h5"],
        )

    def test_trained_model_without_its_data(self):
        self.refuses(
            "bench", "denoise", "--model", self.exported(), "--set", "data.path=/nowhere", status=INPUT,
            says=["/nowhere"],
        )

    def test_kernels_refuse_a_model(self):
        self.refuses("bench", "kernels", "--model", "model.h5", status=USAGE, says=["kernels", "--model"])

    def test_neither_configuration_nor_model(self):
        self.refuses("bench", "train", status=USAGE, says=["--config"])

    def test_kernels(self):
        """Every kernel is measured on every instruction set that the processor has, over all densities of spikes."""
        table, line = self.bench("kernels", *self.config(), "--batch", 2)
        densities = {}
        for row in line["measurements"]:
            densities.setdefault((row["kernel"], row["set"]), []).append(row["density"])
            for fact in ("seconds", "dense_seconds", "ratio", "effective_gflops", "share_of_bound"):
                self.assertGreater(row[fact], 0, row)
        over_densities = {f"{layer} {kernel}" for kernel in ("product", "weight gradient") for layer in
                          ("qkv 16x48", "project 16x16", "up 16x64", "down 64x16")}
        over_densities |= {"attention", "attention, backward"}
        rest = {
            "norm, neurons, packing", "residual, norm, neurons, packing", "norm, neurons, backward",
            "residual, norm, neurons, backward", "packing", "unpacking", "assignments, weighted sum",
            "assignments, weighted sum, backward", "assignments, gather, backward", "routing", "routing, backward",
            "AdamW", "sum of squares",
        }
        sets = line["sets"].keys()
        self.assertIn("portable", sets)
        self.assertEqual(densities.keys(), {(kernel, name) for kernel in over_densities | rest for name in sets})
        for kernel in over_densities:
            for name in sets:
                self.assertEqual(densities[kernel, name], [0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1])
        lacking = [row for row in table if row.endswith("this processor lacks it")]
        self.assertEqual(len(table), 2 + len(sets) + len(lacking) + len(line["measurements"]))


if __name__ == "__main__":
    unittest.main()
