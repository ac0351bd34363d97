"""What noise from the clients costs beside a trusted server's: error, and a client's CPU time.

    python benchmarks/privacy_distributed.py            # 100 clients, z = 1, one round; about a minute
    python benchmarks/privacy_distributed.py --accuracy # digits, 479 clients, 30 rounds; a few minutes

For each row: the mean squared error of the decoded sum over that of central Gaussian noise whose ε, by the
same RDP accounting, is equal; and the median CPU time that one client needs to clip, rotate, round and add
noise. The error's own standard error is √(2/D). Fixed seeds. Nothing is masked here: masks cancel exactly,
which is what the tests of secure aggregation say.

``--accuracy``: a linear model of digits, 479 clients with three images each, all in every round, five local
steps; the mean of the clipped updates with noise of a trusted server (Gaussian) or of the clients (16 bits).
The noise is the least whose rounds cost no more than ε by the same accounting, RDP, δ = 1e-5.
"""

import argparse
import math
import os
import statistics
import sys
import time

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import adaptive_clipping
import numpy as np

from fl_plugins.errors import ConfigError
from fl_plugins.privacy import (
    Accountant,
    Everyone,
    Gaussian,
    Mechanism,
    Method,
    NeighborRelation,
    NoiseSource,
    Release,
)
from fl_plugins.privacy.calibration import smallest
from fl_plugins.privacy.clipping import clip_l2
from fl_plugins.secagg.distributed_noise import DistributedNoise, Noise

RELATION = NeighborRelation.of(unit="client", adjacency="zero_out")
SEED = bytes(32)
DELTA = 1e-5
SIZES = (1 << 12, 1 << 16, 1 << 20)
EPSILONS = (0.5, 1.0, 2.0, 4.0)
ROUNDS, SEEDS, CLIP_NORM = 30, 3, 1.0


def epsilon(mechanism: Mechanism, rounds: int = 1) -> float:
    """Return ε of some releases by RDP alone."""
    accountant = Accountant(RELATION)
    release = Release(mechanism=mechanism, sampling=Everyone(), relation=RELATION)
    accountant.compose(release, rounds)
    return accountant.report(DELTA, pld=False).by_method[Method.RDP]


def central_multiplier(target: float) -> float:
    """Return the noise multiplier of central Gaussian noise with that ε."""
    low, high = 1e-2, 1e2
    while high - low > 1e-9 * high:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon(Gaussian(noise_multiplier=middle)) > target else (low, middle)
    return high


def row(noise: Noise, num_bits: int, size: int, clients: int) -> None:
    """Measure and print one configuration."""
    config = DistributedNoise(
        noise=noise,
        noise_multiplier=1.0,
        clip_norm=1.0,
        num_entries=size,
        num_bits=num_bits,
        cohort=clients,
        min_survivors=clients,
    )
    source, rng = NoiseSource(insecure_seed=1), np.random.default_rng(2)
    plain = np.zeros(size)
    total = np.zeros(config.length, np.dtype(f"<u{num_bits // 8}"))
    seconds = []
    for _ in range(clients):
        update = rng.normal(size=size) + 1.0  # half of its energy is the same for all
        update /= np.linalg.norm(update)
        plain += update
        start = time.process_time()
        total += config.encode([update], rotation_seed=SEED, source=source).words
        seconds.append(time.process_time() - start)
    error = config.decode(total, clients, rotation_seed=SEED).update - plain
    spent = epsilon(config.mechanism)
    ratio = float(np.mean(error**2)) / central_multiplier(spent) ** 2
    print(
        f"{noise:18} {num_bits:4} {size:9} {config.local_std:8.1f} {spent:9.4f} {ratio:8.4f} "
        f"±{math.sqrt(2 / size):.4f} {1e3 * statistics.median(seconds):9.1f}"
    )


def distributed(noise: Noise, noise_multiplier: float, size: int) -> DistributedNoise:
    """Return the encoding of the accuracy runs."""
    users = adaptive_clipping.USERS
    return DistributedNoise(
        noise=noise,
        noise_multiplier=noise_multiplier,
        clip_norm=CLIP_NORM,
        num_entries=size,
        num_bits=16,
        cohort=users,
        min_survivors=users,
    )


def least(target: float, noise: Noise | None, size: int) -> float:
    """Return the least noise multiplier of which all rounds cost at most ``target``."""
    if math.isinf(target):
        return 0.0

    def kept(z: float) -> bool:
        if noise is None:
            return epsilon(Gaussian(noise_multiplier=z), ROUNDS) <= target
        try:
            return epsilon(distributed(noise, z, size).mechanism, ROUNDS) <= target
        except ConfigError:  # too little noise for the ring
            return False

    return smallest(kept)


def trained(noise: Noise | None, noise_multiplier: float, seed: int) -> float:
    """Return the test accuracy after all rounds."""
    x, y, test_x, test_y = adaptive_clipping.data(seed)
    weights = np.zeros((x.shape[-1], 10))
    source = NoiseSource(insecure_seed=seed)
    for number in range(ROUNDS):
        updates = adaptive_clipping.train_locally(weights, x, y) - weights
        if noise is None:
            total = sum(clip_l2({"w": update}, CLIP_NORM).arrays["w"] for update in updates)
            if noise_multiplier:
                total = total + source.normal(weights.size, std=noise_multiplier * CLIP_NORM).reshape(
                    weights.shape
                )
        else:
            config = distributed(noise, noise_multiplier, weights.size)
            rotation = number.to_bytes(32, "big")
            words = np.zeros(config.length, np.uint16)
            for update in updates:
                words += config.encode([update], rotation_seed=rotation, source=source).words
            total = config.decode(words, len(updates), rotation_seed=rotation).update.reshape(weights.shape)
        weights = weights + total / len(updates)
    return float(((test_x @ weights).argmax(axis=1) == test_y.argmax(axis=1)).mean())


def accuracy() -> None:
    """Print accuracy by ε and by who adds the noise."""
    size = adaptive_clipping.data(0)[0].shape[-1] * 10
    arms = {"trusted server, Gaussian": None} | {f"clients, {noise}": noise for noise in Noise}
    print("| noise | " + " | ".join(f"ε = {e:g} (z)" for e in EPSILONS) + " | no noise |")
    print("|---|" + "---:|" * (len(EPSILONS) + 1))
    for name, noise in arms.items():
        cells = []
        for target in (*EPSILONS, math.inf):
            if math.isinf(target) and noise is not None:
                cells.append("")
                continue
            z = least(target, noise, size)
            scores = 100.0 * np.array([trained(noise, z, seed) for seed in range(SEEDS)])
            cells.append(f"{scores.mean():.1f} ± {scores.std(ddof=1):.1f}" + (f" ({z:.2f})" if z else ""))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--accuracy", action="store_true", help="accuracy by ε instead")
    args = parser.parse_args()
    if args.accuracy:
        accuracy()
        return 0
    clients = args.clients
    print(f"{clients} clients, noise multiplier 1, δ = {DELTA:g}, one round")
    print(f"{'noise':18} bits         d  σ local         ε  MSE / central    CPU ms")
    for size in SIZES:
        for num_bits in (16, 32):
            for noise in Noise:
                row(noise, num_bits, size, clients)
    return 0


if __name__ == "__main__":
    sys.exit(main())
