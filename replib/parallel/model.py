"""A language model whose sequence lies over several ranks.

B batch, N sequence length, E model size, V vocabulary, W ranks. Every rank has all parameters, and
a part of every sequence; only states of attention go from part to part.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from replib.attention import ATTENTION, Attention
from replib.attention.base import check_qkv
from replib.models import CausalTransformer, MultiHeadAttention
from replib.parallel.ranks import Ranks, boundaries, states_before
from replib.parallel.states import Effect, local_state, output
from replib.plain import without_autocast
from replib.tasks.copy import NOT_IN_LOSS

SUMS, WRITES = ("linear", "relu", "dpfp"), ("delta",)  # by what their states are


def check_parallel(attention: Attention) -> None:
    """
    Raises:
        ValueError: what parts of a sequence do to this mechanism's state cannot be told apart from
            it, so that a later part would have to wait for all of the earlier ones.
    """
    name = next((n for n, kind in ATTENTION.items() if type(attention) is kind), None)
    offered = ", ".join((*SUMS, *WRITES))
    if name not in (*SUMS, *WRITES):
        raise ValueError(
            f"{attention.label} attention has no state of one size that sums up the tokens before "
            f"a part: use {offered}"
        )
    normalised = getattr(attention.options, "normalised", None)
    if normalised is not None:
        raise ValueError(
            f"{attention.label} attention with normalised={normalised} is not offered over ranks: "
            "use its default"
        )


def attend(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, ranks: Ranks, *, causal: bool = True
) -> Tensor:
    """A mechanism's `forward` of a sequence that lies over ranks, of which q (B, H, N, D),
    k (B, G, N, D) and v (B, G, N, M) are what this process holds -> (B, H, N, M).

    What the equations need between the calls of the kernels is computed again going back, so that
    a rank keeps queries, keys and values and no more.

    Raises:
        ValueError: it is not causal, has no state that can be passed on, shapes or dtypes are none
            that a mechanism can attend over, there are fewer tokens than parts, or ranks differ in
            the mechanism or in more of the tensors than length.
    """
    check_parallel(attention)
    if not causal:
        raise ValueError(
            "a part that is not causal needs what later parts hold: use causal=True over ranks"
        )
    check_qkv(q, k, v, causal=True, key_padding_mask=None)
    cuts = boundaries(q.shape[2], len(ranks.held))
    ranks.check_same(**_facts(attention, q=q, k=k, v=v))
    lengths = [end - start for start, end in pairwise(cuts)]
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    parts = [*zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True)]
    effects = [again(local_state_of, attention, *part) for part in parts]
    before = states_before(ranks, effects)
    read = (again(output_of, attention, s, *part) for s, part in zip(before, parts, strict=True))
    return torch.cat([*read], 2)


def _facts(attention: Attention, **tensors: Tensor) -> dict[str, str]:
    """What has to be the same on all ranks, so that each sends what the next expects."""
    learns = any(p.requires_grad for p in attention.parameters())
    facts = {"attention": f"{attention.label}, {attention.options}{_if_traced(learns)}"}
    for name, x in tensors.items():
        shape = (*x.shape[:2], "N", x.shape[3])
        facts[name] = f"{x.dtype} ({', '.join(map(str, shape))}){_if_traced(x.requires_grad)}"
    return facts


def _if_traced(requires_grad: bool) -> str:
    return " with gradients" if requires_grad and torch.is_grad_enabled() else ""


def features(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Features of queries and keys, values, and the strengths of writes where there are any."""
    with without_autocast(q.device.type):
        if hasattr(attention, "writes"):
            return attention.writes(q, k, v, None, causal=True)
        wide = torch.promote_types(q.dtype, torch.float32)
        return *attention.features(q.to(wide), k.to(wide)), v, None


def local_state_of(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Effect:
    """`local_state` of a mechanism's keys and values; no query is looked at."""
    return local_state(*features(attention, q[:, :, :0], k, v)[1:])


def output_of(attention: Attention, before: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`output` of a mechanism's queries, keys and values."""
    options = {"eps": attention.eps} if hasattr(attention, "eps") else {}
    elu1 = getattr(attention, "feature_map", None) == "elu1"
    written = (q, k, v) if elu1 else features(attention, q, k, v)
    return output(before, *written, elu1=elu1, kernel=attention.kernel, **options)


class SequenceParallel(nn.Module):
    """A `CausalTransformer` over ranks: tokens (B, N), which every rank is given whole, as they are
    8 bytes each -> logits (B, N', V) of the part that this process holds (`ranks.part(N)`).

    Every rank makes the same calls in the same order, forward and backward; then
    `sum_gradients` gives all of them the gradients of the whole sequence.

    Raises:
        ValueError: it is no `CausalTransformer`, or its attention cannot be passed on.

    Example:
        >>> model = SequenceParallel(model, Ring())
        >>> loss = model.loss(model(tokens), targets, in_loss)
        >>> loss.backward()
        >>> model.sum_gradients()
    """

    def __init__(self, model: CausalTransformer, ranks: Ranks):
        super().__init__()
        if not isinstance(model, CausalTransformer):
            raise ValueError(
                f"a {type(model).__name__} is not causal throughout: use a CausalTransformer"
            )
        for block in model.blocks:
            check_parallel(block.self_attention.attention)
        self.model, self.ranks = model, ranks

    def forward(self, tokens: Tensor) -> Tensor:
        """
        Raises:
            ValueError: a rank would hold no token, or the sequence is longer than the model.
        """
        part = self.ranks.part(tokens.shape[1])
        x = self.model.embedding(tokens[:, part], first=part.start)
        for block in self.model.blocks:
            x, _ = block.advance(partial(self._attend, block.self_attention), None, x)
        return self.model.head(self.model.norm(x))

    def _attend(self, layer: MultiHeadAttention, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        return layer.merge(
            attend(layer.attention, *layer.queries_keys_values(x), self.ranks)
        ), state

    def loss(self, logits: Tensor, targets: Tensor, in_loss: Tensor) -> Tensor:
        """This rank's share of the mean cross-entropy in nats a token: over all ranks shares add up
        to the loss of the whole sequence. Targets and `in_loss` (B, N) are of all of it."""
        part = self.ranks.part(targets.shape[1])
        wanted = targets.masked_fill(~in_loss, NOT_IN_LOSS)[:, part].flatten()
        options = {"ignore_index": NOT_IN_LOSS, "reduction": "sum"}
        return cross_entropy(logits.flatten(0, 1).float(), wanted, **options) / in_loss.sum()

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Give every rank the gradients of the whole sequence, in one message; where no parameter
        is trained there is none to send.

        Raises:
            ValueError: no parameter has a gradient yet.
        """
        found = [p for p in self.model.parameters() if p.grad is not None]
        if not found:
            if any(p.requires_grad for p in self.model.parameters()):
                raise ValueError("no parameter has a gradient: use loss.backward() first")
            return
        flat = self.ranks.total(torch.cat([p.grad.flatten() for p in found]))
        for p, gradient in zip(found, flat.split([p.numel() for p in found]), strict=True):
            p.grad.copy_(gradient.view_as(p))
