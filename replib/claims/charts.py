"""Pure functions from a tidy frame (`replib.pages.frames`) to an Altair chart.

Every chart is one layered view as wide as its container (Vega-Lite stretches neither facets nor
concatenations), so that it reads on a phone as on a desk; `printable` gives it a width in pixels.
Text and axes take their colour from the page's theme, light or dark; the background is transparent.
A mechanism keeps its colour, an implementation its dash and shape. Marks are filled for this
session's points and hollow for recorded ones. What has no value (out of memory, diverged) is marked
at the top edge.
"""

from replib.claims.capacity.charts import capacity_chart, solved_chart, update_rules_chart
from replib.claims.crossover.charts import crossings_chart
from replib.claims.crossover.extrapolation import extrapolation_chart
from replib.claims.generation.charts import speedup_chart, stream_chart, token_chart
from replib.claims.images.charts import bits_chart, digits_chart
from replib.claims.scaling.charts import cost_chart, ratio_chart, replication_chart
from replib.pages.curves import learning_curves, live_curves, seeds_chart
from replib.pages.style import PALETTE, colour, printable, theme

__all__ = [
    "PALETTE",
    "bits_chart",
    "capacity_chart",
    "colour",
    "cost_chart",
    "crossings_chart",
    "digits_chart",
    "extrapolation_chart",
    "learning_curves",
    "live_curves",
    "printable",
    "ratio_chart",
    "replication_chart",
    "seeds_chart",
    "solved_chart",
    "speedup_chart",
    "stream_chart",
    "theme",
    "token_chart",
    "update_rules_chart",
]
