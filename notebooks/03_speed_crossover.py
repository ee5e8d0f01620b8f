import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Speed crossover")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import cost_page, crossover
    from replib.claims.common import ARTICLE_CROSSOVER, PAPER_CROSSOVER
    from replib.claims.crossover import charts, page
    from replib.lab import statistics
    from replib.pages import code, controls, layout, running
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.published import published


@app.cell(hide_code=True)
def _():
    _text = f"""
    For long sequences linear attention is faster, for short ones softmax attention may be. The
    *crossover* is the length N where their times meet. The paper (2020) shows linear attention
    ahead from N = {PAPER_CROSSOVER}, the shortest it plots; the 2022 replication extrapolated
    {ARTICLE_CROSSOVER} from much shorter lengths. It depends on the programs that are compared.
    """
    crossover.CLAIM.head(_text, cost_page.TERMS)
    return


@app.cell(hide_code=True)
def _():
    recorded = crossover.CLAIM.recorded()
    live = LiveRuns("crossover")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return get_changes, live, recorded, set_changes


@app.cell(hide_code=True)
def _():
    _controls = cost_page.controls_of(
        Control("seq_len", "Longest N", tuple(2**e for e in range(5, 15)), 512),
        Control("shortest", "Shortest N", tuple(2**e for e in range(3, 10)), 8),
        Control("batch_size", "Batch size", (1, 2, 4, 8, 16, 32, 64), 1),
        repeats=7,
    )
    panel, sliders = controls.panel(_controls)
    return panel, sliders


@app.cell(hide_code=True)
def _(panel):
    settings = controls.chosen(panel)
    asked = running.asked(cost_page.live_jobs, settings)
    return asked, settings


@app.cell(hide_code=True)
def _(asked, get_changes, live, recorded):
    get_changes()
    rows = live.rows(asked.jobs, asked.device)
    recorded.cards(rows, "crossover")
    return (rows,)


@app.cell(hide_code=True)
def _(recorded):
    mo.ui.tabs(page.recorded_charts(recorded.rows["crossover"]))
    return


@app.cell(hide_code=True)
def _():
    code.source(
        statistics.crossover,
        r"\begin{gathered} r(N) = \log \frac{t_\text{softmax}(N)}{t_\text{linear}(N)} \\ "
        r"r(N^*) = 0 \text{ after the last } N \text{ of } r < 0 \end{gathered}",
    )
    return


@app.cell(hide_code=True)
def _(sliders):
    _text = """
    ## Find the crossover of this machine

    The dotted lines are predicted from a few small calls; the measured points should land on
    them. A ring marks where times cross. More heads or a larger batch give the processor more to
    do at once; more repeats narrow the interval.
    """
    mo.vstack([mo.md(_text), sliders])
    return


@app.cell(hide_code=True)
def _():
    auto = running.auto_switch()
    return (auto,)


@app.cell(hide_code=True)
def _(settings):
    cost_page.followed(settings)
    return


@app.cell(hide_code=True)
def _(asked, auto, get_changes, live, set_changes):
    get_changes()
    run, stop, tick, _shown = running.run_panel(live, asked, auto, set_changes, auto)
    _shown
    return run, stop, tick


@app.cell(hide_code=True)
def _(asked):
    predicted = cost_page.predicted_rows(asked.jobs, asked.device)
    return (predicted,)


@app.cell(hide_code=True)
def _(asked, live, predicted, set_changes, tick):
    def _draw():
        return charts.crossover_chart(live.so_far(asked.jobs, asked.device), predicted)

    layout.live_only(running.watch(live, set_changes, tick, _draw))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    running.history(live)
    return


@app.cell(hide_code=True)
def _(recorded, rows):
    mo.accordion({"It moves with the implementation": recorded.cards(rows, "implementations")})
    return


@app.cell(hide_code=True)
def _(recorded):
    _charts = page.article_charts(published()["dm2022"], recorded.rows["step_time"])
    mo.accordion({"The 2022 article": mo.ui.tabs(_charts)})
    return


@app.cell(hide_code=True)
def _():
    crossover.CLAIM.method()
    return


if __name__ == "__main__":
    app.run()
