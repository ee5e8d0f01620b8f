import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Linear scaling")

with app.setup(hide_code=True):
    import marimo as mo

    from replib import plain
    from replib.claims import cost_page, scaling
    from replib.claims.scaling import charts, over_ranks, page
    from replib.pages import code, controls, layout, running
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns


@app.cell(hide_code=True)
def _():
    _text = """
    Softmax attention compares every token with every other: twice the length N, four times the
    work. Linear attention (Katharopoulos et al. 2020) claims to need only twice the work.
    """
    scaling.CLAIM.head(_text, cost_page.TERMS)
    return


@app.cell(hide_code=True)
def _():
    recorded = scaling.CLAIM.recorded()
    live = LiveRuns("scaling")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return get_changes, live, recorded, set_changes


@app.cell(hide_code=True)
def _():
    _controls = cost_page.controls_of(
        Control("seq_len", "Longest N", tuple(2**e for e in range(7, 17)), 1024),
        Control("shortest", "Shortest N", tuple(2**e for e in range(4, 11)), 16),
        Control("tokens", "Tokens a batch", tuple(2**e for e in range(8, 17)), 1024),
        repeats=5,
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
    recorded.cards(live.rows(asked.jobs, asked.device))
    return


@app.cell(hide_code=True)
def _(recorded):
    mo.ui.tabs(page.recorded_charts(recorded.rows["scaling"]))
    return


@app.cell(hide_code=True)
def _():
    code.source(
        plain.linear_attention,
        r"\begin{gathered} y_i = \frac{\phi(q_i)^\top S_i}{\phi(q_i)^\top z_i} \\ "
        r"S_i = \textstyle\sum_{j \le i} \phi(k_j) v_j^\top, \; z_i = \sum_{j \le i} \phi(k_j) \\ "
        r"O(N R M) \text{, not softmax's } O(N^2 D) \end{gathered}",
    )
    return


@app.cell(hide_code=True)
def _(sliders):
    _text = f"""
    S is an R × M matrix (R features of a key, M numbers of a value), whatever N is. Without the
    causal mask it is one product, `k.mT @ v`; with it, a running sum, here over
    {plain.CHUNK_LEN} positions at a time.

    ## Measure it on this machine

    The dotted lines are predicted from a few small calls; the measured points should land on
    them. Every batch has as many tokens; figures are for one sequence.
    """
    mo.vstack([mo.md(_text), sliders])
    return


@app.cell(hide_code=True)
def _():
    auto = running.auto_switch()
    return (auto,)


@app.cell(hide_code=True)
def _():
    measure = mo.ui.radio(["time", "memory"], value="time", inline=True, label="Show")
    return (measure,)


@app.cell(hide_code=True)
def _(settings):
    cost_page.followed(settings)
    return


@app.cell(hide_code=True)
def _(asked, auto, get_changes, live, measure, set_changes):
    get_changes()
    run, stop, tick, _shown = running.run_panel(live, asked, auto, set_changes, auto, measure)
    _shown
    return run, stop, tick


@app.cell(hide_code=True)
def _(asked, measure):
    _memory = measure.value == "memory"
    predicted = cost_page.predicted_rows(asked.jobs, asked.device, _memory)
    return (predicted,)


@app.cell(hide_code=True)
def _(asked, live, measure, predicted, set_changes, tick):
    def _draw():
        rows = live.so_far(asked.jobs, asked.device)
        return charts.scaling_chart(rows, measure.value, predicted)

    layout.live_only(running.watch(live, set_changes, tick, _draw))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    running.history(live)
    return


@app.cell(hide_code=True)
def _():
    layer = over_ranks.inputs()
    measure_ranks, shown_tab = over_ranks.measure_button(), {}
    return layer, measure_ranks, shown_tab


@app.cell(hide_code=True)
def _(layer, measure_ranks):
    over_two = over_ranks.measured(layer.value, measure_ranks.value)
    return (over_two,)


@app.cell(hide_code=True)
def _(layer, measure_ranks, over_two, shown_tab):
    _section = over_ranks.section(layer, measure_ranks, over_two, shown_tab)
    mo.vstack([mo.accordion({"Beyond one device": _section}), scaling.CLAIM.method()], gap=0)
    return


if __name__ == "__main__":
    app.run()
