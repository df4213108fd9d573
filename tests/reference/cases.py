"""Small models for the parity test, with weights under which every part of a model takes effect.

Initial weights would prove little: the head and gamma are zero, and the layers hardly fire. Here every parameter is
random, and LayerNorm biases lift firing rates to about 5-40%. In the "live" cases gamma is about 0.7, Lambda is random
and Omega fires at some steps, so that the selection of a sample differs between spiking steps. Weights and inputs are
float32 values, so that both programs widen the same numbers to float64.
"""
import torch

from laterna_reference import DIFFUSION_STEPS, Denoiser, ModelConfig

SMALL = dict(image_size=8, width=32, depth=3, heads=2)
CASES = {  # differences from the specification's defaults; a live case must change its selection between steps
    "default": dict(SMALL),
    "one_of_two": dict(SMALL, candidates=2, selected=1, spiking_steps=3),
    "two_of_five": dict(SMALL, candidates=5, spiking_steps=4, channels=3),
    "all_of_three": dict(SMALL, selected=3, spiking_steps=2),
    "one_step": dict(SMALL, spiking_steps=1, patch=4, channels=3),
    "patch_four": dict(SMALL, image_size=16, patch=4, width=64, heads=4, depth=2),
    "three_heads": dict(SMALL, width=48, heads=3, spiking_steps=4, depth=2),
    "odd_heads": dict(SMALL, width=24, heads=3, spiking_steps=3, depth=2),
    "few_tokens": dict(SMALL, image_size=4, width=32, heads=2, depth=2),
    "head": dict(SMALL, selection="head", depth=4),
    "middle": dict(SMALL, selection="middle", depth=5),
    "tail": dict(SMALL, selection="tail", depth=4),
    "none": dict(SMALL, selection="none"),
    "lateral_off": dict(SMALL, lateral=False),
    "arctangent": dict(SMALL, surrogate="arctangent", spiking_steps=3),
    "hidden_two": dict(SMALL, hidden_ratio=2, channels=3),
    "live_lateral": dict(SMALL, spiking_steps=4, depth=4),
    "live_one_of_two": dict(SMALL, candidates=2, selected=1, spiking_steps=2, depth=4),
    "live_two_of_five": dict(SMALL, candidates=5, spiking_steps=3, surrogate="arctangent", channels=3, depth=4),
    "live_tail": dict(SMALL, selection="tail", spiking_steps=3, hidden_ratio=2, depth=6),
}
BATCH, LIVE_BATCH = 6, 16


def is_live(case):
    return case.startswith("live")


def seed(case):
    return 1000 + list(CASES).index(case)


@torch.no_grad()
def randomise(model, live):
    """Draws every parameter from a distribution that depends on its name."""
    for name, p in model.named_parameters():
        if name.endswith("lateral.gamma"):
            p.fill_(0.7 + 0.1 * torch.randn(()).item() if live else 0.2)
        elif name.endswith("lateral.aggregation"):
            p.normal_(std=2.0) if live else p.add_(0.1 * torch.randn_like(p))
        elif name.endswith("lateral.threshold"):
            p.fill_(1.0 + 0.1 * torch.randn(()).item() if live else 0.45)
        elif name.endswith("router.select.bias"):
            p.normal_(std=0.3)
        elif name == "time.weight":
            p.add_(0.1 * torch.randn_like(p))
        elif name.endswith("router.select.weight"):
            p.mul_(0.6 if live else 1.0)  # close logits, so that a lateral correction changes the selection
        elif name == "head.weight":
            p.normal_(std=p.shape[1] ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            p.normal_(1.0, 0.2)
        elif "norm" in name and name.endswith("bias"):
            p.normal_(1.0 if "norm_" in name else 0.6, 0.4)  # q, k, v fire enough for their products to fire
        elif name == "position" or name.endswith("bias"):
            p.normal_(std=0.2)
        else:  # matrices [out, ...]: unit gain
            p.normal_(std=p[0].numel() ** -0.5)


def make(case):
    """Returns the model in float32 (plain neurons), x [B,C,H,W], t [B], noise [B,C,H,W]."""
    torch.manual_seed(seed(case))
    config = ModelConfig(**CASES[case])
    model = Denoiser(config)
    randomise(model, is_live(case))
    batch = LIVE_BATCH if is_live(case) else BATCH
    shape = (batch, config.channels, config.image_size, config.image_size)
    t = torch.randint(0, DIFFUSION_STEPS, (batch,))
    t[0], t[1] = 0, DIFFUSION_STEPS - 1
    return model, torch.randn(shape), t, torch.randn(shape)
