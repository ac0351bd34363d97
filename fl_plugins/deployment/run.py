"""One run of the ready-made app in a deployment that is up, from the SuperLink's machine."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from fl_plugins._flower import ControlError
from fl_plugins.apps.config import RunConfig
from fl_plugins.runlog.events import Event
from fl_plugins.simulation.app_template import Value, write_app
from fl_plugins.simulation.run_directory import check_same_run, claimed, read_config, write_config
from fl_plugins.simulation.session import RunRequest, load_bundle, run_app

from .drive import DeployedSuperLink
from .layout import Layout


def run_in(
    layout: Layout,
    run_config: Mapping[str, Value],
    *,
    name: str,
    resume: bool = False,
    show: Callable[[Event], None] = lambda _: None,
) -> list[Event]:
    """Run the ready-made app to its end, keep it in ``runs/<name>/``, and return its events.

    Parameters
    ----------
    layout : Layout
        The deployment; it is up.
    run_config : Mapping[str, bool | int | float | str]
        Run-config keys of the ready-made app; the deployment's own task is the default. A run that is resumed
        keeps what it had.
    name : str
        The run's folder.
    resume : bool
        Continue the run of that name from its newest checkpoint.
    show : Callable[[Event], None]
        Called with every event, soon after it was written.

    Raises
    ------
    ConfigError
        If the folder holds another run, or the run to resume had other plugins, seed or number of nodes, or
        the run config is refused.
    RunFailedError
        If the run failed; it can be resumed.
    """
    folder = layout.runs / name
    described: dict[str, Value] = {"app": "ready-made", "num-supernodes": layout.settings.num_nodes}
    with claimed(folder, resume=resume), tempfile.TemporaryDirectory(prefix="fl-plugins-app-") as app:
        given = {"task": layout.settings.task, **run_config}
        if resume:
            given = {**_to_resume(folder, {**run_config, **described}), **run_config}
        sent: dict[str, Value] = {**given, "run-dir": str(folder.resolve()), "resume": resume}
        RunConfig.from_run_config(sent)
        write_config(folder, described, {**RunConfig.defaults(), **given})
        request = RunRequest(
            bundle=load_bundle(write_app(Path(app))), run_config=sent, run_dir=folder, num_supernodes=None
        )
        superlink = DeployedSuperLink(layout)
        if resume:
            _stop_what_is_left(superlink, str(folder.resolve()))
        return run_app(superlink, request, show)


def _stop_what_is_left(superlink: DeployedSuperLink, run_dir: str) -> None:
    """Stop earlier runs into this folder that Flower believes to go on.

    After a SuperLink was killed, its run does so for another minute: nodes meanwhile ask for what the dead
    process had in memory, and serve nothing else.
    """
    with suppress(ControlError), superlink.control() as control:  # it may just have ended
        for run_id, run_config in control.unfinished_runs().items():
            if run_config.get("run-dir") == run_dir:
                control.stop_run(run_id)


def _to_resume(folder: Path, asked: Mapping[str, Value]) -> dict[str, Value]:
    """Return the run config that a run had; refuse to continue it as another one.

    Other plugins, another seed, or data dealt to more or fewer nodes are another run. The ServerApp checks
    its checkpoint itself, but it does not know how many nodes the data are dealt to.
    """
    saved = read_config(folder)
    had: dict[str, Value] = dict(saved.get("run-config", {}))
    check_same_run(folder, {**saved.get("run", {}), **had}, asked)
    return {key: value for key, value in had.items() if key not in ("run-dir", "resume")}
