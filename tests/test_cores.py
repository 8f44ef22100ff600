"""A service uses the cores that it may use, not all of the machine's."""

import os
import subprocess
import sys

import pytest

from executor.compute.cores import usable_cores
from serving import ROOT

SHOW = """
import os, threading, torch
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
torch.set_num_threads(4)
from executor.serving.pipeline import Pipeline
pipeline = Pipeline(lambda: 0, print)
decoders = [thread.name for thread in threading.enumerate() if thread.name.startswith("decode-") ]
print(len(decoders), torch.get_num_threads())
pipeline.close()
"""


def test_there_is_at_least_one_core_and_none_that_the_machine_has_not():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.process
def test_who_may_use_one_core_decodes_and_computes_with_one_thread():
    shown = subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["2", "1"]  # one for small pictures, one for large ones
