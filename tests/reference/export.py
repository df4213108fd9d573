"""Reads and writes files of `laterna export`, to continue work on a model in Python and to return it to Laterna.

The file is HDF5: group `model` holds the parameters by name as float32, the root attribute `config` the
resolved configuration as TOML. Keys that the configuration leaves out have the specification's defaults.

    model, config = load_export("model.h5")        # a torch module and the TOML text
    save_export("changed.h5", model, config)       # `laterna denoise --model changed.h5` takes it
"""
import tomllib
from dataclasses import asdict, fields

import h5py
import numpy as np
import torch

from laterna_reference import Denoiser, ModelConfig


def model_config(toml_text):
    """Returns the [model] table of a TOML text as a ModelConfig; an unknown key is an error."""
    return ModelConfig(**tomllib.loads(toml_text).get("model", {}))


def toml_text(config, only=None):
    """Returns a [model] table as TOML. only: the keys to write (default: all)."""
    def value(v):
        return str(v).lower() if isinstance(v, bool) else f'"{v}"' if isinstance(v, str) else repr(v)

    names = only or [f.name for f in fields(ModelConfig)]
    return "[model]\n" + "".join(f"{name} = {value(asdict(config)[name])}\n" for name in names)


def config_text(file):
    """Returns the configuration of an open export as TOML text."""
    text = file.attrs["config"]
    return text.decode() if isinstance(text, bytes) else str(text)


def load_export(path, neuron="plain"):
    """Returns (Denoiser in float32, configuration as TOML text)."""
    with h5py.File(path, "r") as file:
        text = config_text(file)
        state = {name: torch.from_numpy(np.asarray(data[()], dtype=np.float32)) for name, data in file["model"].items()}
    model = Denoiser(model_config(text), neuron)
    model.load_state_dict(state)
    return model, text


def save_export(path, model, config=None):
    """Writes an export. config: the TOML text to store with the parameters (default: the model's [model] table)."""
    with h5py.File(path, "w") as file:
        file.attrs["config"] = toml_text(model.config) if config is None else config
        group = file.create_group("model")
        for name, tensor in model.state_dict().items():
            group.create_dataset(name, data=tensor.detach().cpu().float().numpy())
