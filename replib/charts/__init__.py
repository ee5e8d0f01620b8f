"""Pure functions from a tidy frame (`replib.frames`) to an Altair chart; the palette lives here.

Every chart is one layered view as wide as its container (Vega-Lite stretches neither facets nor
concatenations), so that it reads on a phone as on a desk; `printable` gives it a width in pixels.
Text and axes take their colour from the page's theme, light or dark; the background is transparent.
A mechanism keeps its colour, an implementation its dash and shape. Marks are filled for this
session's points and hollow for recorded ones. What has no value (out of memory, diverged) is marked
at the top edge.
"""

from replib.charts.costs import cost_chart, ratio_chart, replication_chart
from replib.charts.crossings import crossings_chart
from replib.charts.curves import learning_curves, live_curves, seeds_chart
from replib.charts.extrapolation import extrapolation_chart
from replib.charts.generation import speedup_chart, stream_chart, token_chart
from replib.charts.images import bits_chart, digits_chart
from replib.charts.memory import capacity_chart, solved_chart, update_rules_chart
from replib.charts.style import PALETTE, colour, printable, theme

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
