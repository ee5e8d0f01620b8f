import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Transformers are RNNs")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.attention.linear import LinearAttention
    from replib.claims import generation, images
    from replib.claims.generation import charts, page
    from replib.claims.images import page as digits
    from replib.pages import code, controls, layout, running
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns


@app.cell(hide_code=True)
def _():
    generation.CLAIM.head("""
    A causal Transformer with linear attention is a recurrent network (Katharopoulos et al. 2020,
    section 3.4): what it has read is in a *state* of one size. Softmax keeps every key and value
    instead, in a *cache* that grows, or *recomputes* everything for every token.
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded, recorded_images = generation.CLAIM.recorded(), images.CLAIM.recorded()
    live = LiveRuns("generation")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    layout.unread("generation", "images")
    return get_changes, live, recorded, recorded_images, set_changes


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("seq_len", "Last position", tuple(2**e for e in range(4, 13)), 256),
        Control("batch_size", "Batch size", (1, 2, 4, 8, 16, 32, 64), 1),
        Control("n_layers", "Layers", (1, 2, 4, 8, 16), 2),
        Control("n_heads", "Heads", (1, 2, 4, 8), 8),
        Control("head_dim", "Head size D", (8, 16, 32, 64), 32),
        Control("n_tokens", "Tokens of a stream", (0, 1000, 5000, 20000, 100000, 1000000), 5000),
        controls.DEVICE,
    ]
    OF_DIGITS = digits.choices()
    panel, sliders = controls.panel(PARAMETERS, OF_DIGITS)
    return OF_DIGITS, PARAMETERS, panel, sliders


@app.cell(hide_code=True)
def _(panel):
    settings = controls.chosen(panel)
    asked = running.asked(page.live_jobs, settings)
    return asked, settings


@app.cell(hide_code=True)
def _(get_changes, live, recorded, recorded_images, settings):
    get_changes()
    _tokens = page.live_jobs(settings | {"n_tokens": 0})  # a stream alone answers nothing
    _rows = live.rows(_tokens, settings["device"])
    mo.vstack([recorded.cards(_rows), recorded_images.cards()], gap=1.5)
    return


@app.cell(hide_code=True)
def _(OF_DIGITS, PARAMETERS):
    models, _missing = digits.kept_models()
    digits_panel, _shown = controls.panel(OF_DIGITS, PARAMETERS)
    again = mo.ui.button(label="Draw again")
    mo.vstack([mo.md("## Complete a digit"), layout.live_only(_shown), _missing])
    return again, digits_panel, models


@app.cell(hide_code=True)
def _(again, digits_panel, models):
    again.value
    _shown = digits.completion(models, controls.chosen(digits_panel))
    mo.vstack([_shown, layout.live_only(again)])
    return


@app.cell(hide_code=True)
def _(recorded, recorded_images):
    _rows, _of_images = recorded.rows["generation"], recorded_images.rows["images"]
    _more = page.recorded_sections(_rows, _of_images)
    _step = mo.vstack(
        [
            mo.md(page.STATE_EQUATIONS),
            code.source(LinearAttention.step),
            mo.accordion({"The read-out": code.source(LinearAttention._read)}),
        ]
    )
    mo.vstack(
        [
            layout.grid([charts.token_chart(*charts.most_measured(_rows)), _step], "28rem"),
            page.folded("More of what is recorded", _more),
        ]
    )
    return


@app.cell(hide_code=True)
def _(sliders):
    _asked = layout.live_only(
        mo.md("""
    ## On this machine

    A model of your sizes, of random weights; then a long stream of one of 2 layers, 4 heads of 16.
    """)
    )
    mo.vstack([_asked, sliders])
    return


@app.cell(hide_code=True)
def _(settings):
    layout.live_only(mo.md(page.kept_text(settings)))
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
def _(asked, live, set_changes, settings, tick):
    def _draw():
        rows = live.showing(asked.jobs, asked.device)
        stream = [charts.stream_chart(rows)] if settings["n_tokens"] else []
        return layout.grid([charts.token_chart(rows), *stream], "26rem")

    layout.live_only(running.watch(live, set_changes, tick, _draw))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    running.history(live)
    return


@app.cell(hide_code=True)
def _():
    generation.CLAIM.method(images.CLAIM)
    return


if __name__ == "__main__":
    app.run()
