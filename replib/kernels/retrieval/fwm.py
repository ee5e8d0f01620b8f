"""The write rule of fast weight memories with normalisation, without ever forming the memory.

N number of writes, L number of queries, R feature size, M value size; one row of a batch P a line.
The rule (Schlag, Munkhdalai & Schmidhuber 2021, *Learning Associative Inference Using Fast Weight
Memory*, as the synthetic experiments of Schlag, Irie & Schmidhuber 2021 compute it) is the delta
rule, after which a memory of a norm above 1 is divided by it:

    e_i = v_i - W_{i-1} k_i,   W_i = (W_{i-1} + β_i e_i k_iᵀ) / c_i,   c_i = max(1, |·|),   c_1 = 1

with the Frobenius norm of what c_i divides. A memory is what its writes have left in it,

    W_i = Σ_{j<=i} d_ij β_j e_j k_jᵀ,     d_ij = 1 / (c_j ... c_i),

so that the errors e and the norms n follow each other in numbers that do not depend on R:

    v̄_i = Σ_{j<i} d_{i-1,j} β_j (k_i·k_j) e_j,     e_i = v_i - v̄_i
    n_i² = |W_{i-1}|² + 2 β_i e_i·v̄_i + β_i² |e_i|² |k_i|²,     |W_i| = n_i / c_i

and a query reads y = Σ_j d_Nj β_j (k_j·q) e_j. With l_i = -Σ_{j<=i} log c_j, d_ij = exp(l_i -
l_{j-1}) never exceeds 1. The backward pass goes through the same sums from the last to the first;
a bar before a name below is a gradient, and H_ij = d_{i-1,j} β_j (k_i·k_j).

Here is the form in torch operations, for any device and dtype; `fwm_cpu` has that for float32 on a
CPU, where Numba is installed.
"""

import torch
from torch import Tensor

from replib.kernels import installed
from replib.kernels.library import once
from replib.plain import without_autocast


def retrieve(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """What queries read after the last write, differentiable once: more raises.

    q (P, L, R), k (P, N, R), features already, v (P, N, M), beta (P, N) -> (P, L, M).
    """
    with without_autocast(q.device.type):
        if _fuses(q, k, v, beta):
            from replib.kernels.retrieval import fwm_cpu

            return fwm_cpu.retrieve(q, k, v, beta)
        return _writes(k @ k.mT, q @ k.mT, v, beta)


def _fuses(*tensors: Tensor) -> bool:
    """Whether the kernel for the CPU can take them."""
    of_a_kind = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
    return of_a_kind and installed("numba") and all(x.numel() for x in tensors)


def _forward(similarity, reads, v, beta):
    p, n, m = v.shape
    errors, recalled = torch.empty_like(v), torch.empty_like(v)
    log_scale = v.new_zeros(p, n + 1)  # l_0 ... l_N
    squares = v.new_zeros(p, n)  # n_i²
    norm = v.new_zeros(p)  # |W_{i-1}|²
    for i in range(n):
        decay = (log_scale[:, i : i + 1] - log_scale[:, :i]).exp()
        row = similarity[:, i, :i] * beta[:, :i] * decay
        old = torch.bmm(row.unsqueeze(1), errors[:, :i]).squeeze(1)  # 0 where i is 0
        error, b = v[:, i] - old, beta[:, i]
        errors[:, i], recalled[:, i] = error, old
        change = 2 * (error * old).sum(-1) + b * error.square().sum(-1) * similarity[:, i, i]
        square = (norm + b * change).clamp(min=0)
        squares[:, i] = square
        if i == 0:
            norm = square
            continue
        log_scale[:, i + 1] = log_scale[:, i] - square.clamp(min=1).log() / 2
        norm = square.clamp(max=1)
    decay = (log_scale[:, -1:] - log_scale[:, :-1]).exp()
    weights = reads * (beta * decay).unsqueeze(1)  # (P, L, N)
    # The values too, so that a second derivative by them meets the node that raises.
    kept = similarity, reads, v, beta, errors, recalled, log_scale, squares
    return weights @ errors, kept


def _backward(_, dy, similarity, reads, v, beta, errors, recalled, log_scale, squares):
    n = beta.shape[1]
    at_end = (log_scale[:, -1:] - log_scale[:, :-1]).exp()
    scaled = beta * at_end
    d_weights = dy @ errors.mT  # (P, L, N)
    d_reads = d_weights * scaled.unsqueeze(1)
    d_scaled = (d_weights * reads).sum(1)
    d_beta = d_scaled * at_end
    d_errors = (reads * scaled.unsqueeze(1)).mT @ dy
    d_log = torch.zeros_like(log_scale)  # l̄
    d_log[:, -1] = (d_scaled * scaled).sum(-1)
    d_log[:, :-1] -= d_scaled * scaled
    d_recalled, d_similarity = torch.zeros_like(recalled), torch.zeros_like(similarity)
    d_norm = beta.new_zeros(len(beta))  # of |W_i|²
    for i in reversed(range(n)):
        error, old, b = errors[:, i], recalled[:, i], beta[:, i]
        if i + 1 < n:  # e_i in the rows of later writes
            decay = (log_scale[:, i + 1 : -1] - log_scale[:, i : i + 1]).exp()
            column = similarity[:, i + 1 :, i] * b.unsqueeze(1) * decay
            later = torch.bmm(column.unsqueeze(1), d_recalled[:, i + 1 :]).squeeze(1)
            d_errors[:, i] += later
        d_square = d_norm
        if i:
            square, carried = squares[:, i], d_log[:, i + 1]
            d_square = torch.where(square > 1, -carried / (2 * square.clamp(min=1)), d_norm)
            d_log[:, i] += carried
        d_norm, size = d_square, similarity[:, i, i]
        b_square = (d_square * b).unsqueeze(1)
        error_square = error.square().sum(-1)
        d_errors[:, i] += 2 * b_square * (old + (b * size).unsqueeze(1) * error)
        d_beta[:, i] += 2 * d_square * ((error * old).sum(-1) + b * error_square * size)
        d_similarity[:, i, i] += d_square * b.square() * error_square
        d_recalled[:, i] = 2 * b_square * error - d_errors[:, i]
        if i == 0:
            continue
        decay = (log_scale[:, i : i + 1] - log_scale[:, :i]).exp()
        d_row = torch.bmm(d_recalled[:, i : i + 1], errors[:, :i].mT).squeeze(1) * decay
        d_similarity[:, i, :i] = d_row * beta[:, :i]
        d_row = d_row * similarity[:, i, :i]
        d_beta[:, :i] += d_row
        d_row = d_row * beta[:, :i]
        d_log[:, i] += d_row.sum(-1)
        d_log[:, :i] -= d_row
    return d_similarity, d_reads, d_errors, d_beta


_writes = once("The rule fwm", _forward, _backward)
