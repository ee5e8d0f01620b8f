"""Linear attention in plain torch operations, where causal a chunk of positions at a time.

B batch, H heads, N sequence length, C chunk, D query/key size per head, M value size per head.
With the state S = Σ φ(k_j) [v_j, 1]ᵀ of all earlier chunks (Katharopoulos et al. 2020, eq. 18-19;
its last column is the normaliser z), a chunk's numerator and denominator are

    [num, den] = φ(Q) S + tril(φ(Q) φ(K)ᵀ) [V, 1],        y = num / (den + eps).

The backward pass is closed-form and recomputes S rather than storing it, so that memory grows
as N·D and never as N·D·M. With G = [dy / den, -(dy / den)·y]:

    dφ(Q) = G Sᵀ + tril(G [V, 1]ᵀ) φ(K)                       (first chunk to last)
    dφ(K) = [V, 1] Rᵀ + tril(G [V, 1]ᵀ)ᵀ φ(Q),    dV = φ(K) R + tril(φ(Q) φ(K)ᵀ)ᵀ dy / den

with R = Σ φ(q_i) G_iᵀ over all later chunks (last chunk to first). Where it is not causal, S and R
are those of the whole sequence, and no product with a triangle is left.
"""

import torch
from torch import Tensor

# Short chunks spend least on the (C, C) products, long ones on calls. With this many heads or
# more in a batch, a call is long enough for the short chunk.
SHORT_CHUNK_LEN, LONG_CHUNK_LEN = 32, 64
MANY_HEADS = 32


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool, causal: bool
) -> Tensor:
    """Normalised linear attention, differentiable once; sums in float32 or wider."""
    return (_causal if causal else _not_causal)(q, k, v, eps, elu1)


@torch.compiler.disable  # its buffers and `out=` are what torch.compile cannot trace
def _causal(q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool) -> Tensor:
    return _ChunkedLinearAttention.apply(q, k, v, eps, elu1)


def _not_causal(q: Tensor, k: Tensor, v: Tensor, eps: float, elu1: bool) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        return _FullLinearAttention.apply(q.to(wide), k.to(wide), v.to(wide), eps, elu1).to(v.dtype)


class _FullLinearAttention(torch.autograd.Function):
    """Not causal. Keeps φ(Q) and φ(K), from which φ' follows, in place of what each operation of
    the forward pass would keep."""

    @staticmethod
    def forward(ctx, q, k, v, eps, elu1):
        if elu1:
            q, k = (x.clamp(max=0).exp_().add_(x.clamp(min=0)) for x in (q, k))
        s, z = k.mT @ v, k.sum(2, keepdim=True)  # (B, H, R, M), (B, H, 1, R)
        denominator = torch.einsum("bhnr,bhr->bhn", q, z[:, :, 0]).unsqueeze(-1) + eps
        y = (q @ s).div_(denominator)
        ctx.save_for_backward(q, k, v, y, denominator, s, z)
        ctx.elu1 = elu1
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        with torch.autocast(dy.device.type, enabled=False):
            q, k, v, y, denominator, s, z = ctx.saved_tensors
            g = dy / denominator
            g_z = (g * y).sum(-1, keepdim=True).neg_()  # (B, H, N, 1)
            dq = (g @ s.mT).addcmul_(g_z, z)
            ds, dz = q.mT @ g, g_z.mT @ q  # (B, H, R, M), (B, H, 1, R)
            dk = (v @ ds.mT).add_(dz)
            if ctx.elu1:
                dq.mul_(q.clamp(max=1))  # φ' = min(φ, 1)
                dk.mul_(k.clamp(max=1))
            return dq, dk, k @ ds, None, None


class _Workspace:
    """Buffers for one chunk, allocated once a call: fresh ones would page-fault at each chunk."""

    def __init__(self, q: Tensor, v: Tensor, elu1: bool):
        b, h, n, d = q.shape
        self.c = min(n, SHORT_CHUNK_LEN if b * h >= MANY_HEADS else LONG_CHUNK_LEN)
        self.m, self.elu1 = v.shape[-1], elu1
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        self.device = q.device
        self.shape = (b, h)
        self.queries, self.keys, self.scratch = self.new(d), self.new(d), self.new(d)
        self.values = self.new(self.m + 1).fill_(1)  # [V, 1]
        self.weights = self.new(self.c)
        self.state = torch.zeros(b * h, d, self.m + 1, dtype=self.dtype, device=self.device)

    def new(self, size: int) -> Tensor:
        return torch.empty(*self.shape, self.c, size, dtype=self.dtype, device=self.device)

    def chunks(self, *tensors: Tensor) -> list[tuple[bool, bool, tuple[Tensor, ...]]]:
        """Whether a chunk is the first, whether it is the last, and the chunk of each tensor."""
        chunks = list(zip(*(x.split(self.c, dim=2) for x in tensors), strict=True))
        last = len(chunks) - 1
        return [(i == 0, i == last, chunk) for i, chunk in enumerate(chunks)]

    def features(self, x: Tensor, out: Tensor) -> Tensor:
        """φ(x) of a chunk (B, H, c, D), as (B·H, c, D)."""
        out = out[:, :, : x.shape[2]]
        if not self.elu1:
            return out.copy_(x).flatten(0, 1)
        if x.dtype != self.dtype:
            x = out.copy_(x)
        positive = self.scratch[:, :, : x.shape[2]]
        torch.clamp(x, min=0, out=positive)
        torch.clamp(x, max=0, out=out)
        return out.exp_().add_(positive).flatten(0, 1)

    def values_and_one(self, v: Tensor) -> Tensor:
        out = self.values[:, :, : v.shape[2]]
        out[..., : self.m].copy_(v)
        return out.flatten(0, 1)

    def lower_product(self, a: Tensor, b: Tensor) -> Tensor:
        """tril(a bᵀ), (B·H, c, c)."""
        c = a.shape[1]
        out = self.weights.flatten(0, 1)[:, :c, :c]
        return torch.bmm(a, b.transpose(1, 2), out=out).tril_()


class _ChunkedLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, eps, elu1):
        # Autocast would turn the float32 products of the state into bfloat16 ones.
        with torch.autocast(q.device.type, enabled=False):
            y, denominator = _forward(q, k, v, eps, elu1)
        ctx.save_for_backward(q, k, v, y, denominator)
        ctx.elu1 = elu1
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        with torch.autocast(dy.device.type, enabled=False):
            dq, dk, dv = _backward(dy, *ctx.saved_tensors, ctx.elu1)
        return dq, dk, dv, None, None


def _forward(q, k, v, eps, elu1):
    work = _Workspace(q, v, elu1)
    sums = work.new(work.m + 1)  # [num, den]
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    denominator = torch.empty(*v.shape[:3], 1, dtype=work.dtype, device=v.device)
    for first, last, (q_c, k_c, v_c, y_c, den_c) in work.chunks(q, k, v, y, denominator):
        queries = work.features(q_c, work.queries)
        keys = work.features(k_c, work.keys)
        values = work.values_and_one(v_c)
        sums_c = sums[:, :, : q_c.shape[2]]
        out = sums_c.flatten(0, 1)
        torch.bmm(work.lower_product(queries, keys), values, out=out)
        if not first:
            out.baddbmm_(queries, work.state)
        torch.add(sums_c[..., -1:], eps, out=den_c)
        torch.div(sums_c[..., :-1], den_c, out=y_c)
        if not last:
            work.state.baddbmm_(keys.transpose(1, 2), values)
    return y, denominator


def _backward(dy, q, k, v, y, denominator, elu1):
    work = _Workspace(q, v, elu1)
    grad, product = work.new(work.m + 1), work.new(work.m)
    d_features, d_values = work.new(q.shape[-1]), work.new(work.m + 1)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    chunks = work.chunks(dy, q, k, v, y, denominator, dq, dk, dv)

    def gradient_of_sums(dy_c, y_c, den_c):
        c = dy_c.shape[2]
        torch.div(dy_c, den_c, out=grad[:, :, :c, : work.m])
        torch.mul(grad[:, :, :c, : work.m], y_c, out=product[:, :, :c])
        torch.sum(product[:, :, :c], -1, keepdim=True, out=grad[:, :, :c, work.m :]).neg_()
        return grad[:, :, :c].flatten(0, 1)

    def through_feature_map(d_phi, phi, out):
        if elu1:
            d_phi.mul_(phi.clamp_(max=1))  # φ' = min(φ, 1)
        out.copy_(d_phi.view(out.shape))

    for first, last, (dy_c, q_c, k_c, v_c, y_c, den_c, dq_c, _, _) in chunks:
        keys, values = work.features(k_c, work.keys), work.values_and_one(v_c)
        g = gradient_of_sums(dy_c, y_c, den_c)
        d_phi = d_features[:, :, : q_c.shape[2]].flatten(0, 1)
        torch.bmm(work.lower_product(g, values), keys, out=d_phi)
        if not first:
            d_phi.baddbmm_(g, work.state.transpose(1, 2))
        if not last:
            work.state.baddbmm_(keys.transpose(1, 2), values)
        through_feature_map(d_phi, work.features(q_c, work.queries), dq_c)

    state = work.state.zero_()  # R from here on
    for first, last, (dy_c, q_c, k_c, v_c, y_c, den_c, _, dk_c, dv_c) in reversed(chunks):
        queries, keys = work.features(q_c, work.queries), work.features(k_c, work.keys)
        values = work.values_and_one(v_c)
        g = gradient_of_sums(dy_c, y_c, den_c)
        d_val = d_values[:, :, : q_c.shape[2]]
        torch.bmm(work.lower_product(queries, keys).transpose(1, 2), g, out=d_val.flatten(0, 1))
        if not last:
            d_val.flatten(0, 1).baddbmm_(keys, state)
        dv_c.copy_(d_val[..., :-1])
        d_phi = d_features[:, :, : q_c.shape[2]].flatten(0, 1)
        torch.bmm(work.lower_product(g, values).transpose(1, 2), queries, out=d_phi)
        if not last:
            d_phi.baddbmm_(values, state.transpose(1, 2))
        if not first:
            state.baddbmm_(queries.transpose(1, 2), g)
        through_feature_map(d_phi, keys, dk_c)
    return dq, dk, dv


def operations_per_token(d: int, m: int, c: int, backward: bool) -> float:
    """Floating-point operations of the products that a token and head take, causal, of one pass:
    the equations above with the column of ones in V, and R summed again."""
    if backward:
        return 10 * d * (m + 1) + 6 * c * (m + 1) + 6 * c * d
    return 4 * d * (m + 1) + 2 * c * (d + m + 1)
