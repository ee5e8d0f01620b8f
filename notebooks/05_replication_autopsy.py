import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Autopsy of a replication")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import autopsy
    from replib.claims.autopsy import page
    from replib.pages import controls
    from replib.pages.live import LiveRuns
    from replib.published import published


@app.cell(hide_code=True)
def _():
    _question = """
    # Why did the 2022 replication find that linear attention does not pay before N = 3149?

    The code of Do & Bergner, read line by line, does some things otherwise than the paper, here
    called **defects**. Each is a switch below, on our own model and the article's task, which is to
    copy a row of digits. *Mended*: no defect. *Broken*: all that the article's runs had. Its
    authors believe the paper's claims all the same, and suspect their implementation.
    """
    mo.vstack([mo.md(_question), autopsy.CLAIM.head()])
    return


@app.cell(hide_code=True)
def _():
    recorded, article = autopsy.CLAIM.recorded(), published()["dm2022"]
    live = LiveRuns("autopsy_time")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return article, get_changes, live, recorded, set_changes


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded, settings):
    get_changes()
    _rows = live.rows(jobs, settings["device"])
    recorded.cards(_rows, "convergence", "slowdown", "crossover")
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Break it yourself

    Two runs of each mechanism learn to copy here and now: one mended, one with the defects that
    are on. Those on now are the two that keep linear attention from learning. Softmax takes the
    ones that its runs had.
    """)
    return


@app.cell(hide_code=True)
def _():
    get_chosen, set_chosen = mo.state(controls.asked_for(page.SWITCHES))
    buttons = page.presets(set_chosen)
    return buttons, get_chosen


@app.cell(hide_code=True)
def _(get_chosen):
    switches = controls.switches(page.SWITCHES, get_chosen())
    return (switches,)


@app.cell(hide_code=True)
def _(buttons, switches):
    page.show_switches(switches, buttons)
    return


@app.cell(hide_code=True)
def _(article):
    OF_PREDICTION = page.prediction_choices(article)
    panel, _shown = controls.panel(page.PARAMETERS, OF_PREDICTION, [page.SWITCHES])
    _shown
    return OF_PREDICTION, panel


@app.cell(hide_code=True)
def _(panel, switches):
    settings = controls.chosen(panel, defects=controls.switched_on(switches, "defects"))
    return (settings,)


@app.cell(hide_code=True)
def _():
    auto = controls.auto_switch()
    return (auto,)


@app.cell(hide_code=True)
def _(auto, get_changes, live, set_changes, settings):
    get_changes()
    jobs, run, stop, tick, _shown = controls.run_panel(
        live, page.live_jobs, settings, auto, set_changes, auto
    )
    _shown
    return jobs, run, stop, tick


@app.cell(hide_code=True)
def _(jobs, live, set_changes, settings, tick):
    tick
    _progress = controls.watch(live, set_changes)
    _rows = live.showing(jobs, settings["device"])
    controls.live_only(_progress, page.session(live, _rows, settings["defects"]))
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## What each defect does, as recorded

    Each defect *alone on*, in an otherwise mended run, and *alone off*, in an otherwise broken one.
    Losses are in nats (natural-log units) a token: guessing one of ten digits costs ln 10 = 2.30.
    """)
    return


@app.cell(hide_code=True)
def _(article, recorded):
    page.recorded_tabs(recorded, article)
    return


@app.cell(hide_code=True)
def _():
    mo.vstack([mo.md("## A defect in code"), page.lines_of_defects()])
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Where 3149 comes from

    The article has four points, up to N = 64. Choose which of them the regression may use, and what
    softmax is supposed to grow as: the prediction moves by thousands, or goes away.
    """)
    return


@app.cell(hide_code=True)
def _(OF_PREDICTION):
    prediction_panel, _shown = controls.panel(OF_PREDICTION, page.PARAMETERS, [page.SWITCHES])
    _shown
    return (prediction_panel,)


@app.cell(hide_code=True)
def _(article, prediction_panel):
    page.prediction(article, controls.chosen(prediction_panel))
    return


@app.cell(hide_code=True)
def _(article, recorded):
    page.folded(recorded, article)
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _():
    autopsy.CLAIM.method()
    return


if __name__ == "__main__":
    app.run()
