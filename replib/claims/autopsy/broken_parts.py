"""Parts of an encoder-decoder as the 2022 replication has them, and how a model gets them.

B batch, H heads, N sequence length, D query/key size per head, M value size per head, P heads
that one is split into.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, layer_norm, linear
from torch.overrides import TorchFunctionMode

from replib.attention.linear import EPS
from replib.layers import Dropout
from replib.models import EncoderDecoder, TransformerConfig


def break_model(model: EncoderDecoder, defects: Sequence[str]) -> None:
    """Apply to a model those defects that are in its parts; its parameters stay the same, and
    trained positions become one more."""
    alter: list[Callable[[nn.Module], nn.Module]] = []
    if "unfused" in defects:
        alter.append(lambda attention: _Unfused(model.config.attention))
    elif "details" in defects and model.config.attention == "softmax":
        alter.append(lambda attention: _DroppedSoftmax(model.config.dropout))
    if "split_heads" in defects:
        alter.append(lambda attention: SplitHeads(attention, _n_split(model.config)))
    if "float64" in defects:
        alter.append(_Float64)
        model.forward = _promoting(model.forward)
    for wrap in alter:
        for block in (*model.encoder, *model.decoder):
            for attend in filter(None, (block.self_attention, block.cross_attention)):
                attend.attention = wrap(attend.attention)
    for block in model.decoder:
        if "leak" in defects:
            block.causal = False
        if "elu_feedforward" in defects:
            block.feedforward[1] = _EluPlusOne()
    if "reused_encoder" in defects:
        kept = max(1, len(model.encoder) // 2)
        *first, last = model.encoder[:kept]
        model.encoder = nn.ModuleList([*first, ReusedBlock(last, len(model.encoder) - kept)])
    if "embedding_scale" in defects:
        model.embedding.tokens = _Divided(model.embedding.tokens, model.config)
    if "trained_positions" in defects:
        sinusoids = model.embedding.sinusoids
        del model.embedding.sinusoids
        model.embedding.sinusoids = nn.Parameter(sinusoids.clone())
    if "details" in defects:
        _apply_details(model)


def _apply_details(model: EncoderDecoder) -> None:
    model.encoder_norm, model.norm = nn.Identity(), nn.Identity()
    model.embedding.dropout = nn.Identity()
    for block in (*model.encoder, *model.decoder):
        block = block.block if isinstance(block, ReusedBlock) else block
        block.feedforward[2] = nn.Identity()
    forward = model.forward

    def with_end(source: Tensor, tokens: Tensor) -> Tensor:
        return forward(source, torch.cat([tokens, source[:, -1:]], dim=1))[:, :-1]

    model.forward = with_end


@torch.no_grad()
def initialise_as_flux(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every dense layer by Glorot & Bengio 2010, eq. 16, U(±sqrt(6 / (in + out))), with biases
    of 0, as Flux does; queries, keys and values are three layers."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            n_in = module.in_features
            fused = module.out_features == 3 * n_in  # to_qkv
            for weight in module.weight.chunk(3) if fused else (module.weight,):
                bound = (6 / (n_in + len(weight))) ** 0.5
                weight.copy_(2 * bound * torch.rand(weight.shape, generator=generator) - bound)
            module.bias.zero_()


def _n_split(config: TransformerConfig) -> int:
    """Into how many a head is split again: as many as there are heads, or as its size allows."""
    most = min(config.n_heads, config.head_dim)
    return next(n for n in range(most, 0, -1) if config.head_dim % n == 0)


class _Divided(nn.Module):
    """A token embedding whose model multiplies it by sqrt(E), or by 1 where positions are
    concatenated: 1/sqrt(E) times the table in the end."""

    def __init__(self, table: nn.Embedding, config: TransformerConfig):
        super().__init__()
        self.table = table
        multiplied = table.embedding_dim**0.5 if config.positions == "added" else 1.0
        self.factor = config.d_model**-0.5 / multiplied

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens) * self.factor


class _DroppedSoftmax(nn.Module):
    """Softmax attention with dropout of its weights; without a recurrent form."""

    def __init__(self, p: float):
        super().__init__()
        self.dropout = Dropout(p)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        weights = q @ k.mT / q.shape[-1] ** 0.5  # (B, H, N, N')
        if causal:
            future = torch.ones(weights.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            weights = weights.masked_fill(future, float("-inf"))
        return self.dropout(weights.softmax(-1)) @ v


class _EluPlusOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return elu(x) + 1


class ReusedBlock(nn.Module):
    """A block, applied some more times for nothing."""

    def __init__(self, block: nn.Module, n_more: int):
        super().__init__()
        self.block, self.n_more = block, n_more

    def forward(self, x: Tensor) -> Tensor:
        y = discarded = self.block(x)
        for _ in range(self.n_more):
            discarded = self.block(discarded)
        return y


class _Altered(nn.Module):
    """An attention mechanism around another; without a recurrent form."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention


class _Float64(_Altered):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        return self.attention(q, k, v, causal=causal).double()


class _Promotion(TorchFunctionMode):
    """Products of float32 weights and float64 inputs are computed in float64, as in Julia."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (linear, layer_norm) and args[0].dtype == torch.float64:
            wide = [_double(x) for x in args]
            named = {name: _double(x) for name, x in (kwargs or {}).items()}
            return func(*wide, **named)
        return func(*args, **(kwargs or {}))


def _double(x):
    return x.double() if isinstance(x, Tensor) else x


def _promoting(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def promoted(*inputs: Tensor) -> Tensor:
        with _Promotion():
            return forward(*inputs)

    return promoted


class SplitHeads(_Altered):
    """Each head as P heads of D / P."""

    def __init__(self, attention: nn.Module, n_split: int):
        super().__init__(attention)
        self.n_split = n_split

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        y = self.attention(*map(self._heads, (q, k, v)), causal=causal)  # (B, H·P, N, M/P)
        return y.unflatten(1, (-1, self.n_split)).transpose(2, 3).flatten(3)  # (B, H, N, M)

    def _heads(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.n_split, -1)).transpose(2, 3)  # (B, H, P, N, D/P)
        return x.flatten(1, 2)


class _Unfused(nn.Module):
    """Attention over tensors that are laid out anew, feature first, an intermediate at a time."""

    def __init__(self, kind: str):
        super().__init__()
        self.attend = {"linear": _linear_sums, "softmax": _softmax_sums}[kind]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        permuted = [x.permute(3, 2, 1, 0).contiguous() for x in (q, k, v)]  # (D, N, H, B)
        y = self.attend(*permuted, causal)  # (M, N, H, B)
        return y.permute(3, 2, 1, 0).contiguous()


def _linear_sums(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    q, k = elu(q) + 1, elu(k) + 1
    if causal:  # all states at once, (N, D, M, H, B)
        states = torch.einsum("dnhb,mnhb->ndmhb", k, v).cumsum(0)
        numerator = torch.einsum("dnhb,ndmhb->mnhb", q, states)
        denominator = torch.einsum("dnhb,dnhb->nhb", q, k.cumsum(1))
    else:
        state = torch.einsum("dnhb,mnhb->dmhb", k, v)
        numerator = torch.einsum("dnhb,dmhb->mnhb", q, state)
        denominator = torch.einsum("dnhb,dhb->nhb", q, k.sum(1))
    return numerator / (denominator + EPS)


def _softmax_sums(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    weights = torch.einsum("dnhb,dlhb->nlhb", q, k) / len(q) ** 0.5
    if causal:
        n = q.shape[1]
        future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        weights = weights.masked_fill(future[:, :, None, None], float("-inf"))
    return torch.einsum("nlhb,mlhb->mnhb", weights.softmax(1), v)
