"""Keys that come back with new values, judged on stored rows."""

from collections.abc import Sequence

from replib.claims.capacity.judge import _SAID, DELTA_AND_SUM, above, solved_text
from replib.claims.capacity.memories import of_setting, order
from replib.lab.store import Row
from replib.lab.verdict import Verdict, each_device


@each_device
def update_rules(rows: Sequence[Row]) -> Verdict:
    """Where keys come back with new values the delta rule solves what neither a sum nor the earlier
    rule fwm does: with the features of DPFP-1 it solves a longer S, and has lower losses."""
    found = of_setting(rows, with_replacement=True)
    named = [name for name in order(found) if name in (*DELTA_AND_SUM, "dpfp1_fwm")]
    between = above(found, "dpfp1_fwm", "dpfp1_sum", rule=True)
    note = "evaluated on 2·S writes, as trained; published runs are evaluated on S, which is easier"
    return Verdict(
        solved_text(found, named, rule=True),
        tuple(above(found, "dpfp1_ours", worse, rule=True) for worse in ("dpfp1_sum", "dpfp1_fwm")),
        (note, f"not part of the claim: {between.text}: {_SAID[between.met]}; {between.figure}"),
    )


VERDICTS = {"update_rules": lambda rows: update_rules(rows["update_rules"])}
