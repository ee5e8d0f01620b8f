"""Associative retrieval with a fast weight memory: model, training and stop rule of the synthetic
experiments of *Linear Transformers Are Secretly Fast Weight Memory Systems* (Schlag, Irie &
Schmidhuber 2021, section 6.1), several seeds at once.

P seeds, B batch, N sequence length, L number of queries, S number of keys and of values, D key
size, E embedding size, R feature size. Each seed has parameters of its own, in a tensor with a
leading P.

A key is embedded by a learned vector, a value by a fixed unit vector (1 of S). Keys to write are
projections of both, concatenated, queries of the key alone; what is read is compared with the unit
vector of the right value. The published code multiplies the concatenated vectors; here a
projection of the S embeddings is looked up, which is the same sum.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from replib.attention import ATTENTION
from replib.attention.base import Options, variant_label
from replib.attention.feature_maps import FEATURE_MAPS, dpfp, favor_keys, orthogonal_directions
from replib.attention.kernels import delta_read_weights, fwm_retrieve, installed
from replib.checks import check_known, check_numbers, check_share
from replib.tasks import Associations, AssociativeRetrieval
from replib.training import TrainingLoop, check_rate

# What a key may be mapped by, as mechanisms are named where there is one.
FEATURES = ("softmax", "linear", "dpfp", "performer", "relu", "tanh")
UPDATE_RULES = ("sum", "delta", "fwm")
VERSIONS = {"memories": 1, "sum": 1, "delta": 1, "fwm": 1}
"""Raised when what is trained, or a rule writes and reads, changes beyond rounding."""
EMBEDDING_PER_SYMBOL = 1.1  # E of the published code, where keys and values are symbols
NORM_EPS = 1e-5  # of the layer normalisation after a memory of the rule "fwm"
SMALLEST = 1e-30  # a divisor that keeps features that are all 0 from becoming NaN


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What a memory is made of.

    Attributes:
        attention: the features of keys and queries, one of FEATURES; "softmax" is no memory but
            attention to all writes.
        options: ν of "dpfp", the number of directions of "performer", as in `ATTENTION`; None for
            the mechanism's default.
        update_rule: "sum" adds values times keys, and normalises; "delta" is the paper's rule, with
            features that sum to 1; "fwm" is that of fast weight memories (`kernels.fwm`).
        head_dim: D.
        eps: added to normalisers of reads, as published. With "performer" it is far above the
            normalisers themselves, of keys that are not scaled, and what is read is 0.
        guarded: whether SMALLEST is added to the sum that a key's features are divided by, by the
            rule "delta". The published code adds nothing: where all features of a key are 0, as
            those of "performer" become, it reads NaN, which 18 of its 20 runs with them ended in.
    """

    kernel: ClassVar[None] = None  # the fastest always

    attention: str = "linear"
    options: Options | None = None
    update_rule: str = "sum"
    head_dim: int = 64
    eps: float = 1e-6
    guarded: bool = True

    def __post_init__(self):
        check_known(self, attention=FEATURES, update_rule=UPDATE_RULES)
        if self.attention in ("dpfp", "performer"):
            ATTENTION[self.attention].check(self.options, None)
        elif self.options is not None:
            raise ValueError(f"{self.attention} features have no options: use None")
        if self.attention == "softmax" and self.update_rule != "sum":
            raise ValueError("softmax attention has no memory to update: use update_rule='sum'")
        check_numbers(self, head_dim=(2, 1024))
        if self.attention == "dpfp" and self.size >= self.head_dim:
            raise ValueError(
                f"dpfp nu{self.size} of head_dim {self.head_dim}: use a nu below head_dim, "
                "where features are 0 and from where on they repeat"
            )
        check_share(self, "eps")

    @property
    def size(self) -> int | None:
        """ν of "dpfp", m of "performer"."""
        if self.attention not in ("dpfp", "performer"):
            return None
        options = self.options or ATTENTION[self.attention].Options()
        return options.nu if self.attention == "dpfp" else options.n_directions

    @property
    def variant(self) -> tuple[str, str | None]:
        """The features, and what charts call their options."""
        return self.attention, variant_label(self.options, None)

    @property
    def n_features(self) -> int | None:
        """R, and so the number of keys that can be told apart exactly; None for softmax."""
        sizes = {"softmax": None, "dpfp": 2 * self.head_dim * (self.size or 0)}
        return (sizes | {"performer": 2 * (self.size or 0)}).get(self.attention, self.head_dim)

    @property
    def published_name(self) -> str:
        """The name of its curve in the published logs."""
        names = {"dpfp": f"dpfp{self.size}", "performer": f"favor{self.size}"}
        rules = {"delta": "ours"}
        rule = "cat" if self.attention == "softmax" else self.update_rule
        return f"{names.get(self.attention, self.attention)}_{rules.get(rule, rule)}"


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """A run but for its seeds; the defaults are those of the published code.

    Attributes:
        n_steps: most steps of Adam, with rate `lr`.
        eval_every: steps from one evaluation to the next, each of `eval_sequences` fresh sequences
            asked for their first `eval_queries` keys.
        solved_loss: a run ends when an evaluation is at or below it, or
        patience: when more than this many in a row have not been better than the best.
        eval_half_length: evaluate on sequences of S, not 2·S, where keys come back: a defect of
            the published code.
        report: the loss that a run is judged by, its "best" as the paper says, or its "last" as the
            published figures show.
    """

    kind: ClassVar[str] = "retrieval"

    task: AssociativeRetrieval = field(default_factory=AssociativeRetrieval)
    model: MemoryConfig = field(default_factory=MemoryConfig)
    batch_size: int = 32
    lr: float = 1e-3
    n_steps: int = 100_000
    eval_every: int = 100
    eval_sequences: int = 20
    eval_queries: int = 200
    solved_loss: float = 1e-3
    patience: int = 10
    eval_half_length: bool = False
    report: str = "best"

    def __post_init__(self):
        check_numbers(
            self,
            batch_size=4096,
            n_steps=10_000_000,
            eval_every=1_000_000,
            eval_sequences=1000,
            eval_queries=4096,
            patience=1_000_000,
        )
        check_rate(self)
        check_known(self, report=("best", "last"))
        if self.eval_half_length and not self.task.with_replacement:
            raise ValueError("eval_half_length without replacement: use with_replacement=True")

    @property
    def versions(self) -> dict[str, int]:
        """Of each part that computes a run, by its name."""
        rule = self.model.update_rule
        return {
            "AssociativeRetrieval": self.task.VERSION,
            "memories": VERSIONS["memories"],
            f"rule {rule}": VERSIONS[rule],
        }

    def training(self, *, seeds: Sequence[int], device: str | None = None) -> "RetrievalTraining":
        """Runs of this config from their start, together."""
        return RetrievalTraining(self, seeds=seeds, device=device)

    @property
    def experiment(self) -> str:
        """What its rows are stored under, unless they are recorded for another experiment."""
        return "update_rules" if self.task.with_replacement else "capacity"

    def missing_data(self) -> None:
        """Nothing: its sequences are drawn."""

    @property
    def eval_task(self) -> AssociativeRetrieval:
        if self.eval_half_length:
            return replace(self.task, seq_len=max(1, self.task.seq_len // 2))
        return self.task


class AssociativeMemory(nn.Module):
    """One memory a seed: keys and values (P, B, N) and queries (P, B, L) -> reads (P, B, L, S).

    Initialised as published: embeddings N(0, 1), projections uniform within 1 / sqrt(D), with
    softmax Glorot's, biases and β within 1 / sqrt(inputs). The published code also has two
    projections that nothing reads.

    Raises:
        ValueError: there is no seed.
    """

    def __init__(self, config: MemoryConfig, *, n_keys: int, seeds: Sequence[int]):
        super().__init__()
        if not seeds:
            raise ValueError("no seeds: give at least one")
        self.config, self.n_keys = config, n_keys
        drawn = [self._draw(torch.Generator().manual_seed(seed)) for seed in seeds]
        for name in drawn[0]:
            setattr(self, name, nn.Parameter(torch.stack([x[name] for x in drawn])))

    def _draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        s, d = self.n_keys, self.config.head_dim
        e = int(2 * s * EMBEDDING_PER_SYMBOL)

        def uniform(bound: float, *shape: int) -> Tensor:
            return (torch.rand(*shape, generator=generator) * 2 - 1) * bound

        def bound(n_inputs: int) -> float:
            glorot = math.sqrt(6 / (n_inputs + d))
            return glorot if self.config.attention == "softmax" else d**-0.5

        both, key_only = (s + e) ** -0.5, e**-0.5
        drawn = {
            "embedding": torch.randn(s, e, generator=generator),
            "key_of_embedding": uniform(bound(s + e), e, d),
            "key_of_value": uniform(bound(s + e), s, d),
            "key_bias": uniform(both, d),
            "query_of_embedding": uniform(bound(e), e, d),
            "query_bias": uniform(key_only, d),
        }
        if self.config.update_rule != "sum":
            drawn["beta_of_embedding"] = uniform(both, e, 1)
            drawn["beta_of_value"] = uniform(both, s, 1)
            drawn["beta_bias"] = uniform(both, 1)
        return drawn

    def forward(self, batch: Associations, directions: Tensor | None = None) -> Tensor:
        """
        Args:
            batch: with a leading P.
            directions: (P, B or 1, D, m) of "performer".
        """
        if self.config.update_rule != "fwm":
            weights = self.read_weights(batch, directions)
            index = batch.values.unsqueeze(2).expand_as(weights)
            y = weights.new_zeros(*weights.shape[:3], self.n_keys)
            return y.scatter_add(3, index, weights)
        q, k, beta = self.memorised(batch, directions)
        values = nn.functional.one_hot(batch.values, self.n_keys).to(k.dtype)
        y = fwm_retrieve(*(x.flatten(0, 1) for x in (q, k, values, beta)))
        y = nn.functional.layer_norm(y, y.shape[-1:], eps=NORM_EPS)
        return y.unflatten(0, q.shape[:2])

    def memorised(
        self, batch: Associations, directions: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What queries read with (P, B, L, R), what is written (P, B, N, R), and how strongly
        (P, B, N), None for the rule "sum"; features, but for "softmax"."""
        q, k = self.queries_keys(batch)
        if self.config.attention != "softmax":
            q, k = (features(x, self.config, directions) for x in (q, k))
        if self.config.update_rule == "sum":
            return q, k, None
        if self.config.update_rule == "delta":
            q = q / (q.sum(-1, keepdim=True) + self.config.eps)
            k = k / (k.sum(-1, keepdim=True) + (SMALLEST if self.config.guarded else 0))
        return q, k, self.strengths(batch)

    def strengths(self, batch: Associations) -> Tensor:
        """β of each write (P, B, N)."""
        # A column more, of zeros: a product with one is computed otherwise where there is one seed,
        # and a seed would round otherwise alone than among others.
        columns = nn.functional.pad(self.beta_of_embedding, (0, 1))
        beta = _looked_up((self.embedding @ columns)[..., :1], batch.keys)
        beta = beta + _looked_up(self.beta_of_value, batch.values)
        return torch.sigmoid(beta + self.beta_bias[:, None, None]).squeeze(-1)

    def queries_keys(self, batch: Associations) -> tuple[Tensor, Tensor]:
        """Before the feature map: (P, B, L, D), (P, B, N, D)."""
        k = _looked_up(self.embedding @ self.key_of_embedding, batch.keys)
        k = k + _looked_up(self.key_of_value + self.key_bias.unsqueeze(1), batch.values)
        # Queries are fewer than keys.
        q = _looked_up(self.embedding, batch.queries).flatten(1, 2)
        q = torch.baddbmm(self.query_bias.unsqueeze(1), q, self.query_of_embedding)
        return q.unflatten(1, batch.queries.shape[1:]), k

    def read_weights(self, batch: Associations, directions: Tensor | None = None) -> Tensor:
        """How much of each value a query reads, (P, B, L, N); with the rules "sum" and "delta"."""
        config = self.config
        one_query, dtype = batch.queries.shape[-1] == 1, self.embedding.dtype
        on_cpu = batch.queries.device.type == "cpu" and dtype == torch.float32
        if one_query and on_cpu and _fuses(config):
            (q, k), beta = self.queries_keys(batch), None
            from replib.kernels.retrieval import sums_cpu

            q, nu = features(q, config, directions), 0
            if config.attention == "dpfp":
                nu = config.size
            elif config.attention == "linear" and k.shape[-1] % sums_cpu.vec.WIDTH == 0:
                nu = sums_cpu.ELU1
            else:
                k = features(k, config, directions)
            if config.update_rule == "delta":
                q, beta = q / (q.sum(-1, keepdim=True) + config.eps), self.strengths(batch)
            weights = sums_cpu.read_weights(q, k, beta, nu)
        else:
            q, k, beta = self.memorised(batch, directions)
            if config.attention == "softmax":
                return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
            if config.update_rule == "delta":
                return delta_read_weights(q, k, beta)
            weights = q @ k.mT
        if config.update_rule == "delta":
            return weights
        return weights / (weights.sum(-1, keepdim=True) + config.eps)


def _fuses(config: MemoryConfig) -> bool:
    """Whether there is a kernel for the CPU that is faster, where sequences have one query."""
    if not installed("numba") or config.update_rule == "fwm" or not config.guarded:
        return False  # the kernel has the guard in it
    return config.attention in ("dpfp", "linear") or config.update_rule == "delta"


class _Elu1(torch.autograd.Function):
    """`elu1`, whose derivative is min(φ, 1): a third of the passes of autograd's. Its backward pass
    is differentiable itself, as that of `_Rows` is."""

    @staticmethod
    def forward(ctx, x):
        y = x.clamp(max=0).exp_().add_(x.clamp(min=0))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        return ctx.saved_tensors[0].clamp(max=1).mul_(dy)


def features(x: Tensor, config: MemoryConfig, directions: Tensor | None = None) -> Tensor:
    """φ(x), (..., D) -> (..., R).

    "performer" as published: keys are not divided by D^(1/4), and queries not stabilised.
    """
    if config.attention == "dpfp":
        return dpfp(x, config.size)
    if config.attention == "performer":
        return favor_keys(x, directions)
    if config.attention == "linear":
        return _Elu1.apply(x)
    return FEATURE_MAPS[config.attention](x)


def query_losses(reads: Tensor, batch: Associations) -> Tensor:
    """0.5·|read - unit vector of the target|² of each query, (P, B, L, S) -> (P, B, L)."""
    right = reads.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    return (reads.square().sum(-1) - 2 * right + 1) / 2


def retrieval_loss(reads: Tensor, batch: Associations) -> Tensor:
    """The mean of `query_losses` over what is asked, of each seed (P,)."""
    losses = query_losses(reads, batch)
    return (losses * batch.asked).sum((1, 2)) / batch.asked.sum((1, 2))


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """Rows of each seed's table: (P, S, D), (P, B, N) -> (P, B, N, D)."""
    first = torch.arange(len(table), device=table.device)[:, None, None] * table.shape[1]
    return _Rows.apply(table.flatten(0, 1), index + first)


class _Rows(torch.autograd.Function):
    """An embedding, with a backward pass that takes a fifth of the time of torch's on a CPU."""

    @staticmethod
    def forward(ctx, table, index):
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return nn.functional.embedding(index, table)

    @staticmethod
    def backward(ctx, dy):
        (index,) = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        return dy.new_zeros(ctx.shape).index_add_(0, index.flatten(), rows), None


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics:
    """Where a run of several seeds stands after `step` steps.

    Attributes:
        losses: of this evaluation, a seed each; None for one that had ended before.
        loss: the mean of those that are still under way.
        outcomes: of each seed: None while it runs, then "ok", "diverged" or "interrupted".
        steps_per_s, seconds_left: of this process; seconds to the last possible step.
    """

    step: int
    losses: tuple[float | None, ...]
    loss: float
    outcomes: tuple[str | None, ...]
    steps_per_s: float
    seconds_left: float

    @property
    def outcome(self) -> str | None:
        """None while some seed runs; "interrupted" where one was."""
        if None in self.outcomes:
            return None
        return next((o for o in ("interrupted", "diverged") if o in self.outcomes), "ok")


@dataclass
class _Seed:
    """A seed's evaluations, and how it ended."""

    seed: int
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: float = math.inf
    without_progress: int = 0
    outcome: str | None = None
    reason: str | None = None

    def add(self, step: int, loss: float, config: RetrievalConfig) -> None:
        """Count an evaluation, and end the seed where a rule says so."""
        self.steps.append(step)
        self.losses.append(loss)
        if loss < self.best:
            self.best, self.without_progress = loss, 0
        else:
            self.without_progress += 1
        if not math.isfinite(loss):
            self.outcome, self.reason = "diverged", "not finite"
        elif loss <= config.solved_loss:
            self.outcome, self.reason = "ok", "solved"
        elif self.without_progress > config.patience:
            self.outcome, self.reason = "ok", "no progress"
        elif step >= config.n_steps:
            self.outcome, self.reason = "ok", "all steps"

    def summary(self, config: RetrievalConfig) -> dict[str, Any]:
        """The figures of a run; losses are 0.5·Σ squared error, 0.5 at chance."""
        if not self.steps:
            return {"n_steps": 0}
        best = self.best if math.isfinite(self.best) else None
        return {
            "n_steps": self.steps[-1],
            "final_loss": self.losses[-1],
            "best_loss": best,
            "reported_loss": best if config.report == "best" else self.losses[-1],
            "solved": best is not None and best <= config.solved_loss,
            "reason": self.reason,
        }


class RetrievalTraining(TrainingLoop):
    """A run of several seeds, advanced by iterating over `metrics()`. A seed that has ended takes
    no further part.

    The data of a seed s comes from a generator of 3·s, and evaluation data and random directions
    from one of 3·s + 1, whatever other seeds there are.

    Example:
        >>> run = RetrievalTraining(RetrievalConfig(), seeds=(0, 1, 2))
        >>> for m in run.metrics():
        ...     print(m.step, m.losses)

    Raises:
        ValueError: no seed, or no such device.
    """

    same_run = ("config", "of_seeds")

    def __init__(
        self, config: RetrievalConfig, *, seeds: Sequence[int] = (0,), device: str | None = None
    ):
        super().__init__(config, device)
        self.model = AssociativeMemory(config.model, n_keys=config.task.n_keys, seeds=seeds)
        self.model.to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        self.seeds = [_Seed(seed) for seed in seeds]
        self.active = list(range(len(self.seeds)))
        """Places in `seeds` of those that the tensors of the model hold, in order."""
        self.data, self._evaluation = (
            [torch.Generator(self.device).manual_seed(3 * seed + i) for seed in seeds]
            for i in range(2)
        )

    @property
    def ended(self) -> bool:
        """Whether every seed has."""
        return not self.active

    def summary(self, seed: int) -> dict[str, Any]:
        """The figures of a seed's run as it stands."""
        return next(one for one in self.seeds if one.seed == seed).summary(self.config)

    def metrics(self, stop: Callable[[], bool] = lambda: False) -> Iterator[RetrievalMetrics]:
        """Train until every seed has ended, yielding at each evaluation. `stop()` is asked before
        each step and ends the seeds that run as "interrupted"."""
        for is_due in self._stretches(stop):
            losses = {}
            if is_due:
                losses = dict(zip(self.active, self.evaluate().tolist(), strict=True))
                for i, loss in losses.items():
                    self.seeds[i].add(self.step, loss, self.config)
                self._drop_ended()
                self._losses.clear()
            yield self._metrics(losses, interrupted=not is_due)

    def train_step(self) -> Tensor:
        """One step of the optimiser; the losses before it, of each running seed."""
        batches = [
            self.config.task.sample(self.config.batch_size, self.data[i]) for i in self.active
        ]
        losses = self._losses_of(stacked(batches), 1)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()
        self.step += 1
        return losses.detach()

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """The loss of each running seed on fresh sequences.

        Deviation: the mean over all queries; the published one is of batches of 32 of them, whose
        last is smaller and counts as much. `claims.capacity.evaluation` measures what that does.
        """
        config = self.config
        batches = [
            config.eval_task.sample_all_queries(
                config.eval_sequences, config.eval_queries, self._evaluation[i]
            )
            for i in self.active
        ]
        return self._losses_of(stacked(batches), config.eval_sequences)

    def _losses_of(self, batch: Associations, n_draws: int) -> Tensor:
        return retrieval_loss(self.model(batch, self._directions(n_draws)), batch)

    def _directions(self, n_draws: int) -> Tensor | None:
        """Directions of "performer" (P, n_draws, D, m): new at each step, as published, and for
        each sequence of an evaluation."""
        model = self.config.model
        if model.attention != "performer":
            return None
        draw = partial(orthogonal_directions, model.head_dim, model.size)
        generators = [self._evaluation[i] for i in self.active for _ in range(n_draws)]
        drawn = torch.stack([draw(generator) for generator in generators])
        return drawn.unflatten(0, (-1, n_draws))

    def _drop_ended(self) -> None:
        """Take the seeds that have ended out of the parameters and of the optimiser's moments."""
        kept = [j for j, i in enumerate(self.active) if self.seeds[i].outcome is None]
        if len(kept) == len(self.active):
            return
        self.active = [self.active[j] for j in kept]
        for name, old in list(self.model.named_parameters()):
            state = self.optimizer.state.pop(old)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = state[moment][kept].contiguous()
            # A new parameter: autograd holds an old one to its shape while a graph of it lives,
            # as it does after Numba has compiled below a step and kept the frames.
            new = nn.Parameter(old.detach()[kept].contiguous())
            setattr(self.model, name, new)
            self.optimizer.state[new] = state
        self.optimizer.param_groups[0]["params"] = list(self.model.parameters())

    def _metrics(self, losses: dict[int, float], interrupted: bool) -> RetrievalMetrics:
        running = [losses[i] for i in self.active if i in losses] or list(losses.values())
        outcomes = (s.outcome or ("interrupted" if interrupted else None) for s in self.seeds)
        return RetrievalMetrics(
            step=self.step,
            losses=tuple(losses.get(i) for i in range(len(self.seeds))),
            loss=sum(running) / len(running) if running else math.nan,
            outcomes=tuple(outcomes),
            **self._speed(),
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.seeds = [_Seed(**seed) for seed in state["seeds"]]
        self.active = [i for i, seed in enumerate(self.seeds) if seed.outcome is None]
        for name, parameter in self.model.named_parameters():
            saved = state["model"][name]
            if saved.shape != (len(self.active), *parameter.shape[1:]):
                raise ValueError(f"{name} has another shape")
            parameter.data = saved.to(self.device, parameter.dtype)
        super()._restore(state)
        for generators, states in zip((self.data, self._evaluation), state["random"], strict=True):
            for generator, saved in zip(generators, states, strict=True):
                generator.set_state(saved)

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "of_seeds": [seed.seed for seed in self.seeds],
            "seeds": [asdict(seed) for seed in self.seeds],
            "random": [[g.get_state() for g in x] for x in (self.data, self._evaluation)],
        }


def stacked(batches: Sequence[Associations]) -> Associations:
    """The batches of several seeds with a leading P."""
    names = ("keys", "values", "queries", "targets", "asked")
    return Associations(*(torch.stack([getattr(b, name) for b in batches]) for name in names))
