"""Laterna's denoiser in PyTorch, written only from docs/spec.md section 1, without reading the C++.

Image -> patches -> R blocks (time shift, spiking attention, selected candidates) -> predicted noise. All
matrix products read spikes; the residual stream x [T,B,M,D] is real. The router of a block depends only on
the diffusion step, so `Denoiser.routes` decides before the first block which samples select which candidate,
and a candidate computes only those samples. Parameters have the same names as in checkpoints, so that
state_dict() and an export's HDF5 group have the same keys: see load_export and save_export in export.py.

Symbols: B batch, C channels, p patch, M tokens, D width, A heads, N candidates, k selected, T spiking steps.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from neurons import NEURONS, lif_step

DIFFUSION_STEPS = 1000


@dataclass
class ModelConfig:
    """The [model] table of a configuration, with its defaults."""

    image_size: int = 28
    channels: int = 1
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    spiking_steps: int = 2
    hidden_ratio: int = 4
    candidates: int = 3
    selected: int = 2
    selection: str = "full"
    lateral: bool = True
    gamma_start: float = 0.0
    aggregation_start: str = "one_minus_identity"
    surrogate: str = "sigmoid"

    def __post_init__(self):
        assert self.image_size % self.patch == 0 and self.width % self.heads == 0
        assert self.width % 2 == 0 and 1 <= self.selected <= self.candidates
        assert self.selection in ("full", "head", "middle", "tail", "none")
        assert self.surrogate in ("sigmoid", "arctangent")

    @property
    def tokens(self):
        return (self.image_size // self.patch) ** 2

    def selects(self, r):
        """Returns whether block r selects candidates. Head, middle and tail are thirds of the depth R."""
        third = "head" if 3 * r < self.depth else "tail" if 3 * r >= 2 * self.depth else "middle"
        return self.selection in ("full", third)


@dataclass
class Assignments:
    """The assignments of one candidate: samples [n] (None: the whole batch), steps [T,n,1,1] (None: all T)."""

    samples: torch.Tensor | None
    steps: torch.Tensor | None


def sinusoids(width):
    """Returns [1000,D]: sin(t f_i) in the first D/2 columns, cos(t f_i) in the rest, f_i = 10000^(-i/(D/2))."""
    half = width // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(DIFFUSION_STEPS, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def aggregation(start, n):
    """Returns the initial value of Lambda, [N,N]."""
    eye, one = torch.eye(n), torch.ones(n, n)
    return {
        "one_minus_identity": lambda: one - eye,
        "additive_inverse": lambda: eye - one,
        "scaled": lambda: 100 * (one - eye),
        "inverse_scaled": lambda: 100 * (eye - one),
        "random_binary": lambda: torch.randint(0, 2, (n, n)).float(),
    }[start]()


class Lateral(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor(float(config.gamma_start)))
        self.aggregation = nn.Parameter(aggregation(config.aggregation_start, config.candidates))
        self.threshold = nn.Parameter(torch.tensor(0.5))
        self.surrogate = config.surrogate

    def forward(self, logits, membrane):  # [B,N] each
        spike, membrane = lif_step(logits @ self.aggregation.T, membrane, self.threshold, self.surrogate)
        return self.gamma * spike, membrane


class Router(nn.Module):
    """Equations 9-12: maps the time embedding to probabilities and selections at every spiking step."""

    def __init__(self, config, time_table):
        super().__init__()
        self.steps, self.selected = config.spiking_steps, config.selected
        self.select = nn.Linear(config.width, config.candidates)
        nn.init.normal_(self.select.weight, std=F.silu(time_table).square().sum(1).mean().rsqrt().item())
        nn.init.zeros_(self.select.bias)
        self.lateral = Lateral(config) if config.lateral else None

    def forward(self, silu_e):  # [B,D] -> P [T,B,N], mask [T,B,N] bool
        logits = self.select(silu_e)
        membrane = torch.zeros_like(logits)
        probability, mask = [], []
        for _ in range(self.steps):
            corrected = logits
            if self.lateral is not None:
                delta, membrane = self.lateral(logits, membrane)
                corrected = logits - delta
            order = corrected.detach().sort(dim=-1, descending=True, stable=True).indices  # ties: lower index first
            chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, order[:, : self.selected], True)
            probability.append(corrected.softmax(dim=-1))
            mask.append(chosen)
        return torch.stack(probability), torch.stack(mask)


class Attention(nn.Module):
    def __init__(self, config, neuron):
        super().__init__()
        d = config.width
        self.heads, self.size = config.heads, d // config.heads
        self.norm = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.norm_q, self.norm_k, self.norm_v = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        for norm in (self.norm_q, self.norm_k, self.norm_v):
            nn.init.constant_(norm.bias, 0.7)
        self.project = nn.Linear(d, d)
        self.lif, self.lif_q, self.lif_k, self.lif_v = (neuron(1.0, config.surrogate) for _ in range(4))
        self.lif_out = neuron(0.5, config.surrogate)

    def split(self, spikes):  # [T,B,M,D] -> [TB,A,M,D/A]
        t, b, m, _ = spikes.shape
        return spikes.view(t * b, m, self.heads, self.size).transpose(1, 2)

    def forward(self, x):  # [T,B,M,D]
        t, b, m, d = x.shape
        spikes = self.lif(self.norm(x))
        q, k, v = self.qkv(spikes).chunk(3, dim=-1)
        q = self.split(self.lif_q(self.norm_q(q)))
        k = self.split(self.lif_k(self.norm_k(k)))
        v = self.split(self.lif_v(self.norm_v(v)))
        if m < self.size:  # sums of integers, exact in either order: take the cheaper one
            a = (q @ k.transpose(-1, -2)) @ v
        else:
            a = q @ (k.transpose(-1, -2) @ v)
        a = a.transpose(1, 2).reshape(t, b, m, d) * self.size**-0.5
        return self.project(self.lif_out(a))


class Candidate(nn.Module):
    def __init__(self, config, neuron):
        super().__init__()
        hidden = config.hidden_ratio * config.width
        self.up = nn.Linear(config.width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.down = nn.Linear(hidden, config.width)
        self.lif = neuron(1.0, config.surrogate)

    def forward(self, z, steps=None):  # [T,n,M,D]
        current = self.norm(self.up(z))
        if steps is not None:  # not selected: no current, so the membrane leaks and cannot reach its threshold
            current = current * steps
        return self.down(self.lif(current))


class Candidates(nn.Module):
    """Equation 13. The candidates are the children "0" .. "N-1"; norm and lif compute their common input z."""

    def __init__(self, config, neuron, count):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.lif = neuron(1.0, config.surrogate)
        self.count = count
        for j in range(count):
            self.add_module(str(j), Candidate(config, neuron))

    def forward(self, x, h=None, assignments=None):  # x [T,B,M,D], h [T,B,N] with zeros where not selected
        z = self.lif(self.norm(x))
        if assignments is None:
            return x + self.get_submodule("0")(z)
        out = x
        for j, assignment in enumerate(assignments):
            if assignment is None:
                continue
            candidate, weight = self.get_submodule(str(j)), h[:, :, j, None, None]  # [T,B,1,1]
            if assignment.samples is None:
                out = out + weight * candidate(z, assignment.steps)
            else:
                mine = candidate(z.index_select(1, assignment.samples), assignment.steps)
                out = out.index_add(1, assignment.samples, weight.index_select(1, assignment.samples) * mine)
        return out


class Block(nn.Module):
    def __init__(self, config, r, time_table, neuron):
        super().__init__()
        self.time = nn.Linear(config.width, config.width)
        self.attention = Attention(config, neuron)
        selects = config.selects(r)
        self.router = Router(config, time_table) if selects else None
        self.candidates = Candidates(config, neuron, config.candidates if selects else 1)

    def forward(self, x, silu_e, h, assignments):  # [T,B,M,D]
        x = x + self.time(silu_e)[:, None, :]
        x = x + self.attention(x)
        return self.candidates(x, h, assignments)


class Denoiser(nn.Module):
    """eps(x_t, t). neuron: "plain" or "spikingjelly"."""

    def __init__(self, config, neuron="plain"):
        super().__init__()
        self.config = config
        make = NEURONS[neuron]
        d, pixels = config.width, config.channels * config.patch**2
        self.embed = nn.Conv2d(config.channels, d, config.patch, stride=config.patch)
        self.embed.weight.data.mul_(3**0.5)  # pixels of unit variance give unit variance in the stream
        self.position = nn.Parameter(2 * torch.randn(1, config.tokens, d))
        self.time = nn.Embedding(DIFFUSION_STEPS, d, _weight=sinusoids(d))
        self.blocks = nn.ModuleList(Block(config, r, self.time.weight.detach(), make) for r in range(config.depth))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, pixels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.stateful = [m for m in self.modules() if hasattr(m, "reset")]  # SpikingJelly's neurons

    def routes(self, t):
        """Returns {layer: (P [T,B,N], mask [T,B,N])} of the layers that select, a function of t [B] only."""
        silu_e = F.silu(self.time(t))
        return {r: block.router(silu_e) for r, block in enumerate(self.blocks) if block.router is not None}

    def forward(self, x, t, routes=None):  # x [B,C,H,W], t [B] int64 -> [B,C,H,W]
        for neuron in self.stateful:
            neuron.reset()
        routes = self.routes(t) if routes is None else routes
        assignments = index_lists(routes)
        silu_e = F.silu(self.time(t))
        u = self.embed(x).flatten(2).transpose(1, 2) + self.position  # [B,M,D]
        stream = u.expand(self.config.spiking_steps, *u.shape)  # [T,B,M,D]
        for r, block in enumerate(self.blocks):
            h = routes[r][0] * routes[r][1] if r in routes else None
            stream = block(stream, silu_e, h, assignments.get(r))
        # The head is linear: averaging over T before it gives the average of its outputs.
        return self.unpatch(self.head(self.norm(stream).mean(0)))

    def unpatch(self, tokens):  # [B,M,p*p*C] -> [B,C,H,W]
        side, p = self.config.image_size // self.config.patch, self.config.patch
        image = tokens.view(-1, side, side, p, p, self.config.channels)
        return image.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.config.channels, side * p, side * p)


def index_lists(routes):
    """Returns {layer: [Assignments of each candidate, or None if no sample selects it]}.

    One copy to the host serves all layers.
    """
    if not routes:
        return {}
    device = next(iter(routes.values()))[1].device
    masks = torch.stack([mask for _, mask in routes.values()]).cpu()  # [layers,T,B,N]
    lists = {}
    for r, mask in zip(routes, masks):
        lists[r] = []
        for chosen in mask.unbind(-1):  # [T,B]
            samples = chosen.any(0).nonzero().flatten()
            if len(samples) == 0:
                lists[r].append(None)
                continue
            steps = chosen[:, samples]
            lists[r].append(Assignments(
                None if len(samples) == chosen.shape[1] else samples.to(device),
                None if steps.all() else steps[:, :, None, None].to(device),
            ))
    return lists
