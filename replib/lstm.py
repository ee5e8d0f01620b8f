"""A language model with an LSTM (Hochreiter & Schmidhuber 1997), the baseline of those with
attention.

B batch, N sequence length, E model size, V vocabulary.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from replib.checks import check_numbers, check_share
from replib.layers import Dropout
from replib.models import MAX_D_MODEL, MAX_LAYERS, ModelState


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """Sizes of an LSTM; what charts and rows ask of a model's config it answers too.

    Attributes:
        d_model: E, of the embedding and of each layer.
        dropout: of the embedding and after each layer (Zaremba et al. 2014).
        tied: the output layer has the weights of the embedding (Press & Wolf 2017).
    """

    VERSION: ClassVar[int] = 1  # raised when what it computes changes beyond rounding
    attention: ClassVar[str] = "lstm"
    options: ClassVar[None] = None
    kernel: ClassVar[None] = None
    variant: ClassVar[tuple[str, None]] = ("lstm", None)

    n_layers: int = 2
    d_model: int = 256
    dropout: float = 0.1
    tied: bool = False

    def __post_init__(self):
        check_numbers(self, n_layers=MAX_LAYERS, d_model=MAX_D_MODEL)
        check_share(self, "dropout")

    def build(self, *, vocab_size: int, max_len: int) -> "LSTMLanguageModel":
        """The model; it has no longest sequence."""
        return LSTMLanguageModel(self, vocab_size=vocab_size)


class LSTMState(NamedTuple):
    """The output h and the cell c of a layer, both (B, E)."""

    h: Tensor
    c: Tensor


class LSTMLanguageModel(nn.Module):
    """Tokens (B, N) -> logits (B, N, V), by layers of torch's `nn.LSTM`; states as those of a
    `CausalTransformer`."""

    def __init__(self, config: LSTMConfig, *, vocab_size: int):
        super().__init__()
        e = config.d_model
        self.config = config
        self.embedding = nn.Embedding(vocab_size, e)
        # A layer each: the dropout between those of one `nn.LSTM` draws from torch's own generator.
        layers = (nn.LSTM(e, e, batch_first=True) for _ in range(config.n_layers))
        self.layers = nn.ModuleList(layers)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(e, vocab_size)
        if config.tied:
            nn.init.normal_(self.embedding.weight, std=e**-0.5)
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, N, V)."""
        return self.prefill(self.init_state(len(tokens)), tokens)[0]

    def init_state(self, batch_size: int, max_len: int | None = None) -> ModelState:
        """The state before the first token; its size does not depend on `max_len`."""
        zeros = self.head.weight.new_zeros(batch_size, self.config.d_model)
        return ModelState((LSTMState(zeros, zeros),) * len(self.layers), 0)

    def prefill(self, state: ModelState, tokens: Tensor) -> tuple[Tensor, ModelState]:
        """The next tokens (B, N) -> logits (B, N, V), and the state after them."""
        x, after = self.dropout(self.embedding(tokens)), []
        for layer, (h, c) in zip(self.layers, state.blocks, strict=True):
            x, (h, c) = layer(x, (h.unsqueeze(0), c.unsqueeze(0)))
            x = self.dropout(x)
            after.append(LSTMState(h.squeeze(0), c.squeeze(0)))
        return self.head(x), ModelState(tuple(after), state.position + tokens.shape[1])
