"""Models, tasks and measurements of an interactive reproduction of *Transformers are RNNs*.

What a script needs is named here, and imported when it is asked for:

    >>> from replib import linear_attention, train, TrainingConfig
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "replib.attention": ("ATTENTION", "delta_rule", "linear_attention", "softmax_attention"),
    "replib.generation": ("Decoder", "copy_with", "generate"),
    "replib.lab.timing": ("CostConfig", "interleave", "measure_cost"),
    "replib.models": ("CausalTransformer", "EncoderDecoder", "TransformerConfig"),
    "replib.tasks": ("CausalCopy", "SequenceCopy"),
    "replib.training": ("Metrics", "Training", "TrainingConfig", "train"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str):
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE])
