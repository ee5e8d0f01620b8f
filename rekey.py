"""Give every recorded row its identity by kind, config, seed and versions; run once, from the root.

A row keeps its old one as `former_id`. Times that were taken before page faults were counted are of
version 0 of the timing; what was trained is of version 1 of everything, as one cheap seed of each
group of rows was run again with the present code and agreed.
"""

import json
from pathlib import Path

from replib.experiments import EXPERIMENTS
from replib.jobs import kind_of, versions_of
from replib.races import EXPERIMENT as BENCH

from replib import files, rows, store
from replib.lab import recorded

OLD = {}  # (experiment, source): versions of rows that a repeated seed did not agree with


def rekeyed(experiment: str, row: store.Row) -> store.Row:
    former = row["run_id"]
    row = store.NOT_TOLD | row
    if row["versions"] is not None:  # is one already
        return row
    if experiment == BENCH:
        config, kind, versions = recorded.config_from(rows.Setting, row["config"]), "bench", {}
    else:
        found, config = rows._first_that_fits(rows._kinds(EXPERIMENTS[experiment]), row["config"])
        kind = kind_of(config, cost=found.cost)
        versions = versions_of(config, cost=found.cost)
        if "timing" in versions and "page_faults_samples" not in row["summary"]:
            versions["timing"] = 0
        versions |= OLD.get((experiment, row["provenance"]["source"]), {})
    return row | {
        "run_id": store.run_id(kind, config, row["seed"], versions),
        "kind": kind,
        "versions": versions,
        "former_id": former,
    }


def main() -> None:
    folder, names = Path("data"), {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = []
        for line in path.read_bytes().splitlines():
            row, _ = store._row(path.stem, line)
            row = rekeyed(path.stem, row)
            names[row["former_id"]] = row["run_id"]
            lines.append(store._line(path.stem, row))
        files.replace_file(path, b"".join(lines))
        print(path.name, len(lines))
    for path in sorted((folder / "models").glob("*.txt")):
        first, rest = path.read_text().split("\n", 1)
        header = json.loads(first.removeprefix("# "))
        header["run_id"] = names[header["run_id"]]
        files.replace_file(path, f"# {json.dumps(header)}\n{rest}")


if __name__ == "__main__":
    main()
