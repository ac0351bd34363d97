"""One run of the ready-made app in a deployment that is up, from the SuperLink's machine."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from fl_plugins.apps.config import RunConfig
from fl_plugins.runlog.events import Event
from fl_plugins.simulation.app_template import Value, write_app
from fl_plugins.simulation.run_directory import claimed, write_config
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
        Run-config keys of the ready-made app; the deployment's own task is the default.
    name : str
        The run's folder.
    resume : bool
        Continue the run of that name from its newest checkpoint.
    show : Callable[[Event], None]
        Called with every event, soon after it was written.

    Raises
    ------
    ConfigError
        If the folder holds another run, or the run config is refused.
    RunFailedError
        If the run failed; it can be resumed.
    """
    folder = layout.runs / name
    given = {"task": layout.settings.task, **run_config}
    sent: dict[str, Value] = {**given, "run-dir": str(folder.resolve()), "resume": resume}
    RunConfig.from_run_config(sent)
    with claimed(folder, resume=resume), tempfile.TemporaryDirectory(prefix="fl-plugins-app-") as app:
        described: dict[str, Value] = {"app": "ready-made", "num-supernodes": layout.settings.num_nodes}
        write_config(folder, described, {**RunConfig.defaults(), **given})
        request = RunRequest(
            bundle=load_bundle(write_app(Path(app))), run_config=sent, run_dir=folder, num_supernodes=None
        )
        return run_app(DeployedSuperLink(layout), request, show)
