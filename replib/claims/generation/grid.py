"""The measurements of claim 4: tokens, whole sequences and streams."""

from replib.claims.common import experiment
from replib.lab.run import CostJob, Job
from replib.lab.runs.generation import WAYS, GenerationConfig, geometric_positions

# The paper's models of images (its tables 1 and 2; 8 heads of 32): tokens of an image, layers.
IMAGE_SHAPES = {"MNIST": (784, 8), "CIFAR-10": (3072, 16)}

LONG_STREAM = 1_000_000  # tokens

LONG_CACHE = 2**14  # tokens with a cache beside it; beyond, its bytes are computed


@experiment("Time and memory of generating, a token at a time")
def generation(scale: str) -> list[Job]:
    """Katharopoulos et al. 2020, tables 1, 2, 4 and 5: an image at their sizes, for one image at a
    time and for several; and streams without end."""
    if scale == "smoke":
        sizes = {"n_layers": 1, "n_heads": 2, "head_dim": 8}
        jobs = [job for batch in (1, 3) for job in token_jobs(16, 3, batch_size=batch, **sizes)]
        jobs += _sequences(WAYS, 16, 2, batch_size=1, **sizes)
        return [*jobs, *stream_jobs(200, 100)]
    jobs = []
    batches = {"laptop": (32, 8), "paper": (1024, 128)}[scale]
    for (n, n_layers), several in zip(IMAGE_SHAPES.values(), batches, strict=True):
        for batch_size in (1, several):
            sizes = {"n_layers": n_layers, "batch_size": batch_size}
            jobs += token_jobs(n, 11, **sizes)
            # The other whole sequences would take minutes to hours each.
            small = n == 784 and batch_size == 1
            ways = WAYS if small else ("recurrent", "cache")
            ways = ways if n == 784 or batch_size == 1 else ("recurrent",)
            jobs += _sequences(ways, n, 5, **sizes)
    return jobs + stream_jobs(LONG_STREAM, LONG_CACHE)


def token_jobs(last: int, n_repeats: int, ways=tuple(WAYS), **sizes) -> list[CostJob]:
    """One token at each of a geometric grid of positions; a job a position, the first first."""
    return [
        CostJob(
            configs=tuple(GenerationConfig(way=way, seq_len=n, **sizes) for way in ways),
            n_repeats=n_repeats,
        )
        for n in geometric_positions(last)
    ]


def _sequences(ways, seq_len: int, n_repeats: int, **sizes) -> list[CostJob]:
    """Whole sequences, all ways side by side but for recomputing, which takes so much longer that
    the others would get no repeats beside it."""
    sizes |= {"seq_len": seq_len, "span": "sequence"}
    together = [way for way in ways if way != "recompute"]
    alone = [way for way in ways if way == "recompute"]
    return [
        CostJob(
            configs=tuple(GenerationConfig(way=way, **sizes) for way in some), n_repeats=n_repeats
        )
        for some in (together, alone)
        if some
    ]


def stream_jobs(n_tokens: int, n_cached: int) -> list[CostJob]:
    """A stream of a small model, and a shorter one whose cache grows."""
    sizes = {"span": "stream", "n_layers": 2, "n_heads": 4, "head_dim": 16}
    return [
        CostJob(configs=(GenerationConfig(way=way, seq_len=n, **sizes),), n_repeats=1)
        for way, n in (("recurrent", n_tokens), ("cache", n_cached))
    ]


EXPERIMENTS = (generation,)
