import http.client
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from fl_plugins.errors import RunFailedError
from fl_plugins.simulation import superlink as module
from fl_plugins.simulation.keeper import descendants
from fl_plugins.simulation.superlink import environment, local_superlink, log_tail

SERVER = """
import http.server, json, os, pathlib, sys, time
{before}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(dict(os.environ)).encode()
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put a program of ours in the place of flower-superlink."""

    def install(before=""):
        script = tmp_path / "flower-superlink"
        script.write_text(f"#!{sys.executable}\n" + SERVER.format(before=before))
        script.chmod(0o755)
        monkeypatch.setattr(module, "_executable", lambda: str(script))
        return tmp_path / "superlink.log"

    return install


@pytest.fixture
def default_handler():
    """Set a signal's handler, and put back what was there (another test's SuperLink may still run)."""
    before = {}

    def install(number, handler=signal.SIG_DFL):
        before[number] = signal.signal(number, handler)

    yield install
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def homes(monkeypatch):
    """Return the homes that exist, of this test alone; the folder is short, as a SuperLink's must be."""
    with module.tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(module.tempfile, "tempdir", folder)
        yield lambda: list(Path(folder).iterdir())


def test_it_runs_in_the_block_and_not_after(fake, homes):
    with local_superlink(fake()) as superlink:
        superlink.check_alive()
        tree = descendants(superlink.process.pid)
        assert len(tree) == 1
        assert len(homes()) == 1
    assert superlink.process.poll() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in tree)
    assert homes() == []


def test_a_start_that_needs_longer_than_flowers_patience_is_waited_for(fake):
    with local_superlink(fake("time.sleep(2)"), start_timeout_s=60) as superlink:
        superlink.check_alive()


def test_a_superlink_that_dies_at_the_start_is_an_error_with_the_end_of_its_log(fake):
    log = fake("print('\\x1b[91mERROR \\x1b[0m: bad luck', file=sys.stderr); sys.exit(7)")
    with (
        pytest.raises(RunFailedError, match=r"(?s)ended with status 7.*ERROR : bad luck"),
        local_superlink(log),
    ):
        pytest.fail("it never ran")


def test_a_superlink_that_dies_later_is_found_out(fake):
    with local_superlink(fake()) as superlink:
        os.kill(next(iter(descendants(superlink.process.pid))), signal.SIGKILL)
        superlink.process.wait(30)
        with pytest.raises(RunFailedError, match="ended with status 137"):
            superlink.check_alive()


def test_one_that_never_answers_is_ended_after_the_timeout(fake, homes):
    log = fake("time.sleep(600)")
    with pytest.raises(RunFailedError, match=r"no answer on 127.0.0.1:\d+ within 0.5 s"):
        local_superlink(log, start_timeout_s=0.5).__enter__()
    assert homes() == []


def test_a_port_that_another_program_takes_first_is_exchanged(fake, tmp_path):
    seen = tmp_path / "ports"
    log = fake(
        f"""
seen = pathlib.Path({str(seen)!r})
with seen.open("a") as file: file.write(sys.argv[sys.argv.index("--port") + 1] + " ")
if len(seen.read_text().split()) < 3:
    sys.exit("[Errno 98] error while attempting to bind on address: address already in use")
"""
    )
    with local_superlink(log) as superlink:
        assert superlink.address == f"127.0.0.1:{seen.read_text().split()[2]}"
    seen.write_text("")
    link = local_superlink(fake("sys.exit('address already in use')"))
    with pytest.raises(RunFailedError, match="address already in use"):
        link.__enter__()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a lost race is tried again")
def test_a_reserved_port_is_given_to_nobody_else_but_can_be_listened_on():
    with module._reserved_port() as port:
        others = [socket.socket() for _ in range(200)]
        for other in others:
            other.bind(("127.0.0.1", 0))
        assert port not in {other.getsockname()[1] for other in others}
        for other in others:
            other.close()
        with socket.create_server(("127.0.0.1", port)):  # sets SO_REUSEADDR, as uvicorn does
            assert socket.create_connection(("127.0.0.1", port)).close() is None


def test_two_at_once_have_ports_of_their_own(fake):
    log = fake()
    with local_superlink(log) as first, local_superlink(log.with_name("second.log")) as second:
        assert first.address != second.address


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_leaves_the_block_ends_it(fake, error):
    with pytest.raises(error), local_superlink(fake()) as superlink:
        raise error
    assert superlink.process.poll() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_handler_is_taken_back(fake, default_handler, number):
    default_handler(number)
    code = None
    try:
        with local_superlink(fake()) as superlink:
            os.kill(os.getpid(), number)
            time.sleep(5)
    except SystemExit as error:
        code = error.code
    assert code == 128 + number
    assert superlink.process.poll() == 0
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_handler_that_somebody_else_has_set_is_left_alone(fake, default_handler):
    default_handler(signal.SIGTERM, lambda *_: None)
    theirs = signal.getsignal(signal.SIGTERM)
    with local_superlink(fake()):
        assert signal.getsignal(signal.SIGTERM) is theirs


def test_it_works_in_a_thread_that_may_not_set_handlers(fake):
    results = []

    def body():
        with local_superlink(log) as superlink:
            results.append(superlink.address)

    log = fake()
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert len(results) == 1


def test_its_environment_is_private(fake, monkeypatch):
    import json

    monkeypatch.setenv("RAY_ADDRESS", "stranger:6379")
    monkeypatch.setenv("FLWR_HOME", "/stranger")
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet")
    with local_superlink(fake()) as superlink:
        connection = http.client.HTTPConnection(superlink.address)
        connection.request("GET", "/health")
        seen = json.loads(connection.getresponse().read())
        connection.close()
        home = Path(seen["RAY_TMPDIR"])
        assert home.is_dir()
        assert Path(seen["FLWR_HOME"]).is_relative_to(home)
    assert not home.exists()
    assert "RAY_ADDRESS" not in seen
    assert seen["FLWR_TELEMETRY_ENABLED"] == "0"
    assert seen["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert seen["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert seen["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert seen["NO_PROXY"] == "intranet,127.0.0.1,localhost"


def test_what_the_user_sets_for_the_poll_interval_counts(tmp_path):
    key = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
    assert environment(tmp_path, {key: "5"})[key] == "5"
    assert float(environment(tmp_path, {})[key]) < 1


def test_the_home_is_short_enough_for_rays_sockets_whatever_tmpdir_is(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(module.tempfile, "tempdir", str(long))
    home = module._private_home()
    try:
        # 107 characters is what a UNIX socket's path may have; Ray appends up to 72 of its own.
        assert len(str(home)) + 72 <= 107
    finally:
        home.rmdir()


def test_a_missing_simulation_engine_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunFailedError, match=r"pip install 'fl-plugins\[simulation\]'"):
        module._executable()


def test_the_executable_is_found_beside_this_python(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert Path(module._executable()) == Path(sys.executable).parent / "flower-superlink"


def test_the_tail_of_a_log_leaves_requests_out(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {n}\n2026 INFO [uvicorn.access] GET\n\n" for n in range(50)))
    assert log_tail(log, lines=2) == "line 48\nline 49"
    assert log_tail(tmp_path / "none") == "(the log is empty)"
