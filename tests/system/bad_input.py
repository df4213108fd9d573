"""Bad run folders, models and inputs of `denoise`: each ends the program with one message that names file or key."""

import os
import shutil
import unittest

import h5py
import numpy as np

from command import FAILURE, INPUT, USAGE, Case, attribute, newest_checkpoint, shared, truncate


class RunFolders(Case):
    def setUp(self):
        super().setUp()
        self.run_folder = self.folder / "run"

    def refuses_training(self, status, says=(), **options):
        return self.refuses(
            "train", *self.config(training__steps=20), "--run", self.run_folder, status=status, says=says, **options
        )

    def trained(self):
        """Makes self.run_folder a run of 20 steps with checkpoints of steps 7, 14 and 20; returns an untouched copy."""
        whole = shared("trained-20", lambda run: self.train(run, training__steps=20))
        shutil.copytree(whole, self.run_folder)
        return whole

    def test_damaged_checkpoint(self):
        """Training resumes from the checkpoint before (faults.py tests all kinds of damage); other commands refuse."""
        whole = self.trained()
        file = newest_checkpoint(self.run_folder) / "rank-00000.h5"
        truncate(file)
        model = self.folder / "model.h5"
        self.refuses("sample", "--run", self.run_folder, status=INPUT, says=[file, "step 20 is damaged"])
        self.refuses("export", "--run", self.run_folder, "--output", model, status=INPUT, says=[file])
        self.assertFalse(model.exists())
        self.run_laterna("export", "--run", self.run_folder, "--step", 14, "--output", model)
        result = self.train(self.run_folder, training__steps=20)
        self.assertIn("warning: damaged checkpoint: ", result.err)
        self.assertIn(str(file), result.err)
        self.assertIn("resuming from step 14", result.out)
        self.assertIn("damaged checkpoint", self.run_laterna("inspect", "--run", self.run_folder).out)
        self.assertTrue((self.run_folder / "checkpoints" / "step-000000020.damaged").is_dir())
        self.assert_same_run(self.run_folder, whole)

    def test_no_checkpoint_to_sample(self):
        self.refuses("sample", "--run", self.run_folder, status=INPUT, says=[self.run_folder])

    def test_no_such_step(self):
        self.trained()
        self.refuses(
            "export",
            "--run",
            self.run_folder,
            "--step",
            3,
            "--output",
            self.folder / "model.h5",
            status=INPUT,
            says=[self.run_folder, "step 3", "14, 20"],
        )

    def test_folder_under_a_regular_file(self):
        (self.folder / "file").write_text("in the way")
        self.run_folder = self.folder / "file" / "run"
        self.refuses_training(FAILURE, says=[self.run_folder, "--run"])
        self.refuses_training(FAILURE, says=[self.run_folder, "--run"], ranks=2)

    @unittest.skipIf(os.geteuid() == 0, "root may write anywhere")
    def test_folder_without_permission(self):
        self.run_folder.mkdir(mode=0o555)
        self.refuses_training(FAILURE, says=[self.run_folder, "--run"])

    def test_folder_with_unrelated_files(self):
        self.run_folder.mkdir()
        (self.run_folder / "thesis.tex").write_text("precious")
        self.refuses_training(USAGE, says=[self.run_folder])
        self.assertEqual(os.listdir(self.run_folder), ["thesis.tex"])

    def test_inspect_without_a_run(self):
        result = self.refuses("inspect", "--run", self.run_folder, status=INPUT, says=[self.run_folder])
        self.assertNotIn("launch/presets", result.err)

    def test_learning_rate_that_diverges(self):
        result = self.run_laterna(
            "train",
            *self.config(training__steps=200, training__learning_rate=1e30, training__warmup=0, training__ema=0.5),
            "--run",
            self.run_folder,
            ranks=2,
            status=FAILURE,
        )
        self.assertIn("not finite", result.err)
        self.assertIn("training.learning_rate", result.err)


class Denoise(Case):
    def setUp(self):
        super().setUp()
        self.model = shared("exported", self.export) / "model.h5"
        self.inputs = {
            "x": np.zeros((3, 1, 8, 8), np.float32),
            "t": np.array([0, 500, 999]),
            "noise": np.ones((3, 1, 8, 8), np.float32),
        }

    def export(self, folder):
        folder.mkdir()
        self.train(self.folder / "run", training__steps=5)
        self.run_laterna("export", "--run", self.folder / "run", "--output", folder / "model.h5")

    def refuses_inputs(self, *flags, says=(), **changes):
        """Expects denoise to refuse self.inputs with `changes`: name=array, or name=None to leave an input out."""
        path, output = self.folder / "input.h5", self.folder / "output.h5"
        with h5py.File(path, "w") as file:
            for name, array in {**self.inputs, **changes}.items():
                if array is not None:
                    file[name] = array
        self.refuses(
            "denoise",
            "--model",
            self.model,
            "--input",
            path,
            "--output",
            output,
            *flags,
            status=INPUT,
            says=[path, *says],
        )
        self.assertFalse(output.exists())

    def test_missing_x(self):
        self.refuses_inputs(says=["x"], x=None)

    def test_missing_t(self):
        self.refuses_inputs(says=["t"], t=None)

    def test_missing_noise(self):
        self.refuses_inputs("--gradients", says=["noise"], noise=None)

    def test_t_out_of_range(self):
        self.refuses_inputs(says=["t must lie in 0..999"], t=np.array([0, 1, 1000]))
        self.refuses_inputs(says=["t must lie in 0..999"], t=np.array([0, -1, 5]))

    def test_x_of_wrong_shape(self):
        self.refuses_inputs(says=["x", "3, 1, 9, 8"], x=np.zeros((3, 1, 9, 8), np.float32))

    def test_x_without_batch(self):
        self.refuses_inputs(says=["x"], x=np.zeros((1, 8, 8), np.float32))

    def test_t_of_wrong_length(self):
        self.refuses_inputs(says=["t"], t=np.array([1, 2]))

    def test_noise_of_wrong_shape(self):
        self.refuses_inputs("--gradients", says=["noise"], noise=np.ones((2, 1, 8, 8), np.float32))

    def test_empty_batch(self):
        self.refuses_inputs(says=["x"], x=np.zeros((0, 1, 8, 8), np.float32), t=np.zeros(0, np.int64))

    def test_missing_input(self):
        missing = self.folder / "none.h5"
        self.refuses(
            "denoise",
            "--model",
            self.model,
            "--input",
            missing,
            "--output",
            self.folder / "out.h5",
            status=INPUT,
            says=[missing],
        )

    def damaged_model(self, change):
        path = self.folder / "model.h5"
        shutil.copy(self.model, path)
        change(path)
        self.inputs_path = self.folder / "input.h5"
        with h5py.File(self.inputs_path, "w") as file:
            file["x"], file["t"] = self.inputs["x"], self.inputs["t"]
        return self.refuses(
            "denoise",
            "--model",
            path,
            "--input",
            self.inputs_path,
            "--output",
            self.folder / "out.h5",
            status=INPUT,
            says=[path],
        )

    def test_truncated_model(self):
        self.damaged_model(truncate)

    def test_model_that_is_not_hdf5(self):
        self.damaged_model(lambda path: path.write_bytes(b"PK\3\4 of PyTorch"))

    def test_model_without_configuration(self):
        def change(path):
            with h5py.File(path, "r+") as file:
                del file.attrs["config"]

        self.assertIn("config", self.damaged_model(change).err)

    def test_model_without_a_parameter(self):
        def change(path):
            with h5py.File(path, "r+") as file:
                del file["model/head.weight"]

        self.assertIn("head.weight", self.damaged_model(change).err)

    def test_model_with_a_parameter_of_wrong_shape(self):
        def change(path):
            with h5py.File(path, "r+") as file:
                del file["model/head.bias"]
                file["model/head.bias"] = np.zeros(5, np.float32)

        self.assertIn("head.bias", self.damaged_model(change).err)

    def test_model_with_an_invalid_configuration(self):
        def change(path):
            with h5py.File(path, "r+") as file:
                file.attrs["config"] = attribute(file, "config").replace("heads = 2", "heads = 3")

        self.assertIn("model.heads", self.damaged_model(change).err)


if __name__ == "__main__":
    unittest.main()
