"""The Triton kernels: they compile, and the cases of `kernels_cuda_cases.py` hold."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

CASES = Path(__file__).with_name("kernels_cuda_cases.py")
ON_DEVICE = torch.cuda.is_available()

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


def run_python(*arguments, **environment):
    """In a process of its own, as Triton interprets all kernels of a process or none."""
    kept = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_kernels_compute_what_the_plain_form_does():
    if not ON_DEVICE and version("triton") < "3.7" and np.__version__ >= "2.4":
        pytest.skip("the interpreter of Triton 3.6 fails with NumPy 2.4")
    interpret = {} if ON_DEVICE else {"TRITON_INTERPRET": "1"}
    run_python("-m", "pytest", "-p", "no:cacheprovider", str(CASES), **interpret)


COMPILE_WITHOUT_A_DEVICE = """
import torch, triton
from triton.backends.compiler import GPUTarget

SHARED_MEMORY = 232448  # bytes a program may have on an H100 or H200
names = set()

class Utils:
    def load_binary(self, name, binary, shared, device):
        names.add(name)
        return 0, 0, 255, 0, 1024
    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED_MEMORY}

class Hopper:
    utils = Utils()
    launcher_cls = lambda self, *arguments: lambda *arguments: None
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    map_python_to_cpp_type = lambda self, kind: kind

def compile_alone(run, **options):
    run()
    return 0.0

triton.runtime.driver.set_active(Hopper())
triton.testing.do_bench = compile_alone
from replib.kernels.linear import cuda

cuda._candidates = lambda width, precise, all=cuda._candidates: all(width, precise)[:1]
cuda._processors = lambda device: 132
for dtype, d, m, causal in (
    (torch.bfloat16, 64, 48, True), (torch.float32, 16, 16, True), (torch.float16, 16, 3, False)
):
    q, k, v = (torch.zeros(1, 2, 2048, size, dtype=dtype, requires_grad=True) for size in (d, d, m))
    cuda.linear_attention(q, k, v, 1e-6, True, causal).sum().backward()
assert names == {"_sum_segments", "_add_up", "_forward", "_backward"}, names
assert cuda.LEAST not in cuda._fastest.values()
"""


@pytest.mark.slow
def test_the_kernels_compile_for_an_h100(tmp_path):
    """The interpreter accepts what the compiler does not; no device is needed to compile."""
    run_python("-c", COMPILE_WITHOUT_A_DEVICE, TRITON_CACHE_DIR=str(tmp_path))
