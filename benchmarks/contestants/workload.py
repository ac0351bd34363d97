"""The work: models' shapes, clients' data and initial parameters, in NumPy alone, equal for all contestants.

FedAvg: 100 clients of 100 examples, 20 of them sampled per round if the benchmark says nothing else, one
local epoch, batches of 10, plain SGD.

========  =============================================================  ==========  =====================
model     what it is                                                     parameters  x, y of one example
========  =============================================================  ==========  =====================
mlp       784-200-10, ReLU                                               159,010     (784,), class
lenet     conv 6@5×5, pool, conv 16@5×5, pool, 120, 84, 10: Flower's    62,006      (32, 32, 3), class
          PyTorch quickstart
charlm    causal transformer, 64 tokens, context 32, width 64, 2 heads,  108,544     (32,) int32, next tokens
          2 blocks, pre-norm without learned scales, no biases
========  =============================================================  ==========  =====================

Parameters are a flat dict in JAX's layout: kernels ``(in, out)`` and ``(height, width, in, out)``.
"""

import math
import os
from dataclasses import dataclass

import numpy as np

NUM_CLIENTS = 100
EXAMPLES = 100
SAMPLED = int(os.environ.get("FL_PLUGINS_BENCHMARK_SAMPLED", "20"))
BATCH = 10
STEPS = EXAMPLES // BATCH
NUM_TEST = 500

VOCABULARY, CONTEXT, WIDTH, HEADS, BLOCKS = 64, 32, 64, 2, 2

LEARNING_RATE = {"mlp": 0.1, "lenet": 0.05, "charlm": 0.5}
MODELS = tuple(LEARNING_RATE)


@dataclass(frozen=True)
class Examples:
    """``x`` is ``(n, ...)``; ``y`` is ``(n,)`` or ``(n, context)``."""

    x: np.ndarray
    y: np.ndarray


def client_data(model: str, client: int, *, count: int = EXAMPLES) -> Examples:
    """Return one client's training examples."""
    return _draw(model, count, seed=1000 + client)


def test_data(model: str) -> Examples:
    """Return examples that no client has."""
    return _draw(model, NUM_TEST, seed=7)


def chance_loss(model: str) -> float:
    """Return the loss of guessing evenly."""
    return math.log(VOCABULARY if model == "charlm" else 10)


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Return the parameters' names and shapes."""
    match model:
        case "mlp":
            return {"w1": (784, 200), "b1": (200,), "w2": (200, 10), "b2": (10,)}
        case "lenet":
            return {
                "k1": (5, 5, 3, 6),
                "c1": (6,),
                "k2": (5, 5, 6, 16),
                "c2": (16,),
                "w1": (400, 120),
                "b1": (120,),
                "w2": (120, 84),
                "b2": (84,),
                "w3": (84, 10),
                "b3": (10,),
            }
        case "charlm":
            block = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH)}
            block["down"] = (4 * WIDTH, WIDTH)
            blocks = {f"{name}{i}": shape for i in range(BLOCKS) for name, shape in block.items()}
            ends = {"embed": (VOCABULARY, WIDTH), "position": (CONTEXT, WIDTH), "head": (WIDTH, VOCABULARY)}
            return {**ends, **blocks}
    raise ValueError(f"model={model!r} must be one of {', '.join(MODELS)}.")


def initial_parameters(model: str) -> dict[str, np.ndarray]:
    """Return the round-0 model: uniform in ±1/√fan_in, as PyTorch's layers begin."""
    rng = np.random.default_rng(3)
    parameters, fan_in = {}, 1
    for name, shape in shapes(model).items():
        fan_in = math.prod(shape[:-1]) if len(shape) > 1 else fan_in  # a bias has its kernel's
        parameters[name] = rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(math.sqrt(fan_in))
    return parameters


def _draw(model: str, count: int, *, seed: int) -> Examples:
    """Return examples of one distribution, whatever the seed: prototypes in noise, or a Markov chain."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    if model == "charlm":
        likely = np.argsort(fixed.random((VOCABULARY, VOCABULARY)), axis=1)[:, :4]
        tokens = np.empty((count, CONTEXT + 1), np.int32)
        tokens[:, 0] = rng.integers(VOCABULARY, size=count)
        for position in range(CONTEXT):
            choice = rng.integers(4, size=count)
            tokens[:, position + 1] = likely[tokens[:, position], choice]
        return Examples(tokens[:, :-1], tokens[:, 1:])
    shape = (784,) if model == "mlp" else (32, 32, 3)
    coarse = fixed.standard_normal((10, *((784,) if model == "mlp" else (4, 4, 3)))).astype(np.float32)
    prototypes = coarse if model == "mlp" else coarse.repeat(8, axis=1).repeat(8, axis=2)
    y = rng.integers(10, size=count).astype(np.int32)
    noise = rng.standard_normal((count, *shape), dtype=np.float32)
    scale = 0.25 if model == "mlp" else 0.5
    return Examples(scale * prototypes[y] + noise, y)
