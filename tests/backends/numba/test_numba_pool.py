"""Threads of the Numba backend: torch's own and ours, any number of them, forks and interrupts."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba", reason="needs the extra cpu")

from numba_problems import everything, inputs

from msf_pmsn_plugins.backends.numba import launch, pool
from tolerances import assert_same

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for GNU OpenMP")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
HERE = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


@pytest.fixture(params=["torch's", "ours"])
def _threads(request, monkeypatch):
    """Both kinds of threads."""
    if request.param == "ours":
        monkeypatch.setattr(pool, "_openmp", lambda: None)
    yield
    torch.set_num_threads(1)


def python(script, timeout=120, **environment):
    start = f"import sys\nsys.path[:0] = {HERE!r}\n"
    return subprocess.run(
        [sys.executable, "-B", "-P", "-W", "ignore::DeprecationWarning", "-c", start + script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# ---------------------------------------------------------------- results


@pytest.mark.usefixtures("_threads")
def test_any_number_of_threads_gives_the_same_bits():
    given = inputs()
    assert given[0].numel() > launch.SMALL
    expected = everything(given)
    for threads in (2, 3, 7, 32):
        torch.set_num_threads(threads)
        for ours, theirs in zip(everything(given), expected, strict=True):
            assert_same(ours, theirs)


@pytest.mark.usefixtures("_threads")
def test_four_threads_may_call_at_once():
    given = inputs()
    expected = everything(given)
    torch.set_num_threads(2)
    results = {}

    def call(name):
        results[name] = [everything(given) for _ in range(3)]

    callers = [threading.Thread(target=call, args=(name,)) for name in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    for outputs in itertools.chain(*results.values()):
        for ours, theirs in zip(outputs, expected, strict=True):
            assert_same(ours, theirs)


@linux
def test_threads_are_those_of_torch():
    """The wheels of torch on Linux run on an OpenMP that we find; a region of ours starts no others."""
    assert pool._openmp() is not None
    given, before = inputs(), pool._pool.threads
    torch.set_num_threads(2)
    try:
        torch.ones(1 << 20).add_(1)  # starts torch's own
        everything(given)
        count = len(os.listdir("/proc/self/task"))
        everything(given)
        torch.ones(1 << 20).add_(1)
        assert len(os.listdir("/proc/self/task")) == count
    finally:
        torch.set_num_threads(1)
    assert pool._pool.threads == before


GRANTED = """
import ctypes, torch
from msf_pmsn_plugins.backends.numba import pool
from numba_problems import everything, inputs
given = inputs()
torch.set_num_threads(1)
expected = everything(given)
torch.set_num_threads(4)

def right():
    return all(torch.equal(a, b) for a, b in zip(everything(given), expected))

assert right()
nested = []
region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: nested.append(right()))
pool._openmp()(ctypes.cast(region, ctypes.c_void_p), None, 2, 0)
assert nested and all(nested), nested
print("fine")
"""


@linux
@pytest.mark.parametrize("limit", ["1", "2", "64"])
def test_as_many_threads_as_are_granted_do_all_of_it(limit):
    """Also inside another parallel region."""
    done = python(GRANTED, OMP_THREAD_LIMIT=limit)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


# ---------------------------------------------------------------- interrupts


class SlowJob:
    """Eight pieces that take their time on helpers; the caller is interrupted ``often`` times before it does any."""

    address = 0

    def __init__(self, often):
        self.caller, self.interrupts = threading.get_ident(), often
        self.left, self.done = deque(range(8)), []

    def function(self, address):
        mine = threading.get_ident() == self.caller
        if mine and self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        while self.left:
            try:
                piece = self.left.popleft()
            except IndexError:
                break
            time.sleep(0.0 if mine else 0.05)
            self.done.append(piece)

    def finished(self):
        return len(self.done) == 8


@pytest.mark.parametrize("often", [0, 1, 3])
@pytest.mark.parametrize("threads", [2, 8])
def test_our_pool_raises_only_when_all_helpers_have_stopped(threads, often):
    job, ours = SlowJob(often), pool._Pool()
    if often:
        with pytest.raises(KeyboardInterrupt):
            ours.run(job, threads)
    else:
        ours.run(job, threads)
    assert sorted(job.done) == list(range(8))


def test_our_pool_needs_no_thread_that_the_system_does_not_grant(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    job, ours = SlowJob(0), pool._Pool()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    ours.run(job, 4)
    assert sorted(job.done) == list(range(8))
    assert ours.threads == 0


INTERRUPTS = """
import os, random, signal, threading, time, torch
from msf_pmsn_plugins.backends.numba import pool
from numba_problems import everything, inputs
if {own}:
    pool._openmp = lambda: None
given = inputs()
torch.set_num_threads({threads})
expected = everything(given)
random.seed(0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sent = seen = wrong = 0
for _ in range(200):
    timer = threading.Timer(random.random() * 0.01, os.kill, (os.getpid(), signal.SIGINT))
    try:
        sent += 1
        timer.start()
        for _ in range(3):
            wrong += not all(torch.equal(a, b) for a, b in zip(everything(given), expected))
        timer.join()
        time.sleep(0.01)
    except KeyboardInterrupt:
        seen += 1
assert not wrong and sent == seen, (sent, seen, wrong)
print("fine")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("threads", [2, 32])
@pytest.mark.parametrize("own", [False, True], ids=["torch's", "ours"])
def test_no_interrupt_is_lost_and_none_spoils_an_output(own, threads):
    done = python(INTERRUPTS.format(own=own, threads=threads), timeout=300)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


# ---------------------------------------------------------------- forks

# OpenMP does not survive a fork: there our own pool computes, and torch's operations are on one thread throughout.
DATALOADER = """
import os, torch
from torch.utils.data import DataLoader, Dataset
from msf_pmsn_plugins.backends.numba import pool
from numba_problems import everything, inputs
torch.set_num_threads(1)
given = inputs()

def flat():
    torch.set_num_threads(2)
    outputs = everything(given)
    torch.set_num_threads(1)
    return torch.cat([part.flatten() for t in outputs for part in ((t.real, t.imag) if t.is_complex() else (t,))])

class Items(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return flat()

expected = flat()
assert pool._pool.threads == (pool._openmp() is None)
for _ in range(2):
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = pool._pool.threads == 0 and torch.equal(flat(), expected) and pool._pool.threads == 1
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
for batch in DataLoader(Items(), num_workers=2, multiprocessing_context="fork"):
    assert torch.equal(batch[0], expected)
assert torch.equal(flat(), expected)
print("fine")
"""


@forks
def test_children_forked_after_the_first_use_compute():
    """By hand and by two workers of a DataLoader, each with threads of its own."""
    done = python(DATALOADER)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


FORK = """
import os, torch
torch.set_num_threads(2)
if {imported}:
    from msf_pmsn_plugins.backends.numba import pool
torch.randn(200_000).exp()  # torch's threads are there now
child = os.fork()
if child == 0:
    from msf_pmsn_plugins.backends.numba import pool
    from numba_problems import everything, inputs
    torch.set_num_threads(1)
    given = inputs()
    expected = everything(given)
    torch.set_num_threads(2)
    outputs = everything(given)
    torch.set_num_threads(1)
    same = all(torch.equal(a, b) for a, b in zip(outputs, expected))
    os._exit(0 if same and pool._openmp() is None and pool._pool.threads == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
print("fine")
"""


@forks
@pytest.mark.parametrize("imported", [True, False], ids=["imported before", "imported after"])
def test_a_child_computes_whose_parent_used_torch_but_not_us(imported):
    done = python(FORK.format(imported=imported))
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_threads_end_with_the_process_and_are_started_again(monkeypatch):
    """One that comes back from compiled code into an ended interpreter may abort the process."""
    ours = pool._Pool()
    monkeypatch.setattr(pool, "_pool", ours)
    monkeypatch.setattr(pool, "_openmp", lambda: None)
    given, before = inputs(), threading.enumerate()
    torch.set_num_threads(8)
    try:
        expected = everything(given)
        for _ in range(2):
            started = [thread for thread in threading.enumerate() if thread not in before]
            assert len(started) == ours.threads > 1
            ours.close()
            assert ours.threads == 0
            assert not any(thread.is_alive() for thread in started)
            for again, first in zip(everything(given), expected, strict=True):
                assert_same(again, first)
    finally:
        torch.set_num_threads(1)
        ours.close()


def test_a_process_that_ends_closes_its_pool():
    script = f"import atexit\n{THREADS_AT_EXIT}"
    done = python(script)
    assert (done.returncode, done.stdout) == (0, "True then 0\n"), done.stderr


THREADS_AT_EXIT = """
def show():
    print(before > 1, "then", pool._pool.threads)
atexit.register(show)
import torch
from numba_problems import everything, inputs
from msf_pmsn_plugins.backends.numba import pool
pool._openmp = lambda: None
torch.set_num_threads(8)
everything(inputs())
before = pool._pool.threads
"""
