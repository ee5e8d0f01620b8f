"""Options and kernels of mechanisms by the names that controls have for them."""

from replib.attention import ATTENTION, causal_names

CAUSAL = causal_names()


def how(name, choice):
    """The arguments `options` and `kernel` of a choice; None is the default of both."""
    options, kernel = (None, None) if choice is None else ATTENTION[name].choices()[choice]
    return {"options": options, "kernel": kernel}


def for_model(name, choice=None, **sizes):
    return ATTENTION[name].for_model(**sizes, **how(name, choice))
