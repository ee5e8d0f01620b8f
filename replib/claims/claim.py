"""What a claim is: one object that tables, pages, the report and the command line go through.

A claim has a folder: `grid` says which runs it is judged on, `judge` makes verdicts of their rows,
`charts` draws them, `page` has what its notebook alone shows. The object imports the last three
when it is asked, so that recording needs neither polars nor Altair nor marimo.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING, Any

from replib import files
from replib.lab import store
from replib.lab.record import Experiment
from replib.lab.store import Row

if TYPE_CHECKING:
    from replib.lab.verdict import Verdict

DOCS = files.ROOT / "docs" / "claims"
METHOD = "Method and limits"  # what a page calls the document of its claim, which it shows folded

Rows = Mapping[str, Sequence[Row]]
"""The rows of each experiment, by its name."""
Says = str | Callable[[], str]
"""What a work says; a function where it is composed of published figures."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, and the rows of an experiment that it was drawn from. `published` is whether it also
    shows, or only shows, published figures."""

    chart: Any
    experiment: str | None = None
    rows: Sequence[Row] = ()
    published: bool = False


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A sentence that is judged.

    Attributes:
        text: the sentence, as its card has it.
        experiments: those whose rows decide.
        title: of its line in the tables; without one it has a card alone.
        paper, article: what the paper and the 2022 replication say of it, in at most 30 words.
        paper_more, article_more: what else they say, which a card folds.
        article_by: whose the second is, where it is not the 2022 replication's.
        refutes: it is somebody's negative result, so that not to support it is no failure.
        figure: the one that stands for it in the index and on the start page.
    """

    name: str
    text: str
    experiments: tuple[str, ...]
    title: str | None = None
    paper: Says = ""
    article: Says = "Not studied."
    paper_more: Says = ""
    article_more: Says = ""
    article_by: str = "2022 replication"
    refutes: bool = False
    figure: str | None = None

    @property
    def paper_says(self) -> str:
        return _text(self.paper)

    @property
    def article_says(self) -> str:
        return _text(self.article)

    @property
    def more(self) -> dict[str, str]:
        """What a card folds of what was said earlier, by who said it."""
        said = {"Paper": _text(self.paper_more), self.article_by: _text(self.article_more)}
        return {source: text for source, text in said.items() if text}


def _text(says: Says) -> str:
    return says if isinstance(says, str) else says()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper's or of its successors', in the folder of its name: `judge.VERDICTS` has
    a judge for each statement, and `charts.figures` yields its figures with their file names.

    `question` is what its page asks, where it is the first on it; `address` is that of its page,
    where it is not its name: `/memory`.
    """

    name: str
    notebook: str
    experiments: tuple[Experiment, ...]
    statements: tuple[Statement, ...]
    question: str = ""
    address: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        """The experiments whose rows it needs, its own first."""
        own = (one.name for one in self.experiments)
        others = (name for one in self.statements for name in one.experiments)
        return tuple(dict.fromkeys((*own, *others)))

    @property
    def listed(self) -> tuple[Statement, ...]:
        """The statements that have a line in the tables."""
        return tuple(one for one in self.statements if one.title)

    def head(self, *texts: str):
        """How its page begins: what it asks, links to the other pages, and texts in Markdown."""
        import marimo as mo

        from replib.claims import PAGES
        from replib.pages import layout

        links = layout.page_head(self.notebook, PAGES)
        return mo.vstack([mo.md(f"# {self.question}"), links, *map(mo.md, texts)])

    def method(self, *others: "Claim"):
        """How it and others on its page are measured and judged, and where that departs from the
        paper, folded."""
        import marimo as mo

        texts = [(DOCS / f"{one.name}.md").read_text(encoding="utf-8") for one in (self, *others)]
        bodies = [text.partition("\n")[2].replace(f"## {METHOD}\n", "") for text in texts]
        return mo.accordion({METHOD: mo.md("\n".join(map(str.strip, bodies)))})

    def judge(self, statement: Statement, rows: Rows) -> "Verdict":
        """What rows say of a statement."""
        judges = import_module(f"{__package__}.{self.name}.judge").VERDICTS
        recorded = any(rows[name] for name in statement.experiments)
        return replace(judges[statement.name](rows), recorded=recorded)

    def figures(self, rows: Rows) -> dict[str, Figure]:
        """What is drawn of rows, by its file name."""
        return dict(import_module(f"{__package__}.{self.name}.charts").figures(rows))

    def recorded(self) -> "Recorded":
        """What is recorded of it; the same object until a file changes, so that all pages of a
        process judge and draw the rows once."""
        from replib.lab.recorded import recorded_rows

        try:
            contents = [store.read(name) for name in self.reads]
        except files.FileError:
            contents = []
        before, known = _RECORDED.get(self.name, ([], None))
        if known is None or not contents or [*map(id, contents)] != [*map(id, before)]:
            known = Recorded(self, {name: recorded_rows(name) for name in self.reads})
            _RECORDED[self.name] = contents, known
        return known


_RECORDED: dict[str, tuple[list[store.Content], "Recorded"]] = {}


@dataclass(frozen=True)
class Recorded:
    """The recorded rows of a claim, and what they say of its statements."""

    claim: Claim
    rows: Rows
    _verdicts: dict[str, "Verdict"] = field(default_factory=dict)
    _judging: RLock = field(default_factory=RLock)

    def verdict(self, statement: Statement) -> "Verdict":
        """What the rows say; judged once, whatever pages ask at the same time."""
        with self._judging:
            if statement.name not in self._verdicts:
                self._verdicts[statement.name] = self.claim.judge(statement, self.rows)
            return self._verdicts[statement.name]

    def device(self, statement: Statement) -> str:
        """Where the rows that decide a statement were computed."""
        from replib.lab.verdict import device_names

        return device_names([row for name in statement.experiments for row in self.rows[name]])

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The claim's figures, by their file names."""
        return self.claim.figures(self.rows)

    def cards(self, session: Sequence[Row] | None = None, *names: str):
        """A verdict card for each statement of these names, or for all that are in the tables: what
        the earlier works say, what was recorded, and, unless it is None, what the rows of this
        session say."""
        import marimo as mo

        from replib.pages import verdict_cards

        known = {one.name: one for one in self.claim.statements}
        cards = []
        for one in [known[name] for name in names] or self.claim.listed:
            says = {"Paper": one.paper_says, one.article_by: one.article_says}
            columns = [(source, text) for source, text in says.items() if text]
            verdict = self.verdict(one)
            where = f", {self.device(one)}" if verdict.recorded else ""
            columns.append((f"Recorded here{where}", verdict))
            if session is not None:
                columns.append((verdict_cards.THIS_MACHINE, self._of_session(one, session)))
            cards.append(verdict_cards.verdict_card(one.text, columns, one.more, one.refutes))
        return mo.vstack(cards, gap=1.5)

    def _of_session(self, statement: Statement, rows: Sequence[Row]) -> "Verdict | str":
        """What the rows of this session say, or that there are none that could."""
        from replib.lab.verdict import BUSY_SPREAD, spread_of_repeats
        from replib.pages.verdict_cards import NOTHING_RUN

        own = {name: [r for r in rows if r["experiment"] == name] for name in self.rows}
        if not any(own[name] for name in statement.experiments):
            return NOTHING_RUN
        spread = spread_of_repeats([row for name in statement.experiments for row in own[name]])
        if spread > BUSY_SPREAD:
            return (
                "Machine busy, not judged: repeats of one measurement differ "
                f"{spread:z.2g} times. Close other programs and run again."
            )
        return self.claim.judge(statement, own)

    def unread(self):
        """What of the recorded rows is not on the page, and why."""
        from replib.pages import layout

        return layout.unread(*self.rows)
