import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Linear scaling")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import cost_page, scaling
    from replib.claims.scaling import page
    from replib.pages import controls, frames
    from replib.pages.controls import Control
    from replib.pages.costs import cost_chart
    from replib.pages.live import LiveRuns


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Do time and memory grow linearly?

    **The claim** (Katharopoulos et al. 2020, section 3.2 and figure 1): for a sequence of N
    tokens, linear attention takes time and memory that grow as N, where softmax attention takes
    N². **The 2022 replication** (Do & Bergner) fitted N² to softmax and N to linear, on four
    lengths up to 64.
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded = scaling.CLAIM.recorded()
    live = LiveRuns("scaling")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return get_changes, live, recorded, set_changes


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded, settings):
    get_changes()
    recorded.cards(live.rows(jobs, settings["device"]))
    return


@app.cell(hide_code=True)
def _(recorded):
    mo.ui.tabs(
        {
            "Forward and backward": page.scaling_charts(
                recorded.rows["scaling"], "forward_backward"
            ),
            "Forward": page.scaling_charts(recorded.rows["scaling"], "forward"),
        }
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try it

    Measure on this machine. The batch shrinks as N grows, so that every point holds the same
    number of tokens; figures are per sequence. Points appear as they are measured.
    """)
    return


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("seq_len", "Longest N", tuple(2**e for e in range(7, 17)), 2048),
        Control("shortest", "Shortest N", tuple(2**e for e in range(4, 11)), 64),
        Control("tokens", "Tokens a batch", tuple(2**e for e in range(8, 17)), 2048),
        Control("n_heads", "Heads", (1, 2, 4, 8, 16), 8),
        Control("head_dim", "Head size", (8, 16, 32, 64, 128), 32),
        Control("repeats", "Repeats", (1, 3, 5, 7, 15, 31), 5),
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
    _costs = frames.costs(live.showing(jobs, settings["device"]))
    _time, _memory = (
        cost_chart(_costs, y=_y, title=f"{_what} per sequence, this session")
        for _y, _what in (("time_ms_per_sample", "Time"), ("memory_bytes_per_sample", "Memory"))
    )
    controls.live_only(_progress, _time, _memory)
    return


@app.cell(hide_code=True)
def _(get_changes, jobs, live, settings):
    get_changes()
    page.exponents_table(live.rows(jobs, settings["device"]), settings["work"])
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _():
    scaling.CLAIM.method()
    return


if __name__ == "__main__":
    app.run()
