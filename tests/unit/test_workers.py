"""Worker processes: what they share, what they say, and that none is lost, whatever happens to it."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from rl_lightning.types import ConfigurationError, WorkerError
from rl_lightning.workers import Counter, SharedBlock, Supervisor, WorkerContext, check_free_memory, shared, supervisor

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
"""Much longer than anything here takes: only a test that would hang waits for it."""


@pytest.fixture
def start() -> Iterator[Callable[..., Supervisor]]:
    """`start(function, *args)`: a supervisor of workers that all do the same; stopped at the end."""
    made: list[Supervisor] = []

    def start(function: Any, *args: Any, num_workers: int = 1, method: str = "fork", **kwargs: Any) -> Supervisor:
        made.append(Supervisor(num_workers, start_method=method, **kwargs))
        for number in range(num_workers):
            made[-1].start(number, function, *args)
        return made[-1]

    yield start
    for each in made:
        each.stop(0.0)


def received(supervisor: Supervisor, count: int = 1) -> list[tuple[int, Any]]:
    """The next `count` messages."""
    messages: list[tuple[int, Any]] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(messages) < count and time.monotonic() < deadline:
        messages += supervisor.poll(1.0)
    assert len(messages) == count
    return messages


def error_of(supervisor: Supervisor) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        received(supervisor, sys.maxsize)
    return caught.value


def finish(supervisor: Supervisor) -> None:
    """Until the work of all is done; none of them may fail or send anything."""
    deadline = time.monotonic() + PATIENCE_S
    while supervisor.running and time.monotonic() < deadline:
        assert supervisor.poll(1.0) == []
    assert not supervisor.running


def echo(context: WorkerContext) -> None:
    context.send("ready")
    while not context.stopping:
        for message in context.messages(None):
            context.send(message)


def sleep(context: WorkerContext) -> None:
    context.send("ready")
    time.sleep(3600)


# ---- what is shared --------------------------------------------------------------------------------------------------


def test_a_block_has_zeros_of_each_shape_and_dtype():
    block = SharedBlock({"obs": ((2, 3), np.float32), "flag": ((), bool), "none": ((0, 4), "i8")})
    assert [block[name].tolist() for name in ("obs", "flag", "none")] == [[[0.0] * 3] * 2, False, []]
    assert [block[name].dtype.name for name in ("obs", "flag", "none")] == ["float32", "bool", "int64"]
    assert all(block[name].ctypes.data % 64 == 0 for name in ("obs", "flag"))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_everybody_sees_the_same_block_counter_and_shared_tensors(start, method):
    def work(context, block, counter, shared, tied, own, settings):
        block["rows"][context.number] += counter.take()
        with torch.no_grad():
            tied[0][context.number] += 1
        shared += tied[1][context.number]
        own += 1
        context.send((own.tolist(), own.is_shared(), settings.size))

    class Settings:
        size = 7

    block, counter = SharedBlock({"rows": ((2, 2), "f4")}), Counter(10)
    shared = torch.zeros(2, dtype=torch.float64).share_memory_()
    parameter = torch.nn.Parameter(torch.zeros(2).share_memory_())
    own = torch.zeros(3)
    args = block, counter, shared, [parameter, parameter.data], own, Settings()
    supervisor = start(work, *args, num_workers=2, method=method)
    assert sorted(received(supervisor, 2)) == [(number, ([1.0] * 3, False, 7)) for number in (0, 1)]
    assert sorted(block["rows"].tolist()) == [[11.0, 11.0], [12.0, 12.0]] and counter.value == 12
    assert shared.tolist() == [2.0, 2.0] and parameter.tolist() == [1.0, 1.0]
    assert own.tolist() == [0.0] * 3 and not own.is_shared()
    finish(supervisor)


def test_a_counter_hands_each_number_out_once(start):
    def work(context, counter, block):
        mine = block["taken"][context.number]
        for i in range(len(mine)):
            mine[i] = counter.take()

    counter, block = Counter(), SharedBlock({"taken": ((4, 20_000), "i8")})
    finish(start(work, counter, block, num_workers=4))
    assert np.array_equal(np.sort(block["taken"], axis=None), np.arange(1, 80_001)) and counter.value == 80_000
    assert (np.diff(block["taken"]) > 0).all()


def test_more_memory_than_there_is_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "_free_memory", lambda: 1000)
    with pytest.raises(ConfigurationError, match="would share 1_024 bytes, and 1_000 are free in memory. Use fewer"):
        SharedBlock({"rows": ((256,), "f4")})
    with pytest.raises(ConfigurationError, match=rf"free in {tmp_path}.*--shm-size"):
        check_free_memory(1 << 60, str(tmp_path))


def test_what_is_shared_goes_along_with_a_start_only(start):
    supervisor = start(echo)
    with pytest.raises(RuntimeError, match="should only be shared between processes through inheritance"):
        supervisor.send(0, Counter())


# ---- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_messages_go_both_ways_in_order_whatever_their_size(start, method):
    class Local:
        def __eq__(self, other):
            return type(self) is type(other)

    said = ["x" * 3_000_000, {"array": [1, 2]}, None, Local(), "y" * 500_000, 5]
    supervisor = start(echo, num_workers=2, method=method)
    assert sorted(received(supervisor, 2)) == [(0, "ready"), (1, "ready")]
    for message in said:
        for number in (0, 1):
            supervisor.send(number, message)
    heard = received(supervisor, 12)
    assert [[message for number, message in heard if number == own] for own in (0, 1)] == [said, said]
    assert supervisor.poll() == []


def test_a_ring_wakes_either_side_without_a_message(start):
    def work(context, block):
        for _ in range(3):
            assert context.messages(None) == []
            block["count"][0] += 1
            context.ring()

    block = SharedBlock({"count": ((1,), "i8")})
    supervisor = start(work, block)
    for count in (1, 2, 3):
        supervisor.ring(0)
        assert supervisor.poll(PATIENCE_S) == [] and block["count"][0] == count
    finish(supervisor)


def test_rings_that_nobody_hears_do_not_block(start):
    def work(context):
        for _ in range(200_000):
            context.ring()
        context.send("done")

    supervisor = start(work)
    time.sleep(0.1)
    assert received(supervisor) == [(0, "done")]


def test_waiting_for_messages_ends_with_the_time_with_a_message_or_with_the_wish_to_stop(start):
    def work(context):
        context.send((context.messages(), context.messages(0.01)))
        context.send(context.messages(PATIENCE_S))
        context.send((context.messages(PATIENCE_S), context.stopping))

    supervisor = start(work)
    assert received(supervisor) == [(0, ([], []))]
    supervisor.send(0, "hello")
    assert received(supervisor) == [(0, ["hello"])]
    supervisor.stop(PATIENCE_S)
    assert supervisor.poll() == [(0, ([], True))]


def test_polling_waits_no_longer_than_it_was_told(start):
    supervisor = start(sleep)
    received(supervisor)
    before = time.monotonic()
    assert supervisor.poll(0.2) == [] and 0.2 <= time.monotonic() - before < PATIENCE_S
    assert Supervisor(1).poll(PATIENCE_S) == []


def test_a_worker_that_sends_more_than_is_heard_waits_and_has_not_hung(start):
    def work(context):
        context.send("x" * 5_000_000)
        context.send("ready")

    supervisor = start(work, timeout_s=0.3)
    time.sleep(0.6)
    assert [len(message) for _, message in received(supervisor, 2)] == [5_000_000, 5]


# ---- starting --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_sent_is_named_with_the_cure(start):
    lock = threading.Lock()
    with pytest.raises(ConfigurationError, match=r"lock object.*cannot be sent to another process.*in the worker"):
        start(echo, 3, lock, method="forkserver")


@pytest.mark.parametrize("kwargs", [{"num_workers": 0}, {"start_method": "thread"}, {"timeout_s": 0.0}])
def test_settings_that_make_no_sense_are_refused(kwargs):
    with pytest.raises(ConfigurationError, match=next(iter(kwargs))):
        Supervisor(**{"num_workers": 1, **kwargs})


def run_script(code: str, tmp_path: Path, **kwargs: Any) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-W", "error", script], env=env, stdout=pipe, stderr=pipe, text=True)


SCRIPT = """
import os, sys
from rl_lightning.workers import Supervisor

print("script")

def helper():
    return "pytorch_lightning" in sys.modules, os.environ["LATE"]

def work(context):
    context.send(helper())

for method in ("spawn", "forkserver"):
    supervisor = Supervisor(1, start_method=method)
    os.environ["LATE"] = method
    supervisor.start(0, work)
    print(supervisor.poll(60.0))
    supervisor.stop()
"""


def test_a_script_needs_no_guard_and_its_workers_no_lightning(tmp_path):
    """They do not import it again; what they need of it is sent along, as is what it wrote into the environment."""
    done = run_script(SCRIPT, tmp_path)
    out, err = done.communicate(timeout=PATIENCE_S)
    assert (out.splitlines(), err) == (["script", "[(0, (False, 'spawn'))]", "[(0, (False, 'forkserver'))]"], "")


def test_workers_have_one_thread_and_are_deaf_to_ctrl_c(start):
    def work(context):
        os.kill(os.getpid(), signal.SIGINT)
        ours = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        context.send((torch.get_num_threads(), ours, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())))

    torch.set_num_threads(2)
    assert received(start(work)) == [(0, (1, True, False))]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# ---- failing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_an_exception_is_an_error_with_everything_about_it(start, method):
    def work(context):
        context.env_step = 10_239
        context.env_step += 1
        context.send("last words")
        raise ValueError("sensor unplugged")

    supervisor = start(work, method=method)
    pid = supervisor.pids[0]
    assert received(supervisor) == [(0, "last words")]
    error = error_of(supervisor)
    first, *traceback = str(error).splitlines()
    assert first == f"worker 0 (pid {pid}) failed at env step 10_240:"
    assert traceback[0] == "  Traceback (most recent call last):" and traceback[-1] == "  ValueError: sensor unplugged"
    assert (error.number, error.pid, error.exit_code) == (0, pid, None)
    assert isinstance(error.__cause__, ValueError) and error.__cause__.args == ("sensor unplugged",)
    assert supervisor.running == [] and supervisor.pids == {} and supervisor.poll() == []


def test_an_exception_that_cannot_be_sent_is_described_all_the_same(start):
    class Stubborn(Exception):
        def __init__(self, one, two):
            super().__init__(threading.Lock())

    def work(context):
        raise Stubborn(1, 2)

    error = error_of(start(work))
    assert "Stubborn" in str(error) and error.__cause__ is None


@pytest.mark.parametrize(
    ("die", "code", "what"),
    [
        (lambda: os._exit(3), 3, r"ended with exit code 3 at env step 7\."),
        (lambda: os._exit(0), 0, "ended with exit code 0 at env step 7"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -9, r"SIGKILL \(exit code -9\) at env step 7.*memory ran out"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), -11, r"SIGSEGV \(exit code -11\).*compiled code"),
        (lambda: sys.exit(5), None, "SystemExit: 5"),
    ],
)
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_however_a_worker_ends_before_its_work_is_done_it_is_named(start, method, die, code, what):
    def work(context):
        context.env_step = 7
        context.send("ready")
        faulthandler.disable()  # pytest's, which a forked process has too
        die()

    supervisor = start(work, method=method)
    assert received(supervisor) == [(0, "ready")]
    before = time.monotonic()
    error = error_of(supervisor)
    assert time.monotonic() - before < 5.0
    assert error.exit_code == code
    with pytest.raises(WorkerError, match=rf"(?s)worker 0 \(pid {error.pid}\).*{what}"):
        raise error


def test_the_end_is_seen_although_the_workers_own_child_lives_on(start):
    """It holds all pipes open."""

    def work(context):
        child = os.fork()
        if child == 0:
            time.sleep(PATIENCE_S)
            os._exit(0)
        context.send(child)
        os.kill(os.getpid(), signal.SIGKILL)

    supervisor = start(work, num_workers=1)
    ((_, child),) = received(supervisor)
    try:
        assert error_of(supervisor).exit_code == -9
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_sibling_does_not_hide_the_end(start):
    """The sibling was forked while this process had the pipes of the first; and both hear that they are to stop."""
    supervisor = start(echo, num_workers=2)
    received(supervisor, 2)
    os.kill(supervisor.pids[0], signal.SIGKILL)
    assert error_of(supervisor).number == 0
    assert supervisor.running == [1]
    supervisor.stop(PATIENCE_S)


def test_each_failure_is_reported_once_and_the_others_go_on(start):
    supervisor = start(echo, num_workers=3)
    received(supervisor, 3)
    for number in (0, 2):
        os.kill(supervisor.pids[number], signal.SIGKILL)
    assert {error_of(supervisor).number, error_of(supervisor).number} == {0, 2}
    supervisor.send(0, "to nobody")
    supervisor.send(1, "hello")
    assert received(supervisor) == [(1, "hello")]


@pytest.mark.parametrize(
    "hang", [lambda: time.sleep(3600), lambda: signal.pause(), lambda: ctypes.PyDLL(None).sleep(3600)]
)
def test_a_worker_that_hangs_is_named_and_killed(start, hang):
    def work(context):
        context.env_step = 1234
        context.send("ready")
        hang()

    supervisor = start(work, timeout_s=0.3)
    received(supervisor)
    process = psutil.Process(supervisor.pids[0])
    error = error_of(supervisor)
    assert f"worker 0 (pid {process.pid}) hung at env step 1_234: it gave no sign of life for 0.3 s" in str(error)
    supervisor.stop()
    assert not process.is_running()


def test_who_beats_or_waits_for_the_parent_has_not_hung(start):
    def work(context):
        for _ in range(10):
            context.beat()
            time.sleep(0.1)
        context.send("ready")
        context.messages(1.0)
        context.messages(None)
        context.send("still here")
        time.sleep(3600)

    supervisor = start(work, timeout_s=0.5)
    assert received(supervisor) == [(0, "ready")]
    assert supervisor.poll(2.0) == []
    supervisor.ring(0)
    assert received(supervisor) == [(0, "still here")]
    assert "hung" in str(error_of(supervisor))


def test_who_was_rung_and_does_not_stir_has_hung(start):
    supervisor = start(echo, timeout_s=0.3)
    received(supervisor)
    assert supervisor.poll(0.5) == []
    os.kill(supervisor.pids[0], signal.SIGSTOP)
    supervisor.send(0, "hello")
    assert "hung" in str(error_of(supervisor))


def test_a_process_that_never_begins_has_hung_too(start, monkeypatch):
    class Slow:
        """Takes long to arrive there."""

        def __reduce__(self):
            return time.sleep, (3600,)

    monkeypatch.setattr(supervisor, "START_TIMEOUT_S", 0.0)
    each = start(sleep, Slow(), method="spawn")
    with pytest.raises(WorkerError, match="did not begin within 0 s, and was killed"):
        received(each)


def test_a_restarted_worker_does_the_same_again_and_its_predecessor_is_not_heard(start):
    def work(context, counter):
        life = counter.take()
        context.send(f"life {life}")
        if life == 1:
            context.messages(None)
            context.send("too late")
            raise ValueError("and too bad")
        echo(context)

    supervisor = start(work, Counter())
    assert received(supervisor) == [(0, "life 1")]
    supervisor.send(0, "go on")
    time.sleep(0.5)  # both lie in the pipe by then
    first = supervisor.pids[0]
    supervisor.restart(0)
    assert received(supervisor, 2) == [(0, "life 2"), (0, "ready")]
    supervisor.send(0, "hello")
    assert received(supervisor) == [(0, "hello")]
    assert supervisor.pids[0] != first and not psutil.pid_exists(first)


# ---- stopping --------------------------------------------------------------------------------------------------------


def test_who_does_not_stop_is_ended_with_a_warning(start):
    def deaf(context):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleep(context)

    supervisor = start(deaf)
    received(supervisor)
    pid = supervisor.pids[0]
    with pytest.warns(RuntimeWarning, match=rf"worker 0 \(pid {pid}\) did not stop within 0.1 s"):
        supervisor.stop(0.1)
    assert not psutil.pid_exists(pid)
    supervisor.stop()


def test_who_fails_while_stopping_is_warned_about(start):
    def work(context):
        context.send("ready")
        context.messages(None)
        raise ValueError("cannot close the window")

    supervisor = start(work)
    received(supervisor)
    with pytest.warns(RuntimeWarning, match=r"(?s)while it was to stop, worker 0 .* failed.*cannot close the window"):
        supervisor.stop()
    assert supervisor.poll() == []


def test_a_supervisor_that_is_forgotten_ends_its_workers():
    forgotten = Supervisor(1, start_method="fork")
    forgotten.start(0, sleep)
    received(forgotten)
    pid = forgotten.pids[0]
    del forgotten
    gc.collect()
    assert not psutil.pid_exists(pid)


FORGETFUL = """
from rl_lightning.workers import Supervisor
def work(context):
    context.send("ready")
    context.messages(None)
supervisor = Supervisor(1, start_method="fork")
supervisor.start(0, work)
assert supervisor.poll(60.0)
print(supervisor.pids[0])
"""


def test_a_script_that_forgets_to_stop_ends_all_the_same(tmp_path):
    out, err = run_script(FORGETFUL, tmp_path).communicate(timeout=PATIENCE_S)
    assert err == "" and not psutil.pid_exists(int(out))


ORPHANS = """
import ctypes, time
from rl_lightning.workers import Supervisor

def work(context):
    context.send("ready")
    if context.number == 1:
        time.sleep(3600)
    while context.number == 2:
        pass
    ctypes.PyDLL(None).sleep(3600)  # holds the interpreter's lock

supervisor = Supervisor(NUM_WORKERS, start_method=METHOD)
for number in range(NUM_WORKERS):
    supervisor.start(number, work)
heard = []
while len(heard) < NUM_WORKERS:
    heard += supervisor.poll(60.0)
print(*supervisor.pids.values(), flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize(("method", "num_workers"), [("fork", 3), ("forkserver", 3), ("spawn", 1)])
def test_when_the_parent_is_killed_every_worker_is_gone_whatever_it_does(tmp_path, method, num_workers):
    with run_script(f"METHOD, NUM_WORKERS = {method!r}, {num_workers}\n{ORPHANS}", tmp_path) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == num_workers
        everybody = psutil.Process(parent.pid).children(recursive=True)
        assert {*workers} <= {*everybody}
        parent.kill()
        gone, alive = psutil.wait_procs(everybody, timeout=5.0)
        assert not alive


MANY = """
import gc, os
import psutil, torch
from rl_lightning.workers import Counter, SharedBlock, Supervisor

def resources():
    gc.collect()
    this = psutil.Process()
    segments = [name for name in os.listdir("/dev/shm") if str(this.pid) in name]  # others have theirs there, too
    return this.num_fds(), len(this.children(recursive=True)), segments

def work(context, block, counter, tensor):
    block["rows"][context.number] = counter.take()
    tensor += 1
    context.messages(None)

def once(method):
    block, tensor = SharedBlock({"rows": ((2,), "i8")}), torch.zeros(2).share_memory_()
    supervisor = Supervisor(1, start_method=method)
    supervisor.start(0, work, block, Counter(), tensor)
    supervisor.stop(60.0)
    assert tensor.tolist() == [1.0, 1.0]

for method in ("fork", "forkserver"):
    once(method)  # the fork server and multiprocessing's own helper stay
before = resources()
for method in ("fork", "forkserver"):
    for _ in range(50):
        once(method)
assert resources() == before, (before, resources())
print(before)
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="counts what is in /dev/shm")
def test_a_hundred_starts_and_stops_leave_nothing(tmp_path):
    out, err = run_script(MANY, tmp_path).communicate(timeout=100.0)
    assert err == "" and out.endswith(", 2, [])\n")
