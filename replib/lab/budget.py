"""What to record first where time is short, and what still fits.

The order, of all jobs that have no row yet:

| place | jobs |
|---|---|
| 1 | the first run of each setting of an experiment that decides a verdict, which lacks its rows |
| 2 | the first run of each other setting: one of everything before a second of anything |
| 3 | second seeds, of what decides a verdict; then of the rest |
| 4 | third seeds, likewise; and so on |

At one place the job that is predicted to take least comes first, as most rows in the time are most
settings judged. A setting is a config; points that are timed together are one job, and a first run.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from time import monotonic

from replib.lab import predict
from replib.lab.record import (
    MAX_SECONDS_PER_POINT,
    Asked,
    Experiment,
    lacks_data,
    missing,
    say_left_out,
)
from replib.lab.run import Job

MARGIN = 1.25  # a prediction may be wrong by so much
# Of the time, for predictions: before anything is run, and in all. One that is under way ends.
PREDICTING, MOST_PREDICTING = 0.1, 0.25
WORTH_S = 5.0  # what is shorter is not begun with a run that cannot end


def by_value(asked: Sequence[Asked], deciding: Collection[str]) -> list[tuple[int, Asked]]:
    """Jobs with their place in the order, which is that of the list.

    Args:
        asked: all jobs of experiments, in the order of their grids, with those that have a row:
            the first seed of a setting counts as its first run, recorded or not.
        deciding: the names of the experiments that decide a verdict.
    """
    earlier: Counter = Counter()
    placed = []
    for experiment, job in asked:
        settings = {(experiment.name, config) for config in job.configs}
        nth = min((earlier[setting] for setting in settings), default=0)
        earlier.update(settings)
        decides = experiment.name in deciding
        placed.append((2 * nth + (not decides), (experiment, job)))
    return sorted(placed, key=lambda one: one[0])


class Budget:
    """Chooses, while time is left, the next job that is predicted to end in it.

    Args:
        ends: of `monotonic`, when all has to have ended.
        device: a name for `resolve_device`.
        say: told what does not fit, once for each experiment.
    """

    def __init__(
        self,
        ends: float,
        device: str | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.ends, self.device, self.say = ends, device, say
        self._seconds: dict[tuple[str, ...], float] = {}
        self._may_predict_s = MOST_PREDICTING * self.left_s

    @property
    def left_s(self) -> float:
        return self.ends - monotonic()

    def seconds(self, job: Job) -> float:
        """About how long a job takes; NaN where that cannot be told, or no time is left to tell."""
        key = tuple(job.ids)
        if key not in self._seconds:
            if self._may_predict_s <= 0:
                return math.nan
            began = monotonic()
            self._seconds[key] = self._predicted(job)
            self._may_predict_s -= monotonic() - began
        return self._seconds[key]

    def _predicted(self, job: Job) -> float:
        options = {"max_seconds_per_point": MAX_SECONDS_PER_POINT}
        try:
            return predict.seconds([job], self.device, **options)
        except (RuntimeError, MemoryError, ValueError) as error:  # the job itself will say it
            warnings.warn(f"no prediction: {str(error).splitlines()[0]}", stacklevel=2)
            return math.nan

    def chosen(self, placed: Sequence[tuple[int, Asked]]) -> Iterator[Asked]:
        """Jobs, each when it is asked for: the next by value that fits what is left. When none
        does the first training by value gets the rest, and its checkpoint is kept."""
        waiting = self._shortest_first(placed)
        too_long: list[tuple[int, Asked]] = []
        for place, (experiment, job) in waiting:
            if self.left_s <= 0:
                return
            if MARGIN * self.seconds(job) > self.left_s:  # not so of NaN
                too_long.append((place, (experiment, job)))
                continue
            yield experiment, job
        self._tell(too_long)
        for _, (experiment, job) in sorted(too_long, key=lambda one: one[0]):
            if self.left_s < WORTH_S:
                return
            if not job.timed:
                yield experiment, job

    def _shortest_first(self, placed: Sequence[tuple[int, Asked]]) -> list[tuple[int, Asked]]:
        """Jobs of one place by their predicted time, as far as there is time to predict, one job
        of each experiment in turn; the others after them, in the order of the grids."""
        until = monotonic() + PREDICTING * max(0.0, self.left_s)
        turn: Counter = Counter()
        turns = []
        for i, (_, (experiment, _)) in enumerate(placed):
            turns.append((turn[experiment.name], i))
            turn[experiment.name] += 1
        keys = [math.inf] * len(placed)
        for _, i in sorted(turns):
            if monotonic() > until:
                break
            known = self.seconds(placed[i][1][1])
            keys[i] = math.inf if math.isnan(known) else known
        order = sorted(range(len(placed)), key=lambda i: (placed[i][0], keys[i]))
        return [placed[i] for i in order]

    def _tell(self, too_long: Sequence[tuple[int, Asked]]) -> None:
        counts: Counter = Counter(asked[0].name for _, asked in too_long)
        for name, n in counts.items():
            shortest = min(self.seconds(a[1]) for _, a in too_long if a[0].name == name)
            self.say(
                f"{name}: {n} job{'s' * (n > 1)} left out, the shortest would take about "
                f"{shortest:.0f} s"
            )


def wanted(
    experiments: Sequence[Experiment],
    deciding: Collection[str],
    scale: str,
    device_type: str,
    *,
    retime_below: int = 0,
    recording: int = 0,
) -> list[tuple[int, Asked]]:
    """What has no row yet of experiments, by value; what lacks its data is left out
    with a warning."""
    every = [(one, job.on_device(device_type)) for one in experiments for job in one.jobs(scale)]
    found = []
    for place, (experiment, job) in by_value(every, deciding):
        left = missing(experiment, job, device_type, retime_below, recording)
        if left is None or not left.configs:
            continue
        if why_not := lacks_data(left):
            say_left_out(left, why_not)
            continue
        found.append((place, (experiment, left)))
    return found
