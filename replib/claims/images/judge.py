"""The models of images, judged on stored rows."""

import math
from collections.abc import Sequence

import numpy as np

from replib.claims.common import setting_of
from replib.lab.run import config_of
from replib.lab.statistics import difference_interval
from replib.lab.store import Row
from replib.lab.verdict import Criterion, Verdict, each_device, together, within


@each_device
def images(rows: Sequence[Row]) -> Verdict:
    """Linear attention models images as well as softmax: `images_verdict` of each data set and
    setting there is."""
    settings: dict[str, list[Row]] = {}
    for row in rows:
        if row["outcome"] in ("ok", "diverged"):
            settings.setdefault(setting_of(row), []).append(row)
    verdicts = {}
    for some in settings.values():
        config = config_of(some[0])
        name = f"{config.task.images}, {config.n_steps} steps"
        if name in verdicts:
            name += f", {config.model.n_layers} layers, batch {config.batch_size}"
        verdicts[name] = _images_of_setting(some)
    return together(verdicts, "no runs yet")


def _images_of_setting(rows: Sequence[Row]) -> Verdict:
    found: dict[str, list[float]] = {"linear": [], "softmax": []}
    n_diverged = 0
    for row in rows:
        attention = config_of(row).model.attention
        if row["outcome"] == "ok" and attention in found:
            found[attention].append(row["summary"]["bits_per_dim"])
        n_diverged += attention == "linear" and row["outcome"] == "diverged"
    histogram = rows[0]["summary"]["histogram_bits_per_dim"]
    return images_verdict(**found, histogram=histogram, n_diverged=n_diverged)


# Images: the paper's linear model is 0.023 bits per dimension above softmax on MNIST. This rule was
# written before the digits had rows.
MIN_IMAGE_SEEDS = 3
BITS_MARGIN = 0.05  # bits per dimension


def images_verdict(
    linear: Sequence[float],
    softmax: Sequence[float],
    *,
    histogram: float,
    n_diverged: int = 0,
) -> Verdict:
    """Judge: as a model of images linear attention is as good as softmax (paper, tables 1 and 2).

    Criteria: at least MIN_IMAGE_SEEDS seeds each; bits per dimension of linear exceed those of
    softmax by at most BITS_MARGIN (Welch interval); every linear seed is below the histogram of
    each position; no linear run diverges. With too few seeds nothing is decided.

    Args:
        linear, softmax: bits per dimension of the test images, a seed each.
        histogram: those of the histogram of each position in the images to train on.
        n_diverged: linear runs that are not among them, as they diverged.
    """
    enough = min(len(linear), len(softmax)) >= MIN_IMAGE_SEEDS
    seeds = f"linear {len(linear)}, softmax {len(softmax)}"
    criteria = [
        Criterion(f"at least {MIN_IMAGE_SEEDS} seeds of each mechanism", enough or None, seeds)
    ]
    headline, answer = "too few seeds", ""
    if min(len(linear), len(softmax)) >= 2:
        low, high = difference_interval(linear, softmax)
        means = float(np.mean(linear)), float(np.mean(softmax))
        difference = f"{means[0] - means[1]:+z.3f} ({low:+z.3f} to {high:+z.3f})"
        text = f"linear is at most {BITS_MARGIN:zg} bits per dimension above softmax"
        criteria.append(Criterion(text, within(low, high, -math.inf, BITS_MARGIN), difference))
        headline = (
            f"linear {means[0]:z.3f}, softmax {means[1]:z.3f} bits per dimension, means of "
            f"{len(linear)} and {len(softmax)} seeds; linear - softmax: {difference}"
        )
        answer = (
            f"linear needs {means[0]:z.3f} bits per dimension, softmax {means[1]:z.3f}: a "
            f"difference of {difference}, where {BITS_MARGIN:zg} are allowed"
        )
    if linear:
        text = f"every linear seed is below the histogram of each position, {histogram:z.3f}"
        criteria.append(Criterion(text, max(linear) < histogram, f"at most {max(linear):z.3f}"))
    criteria.append(Criterion("no linear run diverges", n_diverged == 0, f"{n_diverged} diverged"))
    if not enough:
        criteria = [Criterion(one.text, None, one.figure, few=True) for one in criteria]
    return Verdict(headline, tuple(criteria), answer=answer)


VERDICTS = {"images": lambda rows: images(rows["images"])}
