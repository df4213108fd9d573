"""Leaky integrate-and-fire neurons over T spiking steps, in two versions: written out, and SpikingJelly's.

    U = V + (I - (V - V_reset))/tau,  spike = U >= V_th,  V = V_reset where it spikes, else U

tau 2, V_reset 0, V = V_reset before the first step. The backward pass replaces the derivative of the spike by a
surrogate of U - V_th, treats the spike inside the reset as a constant, and flows through V over all steps.
A neuron is a module that maps currents [T, ...] to spikes [T, ...]. The model takes a function
(threshold, surrogate) -> module, so that it can use either version.
"""
import math

import torch
from torch import nn

TAU = 2.0
SIGMOID_SLOPE = 4.0
ARCTANGENT_SLOPE = 2.0


class Spike(torch.autograd.Function):
    """Heaviside step of y = U - V_th, whose derivative is that of a surrogate."""

    @staticmethod
    def forward(ctx, y, surrogate):
        ctx.save_for_backward(y)
        ctx.surrogate = surrogate
        return (y >= 0).to(y.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        if ctx.surrogate == "sigmoid":
            s = torch.sigmoid(SIGMOID_SLOPE * y)
            slope = SIGMOID_SLOPE * s * (1 - s)
        else:
            slope = (ARCTANGENT_SLOPE / 2) / (1 + (math.pi / 2 * ARCTANGENT_SLOPE * y) ** 2)
        return gradient * slope, None


def lif_step(current, membrane, threshold, surrogate):
    """Computes one step with V_reset 0; threshold is a number or a learnable tensor. Returns spike, membrane."""
    u = membrane + (current - membrane) / TAU
    spike = Spike.apply(u - threshold, surrogate)
    return spike, u * (1 - spike.detach())


class PlainLIF(nn.Module):
    """The definition, step by step, in the precision of the current."""

    def __init__(self, threshold, surrogate):
        super().__init__()
        self.threshold, self.surrogate = threshold, surrogate

    def forward(self, current):  # [T, ...]
        membrane = torch.zeros_like(current[0])
        spikes = []
        for step in current:
            spike, membrane = lif_step(step, membrane, self.threshold, self.surrogate)
            spikes.append(spike)
        return torch.stack(spikes)


def spikingjelly_lif(threshold, surrogate):
    """Returns SpikingJelly's multi-step neuron with the same constants. It keeps its membrane between calls."""
    from spikingjelly.activation_based import neuron, surrogate as surrogates

    function = surrogates.Sigmoid(SIGMOID_SLOPE) if surrogate == "sigmoid" else surrogates.ATan(ARCTANGENT_SLOPE)
    return neuron.LIFNode(tau=TAU, decay_input=True, v_threshold=threshold, v_reset=0.0,
                          surrogate_function=function, detach_reset=True, step_mode="m")


NEURONS = {"plain": PlainLIF, "spikingjelly": spikingjelly_lif}
