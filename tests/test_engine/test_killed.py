"""Runs that are killed (SIGKILL, as by the kernel or a queue) and resumed give the same checkpoint, bit for bit."""
import multiprocessing
import os
import random
import signal
import time
import traceback

import pytest
import torch
from reconstruction_for_tests import activations, weights
from tools_for_tests import STEPS, quantized_of, results_of, runner_of, without_seconds

TUNED = [*STEPS, weights(num_iters=3), activations(num_iters=3)]
HOOKS = [dict(type='mmquant.EvaluationHook')]


def quantize(work_dir) -> None:
    """A whole run, or what is left of one."""
    runner_of(work_dir, TUNED, HOOKS, resume=(work_dir / 'progress.pth').exists()).train()


def in_a_fork(work_dir) -> None:
    """What a child does; it must never return into the test session."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        quantize(work_dir)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start(work_dir):
    child = multiprocessing.get_context('fork').Process(target=in_a_fork, args=(work_dir,))
    child.start()
    return child


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """An uninterrupted run, and its seconds once everything is imported (forks have what this process has)."""
    root = tmp_path_factory.mktemp('whole')
    for name in ('first', 'second'):
        (root / name).mkdir()
        started = time.monotonic()
        quantize(root / name)
    return root / 'second', time.monotonic() - started


def kill_and_resume(work_dir, wait: float, whole) -> bool:
    """Kill after ``wait`` seconds, run again to the end, compare; returns whether the first run was killed at work."""
    work_dir.mkdir()
    child = start(work_dir)
    time.sleep(wait)
    child.kill()
    child.join(300)
    killed = child.exitcode == -signal.SIGKILL
    assert killed or child.exitcode == 0
    again = start(work_dir)
    again.join(600)
    assert again.exitcode == 0
    assert sorted(p.name for p in work_dir.glob('*.tmp')) == []
    one, other = quantized_of(work_dir), quantized_of(whole)
    assert one['state_dict'].keys() == other['state_dict'].keys() and one['plan'] == other['plan']
    assert all(torch.equal(v, other['state_dict'][k]) for k, v in one['state_dict'].items())
    assert without_seconds(results_of(work_dir)) == without_seconds(results_of(whole))
    return killed


def test_two_kills(whole, tmp_path):
    run, seconds = whole
    for index, share in enumerate((0.45, 0.75)):
        kill_and_resume(tmp_path / f'run{index}', share * seconds, run)


@pytest.mark.slow
def test_twenty_kills(whole, tmp_path):
    """At random moments; most of them while the run is at work."""
    run, seconds = whole
    moments = random.Random(0)
    killed = [kill_and_resume(tmp_path / f'run{i}', moments.uniform(0.05, 0.95) * seconds, run) for i in range(20)]
    assert sum(killed) >= 12
