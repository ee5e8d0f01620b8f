import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Convergence")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.attention import causal_names
    from replib.attention.by_hand import as_matrix
    from replib.claims import convergence
    from replib.claims.convergence import page
    from replib.pages import code, controls, curves, layout, running, tidy
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.training import Training


@app.cell(hide_code=True)
def _():
    convergence.CLAIM.head("""
    The test is copying: a model reads some letters, and has to write them again. That
    takes attention: each letter is found by looking back to where it stood.
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded = convergence.CLAIM.recorded()
    live = LiveRuns("convergence")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return get_changes, live, recorded, set_changes


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("seq_len", "Sequence length", (8, 16, 24, 32, 48, 64, 96, 128, 192, 256), 16),
        Control("batch_size", "Batch size", (4, 8, 16, 32, 64, 128), 32),
        Control(
            "n_steps", "Steps", (50, 100, 200, 300, 400, 500, 1000, 2000, 3000, 5000, 10000), 300
        ),
        Control("n_layers", "Layers", (1, 2, 3, 4, 6), 2),
        Control("n_heads", "Heads", (1, 2, 4, 8), 4),
        Control("head_dim", "Head size", (4, 8, 16, 32, 64), 16),
        Control("lr", "Learning rate", (3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2), 5e-3),
        Control("seeds", "Seeds", (1, 2, 3, 4, 5), 1),
        Control("attention", "Attention", causal_names(), ("softmax", "linear")),
        Control("task", "Task", tuple(page.TASKS), "causal copy"),
        controls.DEVICE,
    ]
    panel, sliders = controls.panel(PARAMETERS)
    return panel, sliders


@app.cell(hide_code=True)
def _(panel):
    settings = controls.chosen(panel)
    asked = running.asked(page.live_jobs, settings)
    return asked, settings


@app.cell(hide_code=True)
def _(asked, get_changes, live, recorded):
    get_changes()
    rows = live.known(asked.jobs, asked.device)
    recorded.cards(rows, "convergence")
    return (rows,)


@app.cell(hide_code=True)
def _(recorded):
    mo.ui.tabs(page.recorded_charts(recorded.rows["convergence"]))
    return


@app.cell(hide_code=True)
def _():
    _equation = (
        r"V'_i = \frac{\sum_{j \le i} \phi(Q_i)^\top \phi(K_j)\, V_j}"
        r"{\sum_{j \le i} \phi(Q_i)^\top \phi(K_j)} \qquad \text{(eq. 9)}"
    )
    code.source(as_matrix, _equation)
    return


@app.cell(hide_code=True)
def _(sliders):
    _text = """
    ## Try it

    Both models train here, side by side, over what is recorded. Loss is in nats, natural-log units:
    guessing one of ten letters costs ln 10 = 2.30.
    """
    mo.vstack([mo.md(_text), sliders])
    return


@app.cell(hide_code=True)
def _(recorded, settings):
    behind = page.curves_behind(recorded.rows, settings)
    layout.live_only(page.sizes(settings))
    return (behind,)


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
def _(asked, behind, live, set_changes, tick):
    def _draw():
        rows = live.so_far(asked.jobs, asked.device)
        shown, before = tidy.training_curves(rows), page.curves_before(live, rows)
        return curves.live_curves(shown, behind, before, title=page.title_of(shown, behind))

    layout.live_only(running.watch(live, set_changes, tick, _draw))
    return


@app.cell(hide_code=True)
def _():
    letters = mo.ui.text(label="Letters a to j", placeholder="drawn at random", debounce=True)
    draw = mo.ui.button(label="Draw others", value=0, on_click=lambda n: n + 1)
    return draw, letters


@app.cell(hide_code=True)
def _(asked, draw, get_changes, letters, live):
    get_changes()
    layout.live_only(
        mo.md("### Let the trained models copy a sequence"),
        layout.inputs(letters, draw),
        page.copies(live, asked.jobs, letters.value, draw.value, asked.device),
    )
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    running.history(live)
    return


@app.cell(hide_code=True)
def _(recorded, rows):
    mo.accordion({"Beside LSH attention": recorded.cards(rows, "below_lsh")})
    return


@app.cell(hide_code=True)
def _(recorded):
    mo.accordion(
        {
            **page.sequence_copy(recorded.rows["sequence_copy"]),
            "A training step": code.source(Training.train_step),
        }
    )
    return


@app.cell(hide_code=True)
def _():
    convergence.CLAIM.method()
    return


if __name__ == "__main__":
    app.run()
