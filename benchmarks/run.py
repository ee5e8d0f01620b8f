"""What is here against its peers, in one run (see `benchmarks.comparison`).

B batch, H heads, N sequence length, D query/key size per head, M value size per head.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from itertools import product
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from benchmarks import peers
from benchmarks.comparison import (
    CROSSOVER,
    SHARE,
    SIZES,
    TENSORS,
    TIMES,
    Build,
    Contender,
    Figure,
    Race,
    Run,
    Setting,
    Stopped,
    Target,
    check_memory,
    latest_figures,
    table,
)
from benchmarks.peers import (
    FAST_TRANSFORMERS,
    FLASH_ATTENTION,
    FLASH_LINEAR,
    PEERS,
    Unavailable,
)
from replib.attention import linear_attention, softmax_attention
from replib.attention.delta import delta_retrieve, delta_rule
from replib.attention.dpfp import DPFPAttention
from replib.claims.capacity.grid import retrieval_config
from replib.device import resolve_device
from replib.fast_weights import AssociativeMemory, MemoryConfig, RetrievalConfig, RetrievalTraining
from replib.generation import Decoder
from replib.kernels import installed, why_not
from replib.kernels.delta import torch as delta
from replib.lab import store
from replib.lab.memory_use import peak_memory_bytes
from replib.lab.statistics import crossover
from replib.lab.timing import DTYPES, CostConfig, Stop, interleave, never, predicted_bytes
from replib.models import CausalTransformer, MultiHeadAttention, TransformerConfig
from replib.tasks import CausalCopy
from replib.training import Training, TrainingConfig

# Works and contenders by the names that rows and tables show.
FORWARD, BACKWARD = "causal, forward", "causal, forward and backward"
NOT_CAUSAL, MEMORY = "not causal, forward and backward", "memory, causal, forward and backward"
LAST_READ, ALL_READS = "read after the last write", "read at all positions"
DECODING, STEP = "decoding one token", "one training step"
PLAIN, FUSED, TEXTBOOK = "linear plain", "softmax fused", "softmax textbook"
LINEAR, BF16, KV_CACHE = "linear", " in bf16", "softmax with KV cache"
RETRIEVAL = "one step of retrieval"
DELTA, PUBLISHED_LOOP, TUNED_LOOP = "delta rule", "the published loop", "a tuned loop"
MEMORY_STEP = "associative memory"
MATRIX_PRODUCT, COPY, Q_SIZE = "a matrix product", "a copy", "the size of q"

PRODUCT_SIZE = 1024  # of the matrices whose product gives the rate of a CPU's arithmetic
COPIED_BYTES = 2**28  # of the copy that gives the bandwidth of memory: more than caches hold
VOCAB_SIZE = 11  # of the copy task
SPARE = 256  # positions to decode before a decoder is put back
# A step in bf16 is not run where a product of this size is so much slower than in float32: it would
# take a minute.
CHECKED_SIZE, MOST_TIMES_SLOWER = 256, 5

_FROM_256, _FROM_1024 = {"seq_len": range(256, 2**20)}, {"seq_len": range(1024, 2**20)}
TARGETS = (
    Target(BACKWARD, "linear cpu", FAST_TRANSFORMERS, TIMES, 3.0, _FROM_256),
    Target(BACKWARD, "linear torch", FAST_TRANSFORMERS, TIMES, 1.8, _FROM_256),
    Target(BACKWARD, "linear cpu", FUSED, CROSSOVER, 64),
    Target(BACKWARD, "linear cpu", FUSED, TIMES, 3.0, {"seq_len": [512]}),
    Target(BACKWARD, "linear cpu", FUSED, TIMES, 12.0, {"seq_len": [4096]}),
    Target(MEMORY, "linear cpu", Q_SIZE, TENSORS, 4.6, {"seq_len": [16384]}),
    Target(MEMORY, "linear torch", Q_SIZE, TENSORS, 4.6, {"seq_len": [16384]}),
    Target(NOT_CAUSAL, "linear cpu", FUSED, TIMES, 12.0, {"seq_len": [1024]}),
    Target(LAST_READ, DELTA, PUBLISHED_LOOP, TIMES, 100.0, {"seq_len": [200]}),
    Target(ALL_READS, DELTA, TUNED_LOOP, TIMES, 20.0, {"seq_len": [2048]}),
    *(
        Target(f"{RETRIEVAL}, {name}", MEMORY_STEP, PUBLISHED_LOOP, TIMES, *wanted)
        for name, wanted in {
            "linear_sum": (30.0, {"seq_len": [600]}),
            "dpfp3_sum": (30.0, {"seq_len": [600]}),
            "dpfp1_ours": (100.0, {"seq_len": [400]}),
            "dpfp2_ours": (100.0, {"seq_len": [400]}),
            "dpfp1_fwm": (100.0, {"seq_len": [400]}),
        }.items()
    ),
    Target(DECODING, LINEAR, FAST_TRANSFORMERS, TIMES, 1.3, {"seq_len": [8192]}),
    Target(DECODING, LINEAR, KV_CACHE, TIMES, 2.0, {"seq_len": [8192], "batch_size": [1]}),
    Target(DECODING, LINEAR, KV_CACHE, TIMES, 8.0, {"seq_len": [8192], "batch_size": [32]}),
    Target(STEP, LINEAR, FAST_TRANSFORMERS, TIMES, 1.2, {"batch_size": [64]}),
    Target(STEP, LINEAR + BF16, FAST_TRANSFORMERS, TIMES, 2.0, {"batch_size": [64]}),
    Target(BACKWARD, "linear cuda", FLASH_LINEAR, TIMES, 2.0, _FROM_1024, "cuda"),
    Target(BACKWARD, "linear cuda", FUSED, CROSSOVER, 1024, {"dtype": ["bfloat16"]}, "cuda"),
)


def delta_sizes(*sizes: int) -> dict[str, int]:
    """B, H, N, D and M by their names."""
    return dict(zip(SIZES.values(), sizes, strict=True))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The sizes of all races; the defaults are those that the targets for a CPU name.

    Attributes:
        longest_weights: the longest N of those that store (N, N) weights.
        decoding_batches, position: batches, and where in the sequence the token stands.
        n_rounds, seconds: of a race, at most; `long_seconds` where a round takes seconds, and
            `loop_seconds` where loops take many.
        keys_once, keys_again: S of associative retrieval, of settings 1 and 2.
    """

    name: str = "full"
    batch_size: int = 8
    n_heads: int = 8
    dtypes: Sequence[str] = ("float32",)
    head_dims: Sequence[int] = (32, 64)
    lengths: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    longest_weights: int = 512
    memory_len: int = 16384
    not_causal_len: int = 1024
    last_read: Mapping[str, int] = field(default_factory=partial(delta_sizes, 32, 1, 200, 384, 200))
    all_reads: Mapping[str, int] = field(default_factory=partial(delta_sizes, 8, 8, 2048, 64, 64))
    keys_once: int = 600
    keys_again: int = 200
    decoding_batches: Sequence[int] = (1, 32)
    position: int = 8192
    copy_batch: int = 64
    copy_len: int = 128
    n_layers: int = 4
    n_rounds: int = 9
    seconds: float = 10.0
    long_seconds: float = 30.0
    loop_seconds: float = 60.0


FULL = Scale()
FULL_CUDA = Scale(
    dtypes=("float32", "bfloat16"),
    head_dims=(64,),
    lengths=tuple(2**e for e in range(6, 17)),
    longest_weights=4096,
    n_rounds=25,
)
QUICK = Scale(
    name="quick",
    head_dims=(32,),
    lengths=(16, 64, 256),
    longest_weights=64,
    memory_len=1024,
    not_causal_len=256,
    last_read=delta_sizes(8, 1, 50, 96, 50),
    all_reads=delta_sizes(8, 8, 128, 64, 64),
    keys_once=100,
    keys_again=20,
    decoding_batches=(1,),
    position=512,
    copy_batch=8,
    copy_len=64,
    n_rounds=5,
    seconds=1.0,
    long_seconds=3.0,
    loop_seconds=3.0,
)


# Attention


ATTENTIONS: dict[str, Callable[..., Tensor]] = {  # (q, k, v, causal=...)
    "linear cpu": partial(linear_attention, kernel="cpu"),
    "linear cuda": partial(linear_attention, kernel="cuda"),
    "linear torch": partial(linear_attention, kernel="torch"),
    PLAIN: partial(linear_attention, kernel="plain"),
    FUSED: partial(softmax_attention, implementation="fused"),
    TEXTBOOK: partial(softmax_attention, implementation="textbook"),
    FAST_TRANSFORMERS: peers.fast_transformers_attention,
    FLASH_LINEAR: peers.flash_linear_attention,
    FLASH_ATTENTION: peers.flash_attention,
}
STORED_WEIGHTS = {PLAIN: ("linear", "plain"), TEXTBOOK: ("softmax", "textbook")}
# The module of each kernel's cost model, and what its chunk is called there.
COST_MODELS = {
    "linear cpu": ("replib.kernels.linear.cpu", "C"),
    "linear cuda": ("replib.kernels.linear.cuda", None),
    "linear torch": ("replib.kernels.linear.torch", "SHORT_CHUNK_LEN"),
}


def _kernels(run: Run) -> tuple[str, ...]:
    """The contenders that are kernels for the device, the compiled one first."""
    return (f"linear {run.device.type}", "linear torch")


def _linear_peers(run: Run) -> tuple[str, ...]:
    return (FAST_TRANSFORMERS, FLASH_LINEAR) if run.on_cuda else (FAST_TRANSFORMERS,)


def _attention_setting(
    work: str, scale: Scale, head_dim: int, seq_len: int | None = None, dtype: str = "float32"
) -> Setting:
    sizes = {"batch_size": scale.batch_size, "n_heads": scale.n_heads, "seq_len": seq_len}
    return Setting(work=work, head_dim=head_dim, dtype=dtype, **sizes)


def _attention_builds(run: Run, setting: Setting, names: Iterable[str]) -> dict[str, Build]:
    """Contenders for a call of attention on the same random q, k, v and output gradient."""

    @cache
    def tensors() -> list[Tensor]:
        shape = (setting.batch_size, setting.n_heads, setting.seq_len, setting.head_dim)
        generator, dtype = torch.Generator(run.device).manual_seed(0), DTYPES[setting.dtype]
        options = {"generator": generator, "device": run.device, "dtype": dtype}
        return [torch.randn(shape, **options) for _ in range(4)]  # each (B, H, N, D)

    return {name: partial(_attention_call, run, setting, name, tensors) for name in names}


def _attention_call(
    run: Run, setting: Setting, name: str, tensors: Callable[[], list[Tensor]]
) -> Callable[[], object]:
    causal, backward = setting.work != NOT_CAUSAL, setting.work != FORWARD
    if name in PEERS:
        peers.require(name)
    if name in STORED_WEIGHTS:
        check_memory(_stored_bytes(setting, *STORED_WEIGHTS[name], backward), run.device)
    attend, drawn = ATTENTIONS[name], [x.detach() for x in tensors()]
    if name in (FLASH_LINEAR, FLASH_ATTENTION):  # as (B, N, H, D) in memory
        drawn = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in drawn]
    q, k, v, grad_y = drawn
    if not backward:
        return torch.no_grad()(partial(attend, q, k, v, causal=causal))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    return lambda: torch.autograd.grad(attend(*inputs, causal=causal), inputs, grad_y)


def _stored_bytes(setting: Setting, attention: str, kernel: str, backward: bool) -> int:
    names = ("seq_len", "batch_size", "n_heads", "head_dim", "dtype")
    sizes = {name: getattr(setting, name) for name in names}
    work = "forward_backward" if backward else "forward"
    return predicted_bytes(CostConfig(attention=attention, kernel=kernel, work=work, **sizes))


def _causal(run: Run, scale: Scale) -> Iterator[store.Row]:
    """Causal attention over N: ratios, crossovers, and the share of the machine's rate."""
    ours, softmax = (*_kernels(run), PLAIN), (FUSED, TEXTBOOK)
    against = (*_linear_peers(run), *softmax, *(FLASH_ATTENTION,) * run.on_cuda)
    for dtype, head_dim, work in product(scale.dtypes, scale.head_dims, (BACKWARD, FORWARD)):
        setting = _attention_setting(work, scale, head_dim, dtype=dtype)
        races: dict[int, Race] = {}
        for n in scale.lengths:
            here, last = replace(setting, seq_len=n), n == scale.lengths[-1]
            left_out = STORED_WEIGHTS if n > scale.longest_weights else ()
            builds = _attention_builds(run, here, [x for x in ours + against if x not in left_out])
            pairs = [pair for pair in product(ours, against) if builds.keys() >= set(pair)]
            if last:
                builds |= _rate_builds(run)
            races[n] = run.race(here, builds, scale.long_seconds if last else scale.seconds)
            figures = [run.ratio(here, races[n], *pair) for pair in pairs]
            if last:
                kernels = _kernels(run)[:1] if run.on_cuda else _kernels(run)
                amounts = {name: _amounts(name, here, run.on_cuda) for name in kernels}
                figures += _shares(run, here, races[n], amounts)
            yield run.row(here, figures, races[n])
        figures = [_crossing(run, setting, races, *pair) for pair in product(ours, softmax)]
        yield run.row(setting, [one for one in figures if one], Race({}, {}))


def _crossing(
    run: Run, setting: Setting, races: Mapping[int, Race], ours: str, against: str
) -> Figure | None:
    """The length from which ours stays faster, with its 95 % interval."""
    times = {n: race.time_ms for n, race in races.items() if race.time_ms.keys() >= {ours, against}}
    if len(times) < 2:
        return None
    found = crossover(list(times), *([x[name] for x in times.values()] for name in (against, ours)))
    detail = f"extrapolated from N = {min(times)} to {max(times)}" if found.extrapolated else None
    values = [found.length] if math.isfinite(found.length) else []
    if not values:
        detail = f"{ours}: {setting}: never faster than {against}, as N up to {max(times)} tells"
    figure = run.figure(setting, ours, against, CROSSOVER, values, detail)
    if figure["target"] is not None and not values:
        figure["met"] = False
    return figure | {"low": found.low, "high": found.high}


def _rate_builds(run: Run) -> dict[str, Build]:
    """What the machine does at most: memory traffic, and on a CPU arithmetic too."""

    def copy() -> Callable[[], object]:
        source = torch.randn(COPIED_BYTES // 4, device=run.device)
        return partial(torch.empty_like(source).copy_, source)

    def matrix_product() -> Callable[[], object]:
        x = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, generator=torch.Generator().manual_seed(0))
        return lambda: x @ x

    return {COPY: copy} | ({} if run.on_cuda else {MATRIX_PRODUCT: matrix_product})


Amounts = Mapping[str, float]
"""What a kernel does a token and head, counted in copies and in matrix products as timed."""


def _shares(run: Run, setting: Setting, race: Race, amounts: Mapping[str, Amounts]) -> list[Figure]:
    """The share of the machine's rates that kernels reach, by their own cost models."""
    return [
        _share(run, setting, race, name, rate, amount)
        for name, by_rate in amounts.items()
        for rate, amount in by_rate.items()
    ]


def _share(
    run: Run, setting: Setting, race: Race, name: str, rate: str, amount_per_token: float
) -> Figure:
    """Of the best rate in the race: one that was disturbed is not what the machine does at most."""
    shares, why_not = [], race.why_not(name, rate)
    if not why_not:
        best_ms = min(race.time_ms[rate])
        amount = setting.batch_size * setting.n_heads * setting.seq_len * amount_per_token
        shares = [amount * best_ms / time_ms for time_ms in race.time_ms[name]]
    return run.figure(setting, name, rate, SHARE, shares, why_not)


def _amounts(name: str, setting: Setting, on_cuda: bool) -> Amounts:
    """Of a kernel of linear attention."""
    module, chunk = COST_MODELS[name]
    model, d = import_module(module), setting.head_dim
    passes = (False, True) if setting.work == BACKWARD else (False,)
    itemsize = DTYPES[setting.dtype].itemsize
    moved = sum(model.bytes_per_token(d, d, itemsize, backward) for backward in passes)
    found = {COPY: moved / (2 * COPIED_BYTES)}
    if not on_cuda:
        c = getattr(model, chunk)
        done = sum(model.operations_per_token(d, d, c, backward) for backward in passes)
        found[MATRIX_PRODUCT] = done / (2 * PRODUCT_SIZE**3)
    return found


def _not_causal(run: Run, scale: Scale) -> Iterator[store.Row]:
    """Attention to all positions."""
    against = (FAST_TRANSFORMERS, FUSED)
    for head_dim in scale.head_dims:
        setting = _attention_setting(NOT_CAUSAL, scale, head_dim, scale.not_causal_len)
        builds = _attention_builds(run, setting, (*_kernels(run), *against))
        race = run.race(setting, builds, scale.seconds)
        pairs = product(_kernels(run), against)
        yield run.row(setting, [run.ratio(setting, race, *pair) for pair in pairs], race)


def _memory(run: Run, scale: Scale) -> Iterator[store.Row]:
    """Peak memory beyond the inputs, in tensors of the size of q."""
    for head_dim in scale.head_dims:
        setting = _attention_setting(MEMORY, scale, head_dim, scale.memory_len)
        q_bytes = 4 * setting.batch_size * setting.n_heads * setting.seq_len * head_dim
        builds = _attention_builds(run, setting, (*_kernels(run), *_linear_peers(run)))
        tensors: dict[str, list[float]] = {}
        trouble: dict[str, str] = {}
        for name, build in builds.items():
            run.check_stop()
            one = Contender(build, run.device)
            one()  # what is compiled or allocated only once does not count
            peak = one.attempt(partial(peak_memory_bytes, one, run.device))
            tensors[name] = [] if one.trouble else [peak / q_bytes]
            trouble |= {name: one.trouble} if one.trouble else {}
        run.tell(setting, {n: f"{x[0]:.2f} {TENSORS}" for n, x in tensors.items() if x} | trouble)
        race = Race({}, trouble)
        figures = [
            run.figure(setting, name, Q_SIZE, TENSORS, found, race.why_not(name))
            for name, found in tensors.items()
        ]
        yield run.row(setting, figures, race)


# The delta rule


def _delta(run: Run, scale: Scale) -> Iterator[store.Row]:
    """The delta rule, forward and backward."""
    works = (LAST_READ, scale.last_read, PUBLISHED_LOOP), (ALL_READS, scale.all_reads, TUNED_LOOP)
    for work, sizes, loop in works:
        setting = Setting(work=work, **sizes)
        builds = {name: partial(_delta_call, run, setting, name) for name in (DELTA, loop)}
        shared = work == ALL_READS and not run.on_cuda  # the fused kernel has a cost model
        race = run.race(setting, builds | (_rate_builds(run) if shared else {}), scale.loop_seconds)
        figures = [run.ratio(setting, race, DELTA, loop)]
        if shared:
            figures += _shares(run, setting, race, {DELTA: _delta_amounts(setting)})
        yield run.row(setting, figures, race)


def _delta_amounts(setting: Setting) -> Amounts:
    """Of the kernel of the delta rule, forward and backward."""
    fused = import_module(f"replib.kernels.delta.{'cpu' if installed('numba') else 'torch'}")
    (r, m), passes = (setting.head_dim, setting.value_dim), (False, True)
    moved = sum(delta.bytes_per_token(r, m, backward=backward) for backward in passes)
    done = sum(fused.operations_per_token(r, m, backward=backward) for backward in passes)
    return {COPY: moved / (2 * COPIED_BYTES), MATRIX_PRODUCT: done / (2 * PRODUCT_SIZE**3)}


DELTA_RULES: dict[tuple[str, str], Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    (LAST_READ, DELTA): delta_retrieve,
    (LAST_READ, PUBLISHED_LOOP): peers.published_delta_loop,
    (ALL_READS, DELTA): delta_rule,
    (ALL_READS, TUNED_LOOP): partial(delta_rule, kernel="plain"),
}


def _delta_call(run: Run, setting: Setting, name: str) -> Callable[[], object]:
    b, h, n, d, m = (getattr(setting, size) for size in SIZES.values())
    if name != DELTA:  # autograd keeps the memory of every position
        check_memory(4.0 * b * h * n * d * m, run.device)
    generator = torch.Generator(run.device).manual_seed(0)
    random = partial(torch.randn, generator=generator, device=run.device)
    q = random(b, h, 1 if setting.work == LAST_READ else n, d)
    k, v = normalize(random(b, h, n, d), dim=-1), random(b, h, n, m)
    beta, grad_y = torch.sigmoid(random(b, h, n)), random(b, h, q.shape[2], m)
    inputs, function = (
        [x.requires_grad_() for x in (q, k, v, beta)],
        DELTA_RULES[setting.work, name],
    )
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad_y)


# Associative retrieval


RETRIEVALS = (
    MemoryConfig(),
    MemoryConfig(attention="dpfp", options=DPFPAttention.Options(nu=3)),
    MemoryConfig(attention="dpfp", options=DPFPAttention.Options(nu=1), update_rule="delta"),
    MemoryConfig(attention="dpfp", options=DPFPAttention.Options(nu=2), update_rule="delta"),
    MemoryConfig(attention="dpfp", options=DPFPAttention.Options(nu=1), update_rule="fwm"),
)


def _retrieval(run: Run, scale: Scale) -> Iterator[store.Row]:
    """A training step of a memory, on freshly drawn sequences, as published and as here."""
    for memory in RETRIEVALS:
        again = memory.update_rule != "sum"
        n_keys = scale.keys_again if again else scale.keys_once
        config = retrieval_config(n_keys, memory, with_replacement=again)
        setting = Setting(
            work=f"{RETRIEVAL}, {memory.published_name}",
            batch_size=config.batch_size,
            n_heads=1,
            seq_len=config.task.seq_len,
            head_dim=memory.head_dim,
            value_dim=n_keys,
        )
        builds = {
            MEMORY_STEP: partial(_retrieval_step, run, config),
            PUBLISHED_LOOP: partial(_published_retrieval_step, run, config),
        }
        race = run.race(setting, builds, scale.long_seconds)
        yield run.row(setting, [run.ratio(setting, race, MEMORY_STEP, PUBLISHED_LOOP)], race)


def _retrieval_step(run: Run, config: RetrievalConfig) -> Callable[[], object]:
    return RetrievalTraining(config, device=str(run.device)).train_step


def _published_retrieval_step(run: Run, config: RetrievalConfig) -> Callable[[], object]:
    memory = AssociativeMemory(config.model, n_keys=config.task.n_keys, seeds=(0,))
    model = peers.PublishedMemory(memory).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    generator = torch.Generator(run.device).manual_seed(0)

    def step() -> None:
        batch = config.task.sample(config.batch_size, generator)
        right = one_hot(batch.targets[:, 0], config.task.n_keys)
        loss = 0.5 * (model(batch) - right).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


# Models


def _model_config(run: Run, scale: Scale, attention: str = LINEAR, **changes) -> TransformerConfig:
    """The paper's copy model; linear attention with the compiled kernel where it can run."""
    sizes = dict.fromkeys(("head_dim", "value_dim"), TransformerConfig().head_dim)
    compiled = run.device.type
    refused = why_not(compiled, device_type=compiled, dtype=torch.float32, **sizes)
    return TransformerConfig(
        attention=attention,
        kernel="fused" if attention != LINEAR else "torch" if refused else compiled,
        n_layers=scale.n_layers,
        **changes,
    )


def _model_setting(work: str, batch_size: int, seq_len: int) -> Setting:
    config = TransformerConfig()
    heads = {"n_heads": config.n_heads, "head_dim": config.head_dim}
    return Setting(work=work, batch_size=batch_size, seq_len=seq_len, **heads)


def _decoding(run: Run, scale: Scale) -> Iterator[store.Row]:
    """A token of the paper's copy model, far into a sequence."""
    for batch_size in scale.decoding_batches:
        setting = _model_setting(DECODING, batch_size, scale.position)
        builds = {
            LINEAR: partial(_decoder, run, scale, LINEAR, batch_size),
            FAST_TRANSFORMERS: partial(_fast_transformers_decoder, run, scale, batch_size),
            KV_CACHE: partial(_decoder, run, scale, "softmax", batch_size),
        }
        race = run.race(setting, builds, scale.seconds)
        against = (FAST_TRANSFORMERS, KV_CACHE)
        yield run.row(setting, [run.ratio(setting, race, LINEAR, x) for x in against], race)


def _decoding_model(run: Run, scale: Scale, attention: str) -> CausalTransformer:
    config, last = _model_config(run, scale, attention, dropout=0.0), scale.position + SPARE
    model = CausalTransformer(config, vocab_size=VOCAB_SIZE, max_len=last)
    return model.to(run.device).eval()


def _decoder(run: Run, scale: Scale, attention: str, batch_size: int) -> Callable[[], object]:
    """A step from the position on; a cache has its room from the start, as a CUDA graph wants."""
    model, max_len = _decoding_model(run, scale, attention), scale.position + SPARE
    token = torch.ones(batch_size, dtype=torch.long, device=run.device)
    generator = torch.Generator(run.device).manual_seed(0)
    decoder = Decoder(model, batch_size, max_len=max_len)
    decoder.jump(scale.position, generator)

    def step() -> Tensor:
        if decoder.position == max_len:
            decoder.jump(scale.position)  # zeros cost as much to attend to, and less to make
        return decoder.step(token)

    return step


@torch.inference_mode()
def _fast_transformers_decoder(run: Run, scale: Scale, batch_size: int) -> Callable[[], object]:
    peers.require(FAST_TRANSFORMERS)
    model, position = _decoding_model(run, scale, LINEAR), scale.position
    encoder = peers.fast_transformers_encoder(model).to(run.device).eval()
    token = torch.ones(batch_size, dtype=torch.long, device=run.device)
    _, state = encoder(model.embedding.step(token, position))

    @torch.inference_mode()
    def step() -> Tensor:
        x, _ = encoder(model.embedding.step(token, position), state)
        return model.head(x)

    return step


def _training(run: Run, scale: Scale) -> Iterator[store.Row]:
    """A step of the optimiser on the paper's copy task."""
    setting = _model_setting(STEP, scale.copy_batch, scale.copy_len)
    builds = {
        name + suffix: partial(_training_step, run, scale, name, precision)
        for name in (LINEAR, FAST_TRANSFORMERS)
        for suffix, precision in (("", "float32"), (BF16, "bf16"))
    }
    race = run.race(setting, builds, scale.long_seconds)
    pairs = (
        (LINEAR, FAST_TRANSFORMERS),
        (LINEAR + BF16, FAST_TRANSFORMERS),
        (LINEAR + BF16, FAST_TRANSFORMERS + BF16),
    )
    yield run.row(setting, [run.ratio(setting, race, *pair) for pair in pairs], race)


def _training_step(run: Run, scale: Scale, name: str, precision: str) -> Callable[[], object]:
    slowdown = _bfloat16_slowdown(run.device) if precision == "bf16" else 1.0
    if slowdown > MOST_TIMES_SLOWER:
        raise Unavailable(
            f"not run: products in bfloat16 take {slowdown:.0f} times those in float32"
        )
    config = TrainingConfig(
        task=CausalCopy(seq_len=scale.copy_len),
        model=_model_config(run, scale),
        batch_size=scale.copy_batch,
        precision=precision,
    )
    training = Training(config, device=str(run.device))
    if name == FAST_TRANSFORMERS:
        peers.require(name)
        for module in training.model.modules():
            if isinstance(module, MultiHeadAttention):
                module.attention = peers.FastTransformersAttention()
    return training.train_step


@cache
def _bfloat16_slowdown(device: torch.device) -> float:
    """How much longer a product takes than in float32, as without instructions for bfloat16."""
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(CHECKED_SIZE, CHECKED_SIZE, dtype=dtype, device=device)
        products[dtype] = partial(torch.matmul, x, x)
    times = interleave(products, n_repeats=3, device=device)
    return median(times[torch.bfloat16].time_ms) / median(times[torch.float32].time_ms)


GROUPS: dict[str, Callable[[Run, Scale], Iterator[store.Row]]] = {
    "causal": _causal,
    "memory": _memory,
    "not_causal": _not_causal,
    "delta": _delta,
    "retrieval": _retrieval,
    "decoding": _decoding,
    "training": _training,
}


def run_bench(
    groups: Sequence[str] = (),
    *,
    device: str | torch.device | None = None,
    scale: Scale | None = None,
    stop: Stop = never,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[store.Row]:
    """Measure groups, all if none is named, and yield a row a setting; nothing is stored.

    Args:
        scale: QUICK, or the full sizes for the device if left out.
        stop: ends the run; what was not finished has no row.
        say: is told what was found as it goes.

    Raises:
        ValueError: an unknown group, or no such device.
    """
    for name in groups:
        if name not in GROUPS:
            raise ValueError(f"unknown group {name!r}: use {', '.join(GROUPS)}")
    device = resolve_device(device)
    scale = scale or (FULL_CUDA if device.type == "cuda" else FULL)
    options = {"n_rounds": scale.n_rounds, "targets": TARGETS, "stop": stop, "say": say}
    run = Run(device=device, scale=scale.name, **options)
    return _rows(run, scale, [GROUPS[name] for name in groups or GROUPS])


def _rows(run: Run, scale: Scale, groups: Iterable[Callable]) -> Iterator[store.Row]:
    try:
        for group in groups:
            yield from group(run, scale)
    except Stopped:
        return


def bench_table(rows: Iterable[store.Row]) -> str:
    """Rows as a Markdown table; of the many ratios of causal attention those with a target, and at
    the quick scale, which has no targets, all."""
    rows = list(rows)
    quick = {row["scale"] for row in rows} <= {QUICK.name}
    return table(
        figure
        for figure in latest_figures(rows)
        if quick
        or figure["target"] is not None
        or figure["unit"] != TIMES
        or figure["setting"].work not in (BACKWARD, FORWARD)
    )


def recorded_table() -> str:
    """What is recorded at the full sizes of what has a target, a table for each device."""
    from benchmarks.schema import recorded_rows  # which a bare machine lacks the packages of

    devices: dict[str, list[Figure]] = {}
    for figure in latest_figures(row for row in recorded_rows() if _is_full(row)):
        if figure["target"] is not None:
            devices.setdefault(figure["device_name"], []).append(figure)
    tables = [f"**{device}**\n\n{table(figures)}" for device, figures in devices.items()]
    return "\n\n".join(tables) or "Nothing is recorded yet: `make bench` does it."


def _is_full(row: store.Row) -> bool:
    return row["scale"] == FULL.name
