"""Keys that come back with new values, judged on stored rows."""

from replib.claims.capacity.judge import update_rules

VERDICTS = {"update_rules": lambda rows: update_rules(rows["update_rules"])}
