# ruff: noqa: E402
"""One of the peers of ``benchmarks/privacy_dpsgd.py``, in their environment: prints examples per CPU-s."""

import os
import sys
import time

os.sched_setaffinity(0, {0})  # before any library starts its threads

import numpy as np

BATCH, STEPS = 128, 4
SIZES = {"mlp": [(784, 256), (256, 10)], "cnn": [(512, 32), (32, 10)]}


def jax_step(name, network):
    import jax
    import jax.numpy as jnp
    import optax
    from jax import lax

    rng = np.random.default_rng(0)
    params = [
        {"w": jnp.asarray(rng.normal(size=s).astype(np.float32) * 0.05), "b": jnp.zeros(s[1])}
        for s in SIZES[network]
    ]
    if network == "cnn":
        kernels = [(8, 8, 1, 16), (4, 4, 16, 32)]
        params += [
            {"w": jnp.asarray(rng.normal(size=s).astype(np.float32) * 0.05), "b": jnp.zeros(s[3])}
            for s in kernels
        ]

    def forward(params, x):
        if network == "cnn":
            for layer, pads in zip(params[2:], [[(3, 3), (3, 3)], "VALID"], strict=True):
                x = lax.conv_general_dilated(
                    x, layer["w"], (2, 2), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.relu(x + layer["b"])
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
        x = x.reshape(len(x), -1)
        x = jax.nn.relu(x @ params[0]["w"] + params[0]["b"])
        return x @ params[1]["w"] + params[1]["b"]

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()

    if name == "optax":
        noise = optax.contrib.differentially_private_aggregate(1.0, 1.0, key=0)
        single = jax.vmap(jax.grad(lambda p, x, y: loss(p, x[None], y[None])), (None, 0, 0))

        def gradients(params, state, x, y):
            return noise.update(single(params, x, y), state)
    else:
        import jax_privacy

        size = {"microbatch_size": 16} if name.endswith("16") else {}
        clipped = jax_privacy.clipped_grad(
            loss, l2_clip_norm=1.0, batch_argnums=(1, 2), keep_batch_dim=True, normalize_by=BATCH, **size
        )
        noise = jax_privacy.noise_addition.gaussian_privatizer(
            stddev=clipped.sensitivity() * 1.0, prng_key=jax.random.key(0)
        )

        def gradients(params, state, x, y):
            return noise.update(clipped(params, x, y), state)

    x = jnp.asarray(rng.normal(size=(BATCH, 28, 28, 1)).astype(np.float32))
    y = jnp.asarray(rng.integers(0, 10, BATCH))

    @jax.jit
    def step(params, state):
        found, state = gradients(params, state, x, y)
        return jax.tree.map(lambda w, g: w - 0.05 * g, params, found), state

    carry = [params, noise.init(params)]

    def run():
        carry[:] = step(*carry)
        jax.block_until_ready(carry[0])

    return run


def torch_step(mode, network):
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = [nn.Flatten()]
    for number, (inner, outer) in enumerate(SIZES[network]):
        head += [nn.Linear(inner, outer), *([nn.ReLU()] if number == 0 else [])]
    body = []
    if network == "cnn":
        body = [
            nn.Conv2d(1, 16, 8, 2, 3), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
        ]  # fmt: skip
    model = nn.Sequential(*body, *head)
    optimizer, criterion = torch.optim.SGD(model.parameters(), 0.05), nn.CrossEntropyLoss()
    x, y = torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    if mode != "plain":
        from opacus import PrivacyEngine

        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=BATCH)
        options = {"criterion": criterion} if mode == "ghost" else {}
        made = PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0,
            poisson_sampling=False, grad_sample_mode=mode, **options,
        )  # fmt: skip
        model, optimizer = made[0], made[1]
        criterion = made[2] if mode == "ghost" else criterion

    def run():
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    return run


def main(name, network):
    make = torch_step if name.startswith("opacus") else jax_step
    run = make(name.removeprefix("opacus "), network)
    run()
    run()
    times = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(STEPS):
            run()
        times.append(time.process_time() - start)
    print(STEPS * BATCH / min(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
