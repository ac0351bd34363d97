"""Flower's simulation engine with stock strategy and client, in a private SuperLink that ends with the run.

``python -m contestants.flower_runner --framework torch --model lenet --rounds 12 --marks FILE``
"""

import tempfile
from pathlib import Path

from fl_plugins.simulation.app_template import to_toml
from fl_plugins.simulation.session import RunRequest, load_bundle, run_app
from fl_plugins.simulation.superlink import local_superlink

from .marks import contestant_parser
from .workload import NUM_CLIENTS


def main() -> None:
    parser = contestant_parser(__doc__)
    parser.add_argument("--framework", choices=["torch", "jax"], required=True)
    options = parser.parse_args()
    config = {
        "framework": options.framework,
        "model": options.model,
        "rounds": options.rounds,
        "marks": str(Path(options.marks).resolve()),
    }
    logs = Path(options.marks).resolve().parent
    with tempfile.TemporaryDirectory(prefix="contestant-") as name:
        folder = Path(name)
        tables = {
            "project": {"name": "contestant", "version": "1.0.0", "description": "", "license": "Apache-2.0"},
            "tool.flwr.app": {"publisher": "benchmark"},
            "tool.flwr.app.components": {
                "serverapp": "contestants.flower_server:app",
                "clientapp": f"contestants.flower_{options.framework}:app",
            },
            "tool.flwr.app.config": config,
        }
        (folder / "pyproject.toml").write_text(to_toml(tables))
        (folder / "LICENSE").write_text("Apache-2.0\n")
        request = RunRequest(
            bundle=load_bundle(folder), run_config=config, run_dir=logs, num_supernodes=NUM_CLIENTS
        )
        with local_superlink(logs / "superlink.log") as superlink:
            run_app(superlink, request, lambda _: None)


if __name__ == "__main__":
    main()
