"""The models in plain PyTorch, with the same initial parameters as everybody's."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .workload import BLOCKS, CONTEXT, HEADS, VOCABULARY, WIDTH, Examples, initial_parameters

Pairs = dict[str, str]


class MLP(nn.Module):
    """784-200-10."""

    names: Pairs = {"l1.weight": "w1", "l1.bias": "b1", "l2.weight": "w2", "l2.bias": "b2"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(784, 200), nn.Linear(200, 10)

    def forward(self, x: Any) -> Any:
        return self.l2(F.relu(self.l1(x)))


class LeNet(nn.Module):
    """The quickstart's network; takes NCHW."""

    names: Pairs = {  # noqa: RUF012
        "c1.weight": "k1",
        "c1.bias": "c1",
        "c2.weight": "k2",
        "c2.bias": "c2",
        **{f"l{i}.weight": f"w{i}" for i in (1, 2, 3)},
        **{f"l{i}.bias": f"b{i}" for i in (1, 2, 3)},
    }

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.pool = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2, 2)
        self.l1, self.l2, self.l3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Any) -> Any:
        x = self.pool(F.relu(self.c1(x)))
        x = self.pool(F.relu(self.c2(x))).flatten(1)
        return self.l3(F.relu(self.l2(F.relu(self.l1(x)))))


class CharLM(nn.Module):
    """The causal transformer."""

    names: Pairs = {  # noqa: RUF012
        "embed.weight": "embed",
        "position": "position",
        "head.weight": "head",
        **{
            f"{part}.{i}.weight": f"{part}{i}" for part in ("qkv", "out", "up", "down") for i in range(BLOCKS)
        },
    }

    def __init__(self) -> None:
        super().__init__()

        def layers(inputs: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(BLOCKS))

        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.qkv, self.out = layers(WIDTH, 3 * WIDTH), layers(WIDTH, WIDTH)
        self.up, self.down = layers(WIDTH, 4 * WIDTH), layers(4 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Any) -> Any:
        batch, length = tokens.shape
        h = self.embed(tokens) + self.position
        for qkv, out, up, down in zip(self.qkv, self.out, self.up, self.down, strict=True):
            q, k, v = (
                t.view(batch, length, HEADS, -1).transpose(1, 2)
                for t in qkv(F.layer_norm(h, (WIDTH,))).chunk(3, -1)
            )
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + out(attended.transpose(1, 2).reshape(batch, length, WIDTH))
            h = h + down(F.relu(up(F.layer_norm(h, (WIDTH,)))))
        return self.head(F.layer_norm(h, (WIDTH,)))


def make_module(model: str) -> Any:
    """Return the module with the initial parameters."""
    module = {"mlp": MLP, "lenet": LeNet, "charlm": CharLM}[model]()
    given, state = initial_parameters(model), {}
    for name, theirs in module.names.items():
        values = given[theirs]
        if values.ndim == 4:
            values = values.transpose(3, 2, 0, 1)
        elif name.endswith("weight") and theirs != "embed" and values.ndim == 2:
            values = values.T
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    module.load_state_dict(state)
    return module


def tensors(model: str, data: Examples) -> tuple[Any, Any]:
    """Return examples as PyTorch wants them: NCHW, int64."""
    x = np.ascontiguousarray(data.x.transpose(0, 3, 1, 2)) if model == "lenet" else data.x
    x = x.astype(np.int64) if model == "charlm" else x
    return torch.from_numpy(x), torch.from_numpy(data.y.astype(np.int64))


def loss_of(logits: Any, y: Any) -> Any:
    """Return cross-entropy, averaged over examples and tokens."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


@torch.no_grad()
def test_loss(model: str, module: Any, data: Examples) -> float:
    """Return the loss on ``data``."""
    x, y = tensors(model, data)
    return float(loss_of(module(x), y))
