"""The claims, a line each; a claim is a folder with a `grid`, a `judge`, `charts` and a `page`."""

from importlib import import_module

from replib.lab.record import Experiment

CLAIMS = tuple(
    import_module(f"{__name__}.{name}").CLAIM
    for name in (
        "convergence",
        "scaling",
        "crossover",
        "generation",
        "images",
        "autopsy",
        "capacity",
        "update_rules",
        "linformer",
        "translation",
        "language_model",
        "update_rules_text",
    )
)
EXPERIMENTS = {one.name: one for claim in CLAIMS for one in claim.experiments}

PAGES: dict[str, str] = {}
"""The notebook of each page by its short address, in the order of the claims."""
for one in CLAIMS:
    if one.notebook not in PAGES.values():
        PAGES[one.address or one.name] = one.notebook


def experiment_named(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}: use {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def deciding() -> set[str]:
    """The names of the experiments whose rows decide a verdict of the tables."""
    return {name for claim in CLAIMS for one in claim.listed for name in one.experiments}
