import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Autopsy of a replication")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import autopsy
    from replib.claims.autopsy import page
    from replib.pages import controls, layout, running
    from replib.pages.live import LiveRuns
    from replib.published import published


@app.cell(hide_code=True)
def _():
    autopsy.CLAIM.head("""
    For Do & Bergner linear attention did not learn, and would not pay below N = 3149. Their code
    does some things otherwise than the paper: each such **defect** is a switch below. *Mended* is
    none of them, *broken* all that their runs had.
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded, article = autopsy.CLAIM.recorded(), published()["dm2022"]
    live = LiveRuns("autopsy_time")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return article, get_changes, live, recorded, set_changes


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
def _(article):
    OF_PREDICTION = page.prediction_choices(article)
    panel, sliders = controls.panel(page.PARAMETERS, OF_PREDICTION, [page.SWITCHES])
    prediction_panel, prediction_shown = controls.panel(
        OF_PREDICTION, page.PARAMETERS, [page.SWITCHES]
    )
    shown_tab = {}
    return panel, prediction_panel, prediction_shown, shown_tab, sliders


@app.cell(hide_code=True)
def _(panel, switches):
    settings = controls.chosen(panel, defects=controls.switched_on(switches, "defects"))
    asked = running.asked(page.live_jobs, settings)
    return asked, settings


@app.cell(hide_code=True)
def _(asked, get_changes, live, recorded):
    get_changes()
    _rows = live.rows(asked.jobs, asked.device)
    recorded.cards(_rows, "convergence", "slowdown", "crossover")
    return


@app.cell(hide_code=True)
def _(switches):
    _text = """
    ## Break it yourself

    Two runs learn to copy a row of digits here and now: one mended, one with the defects that are
    on. Softmax takes those that its runs had.
    """
    mo.vstack([mo.md(_text), page.show_switches(switches)])
    return


@app.cell(hide_code=True)
def _(sliders):
    sliders
    return


@app.cell(hide_code=True)
def _():
    auto = running.auto_switch()
    return (auto,)


@app.cell(hide_code=True)
def _(asked, auto, buttons, get_changes, live, set_changes):
    get_changes()
    run, stop, tick, _shown = running.run_panel(live, asked, auto, set_changes, auto, *buttons)
    _shown
    return run, stop, tick


@app.cell(hide_code=True)
def _(asked, live, set_changes, settings, tick):
    def _draw():
        rows = live.showing(asked.jobs, asked.device)
        return page.session(live, rows, settings["defects"])

    layout.live_only(running.watch(live, set_changes, tick, _draw))
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## What each defect does, as recorded

    *Alone on* is in an otherwise mended run, *alone off* in an otherwise broken one. Loss in nats a
    token: guessing one of ten digits costs ln 10 = 2.30.
    """)
    return


@app.cell(hide_code=True)
def _(article, prediction_panel, prediction_shown, recorded, shown_tab):
    _text = mo.md("Which of the article's four points may the fit use, and how does softmax grow?")
    _chart = page.prediction(article, controls.chosen(prediction_panel))
    _prediction = mo.vstack([_text, prediction_shown, _chart])
    page.recorded_tabs(recorded, article, _prediction, shown_tab)
    return


@app.cell(hide_code=True)
def _():
    mo.vstack([mo.md("### A defect in code"), page.lines_of_defects()])
    return


@app.cell(hide_code=True)
def _(article, recorded):
    page.folded(recorded, article)
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    running.history(live)
    return


@app.cell(hide_code=True)
def _():
    autopsy.CLAIM.method()
    return


if __name__ == "__main__":
    app.run()
