"""Other people's implementations of what is here, called in the way that suits them best.

B batch, H heads, N sequence length, D query/key size per head, M value size per head, E model size.

fast-transformers' compiled causal product is called in its own memory layout and without the copies
of its module; flash-linear-attention gets q, k and v in its own layout, and elu + 1 from its own
kernel (it rounds the products of float32 to TF32). The loop of the delta rule and the model of
associative retrieval are written from their equations. Each computes the same function as its
counterpart here, which the tests check where the package is installed. Packages are imported when
they are called: none is a requirement.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from replib.attention import Attention
from replib.fast_weights import AssociativeMemory, features
from replib.models import CausalTransformer
from replib.tasks import Associations

EPS = 1e-6  # of fast-transformers' denominators


@dataclass(frozen=True)
class Peer:
    """A package by the names that it is imported and installed by."""

    package: str
    distribution: str


FAST_TRANSFORMERS, FLASH_LINEAR = "fast-transformers", "flash-linear-attention"
FLASH_ATTENTION = "flash-attention"
PEERS = {
    FAST_TRANSFORMERS: Peer("fast_transformers", "pytorch-fast-transformers"),
    FLASH_LINEAR: Peer("fla", "flash-linear-attention"),
    FLASH_ATTENTION: Peer("flash_attn", "flash-attn"),
}


class Unavailable(Exception):
    """What cannot be run here; the message says why, or what to do."""


def require(name: str) -> None:
    """Raise Unavailable where the peer of that name is not installed."""
    if find_spec(PEERS[name].package) is None:
        raise Unavailable("not installed: see docs/benchmarks.md")


def fast_transformers_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """fast-transformers' linear attention, (B, H, N, D), (B, H, N, D), (B, H, N, M) ->
    (B, H, N, M); in float32, as its compiled product takes nothing else."""
    from fast_transformers.causal_product import causal_dot_product

    with torch.autocast(q.device.type, enabled=False):
        queries, keys, values = elu(q.float()) + 1, elu(k.float()) + 1, v.float()
        if causal:
            scale = 1 / (torch.einsum("bhnd,bhnd->bhn", queries, keys.cumsum(2)) + EPS)
            return (causal_dot_product(queries, keys, values) * scale[..., None]).to(v.dtype)
        state = torch.einsum("bhnd,bhnm->bhmd", keys, values)
        scale = 1 / (torch.einsum("bhnd,bhd->bhn", queries, keys.sum(2)) + EPS)
        return torch.einsum("bhnd,bhmd,bhn->bhnm", queries, state, scale).to(v.dtype)


class FastTransformersAttention(Attention):
    """fast-transformers' attention as a model here holds it."""

    label = FAST_TRANSFORMERS

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        return fast_transformers_attention(q, k, v, causal)


def fast_transformers_encoder(model: CausalTransformer) -> nn.Module:
    """fast-transformers' recurrent encoder, with the weights of a linear post-norm model's blocks
    and last norm: (x (B, E), state or None) -> (B, E), state, which it updates in place."""
    from fast_transformers.builders import RecurrentEncoderBuilder

    config = model.config
    encoder = RecurrentEncoderBuilder.from_kwargs(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        query_dimensions=config.head_dim,
        value_dimensions=config.head_dim,
        feed_forward_dimensions=config.d_feedforward,
        attention_type="causal-linear",
        dropout=config.dropout,
    ).get()
    for block, layer in zip(model.blocks, encoder.layers, strict=True):
        ours, theirs = block.self_attention, layer.attention
        projections = (theirs.query_projection, theirs.key_projection, theirs.value_projection)
        for projection, weight, bias in zip(
            projections, ours.to_qkv.weight.chunk(3), ours.to_qkv.bias.chunk(3), strict=True
        ):
            projection.load_state_dict({"weight": weight, "bias": bias})
        theirs.out_projection.load_state_dict(ours.out.state_dict())
        layer.linear1.load_state_dict(block.feedforward[0].state_dict())
        layer.linear2.load_state_dict(block.feedforward[-1].state_dict())
        layer.norm1.load_state_dict(block.norms[0].state_dict())
        layer.norm2.load_state_dict(block.norms[1].state_dict())
    encoder.norm.load_state_dict(model.norm.state_dict())
    return encoder


def flash_linear_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """flash-linear-attention's chunked kernel, normalised; shapes as in
    `fast_transformers_attention`, but (B, N, H, D) is what should lie in memory.

    Raises:
        ValueError: not causal, which it has not.
    """
    from fla.modules.activations import elu_p1
    from fla.ops.linear_attn import chunk_linear_attn

    if not causal:
        raise ValueError("flash-linear-attention is causal only: use causal=True")
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    y, _ = chunk_linear_attn(elu_p1(queries), elu_p1(keys), values, scale=1.0, normalize=True)
    return y.transpose(1, 2)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Softmax attention by the package of FlashAttention, of shapes as in
    `fast_transformers_attention`; (B, N, H, D) is what should lie in memory.

    Raises:
        Unavailable: a dtype that it has no kernel for.
    """
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise Unavailable("takes bfloat16 and float16 alone")
    from flash_attn import flash_attn_func

    return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=causal).transpose(1, 2)


def published_delta_loop(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """The delta rule a write at a time, read after the last one, as it was published.

    W ← W - v̄ kᵀ + (β v + (1 - β) v̄) kᵀ with v̄ = W k, and y = W q at last (Schlag et al. 2021,
    section 4.2; the code of their experiment loops over the writes in these operations).
    q (B, H, 1, D), k (B, H, N, D), v (B, H, N, M), beta (B, H, N) -> (B, H, 1, M).
    """
    w = v.new_zeros(*v.shape[:2], v.shape[-1], k.shape[-1])  # (B, H, M, D)
    for i in range(k.shape[2]):
        key, value, rate = k[:, :, i], v[:, :, i], beta[:, :, i, None]
        old = torch.einsum("bhmd,bhd->bhm", w, key)
        w = w - torch.einsum("bhm,bhd->bhmd", old, key)
        w = w + torch.einsum("bhm,bhd->bhmd", rate * value + (1 - rate) * old, key)
    return torch.einsum("bhmd,bhnd->bhnm", w, q)


class PublishedMemory(nn.Module):
    """The model of the published synthetic experiments with the parameters of ours, computed as it
    was: unit vectors of values and embeddings of keys concatenated at each position and projected,
    outer products summed into a memory (B, S, R), the delta rule and that of "fwm" a write at a
    time. Written from the equations of Schlag et al. 2021, sections 4.2 and 6.1.

    Like its code it projects every position once more, and makes no use of it.
    """

    def __init__(self, memory: AssociativeMemory):
        super().__init__()
        (e, d), s = memory.key_of_embedding.shape[1:], memory.n_keys
        self.config, self.n_keys = memory.config, s
        self.embedding, self.to_query = nn.Embedding(2 * s, e), nn.Linear(e, d)
        self.to_key, self.to_beta = nn.Linear(s + e, d), nn.Linear(s + e, 1)
        self.unused = nn.Linear(s + e, d)
        ours = {name: x[0] for name, x in memory.state_dict().items()}
        with torch.no_grad():
            self.embedding.weight[:s] = ours["embedding"]
            for layer, name in ((self.to_key, "key"), (self.to_beta, "beta")):
                if f"{name}_bias" in ours:
                    weight = [ours[f"{name}_of_value"], ours[f"{name}_of_embedding"]]
                    layer.weight.copy_(torch.cat(weight).T)
                    layer.bias.copy_(ours[f"{name}_bias"])
            self.to_query.weight.copy_(ours["query_of_embedding"].T)
            self.to_query.bias.copy_(ours["query_bias"])

    def forward(self, batch: Associations, directions: Tensor | None = None) -> Tensor:
        """Keys, values (B, N) and one query (B, 1) -> what is read (B, S)."""
        values = nn.functional.one_hot(batch.values, self.n_keys).float()
        x = torch.cat([values, self.embedding(batch.keys)], dim=-1)  # (B, N, S + E)
        k, q = self.to_key(x), self.to_query(self.embedding(batch.queries))
        if self.config.attention == "softmax":
            weights = (k @ q.mT / k.shape[-1] ** 0.5).softmax(1)
            return torch.einsum("bnl,bns->bs", weights, values)
        beta, _ = torch.sigmoid(self.to_beta(x)).squeeze(-1), self.unused(x)
        k, q = (features(x, self.config, directions) for x in (k, q))
        if self.config.update_rule == "sum":
            w, z = torch.einsum("bns,bnr->bsr", values, k), k.sum(1)
            read = torch.einsum("bsr,blr->bs", w, q)
            return read / (torch.einsum("br,blr->bl", z, q) + self.config.eps)
        if self.config.update_rule == "delta":
            q = q / (q.sum(-1, keepdim=True) + self.config.eps)
            k = k / k.sum(-1, keepdim=True)
            return published_delta_loop(*(x.unsqueeze(1) for x in (q, k, values, beta)))[:, 0, 0]
        w = torch.einsum("bs,br->bsr", beta[:, :1] * values[:, 0], k[:, 0])
        for i in range(1, k.shape[1]):
            key, value, rate = k[:, i], values[:, i], beta[:, i, None]
            old = torch.einsum("bsr,br->bs", w, key)
            w = w - torch.einsum("bs,br->bsr", old, key)
            w = w + torch.einsum("bs,br->bsr", rate * value + (1 - rate) * old, key)
            w = w / w.flatten(1).norm(dim=-1).clamp(min=1)[:, None, None]
        read = torch.einsum("bsr,blr->bs", w, q)
        return nn.functional.layer_norm(read, read.shape[-1:])
