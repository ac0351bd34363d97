"""From options to runs, and the runs themselves: what ``simulate`` and ``compare`` do."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from fl_plugins._flower_engine import CORES
from fl_plugins.apps.config import RunConfig
from fl_plugins.errors import ConfigError, FLPluginsError
from fl_plugins.runlog.events import read_events
from fl_plugins.runlog.progress import ProgressDisplay, show_duration
from fl_plugins.runlog.table import DIVERGED, RunSummary, summarize
from fl_plugins.simulation.app_template import write_app
from fl_plugins.simulation.run_directory import check_folder, claimed, write_config
from fl_plugins.simulation.session import EVENTS_FILE, RunRequest, load_bundle, run_app
from fl_plugins.simulation.superlink import SuperLink, local_superlink

from ._preflight import check_run
from ._run_options import NUM_SUPERNODES, Value, check_keys, declared_config

READY_MADE = "ready-made"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """One run, checked: what the app is told, and where it leaves what it writes."""

    title: str
    folder: Path
    resume: bool
    run_config: Mapping[str, Value]
    request: RunRequest
    num_supernodes: int
    app: str

    def describe(self) -> dict[str, Value]:
        """Return what the run's ``config.toml`` says beside the run config."""
        return {
            "app": self.app,
            "num-supernodes": self.num_supernodes,
            "client-cpus": self.request.client_cpus,
            "client-gpus": float(self.request.client_gpus),
            CORES: self.request.run_config.get(CORES, 0),
        }


def plan_run(
    args: argparse.Namespace, given: Mapping[str, Value], folder: Path, *, resume: bool = False
) -> RunPlan:
    """Check everything that can be checked before a process is started.

    Raises
    ------
    FLPluginsError
        With what is wrong.
    """
    check_folder(folder, resume=resume)
    app = None if args.app is None else args.app.resolve()
    declared = RunConfig.defaults() if app is None else declared_config(app)
    where = "the ready-made app" if app is None else str(app)
    check_keys(given, declared, where=where)
    run_config = {**declared, **given}
    virtual = _has_virtual_clients(run_config)
    num_supernodes = args.num_supernodes
    if num_supernodes is None:
        num_supernodes = 1 if virtual else NUM_SUPERNODES
    if app is None:
        check_run(run_config, num_supernodes=num_supernodes)
    if resume and "resume" not in declared:
        raise ConfigError(f"--resume: {where} declares no run-config key 'resume', so it cannot be told to.")
    cpus = _default_cpus(virtual, num_supernodes) if args.client_cpus is None else args.client_cpus
    gpus = 0.0 if args.client_gpus is None else args.client_gpus
    ours: dict[str, Value] = {"run-dir": str(folder.resolve()), "resume": resume}
    if CORES not in given and virtual and num_supernodes == 1 and not gpus and only_cpus():
        ours[CORES] = cpus
    sent = {key: value for key, value in {**given, **ours}.items() if key in declared}
    request = RunRequest(
        bundle=b"" if app is None else load_bundle(app),
        run_config=sent,
        run_dir=folder,
        num_supernodes=num_supernodes,
        client_cpus=cpus,
        client_gpus=gpus,
    )
    return RunPlan(
        title=str(run_config.get("strategy", where)),
        folder=folder,
        resume=resume,
        run_config={key: value for key, value in run_config.items() if key not in ours},
        request=request,
        num_supernodes=num_supernodes,
        app=READY_MADE if app is None else str(app),
    )


def _has_virtual_clients(run_config: Mapping[str, Value]) -> bool:
    """Whether nodes share virtual clients; what is wrong with their number is said later."""
    virtual = run_config.get("virtual-clients", 0)
    return type(virtual) is int and virtual > 0


def _default_cpus(virtual: bool, num_supernodes: int) -> int:
    """Return the cores of a node: one, unless it is many clients, which share its part of the machine."""
    return max((os.cpu_count() or 1) // max(num_supernodes, 1), 1) if virtual else 1


def only_cpus() -> bool:
    """Whether JAX computes on CPUs in every process; else a node without GPUs needs one that sees none."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return True
    return not entry_points(group="jax_plugins") and not any(map(find_spec, ("jax_plugins", "libtpu")))


def execute(plans: Sequence[RunPlan], log_folder: Path) -> list[RunSummary]:
    """Run all plans, one after the other, in one SuperLink; return how they ended.

    A run that fails is told on standard error, and the next one follows.

    Raises
    ------
    FLPluginsError
        If a folder is in use, or the SuperLink does not start.
    """
    console = Console(highlight=False)
    failed: list[RunPlan] = []
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(claimed(plan.folder, resume=plan.resume))
            write_config(plan.folder, plan.describe(), plan.run_config)
        make = _ready_made_bundle if any(plan.app == READY_MADE for plan in plans) else bytes
        ready_made = stack.enter_context(ThreadPoolExecutor(1)).submit(make)  # while the SuperLink starts
        superlink = _start(console, stack, log_folder)
        for number, plan in enumerate(plans, start=1):
            if len(plans) > 1:
                console.print(f"\n[{number}/{len(plans)}] {plan.title}", markup=False, soft_wrap=True)
            bundle = ready_made.result() if plan.app == READY_MADE else plan.request.bundle
            if not _run(console, superlink, replace(plan, request=replace(plan.request, bundle=bundle))):
                failed.append(plan)
    return [_summarize(plan, failed=plan in failed) for plan in plans]


def _summarize(plan: RunPlan, *, failed: bool) -> RunSummary:
    """Return the summary of a run; an app that writes no events is judged by Flower's word alone."""
    events = read_events(plan.folder / EVENTS_FILE)
    if not events:
        return RunSummary(strategy=plan.title, outcome="failed" if failed else "finished")
    summary = summarize(events, strategy=plan.title)
    # What the events say may be of an earlier attempt, if this one did not even start.
    return replace(summary, outcome="failed") if failed and summary.outcome != DIVERGED else summary


def _start(console: Console, stack: ExitStack, log_folder: Path) -> SuperLink:
    """Start the SuperLink for as long as ``stack`` is open."""
    with ProgressDisplay(console) as display:
        display.note("starting a local SuperLink")
        started = time.monotonic()
        superlink = stack.enter_context(local_superlink(log_folder / "superlink.log"))
        display.note(f"SuperLink ready after {show_duration(time.monotonic() - started)}")
    return superlink


def _run(console: Console, superlink: SuperLink, plan: RunPlan) -> bool:
    """Run one plan; return whether it succeeded."""
    with ProgressDisplay(console) as display:
        display.note(f"starting Flower's simulation engine with {plan.num_supernodes} nodes")
        try:
            run_app(superlink, plan.request, display.show)
        except FLPluginsError as error:
            print(f"fl-plugins: the run of {plan.title} failed: {error}", file=sys.stderr)
            return False
    return True


def _ready_made_bundle() -> bytes:
    """Return the ready-made app, written for the purpose."""
    with tempfile.TemporaryDirectory(prefix="fl-plugins-app-") as folder:
        return load_bundle(write_app(Path(folder)))
