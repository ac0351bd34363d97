"""What noise from the clients costs beside a trusted server's: error, and a client's CPU time.

    python benchmarks/privacy_distributed.py            # 100 clients, z = 1, one round; about a minute

For each row: the mean squared error of the decoded sum over that of central Gaussian noise whose ε, by the
same RDP accounting, is equal; and the median CPU time that one client needs to clip, rotate, round and add
noise. The error's own standard error is √(2/D). Fixed seeds. Nothing is masked here: masks cancel exactly,
which is what the tests of secure aggregation say.
"""

import argparse
import math
import os
import statistics
import sys
import time

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np

from fl_plugins.privacy import Accountant, Everyone, Gaussian, NeighborRelation, NoiseSource, Release
from fl_plugins.secagg.distributed_noise import DistributedNoise, Noise

RELATION = NeighborRelation.of(unit="client", adjacency="zero_out")
SEED = bytes(32)
DELTA = 1e-5
SIZES = (1 << 12, 1 << 16, 1 << 20)


def epsilon(mechanism: object) -> float:
    """Return ε of one release by RDP alone."""
    accountant = Accountant(RELATION)
    accountant.compose(Release(mechanism=mechanism, sampling=Everyone(), relation=RELATION))  # type: ignore[arg-type]
    return accountant.report(DELTA, pld=False).by_method["rdp"]  # type: ignore[index]


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


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=100)
    clients = parser.parse_args().clients
    print(f"{clients} clients, noise multiplier 1, δ = {DELTA:g}, one round")
    print(f"{'noise':18} bits         d  σ local         ε  MSE / central    CPU ms")
    for size in SIZES:
        for num_bits in (16, 32):
            for noise in Noise:
                row(noise, num_bits, size, clients)
    return 0


if __name__ == "__main__":
    sys.exit(main())
