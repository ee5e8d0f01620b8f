"""Roughly what a run of associative retrieval takes, for the run gate of a notebook.

P seeds, B batch, N sequence length, S keys, R feature size. The constants were measured on one core
of a server CPU; expect a time to be right within a factor of 2 there.
"""

from replib.attention.kernels import installed
from replib.fast_weights import EMBEDDING_PER_SYMBOL, RetrievalConfig

OVERHEAD_S = 8e-4  # of a step, whatever its size
WRITE_S = 3.5e-7  # to look up a key and its value, and back
PARAMETER_S = 6e-9  # to update one
FEATURE_S = {"fused": 1e-10, "delta": 1e-9, "plain": 1e-8, "performer": 2.5e-8}
FWM_WRITE_S = {True: 0.0, False: 2.5e-4}  # a write of all sequences, fused or not
FWM_PRODUCT_S = {True: 7.5e-11, False: 6e-10}  # a number of N²·S
QUERY_S = 2.2e-8  # a query and a write, in an evaluation
DIRECTIONS_S = 2e-4  # a block of D orthogonal directions of "performer"
CUDA_FASTER = 30  # but for what a step costs whatever its size
COPIES = 8  # of features, that autograd keeps


def step_seconds(config: RetrievalConfig, n_seeds: int, device_type: str = "cpu") -> float:
    """A training step of all seeds, with its share of an evaluation, as it would take on a CPU with
    the kernels of a kind of device."""
    task, model = config.task, config.model
    n_keys, writes, r = task.n_keys, config.batch_size * task.seq_len, _n_features(config)
    parameters = n_keys**2 * 2 * EMBEDDING_PER_SYMBOL
    train = WRITE_S * writes + PARAMETER_S * parameters + FEATURE_S[_way(config)] * writes * r
    queries = config.eval_sequences * min(config.eval_queries, n_keys)
    evaluation = QUERY_S * queries * config.eval_task.seq_len
    if model.update_rule == "fwm":
        fused = installed("numba") and device_type == "cpu"
        train += FWM_WRITE_S[fused] * task.seq_len
        train += FWM_PRODUCT_S[fused] * writes * task.seq_len * n_keys
    if model.attention == "performer":
        blocks = -(-model.size // model.head_dim)
        train += DIRECTIONS_S * blocks
        evaluation += DIRECTIONS_S * blocks * config.eval_sequences
    return n_seeds * (train + evaluation / config.eval_every)


def predicted_seconds(
    config: RetrievalConfig, n_seeds: int, n_steps: int, device_type: str = "cpu"
) -> float:
    """About how long that many steps of all seeds take."""
    step_s = step_seconds(config, n_seeds, device_type)
    return n_steps * (OVERHEAD_S + step_s / (CUDA_FASTER if device_type == "cuda" else 1))


def predicted_bytes(config: RetrievalConfig, n_seeds: int) -> float:
    """About the memory that a step of all seeds takes."""
    task = config.task
    kept = config.batch_size * task.seq_len * (COPIES * _n_features(config) + task.n_keys)
    if config.model.update_rule == "fwm":
        kept += config.batch_size * task.seq_len * (3 * task.n_keys + 2 * task.seq_len)
    parameters = 4 * task.n_keys**2 * 2 * EMBEDDING_PER_SYMBOL  # with gradient and moments
    return 4.0 * n_seeds * (kept + parameters)


def _n_features(config: RetrievalConfig) -> int:
    return config.model.n_features or config.model.head_dim


def _way(config: RetrievalConfig) -> str:
    """What computes the features."""
    model = config.model
    if model.attention == "performer":
        return "performer"
    if model.update_rule == "delta":
        return "delta"
    fused = installed("numba") and model.attention in ("linear", "dpfp")
    return "fused" if fused or model.attention == "softmax" else "plain"
