"""The figures that others published, each with its source, to compare this project with."""

import functools
import json
from pathlib import Path

# Facts that belong to the repository, not to a reader's recorded runs: no setting moves this file.
PUBLISHED_FILE = Path(__file__).parents[1] / "data" / "published.json"


@functools.cache
def published() -> dict:
    """Return the published figures: `published()["dm2022"]["softmax_s"]`.

    One block a source (`katharopoulos2020`, `dm2022`, ...), each naming where it comes from; units
    are in the names (`_s`, `_ms`) or in the block's `columns`. The dictionary is read once and
    shared by all callers: copy what you want to change.

    Raises:
        FileNotFoundError: `data/published.json` is not beside the package.
        ValueError: it is there but is not JSON.
    """
    try:
        return json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{PUBLISHED_FILE} is missing: restore it with 'git checkout data/published.json', "
            "and install the package from its repository with 'pip install -e .'"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{PUBLISHED_FILE} is not valid JSON ({error}): restore it with "
            "'git checkout data/published.json'"
        ) from error
