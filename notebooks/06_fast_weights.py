import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Fast weights")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import capacity, update_rules
    from replib.claims.capacity import page
    from replib.claims.capacity.filling import write
    from replib.pages import code, controls, running
    from replib.pages.live import LiveRuns


@app.cell(hide_code=True)
def _():
    capacity.CLAIM.head("""
    Linear attention is a **fast weight memory**: a matrix W to which every token adds its
    value times the features of its key, and from which a query reads. It can hold no more
    keys apart than it has features, R. To have more, *DPFP-ν* multiplies components of a
    key of size D into R = 2·D·ν features; *FAVOR+* has random ones, which approximate
    softmax. A run has **solved** S keys when it reads their values with a loss of 0.001 or
    less; with nothing remembered the loss is 0.5.
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded, recorded_rules = capacity.CLAIM.recorded(), update_rules.CLAIM.recorded()
    live = LiveRuns("capacity")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return get_changes, live, recorded, recorded_rules, set_changes


@app.cell(hide_code=True)
def _():
    panel, sliders = controls.panel(page.training_controls(), page.filling_controls())
    return panel, sliders


@app.cell(hide_code=True)
def _(panel):
    settings = controls.chosen(panel)
    asked = running.asked(page.live_jobs, settings)
    return asked, settings


@app.cell(hide_code=True)
def _(asked, get_changes, live, recorded, recorded_rules):
    get_changes()
    _rows = live.rows(asked.jobs, asked.device)
    mo.vstack([recorded.cards(_rows, "capacity"), recorded_rules.cards(_rows)], gap=1.5)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Fill a memory and watch

    Random keys, no training. What a key reads beside its own value is **crosstalk**: what others
    left in directions that are not orthogonal to it.
    """)
    return


@app.cell(hide_code=True)
def _():
    filling_panel, _shown = controls.panel(page.filling_controls(), page.training_controls())
    _shown
    return (filling_panel,)


@app.cell(hide_code=True)
def _(filling_panel):
    page.filling_view(controls.chosen(filling_panel))
    return


@app.cell(hide_code=True)
def _():
    code.source(
        write,
        r"\begin{gathered} \text{sum: } W_i = W_{i-1} + v_i\,\phi(k_i)^\top \\ \text{delta: } "
        r"W_i = W_{i-1} + \beta_i\,\bigl(v_i - W_{i-1}\,\phi(k_i)\bigr)\,\phi(k_i)^\top"
        r"\end{gathered}",
    )
    return


@app.cell(hide_code=True)
def _(sliders):
    _text = """
    ## Train a memory

    Keys and queries are learned, as in the paper, to be without crosstalk. A run ends when it has
    solved S, or makes no progress, and is then a point among the recorded curves.
    """
    mo.vstack([mo.md(_text), sliders])
    return


@app.cell(hide_code=True)
def _():
    auto = running.auto_switch()
    return (auto,)


@app.cell(hide_code=True)
def _(asked, auto, get_changes, live, set_changes):
    get_changes()
    run, stop, tick, _shown = running.run_panel(live, asked, auto, set_changes, auto)
    _shown
    return run, stop, tick


@app.cell(hide_code=True)
def _(asked, get_changes, live, recorded):
    get_changes()
    charts = page.recorded_charts(recorded.rows, live.rows(asked.jobs, asked.device))
    return (charts,)


@app.cell(hide_code=True)
def _(asked, charts, live, set_changes, settings, tick):
    def _draw():
        rows = live.showing(asked.jobs, asked.device)
        return page.training_view(rows, charts[settings["setting"]])

    running.watch(live, set_changes, tick, _draw)
    return


@app.cell(hide_code=True)
def _(charts, recorded):
    mo.accordion(
        {
            "All that is recorded": mo.ui.tabs(charts),
            "Are these the published figures?": recorded.cards(None, "as_published"),
        }
    )
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    running.history(live)
    return


@app.cell(hide_code=True)
def _():
    capacity.CLAIM.method(update_rules.CLAIM)
    return


if __name__ == "__main__":
    app.run()
