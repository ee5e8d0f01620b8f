"""Keys that come back with new values, judged on stored rows."""

from collections.abc import Sequence

from replib.claims.capacity.judge import DELTA_AND_SUM, above, solved_text
from replib.claims.capacity.memories import of_setting
from replib.lab.store import Row
from replib.lab.verdict import Verdict, each_device


@each_device
def update_rules(rows: Sequence[Row]) -> Verdict:
    """Where keys come back with new values the delta rule solves what neither a sum nor the earlier
    rule fwm does: with the features of DPFP-1 it solves a longer S, and has lower losses."""
    found = of_setting(rows, with_replacement=True)
    told = {name: x for name, x in found.items() if name in (*DELTA_AND_SUM, "dpfp1_fwm")}
    said = solved_text(told, rule=True)
    return Verdict(
        said,
        tuple(above(found, "dpfp1_ours", worse, rule=True) for worse in ("dpfp1_sum", "dpfp1_fwm")),
        ("evaluated on 2·S writes, as trained; published runs on S, which is easier",),
        answer=said,
    )


VERDICTS = {"update_rules": lambda rows: update_rules(rows["update_rules"])}
