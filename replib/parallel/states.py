"""What a part of a sequence does to the state before it, and what it reads with that state.

B batch, H heads of queries, G heads of keys, N positions of a part, R feature size, M value size.
Queries and keys are features already. A part changes the state S (R, M) before it to

    A S + B,

an affine map: of the delta rule A = Π (1 - β_j k_j k_jᵀ), the product of what its writes keep
(Schlag et al. 2021, section 4.2; Yang et al. 2024, *Parallelizing Linear Transformers with the
Delta Rule over Sequence Length*, section 3); of linear attention, a sum that forgets nothing, A is
1, and S holds z as one more column: B = Σ φ(k_j) [v_j, 1]ᵀ (Katharopoulos et al. 2020, eq. 18-19).
Such maps can be joined in any grouping, so that parts need not wait for one another until what each
does is known.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from replib.attention import delta_rule, linear_attention
from replib.attention.delta import delta_retrieve
from replib.attention.linear import EPS
from replib.plain import without_autocast


class Effect(NamedTuple):
    """S -> keep S + write: keep (B, G, R, R), None where all is kept; write (B, G, R, M), of linear
    attention (B, G, R, M + 1)."""

    keep: Tensor | None
    write: Tensor

    def on(self, state: Tensor) -> Tensor:
        """The state after the part, of that before it."""
        return self.write + (state if self.keep is None else self.keep @ state)


def local_state(k: Tensor, v: Tensor, beta: Tensor | None = None) -> Effect:
    """What a part does to any state before it: k (B, G, N, R), v (B, G, N, M), and of the delta
    rule beta (B, G, N). Float32 or wider.

    Reading with the unit vectors after the last write gives the memory itself, B; were the keys the
    values, it would give 1 - A, as writing what is there already to a memory changes nothing.
    """
    wide = torch.promote_types(torch.promote_types(k.dtype, v.dtype), torch.float32)
    with without_autocast(k.device.type):
        k, v = k.to(wide), v.to(wide)
        if beta is None:
            return Effect(None, torch.cat([k.mT @ v, k.sum(2).unsqueeze(-1)], -1))
        units = torch.eye(k.shape[-1], dtype=wide, device=k.device)
        queries = units.expand(*k.shape[:2], -1, -1)
        written = delta_retrieve(queries, k, torch.cat([v, k], -1), beta.to(wide))
        m = v.shape[-1]
        return Effect(units - written[..., m:], written[..., :m])


def merge(first: Effect, second: Effect) -> Effect:
    """What two parts do, one after the other. It is associative."""
    keep = second.keep if first.keep is None else first.keep
    if first.keep is not None and second.keep is not None:
        keep = second.keep @ first.keep
    return Effect(keep, second.on(first.write))


def output(
    before: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    *,
    eps: float = EPS,
    elu1: bool = False,
    kernel: str | None = None,
) -> Tensor:
    """Causal attention of a part after a state, (B, H, N, R) -> (B, H, N, M), in the dtype of v.

    A state is what R tokens would have left. Of the delta rule, writes of the rows of S with the
    unit vectors as keys and β = 1; of linear attention, of rows S_r / z_r with keys z_r times the
    unit vector r. So attention as it is, over R tokens more, is all that a part needs; features
    must not be negative where they are summed.

    Args:
        before: (B, G, R, M), of linear attention with z as the last column.
        beta: (B, G, N), of the delta rule.
        eps: of linear attention, added to the denominator.
        elu1: q and k are no features yet: φ = elu + 1 is left to the kernel, which is faster.
        kernel: one of those that the mechanism has, None for the fastest.
    """
    r = k.shape[-1]
    with without_autocast(q.device.type):
        if beta is None:
            rows, z = before[..., :-1], before[..., -1:]
            there = z > 0  # else no key had this feature, and the row is 0
            rows = rows / torch.where(there, z, 1)
            keys = _keys_of(z, there, elu1)
        else:
            rows, keys = before, _units(before).expand(*before.shape[:2], -1, -1)
            beta = torch.cat([torch.ones_like(keys[..., 0]), beta.to(before.dtype)], 2)
        q = pad(q.to(before.dtype), (0, 0, r, 0))
        k = torch.cat([keys, k.to(before.dtype)], 2)
        values = torch.cat([rows, v.to(before.dtype)], 2)
        if beta is None:
            options = {"feature_map": "elu1" if elu1 else "identity", "eps": eps, "kernel": kernel}
            y = linear_attention(q, k, values, **options)
        else:
            y = delta_rule(q, k, values, beta, kernel=kernel)
        return y[:, :, r:].to(v.dtype)


def _units(before: Tensor) -> Tensor:
    """The unit vectors (R, R)."""
    return torch.eye(before.shape[2], dtype=before.dtype, device=before.device)


def _keys_of(z: Tensor, there: Tensor, elu1: bool) -> Tensor:
    """Keys (B, G, R, R) whose features are z (B, G, R, 1) times the unit vectors; where φ = elu + 1
    is still to be applied, what it makes that of: x of φ(x) = z, and -∞ of 0."""
    units = _units(z)
    if not elu1:
        return units * z
    z = torch.where(there, z, 1)
    x = torch.where(z > 1, z - 1, z.log())
    return x.masked_fill(~(there & (units > 0)), -torch.inf)
