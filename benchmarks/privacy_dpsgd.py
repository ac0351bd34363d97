"""DP-SGD throughput on one core: ours, jax-privacy, optax and Opacus on the same work.

    python benchmarks/privacy_dpsgd.py --install-peers   # once: .venv-peers/privacy with pinned versions
    python benchmarks/privacy_dpsgd.py --quick           # two repeats
    python benchmarks/privacy_dpsgd.py

Batches of 128 real examples, an SGD step each; every contestant in a process of its own, pinned to one core;
they take turns within each repeat. Examples per CPU-second, the best repeat (the machine is shared). Noise
is added by all but ``plain``: ours from words drawn before, as the trainer does while the program runs (the
drawing is timed apart: ``words``), others from their own generators.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks" / "privacy-dpsgd.md"
PEER = HERE.parent / ".venv-peers" / "privacy" / "bin" / "python"
PINNED = [
    "torch==2.13.0", "opacus==1.6.0", "jax==0.10.2", "jaxlib==0.10.2", "optax==0.2.8", "jax-privacy==2.0.0",
]  # fmt: skip
OURS = ["plain", "plain + noise", "ghost + noise", "words"]
PEERS = [
    "optax", "jax-privacy", "jax-privacy 16", "opacus plain", "opacus hooks", "opacus functorch", "opacus ew",
    "opacus ghost",
]  # fmt: skip
MODELS = ["mlp", "cnn"]


def measure(name: str, model: str) -> float:
    """Return examples per CPU-second in a process of its own, pinned to core 0; 0 if it failed."""
    python = sys.executable if name in OURS else str(PEER)
    script = "dpsgd_ours.py" if name in OURS else "dpsgd_peers.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(
        [python, str(HERE / "contestants" / script), name, model],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if finished.returncode:
        print(f"{name} {model}: {finished.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return 0.0
    return float(json.loads(finished.stdout.splitlines()[-1]))


GOALS = [
    ("mlp", "ghost + noise", "plain + noise", 1 / 1.2),
    ("cnn", "ghost + noise", "plain + noise", 1 / 1.3),
    ("mlp", "ghost + noise", "optax", 10.0),
    ("mlp", "ghost + noise", "jax-privacy", 10.0),
    ("mlp", "ghost + noise", "jax-privacy 16", 10.0),
    ("mlp", "ghost + noise", "opacus ghost", 2.0),
]
"""Model, contestant, whom it is compared to, and the least ratio of their speeds."""


def table(model: str, best: dict[str, float]) -> list[str]:
    """Return one model's table; a framework's private step is compared to its own step without privacy."""
    lines = [
        "",
        f"| {model} | examples / CPU-s | own plain step is so many times as fast |",
        "|---|---:|---:|",
    ]
    for name, speed in best.items():
        own = best.get("opacus plain" if name.startswith("opacus") else "plain", 0.0)
        lines.append(f"| {name} | {speed:.0f} | {own / speed:.2f} |" if speed else f"| {name} | failed | |")
    return lines


def goals(measured: dict[str, dict[str, float]]) -> list[str]:
    """Return which goals are met; those of contestants that did not run are left out."""
    lines = ["", "| goal | measured | |", "|---|---:|---|"]
    for model, ours, other, least in GOALS:
        speed, base = (measured.get(model, {}).get(name, 0.0) for name in (ours, other))
        if speed and base:
            verdict = "met" if speed / base >= least else "**missed**"
            lines.append(f"| {model}: {ours} ≥ {least:.2f}× {other} | {speed / base:.2f}× | {verdict} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--install-peers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two repeats instead of five")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(HERE.parent)}")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--runners", default=",".join([*OURS, *PEERS]))
    options = parser.parse_args()
    if options.install_peers:
        if not PEER.exists():
            subprocess.run([sys.executable, "-m", "venv", str(PEER.parent.parent)], check=True)
        subprocess.run([str(PEER), "-m", "pip", "install", "--quiet", *PINNED], check=True)
        return
    names = options.runners.split(",")
    measured: dict[str, dict[str, float]] = {}
    lines: list[str] = []
    for model in options.models.split(","):
        best = dict.fromkeys(names, 0.0)
        for _ in range(2 if options.quick else 5):
            for name in names:
                best[name] = max(best[name], measure(name, model))
        measured[model] = best
        lines += table(model, best)
    lines += goals(measured)
    print("\n".join(lines))
    if options.write:
        head = f"# DP-SGD throughput\n\n`python {' '.join(['benchmarks/privacy_dpsgd.py', *sys.argv[1:]])}`"
        about = (
            "Batches of 128, one pinned core, best of the repeats; what is compared: the script's docstring."
        )
        PAGE.write_text("\n".join([head, "", about, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
