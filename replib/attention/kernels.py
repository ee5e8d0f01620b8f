"""What `replib.kernels` offers; without that folder, what runs anywhere, in plain torch."""

from importlib.util import find_spec

from replib import plain

if find_spec("replib.kernels") is not None:
    from replib.kernels import KERNELS, fastest_kernel, installed, refusal, why_not
    from replib.kernels.delta import torch as chunked_delta
    from replib.kernels.retrieval.fwm import retrieve as fwm_retrieve

    delta_read_weights = chunked_delta.read_weights
else:
    chunked_delta = None
    delta_read_weights, fwm_retrieve = plain.delta_read_weights, plain.fwm_retrieve

    def _linear(q, k, v, eps, elu1, causal):
        seen = 0
        if causal:
            q, k, v, seen = plain.without_what_is_not_finite(q, k, v, elu1)
        return plain.linear_attention(q, k, v, eps, elu1, causal) + seen

    KERNELS = {"torch": _linear}

    def fastest_kernel(q, k, v):
        return "torch"

    def installed(package):
        return False

    def why_not(kernel, **kind):
        if kernel in ("cpu", "cuda"):
            return f"kernel '{kernel}' needs the folder replib/kernels: use kernel='torch'"
        return None

    def refusal(kernel, *tensors):
        return why_not(kernel)


__all__ = [
    "KERNELS",
    "chunked_delta",
    "delta_read_weights",
    "fastest_kernel",
    "fwm_retrieve",
    "installed",
    "refusal",
    "why_not",
]
