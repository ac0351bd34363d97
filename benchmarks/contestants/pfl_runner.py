"""pfl-research: its federated averaging on its PyTorch backend, in one or several processes.

``python -m contestants.pfl_runner --model lenet --rounds 12 --marks FILE --processes 2``
"""

import os
import socket
import subprocess
import sys
from typing import Any

from .marks import MarkWriter, contestant_parser
from .workload import (
    BATCH,
    LEARNING_RATE,
    NUM_CLIENTS,
    SAMPLED,
    client_data,
    test_data,
)


def main() -> None:
    parser = contestant_parser(__doc__)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    helpers = []
    if options.processes > 1 and "PFL_WORKER_RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # Only the first address is used: the others meet there.
        addresses = ",".join(f"127.0.0.1:{port + i}" for i in range(options.processes))
        os.environ.update(PFL_WORKER_ADDRESSES=addresses, PFL_WORKER_RANK="0")
        helpers = [
            subprocess.Popen(
                [sys.executable, "-m", "contestants.pfl_runner", *sys.argv[1:]],
                env={**os.environ, "PFL_WORKER_RANK": str(rank)},
            )
            for rank in range(1, options.processes)
        ]
    run(options.model, options.rounds, MarkWriter(options.marks), processes=options.processes)
    for helper in helpers:
        helper.wait()


def run(model: str, rounds: int, marks: MarkWriter, *, processes: int) -> None:
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    from . import torch_models

    torch.set_num_threads(1)  # more of them slow a model of this size down
    np.random.seed(1)  # noqa: NPY002  # pfl's samplers follow the global generator, equal in all processes
    is_first = os.environ.get("PFL_WORKER_RANK", "0") == "0"
    module = torch_models.make_module(model)
    steps = 0

    def loss(x: Any, y: Any) -> Any:
        nonlocal steps
        steps += 1
        module.train()
        return torch_models.loss_of(module(x), y)

    module.loss, module.metrics = loss, lambda *_: {}
    users = {
        number: PyTorchTensorDataset(torch_models.tensors(model, client_data(model, number)))
        for number in range(NUM_CLIENTS)
    }
    dataset = FederatedDataset(
        users.__getitem__, get_user_sampler("minimize_reuse", list(range(NUM_CLIENTS)))
    )

    class Mark(TrainingProcessCallback):
        def after_central_iteration(
            self,
            aggregate_metrics: Any,  # noqa: ARG002
            model: Any,  # noqa: ARG002
            *,
            central_iteration: int,  # noqa: ARG002
        ) -> Any:
            if is_first:
                marks.round_ended()
            return False, Metrics()

    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**9,
            train_cohort_size=SAMPLED,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=dataset, val_data=dataset),
        PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE[model], local_batch_size=BATCH
        ),
        callbacks=[Mark()],
    )
    if processes > 1:
        total = torch.tensor([steps])
        torch.distributed.all_reduce(total)
        steps = int(total)
    if is_first:
        marks.done(steps=steps, loss=torch_models.test_loss(model, module, test_data(model)))


if __name__ == "__main__":
    main()
