"""One run of a Flower App in a SuperLink: started, followed to its end, and judged.

Flower's own exit status says nothing (``flwr run`` returns 0 for a run that failed), and its status says
little (a run whose clients have all died can be ``completed``): a run has succeeded if the SuperLink says so
*and* its events, if it wrote any, say that it finished.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_plugins import errors
from fl_plugins._flower import Control, ControlError, RunStatus, build_bundle
from fl_plugins.errors import ConfigError, RunFailedError
from fl_plugins.runlog.events import TERMINAL, Event, EventLog, EventReader

from .superlink import strip_colours

EVENTS_FILE = "events.jsonl"
SERVER_LOG = "server.log"

POLL_S = 0.1
STATUS_EVERY_S = 0.5
LOG_LINES_IN_ERROR = 15
_LOG_END_TIMEOUT_S = 5.0

Value = bool | int | float | str


class RunsApps(Protocol):
    """A SuperLink, in simulation mode or with SuperNodes of its own."""

    def control(self) -> Control:
        """Return a new connection to it."""
        ...

    def check_alive(self) -> None:
        """Raise ``RunFailedError`` if it has ended."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What to run.

    Parameters
    ----------
    bundle : bytes
        The Flower App, see :func:`load_bundle`.
    run_config : Mapping[str, bool | int | float | str]
        Overrides of the run config that the app declares; strings of any content.
    run_dir : Path
        Where the app writes its events (``events.jsonl``) and this session the server's log.
    num_supernodes : int, optional
        Simulated nodes; ``None`` if the SuperLink has real ones.
    client_cpus, client_gpus : int, float
        What one client needs; as many run at once as fit on the machine.
    """

    bundle: bytes
    run_config: Mapping[str, Value]
    run_dir: Path
    num_supernodes: int | None
    client_cpus: int = 1
    client_gpus: float = 0.0

    def __post_init__(self) -> None:
        cores = os.cpu_count() or 1
        if self.num_supernodes is not None and self.num_supernodes < 1:
            raise ConfigError(f"simulate: num_supernodes={self.num_supernodes}, but a federation has >= 1.")
        if not 1 <= self.client_cpus <= cores:
            raise ConfigError(f"simulate: client_cpus={self.client_cpus}, but this machine has 1 to {cores}.")
        if not self.client_gpus >= 0:
            raise ConfigError(f"simulate: client_gpus={self.client_gpus}, but it must be >= 0.")

    def simulation_config(self) -> dict[str, int | float] | None:
        """Return Flower's simulation settings, if anything is simulated.

        Flower starts one Ray actor for every ``client_cpus`` cores, each with its own interpreter and JAX, so
        a machine with more cores than the clients can use is told to use fewer.
        """
        if self.num_supernodes is None:
            return None
        settings: dict[str, int | float] = {
            "num_supernodes": self.num_supernodes,
            "client_resources_num_cpus": self.client_cpus,
            "client_resources_num_gpus": self.client_gpus,
        }
        useful = self.num_supernodes * self.client_cpus
        if useful < (os.cpu_count() or 1):
            settings["init_args_num_cpus"] = useful
        return settings


def load_bundle(app_dir: Path) -> bytes:
    """Return the app in ``app_dir`` as a Flower App Bundle.

    Raises
    ------
    ConfigError
        If there is no Flower App that can be run.
    """
    try:
        return build_bundle(app_dir)
    except (ValueError, OSError) as error:
        raise ConfigError(f"simulate: {app_dir} is no Flower App that can be run: {error}") from error


def run_app(superlink: RunsApps, request: RunRequest, show: Callable[[Event], None]) -> list[Event]:
    """Run an app to its end and return the events that it wrote.

    Parameters
    ----------
    superlink : RunsApps
        Where to run it.
    request : RunRequest
        What to run.
    show : Callable[[Event], None]
        Called with every event, soon after it was written.

    Raises
    ------
    RunFailedError
        If the run failed, with the last lines of the server's log; ``run_failed`` is then in the events.
    ConfigError
        If the SuperLink refuses the app or its run config.
    """
    events_path = request.run_dir / EVENTS_FILE
    reader = EventReader(events_path, offset=EventReader.end_of(events_path))
    events: list[Event] = []

    def drain() -> None:
        for event in reader.poll():
            events.append(event)
            show(event)

    with superlink.control() as control:
        run_id = _start(superlink, control, request)
        log = _LogFollower(superlink, run_id, request.run_dir / SERVER_LOG)
        try:
            status = _follow(superlink, control, run_id, drain, lambda: _over(events))
        except BaseException:  # Ctrl-C, too: a run that nobody follows must not go on writing into its folder
            with suppress(ControlError):
                control.stop_run(run_id)
            raise
        log.wait()
    drain()
    if (problem := judge(status, events)) is not None:
        if not any(event["event"] == "run_failed" for event in events):
            EventLog(events_path)("run_failed", error=problem)
            drain()
        told = hasattr(errors, problem.partition(":")[0])  # an error of ours: no traceback says more
        raise RunFailedError(f"{problem}\n{'' if told else log.tail()}(the whole log: {log.path})")
    return events


def judge(status: RunStatus, events: list[Event]) -> str | None:
    """Return what is wrong with a run that has ended, or ``None`` if it succeeded."""
    ends = [event for event in events if event["event"] in TERMINAL]
    if ends and ends[-1]["event"] == "run_failed":
        return str(ends[-1]["error"])
    if not status.is_completed:
        return status.details or f"Flower reports {status.status}:{status.sub_status}"
    if events and not ends:
        return "Flower reports the run as completed, but its events end before it was finished"
    return None


def error_lines(log: str, *, lines: int = LOG_LINES_IN_ERROR) -> str:
    """Return the end of a server's log: from the last traceback on if there is one, colours removed."""
    kept = [line for line in strip_colours(log).splitlines() if line.strip()]
    start = max((i for i, line in enumerate(kept) if "Traceback (most recent call last)" in line), default=0)
    tail = kept[start:]
    return "\n".join(tail if len(tail) <= lines else [tail[0], "  ...", *tail[-lines:]])


def _start(superlink: RunsApps, control: Control, request: RunRequest) -> int:
    """Start the run."""
    try:
        return control.start_run(request.bundle, request.run_config, request.simulation_config())
    except ControlError as error:
        superlink.check_alive()
        raise ConfigError(
            f"simulate: {error} The run config was {dict(request.run_config)}; does the app declare all of "
            "these keys in [tool.flwr.app.config]?"
        ) from None


def _over(events: list[Event]) -> bool:
    """Whether the app says that it has come to its end."""
    return bool(events) and events[-1]["event"] in TERMINAL


def _follow(
    superlink: RunsApps,
    control: Control,
    run_id: int,
    drain: Callable[[], None],
    over: Callable[[], bool],
) -> RunStatus:
    """Wait until the run has ended, however long it takes, while events are shown."""
    asked = 0.0
    while True:
        superlink.check_alive()
        drain()
        if over() or time.monotonic() - asked >= STATUS_EVERY_S:
            asked = time.monotonic()
            try:
                status = control.run_status(run_id)
            except ControlError:
                superlink.check_alive()
                continue  # busy, but alive: ask again
            if status.is_finished:
                return status
        time.sleep(POLL_S)


class _LogFollower:
    """Writes a run's log to a file as it comes, from a thread of its own."""

    def __init__(self, superlink: RunsApps, run_id: int, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._thread = threading.Thread(target=self._follow, args=(superlink, run_id), daemon=True)
        self._thread.start()

    def _follow(self, superlink: RunsApps, run_id: int) -> None:
        """Copy the log until the run has ended, or the SuperLink has."""
        with (
            suppress(ControlError),
            superlink.control() as control,
            self.path.open("a", encoding="utf-8") as file,
        ):
            for piece in control.logs(run_id):
                file.write(strip_colours(piece))
                file.flush()

    def wait(self) -> None:
        """Wait for the last lines of a run that has ended."""
        self._thread.join(_LOG_END_TIMEOUT_S)

    def tail(self) -> str:
        """Return this run's last lines."""
        text = ""
        with suppress(OSError):
            text = self.path.read_bytes()[self._offset :].decode(errors="replace")
        return f"{error_lines(text)}\n"
