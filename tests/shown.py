"""What a page shows, and runs for it to show."""

import html
import json
import re

from replib.claims.common import laptop_copy
from replib.lab import store
from replib.lab.run import TrainingJob
from replib.lab.timing import Cost, CostConfig


def markup(element):
    """The HTML of an element, with that which a callout carries as an attribute."""
    carried = r"data-html='([^']*)'"
    return re.sub(carried, lambda found: json.loads(html.unescape(found[1])), element.text)


def job(n_steps=10, attention="linear", seed=0):
    config = laptop_copy(attention, 16, n_steps, batch_size=4, eval_every=5, eval_batches=1)
    return TrainingJob(config=config, seed=seed)


def cost_row(outcome="ok", samples=(1.0, 2.0, 3.0), detail=None, device="cpu", **changes):
    config = CostConfig(**{"attention": "linear", "kernel": "torch", **changes})
    summary = Cost(config, outcome, detail, samples, 100).summary()
    row = store.make_row("scaling", "live", config, 0, outcome, summary, detail=detail)
    row["provenance"]["device_name"] = device
    return row
