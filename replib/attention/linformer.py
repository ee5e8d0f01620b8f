"""Linformer attention (Wang et al. 2020, *Linformer: Self-Attention with Linear Complexity*).

B batch, H heads of queries, G of keys and values, N sequence length, D query/key size, M value
size, K slots (the paper's k), L positions that the projections E and F are made for.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from replib.attention.base import Attention, check_qkv
from replib.attention.padding import can_be_asked, without_padding
from replib.checks import check_known, check_numbers
from replib.plain import without_autocast

SHARING = ("headwise", "key-value", "layerwise", "none")
MAX_K = 65_536  # more is taken for a slip
SEED = 0  # of projections that are not learned
NOT_CAUSAL = (
    "Linformer attention cannot be causal: each of its k slots is a sum over all positions, made "
    "before any mask could hide the later ones: use causal=False, or another mechanism"
)


def linformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    f: Tensor,
    *,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    mask_padding: bool = True,
    mask_slots: bool = False,
) -> Tensor:
    """softmax(Q (E K)ᵀ / sqrt(D)) (F V) (Wang et al. 2020, eq. 7): N keys and values become K.

    Time and memory grow as N·K. A sequence that is shorter than L uses the first N columns of E and
    F, and all K slots.

    Args:
        q: (B, H, N', D); k: (B, G, N, D); v: (B, G, N, M), G a divisor of H.
        e, f: (K, L), or (G, K, L) with a matrix a head; L >= N.
        causal: refused.
        key_padding_mask: (B, N) bool, True where a key is padding. It takes no part, whatever it
            holds, and columns count the other keys, so that a row gives what it gives alone. Where
            all is padding a query gets 0.
        mask_padding: without it padding enters the slots, as the mask is left out: what goes wrong
            where one is applied after the projections or not at all.
        mask_slots: hide slot j > i from query i, as a causal mask of the (N, K) weights does. It
            hides slots and not positions: every query still sees the future.

    Returns:
        (B, H, N', M).

    Raises:
        ValueError: shapes disagree, there are more keys than columns, or it is asked to be causal.
    """
    check_qkv(q, k, v, causal=False, key_padding_mask=key_padding_mask)
    if causal:
        raise ValueError(NOT_CAUSAL)
    _check_projections(k, e, f)
    padding = key_padding_mask if mask_padding else None
    with without_autocast(q.device.type):
        slots = _slots(k, v, e, f, padding, dtype=torch.promote_types(q.dtype, k.dtype))
        return _attend(q, *slots, mask_slots).to(v.dtype)


def _check_projections(k: Tensor, e: Tensor, f: Tensor) -> None:
    n_heads, n = k.shape[1:3]
    if e.shape != f.shape or e.dim() not in (2, 3) or (e.dim() == 3 and len(e) != n_heads):
        raise ValueError(
            f"e is {tuple(e.shape)} and f {tuple(f.shape)}: give both the same (slots, length), or "
            f"({n_heads}, slots, length)"
        )
    if n > e.shape[-1]:
        raise ValueError(
            f"{n} keys, and the projections are of {e.shape[-1]} positions: build them for a "
            "longer sequence"
        )


def _slots(
    k: Tensor, v: Tensor, e: Tensor, f: Tensor, padding: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """E K (B, G, K, D) and F V (B, G, K, M), of a dtype that holds that of v too."""
    dtype = torch.promote_types(dtype, v.dtype)
    _, k, v = without_padding(k, k, v, padding, causal=False)
    if padding is not None:
        k, v = _padding_last(padding, k, v)
    return tuple(_project(w[..., : x.shape[2]].to(dtype), x.to(dtype)) for w, x in ((e, k), (f, v)))


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask_slots: bool = False) -> Tensor:
    visible = None
    if mask_slots:
        shape = q.shape[2], keys.shape[2]
        visible = torch.ones(shape, dtype=torch.bool, device=q.device).tril()
    grouped = q.shape[1] != keys.shape[1]
    q = q.to(keys.dtype)
    return scaled_dot_product_attention(q, keys, values, attn_mask=visible, enable_gqa=grouped)


def _padding_last(padding: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors (B, G, N, size) with the rows of padding (B, N) behind the others, which keep their
    order."""
    is_last = padding.device.type == "cpu" and can_be_asked(padding)
    if is_last and not (padding[:, :-1] & ~padding[:, 1:]).any():
        return tensors
    order = padding.byte().argsort(dim=1, stable=True)[:, None, :, None]
    return tuple(x.gather(2, order.expand_as(x)) for x in tensors)


def _project(w: Tensor, x: Tensor) -> Tensor:
    """W X of a matrix (K, N), or one a head (G, K, N), and x (B, G, N, size): (B, G, K, size)."""
    if w.dim() == 3:
        by_head = zip(w, x.unbind(1), strict=True)
        return torch.stack([_Product.apply(one, of_head) for one, of_head in by_head], dim=1)
    if x.is_contiguous():
        return _Product.apply(w, x.flatten(0, 1)).unflatten(0, x.shape[:2])
    # Heads that were split from one projection lie side by side: one product for all of them.
    y = _Product.apply(w, x.transpose(1, 2).flatten(2))  # (B, K, G·size)
    return y.unflatten(2, (x.shape[1], x.shape[3])).transpose(1, 2)


class _Product(torch.autograd.Function):
    """W X, (K, N) and (P, N, size) -> (P, K, size). Autograd alone would form the gradient of W P
    times before it adds them up."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, x: Tensor) -> Tensor:
        return torch.bmm(w.expand(len(x), -1, -1), x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        w, x = ctx.saved_tensors
        of_w, of_x = ctx.needs_input_grad
        dw = torch.addbmm(torch.zeros_like(w), dy, x.mT) if of_w else None
        dx = torch.bmm(w.mT.expand(len(x), -1, -1), dy) if of_x else None
        return dw, dx


class LinformerAttention(Attention):
    """Softmax attention to K slots, into which E and F sum the keys and values.

    Deviation: padding is put behind the other keys, where the authors' code ignores a padding mask.

    E and F begin uniform as in the authors' code (Xavier, gain 1/√2). Their scale is that of the
    longest sequence: of a shorter one, projected keys are smaller by √(N / L), and the softmax over
    them is flatter.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Attention.Options):
        """What the projections are.

        Attributes:
            k: slots, K.
            sharing: "headwise", an E and an F a layer; "key-value", E = F; "layerwise", one matrix
                for keys and values of all layers; "none", an E and an F a head.
            learned: or else drawn once and kept as they are.
            mask_padding: before the projections; without it padding enters the slots.
        """

        k: int = 64
        sharing: str = "headwise"
        learned: bool = True
        mask_padding: bool = True

        def __post_init__(self):
            check_numbers(self, k=MAX_K)
            check_known(self, sharing=SHARING)

        @property
        def label(self) -> str:
            words = [f"k{self.k}"]
            words += [f"sharing {self.sharing}"] * (self.sharing != "headwise")
            words += ["fixed"] * (not self.learned) + ["unmasked"] * (not self.mask_padding)
            return " ".join(words)

    label = "Linformer"
    offered = (Options(k=32), Options(k=64), Options(k=128))
    causal = False

    def __init__(self, *, n_heads: int, max_len: int, options=None, kernel=None):
        super().__init__(options=options, kernel=kernel)
        k, sharing = self.options.k, self.options.sharing
        shape = (n_heads, k, max_len) if sharing == "none" else (k, max_len)
        names = ("e", "f") if sharing in ("headwise", "none") else ("e",)
        for name in names:
            matrix = torch.empty(shape)
            if self.options.learned:
                self.register_parameter(name, nn.Parameter(_begin(matrix)))
            else:
                self.register_buffer(name, matrix)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        for matrix in self.buffers(recurse=False):
            matrix.copy_(_begin(torch.empty(matrix.shape, device="cpu"), generator))

    @classmethod
    def for_model(cls, *, n_heads, head_dim, max_len, options=None, kernel=None) -> Attention:
        return cls(n_heads=n_heads, max_len=max_len, options=options, kernel=kernel)

    def share_with(self, first: Attention) -> None:
        if self.options.sharing == "layerwise":
            self.e = first.e

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """E and F, (K, L) or (G, K, L); the same where they are shared."""
        return self.e, getattr(self, "f", self.e)

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        options = {"mask_padding": self.options.mask_padding, "causal": causal}
        options |= {"key_padding_mask": key_padding_mask}
        return linformer_attention(q, k, v, *self.matrices, **options)

    def over(self, k, v, *, key_padding_mask=None):
        check_qkv(k, k, v, causal=False, key_padding_mask=key_padding_mask)
        _check_projections(k, *self.matrices)
        padding = key_padding_mask if self.options.mask_padding else None
        with without_autocast(k.device.type):
            slots = _slots(k, v, *self.matrices, padding, dtype=k.dtype)
        return partial(_read, slots=slots, dtype=v.dtype)


def _read(q: Tensor, slots: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    with without_autocast(q.device.type):
        return _attend(q, *slots).to(dtype)


def _begin(matrix: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A projection (..., K, L) as the authors' code begins."""
    bound = (3 / sum(matrix.shape[-2:])) ** 0.5
    return nn.init.uniform_(matrix, -bound, bound, generator=generator)
