"""Images pixel by pixel: the task, and the mixture of logistics that a model predicts of a pixel.

B batch, N positions, L levels, K logistics in a mixture. An image of h x w pixels of c channels has
N = h·w·c positions, row by row and r1 g1 b1 r2 g2 b2 ... (Katharopoulos et al. 2020, section 4.2,
and their published code). Levels are 0 to L - 1, (B, N); what a model puts out is (B, N, 3K).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from replib.checks import check_numbers
from replib.tasks.copy import Batch, drawn
from replib.tasks.image_files import Images, dataset_named, load_images

# Bounds of a logistic's log scale. The lower one is that of the published code of PixelCNN++, which
# has no upper one: exp(-log scale) could vanish, and here the logistic is flat over the levels.
MIN_LOG_SCALE, MAX_LOG_SCALE = -7.0, 7.0
MAX_MIXTURES = 100  # more is taken for a slip
POSITIONS_AT_ONCE = 2**12  # of which the (L, K) densities are computed: some 40 MB a tensor


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Predict each level of an image from those before it. With N = 4 and the start token S = L:

        image  3 9      inputs   S 3 9 1
               1 4      targets  3 9 1 4

    Deviation: the published code gives the first level and leaves it out of the loss; here it is
    predicted from S, so that bits per dimension are those of the whole image.
    Deviation: images are drawn with replacement, where it goes through them in epochs.

    Attributes:
        images: a name of `replib.tasks.image_files.DATASETS`.
        n_mixtures: K, logistics in the distribution of a level; 10 in the paper.
        seq_len: N, which follows from the images and stands in recorded rows.
    """

    experiment: ClassVar[str] = "images"
    VERSION: ClassVar[int] = 1  # as of `replib.tasks.TokenTask`
    FIGURES: ClassVar[tuple[str, ...]] = ("bits_per_dim", "histogram_bits_per_dim")

    images: str = "digits"
    n_mixtures: int = 10
    seq_len: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "seq_len", math.prod(self.shape))
        check_numbers(self, n_mixtures=MAX_MIXTURES)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of an image."""
        return dataset_named(self.images).shape

    def missing_data(self, batch_size: int = 1) -> str | None:
        """Why the images cannot be read; None where they can."""
        try:
            load_images(self.images)
        except ValueError as error:
            return str(error)
        return None

    @property
    def n_levels(self) -> int:
        return dataset_named(self.images).n_levels

    @property
    def vocab_size(self) -> int:
        return self.n_levels + 1

    @property
    def model_sizes(self) -> dict[str, int]:
        """What a model is built with besides its config."""
        sizes = {"vocab_size": self.vocab_size, "max_len": self.seq_len}
        return sizes | {"n_outputs": 3 * self.n_mixtures}

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw images to train on, on the generator's device."""
        images = load_images(self.images, generator.device).train
        return self.batch(images[drawn(0, len(images), (batch_size,), generator)])

    def held_out(
        self, batch_size: int, n_batches: int, generator: torch.Generator
    ) -> Iterator[Batch]:
        """The first images of the test in their order, at most n batches; none is drawn."""
        images = load_images(self.images, generator.device).test
        for some in images[: n_batches * batch_size].split(batch_size):
            yield self.batch(some)

    def batch(self, images: Tensor) -> Batch:
        """The task of predicting given images (B, h, w, c)."""
        targets = images.flatten(1).long()
        everywhere = torch.ones_like(targets, dtype=torch.bool)
        return Batch((self.inputs(targets[:, :-1]),), targets, everywhere, everywhere)

    def inputs(self, levels: Tensor) -> Tensor:
        """The tokens (B, n + 1) from which the level after some first ones (B, n) is predicted."""
        start = levels.new_full((len(levels), 1), self.n_levels)
        return torch.cat([start, levels], dim=1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of a level, nats; outputs (B, N, 3K)."""
        return -log_prob(outputs, batch.targets, self.n_levels).mean()

    def figures_of(self, loss: float | None) -> dict[str, float | None]:
        """Bits per dimension of the test images: of a model of that loss (nats), and of the
        histogram of each position, which a model that learned anything of images is below."""
        histogram = histogram_bits(load_images(self.images), self.n_levels)
        model = None if loss is None else bits(loss)
        return {"bits_per_dim": model, "histogram_bits_per_dim": histogram}

    def most_likely(self, outputs: Tensor) -> Tensor:
        """The levels (B, N) that outputs (B, N, 3K) hold for the likeliest."""
        rows = outputs.flatten(0, 1).split(POSITIONS_AT_ONCE)
        levels = [level_log_probs(some, self.n_levels).argmax(-1) for some in rows]
        return torch.cat(levels).view(outputs.shape[:2])


def log_prob(outputs: Tensor, levels: Tensor, n_levels: int) -> Tensor:
    """The log-probability, in nats, of levels under mixtures of discretised logistics.

    Salimans et al. 2017 (PixelCNN++), eq. 2, with the levels spread over [-1, 1] as in their code:

        P(x) = Σ_k π_k [σ((x + h - μ_k) / s_k) - σ((x - h - μ_k) / s_k)],  h = 1 / (L - 1),

    where below the lowest level and above the highest the bins reach to infinity. Levels therefore
    sum to one. Computed as σ(a) - σ(b) = σ(a) σ(-b) (1 - exp(b - a)), in which nothing cancels.

    Deviation: their code takes the density in the middle of a bin instead where the difference is
    below 1e-5, and has a mean that depends on the channels before; as in the linear Transformer's
    code, each channel is a position of its own.

    Args:
        outputs: (..., 3K), the logits of π, then μ, then log s, which is held within ±7.
        levels: (...), 0 to L - 1; shapes are broadcast.

    Returns:
        (...), float32 or wider.
    """
    log_weights, means, log_scales = _mixture(outputs)
    half, levels = 1 / (n_levels - 1), levels.unsqueeze(-1)
    distance, sharpness = _value(levels, n_levels, means) - means, torch.exp(-log_scales)
    below_top = logsigmoid((distance + half) * sharpness).where(levels < n_levels - 1, 0.0)
    above_bottom = logsigmoid((half - distance) * sharpness).where(levels > 0, 0.0)
    inner = (levels > 0) & (levels < n_levels - 1)
    overlap = torch.log(-torch.expm1(-2 * half * sharpness)).where(inner, 0.0)
    return torch.logsumexp(log_weights + below_top + above_bottom + overlap, dim=-1)


def level_log_probs(outputs: Tensor, n_levels: int) -> Tensor:
    """The log-probabilities of all levels, (..., 3K) -> (..., L)."""
    levels = torch.arange(n_levels, device=outputs.device)
    return log_prob(outputs.unsqueeze(-2), levels, n_levels)


def sample_levels(
    outputs: Tensor, n_levels: int, generator: torch.Generator, temperature: float = 1.0
) -> Tensor:
    """Draw a level of each mixture, (B, 3K) -> (B,): one of the logistics, a value from it, and the
    level that it is nearest to, which at temperature 1 gives exactly the probabilities of
    `log_prob`. A temperature T draws the logistic from π^(1/T) and takes T s for its scale: below
    1, what is likely becomes likelier.

    Deviation: the linear Transformer's published code draws with the scale elu(log s) + 1.0001, and
    trains exp(log s).
    """
    log_weights, means, log_scales = _mixture(outputs)
    chosen = torch.multinomial((log_weights / temperature).softmax(-1), 1, generator=generator)
    mean, log_scale = (x.gather(-1, chosen).squeeze(-1) for x in (means, log_scales))
    noise = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    value = mean + temperature * log_scale.exp() * torch.logit(noise)
    return ((value + 1) / 2 * (n_levels - 1)).round().clamp(0, n_levels - 1).long()


def _mixture(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log π, μ and log s, each (..., K)."""
    wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    logits, means, log_scales = wide.unflatten(-1, (3, -1)).unbind(-2)
    return logits.log_softmax(-1), means, log_scales.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)


def _value(levels: Tensor, n_levels: int, like: Tensor) -> Tensor:
    """Levels as numbers from -1 to 1."""
    return levels.to(like.dtype) * (2 / (n_levels - 1)) - 1


def bits(nats: float) -> float:
    """Bits per dimension, where a loss is in nats a level."""
    return nats / math.log(2)


def histogram_bits(images: Images, n_levels: int) -> float:
    """Bits per dimension of the test under the simplest model: every position is independent of
    the others, with the shares of its levels in the images to train on, each counted once more."""
    nats = []
    for train, test in zip(images.train.flatten(1).T, images.test.flatten(1).T, strict=True):
        counts = torch.bincount(train.long(), minlength=n_levels) + 1
        shares = counts.double() / counts.sum()
        nats.append(-shares[test.long()].log().mean())
    return bits(torch.stack(nats).mean().item())
