import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Autopsy of a replication")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import autopsy
    from replib.claims.autopsy import charts, hypotheses, tables
    from replib.claims.autopsy import page as parts
    from replib.pages import controls
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.published import published


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Why did the 2022 replication find 3149?

    Katharopoulos et al. 2020 say that linear attention learns as softmax does and is faster from
    some hundred tokens on. **The 2022 replication** (Do & Bergner) finds no stable convergence, 8
    to 24 times the time of softmax at N = 8 to 64, and a crossover at N = 3149; and, as the paper
    says, a time that grows linearly. Its code, read line by line, has defects. Here each is a
    **switch** on our own model, on the article's task, so that you can break it as it was broken:
    *mended* has none of them, *broken* all that the article's runs had and an ablation of a small
    model has. Its authors believe the paper's claims all the same, and suspect their
    implementation.
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded, article = autopsy.CLAIM.recorded(), published()["dm2022"]
    losses, times = recorded.rows["autopsy"], recorded.rows["autopsy_time"]
    live = LiveRuns("autopsy_time")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return article, get_changes, live, losses, recorded, set_changes, times


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded, settings):
    get_changes()
    _rows = live.rows(jobs, settings["device"])
    _stands = """
    Result 2, that the time of linear attention grows linearly with N, stands: it is not among the
    conclusions judged above, and page 2 measures it.
    """
    mo.vstack(
        [recorded.cards(_rows, "convergence", "slowdown", "crossover"), mo.md(_stands)], gap=1.5
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The slowdown

    The time of one training step, with one defect more (*alone on*, in a mended run) and with one
    less (*alone off*, in a broken run). Where the two differ, defects do not simply multiply. All
    of this is of the device named: it says what the defects cost there, not on the article's GPU.
    """)
    return


@app.cell(hide_code=True)
def _(times):
    controls.device_tabs(times, charts.effects_chart)
    return


@app.cell(hide_code=True)
def _(article, times):
    controls.device_tabs(times, lambda rows: parts.slowdown_tabs(rows, article))
    return


@app.cell(hide_code=True)
def _(article, times):
    mo.vstack(
        [
            mo.md("**The article's four points, and ours**"),
            controls.device_tabs(times, lambda rows: mo.md(tables.four_points(article, rows))),
        ]
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The losses

    Where runs end, in nats (natural-log units) a token; guessing one of ten symbols costs ln 10 =
    2.30. A decoder that sees its target can reach 0 without copying anything. These runs are of a
    small model; where they differ from the article's, and what its own size does, stands below.
    """)
    return


@app.cell(hide_code=True)
def _(article, losses):
    controls.device_tabs(losses, lambda rows: charts.losses_chart(rows, article))
    return


@app.cell(hide_code=True)
def _(article, losses):
    mo.vstack(
        [
            mo.md(tables.failure_table(losses)),
            *(mo.md(tables.loss_table(article, losses, _name)) for _name in ("linear", "softmax")),
        ],
        gap=1.5,
    )
    return


@app.cell(hide_code=True)
def _(article, losses):
    mo.vstack(
        [
            mo.md(f"## The loss scale\n\n{tables.scale_text(article, losses)}"),
            charts.scale_chart(losses, article),
        ]
    )
    return


@app.cell(hide_code=True)
def _(article, losses):
    mo.vstack(
        [
            mo.md("## The article's curves, beside broken runs here"),
            charts.loss_curves_chart(losses, article),
            mo.md(tables.level_text(article, losses)),
        ]
    )
    return


@app.cell(hide_code=True)
def _(article, recorded):
    _rows = recorded.rows["autopsy_full"]
    mo.vstack(
        [
            mo.md("## At the article's own size"),
            recorded.cards(None, "softmax_returns"),
            controls.device_tabs(_rows, lambda rows: parts.full_size(rows, article)),
        ],
        gap=1.5,
    )
    return


@app.cell(hide_code=True)
def _(losses, times):
    found = hypotheses.findings(losses, times)
    mo.vstack(
        [
            mo.md(f"## What was expected by reading the code\n\n{hypotheses.headline(found)}"),
            mo.accordion({"Every expectation, as measured": mo.md(hypotheses.table(found))}),
        ]
    )
    return (found,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try it: break the replication

    Turn defects on; the runs with them and mended ones are trained and timed here. Softmax takes
    those that its runs had. The address bar holds the switches, to be shared. To time each defect
    by itself, whatever the switches are, measure *each defect alone*.
    """)
    return


@app.cell(hide_code=True)
def _():
    get_chosen, set_chosen = mo.state(controls.asked_for(parts.SWITCHES))
    buttons = parts.presets(set_chosen)
    return buttons, get_chosen


@app.cell(hide_code=True)
def _(get_chosen):
    switches = controls.switches(parts.SWITCHES, get_chosen())
    return (switches,)


@app.cell(hide_code=True)
def _(buttons, found, switches):
    parts.show_switches(switches, buttons, found)
    return


@app.cell(hide_code=True)
def _():
    parts.half_an_encoder()
    return


@app.cell(hide_code=True)
def _(article):
    PARAMETERS = [
        Control("seq_len", "Sequence length", (8, 16, 32, 64, 128, 256), 8),
        Control("n_steps", "Steps of a run", (50, 100, 200, 300, 500, 1000, 3000), 200),
        Control("seeds", "Seeds of a run", (1, 2, 3), 1),
        Control("repeats", "Repeats of a timed step", (3, 5, 9, 15, 31), 9),
        Control("model", "Model", parts.MODELS, parts.MODELS[0]),
        Control("measure", "Measure", parts.MEASURES, "step times"),
        controls.DEVICE,
        Control("attention", "Attention", ("softmax", "linear"), ("softmax", "linear")),
    ]
    OF_PREDICTION = parts.prediction_choices(article)
    panel, _shown = controls.panel(PARAMETERS, OF_PREDICTION, [parts.SWITCHES])
    _shown
    return OF_PREDICTION, PARAMETERS, panel


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
        live, parts.live_jobs, settings, auto, set_changes, auto
    )
    _shown
    return jobs, run, stop, tick


@app.cell(hide_code=True)
def _(jobs, live, set_changes, settings, tick):
    tick
    _progress = controls.watch(live, set_changes)
    _rows = live.showing(jobs, settings["device"])
    controls.live_only(_progress, parts.session_charts(_rows))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
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
def _(OF_PREDICTION, PARAMETERS):
    prediction_panel, _shown = controls.panel(OF_PREDICTION, PARAMETERS, [parts.SWITCHES])
    _shown
    return (prediction_panel,)


@app.cell(hide_code=True)
def _(article, prediction_panel):
    parts.prediction(article, controls.chosen(prediction_panel))
    return


@app.cell(hide_code=True)
def _(article, recorded, times):
    _steps = [*recorded.rows["step_time"], *recorded.rows["autopsy_longer"]]
    mo.md(tables.prediction_table(article, times, _steps))
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Defects of other earlier works

    Each is run when this page opens; its switch marks what a reader of that work was shown.
    """)
    return


@app.cell(hide_code=True)
def _():
    others = parts.other_switches()
    return (others,)


@app.cell(hide_code=True)
def _(others):
    parts.show_others(others)
    return


@app.cell(hide_code=True)
def _():
    autopsy.CLAIM.method()
    return


if __name__ == "__main__":
    app.run()
