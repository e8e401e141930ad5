import resource
import subprocess
import sys

import pytest

from mmquant.utils.hardware import reuse_freed_memory

SCRIPT = """
import resource, torch
from mmquant.utils.hardware import reuse_freed_memory
assert reuse_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(20_000_000).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(30)])
"""


@pytest.mark.skipif(not reuse_freed_memory(), reason='the C library has no mallopt')
def test_a_freed_block_is_used_again_without_touching_the_system():
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', SCRIPT], capture_output=True, text=True, check=True)
    # 80 MB anew are 80e6 / page size faults; some of the first blocks may not fit between what else was allocated
    kept = [int(n) < 80_000_000 / resource.getpagesize() / 100 for n in out.stdout.strip('[]\n').split(',')]
    assert len(kept) == 30 and sum(kept) >= 20 and all(kept[-5:])
