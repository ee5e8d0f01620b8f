import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Speed crossover")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import cost_page, crossover
    from replib.claims.crossover import charts, extrapolation, page
    from replib.claims.crossover import steps as training_steps
    from replib.lab.statistics import article_fits
    from replib.pages import controls, frames
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.published import published


@app.cell(hide_code=True)
def _():
    mo.md("""
    # From which length is linear attention faster?

    **The claim** (Katharopoulos et al. 2020, figure 1): linear attention is faster at every
    length shown, from N = 512 on. **The 2022 replication** (Do & Bergner) measured N = 8 to 64
    and extrapolated the crossover to N = 3149. The answer depends on who computes: softmax in its
    textbook form, which stores N² weights, or in a fused kernel, which does not; linear attention
    as its equation stands (*plain*), in chunks of torch operations (*torch*), or in a kernel
    compiled for the device (*cpu*, *cuda*).
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded = crossover.CLAIM.recorded()
    article = published()["dm2022"]
    live = LiveRuns("crossover")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return article, get_changes, live, recorded, set_changes


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded, settings):
    get_changes()
    recorded.cards(live.rows(jobs, settings["device"]))
    return


@app.cell(hide_code=True)
def _(recorded):
    page.crossover_tabs(recorded.rows["crossover"])
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The crossover is one of implementations

    The same equations at three or four stages of work: each bar is the 95 % interval of the N from
    which linear attention stays faster.
    """)
    return


@app.cell(hide_code=True)
def _(recorded):
    mo.ui.tabs(
        {
            _text.capitalize(): charts.crossings_chart(recorded.rows["crossover"], _work)
            for _work, _text in reversed(cost_page.WORK_LABELS.items())
        }
    )
    return


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded, settings):
    get_changes()
    recorded.cards(live.rows(jobs, settings["device"]), "implementations")
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try it

    Find the crossover of this machine. More repeats narrow its interval; more heads or a larger
    batch give the processor more to do at once.
    """)
    return


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("seq_len", "Longest N", tuple(2**e for e in range(5, 15)), 1024),
        Control("shortest", "Shortest N", tuple(2**e for e in range(3, 10)), 16),
        Control("batch_size", "Batch size", (1, 2, 4, 8, 16, 32, 64), 1),
        Control("n_heads", "Heads", (1, 2, 4, 8, 16), 8),
        Control("head_dim", "Head size", (8, 16, 32, 64, 128), 32),
        Control("repeats", "Repeats", (3, 5, 7, 15, 31), 7),
        cost_page.WORK,
        controls.DEVICE,
        cost_page.variants(),
    ]
    panel, _shown = controls.panel(PARAMETERS)
    _shown
    return (panel,)


@app.cell(hide_code=True)
def _(panel):
    settings = controls.chosen(panel)
    return (settings,)


@app.cell(hide_code=True)
def _():
    auto = controls.auto_switch()
    return (auto,)


@app.cell(hide_code=True)
def _(auto, get_changes, live, set_changes, settings):
    get_changes()
    jobs, run, stop, tick, _shown = controls.run_panel(
        live, cost_page.live_jobs, settings, auto, set_changes, auto
    )
    _shown
    return jobs, run, stop, tick


@app.cell(hide_code=True)
def _(jobs, live, set_changes, settings, tick):
    tick
    _progress = controls.watch(live, set_changes)
    _rows = live.showing(jobs, settings["device"])
    controls.live_only(_progress, page.session_crossover_chart(_rows))
    return


@app.cell(hide_code=True)
def _(get_changes, jobs, live, settings):
    get_changes()
    page.session_crossings(live.rows(jobs, settings["device"]))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _(article):
    _fits = article_fits(article)
    mo.vstack(
        [
            mo.md(extrapolation.extrapolation_text(_fits)),
            extrapolation.extrapolation_chart(article, _fits),
        ]
    )
    return


@app.cell(hide_code=True)
def _(article, recorded):
    _steps = recorded.rows["step_time"]
    mo.vstack(
        [
            mo.md(training_steps.table_1(article, _steps)),
            training_steps.replication_chart(
                frames.costs(frames.steps_alike(_steps)),
                article,
                title="3000 training steps of the 2022 model",
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def _():
    crossover.CLAIM.method()
    return


if __name__ == "__main__":
    app.run()
