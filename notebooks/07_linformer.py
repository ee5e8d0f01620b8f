import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Linformer")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.attention import linformer_attention
    from replib.claims import linformer, translation
    from replib.claims.linformer import charts
    from replib.claims.translation import page
    from replib.pages import code, controls, curves, layout, running, tidy
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns


@app.cell(hide_code=True)
def _():
    linformer.CLAIM.head("""
    *Linformer* (Wang et al. 2020) adds the N keys up into k *slots*, each a weighted sum,
    and the values too; a query then looks at k slots instead of N tokens. It cannot hide
    the future, as every slot holds some of it, so it serves encoders.
    """)
    return


@app.cell(hide_code=True)
def _():
    speed, text = linformer.CLAIM.recorded(), translation.CLAIM.recorded()
    live = LiveRuns("number_words")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    mo.vstack([speed.unread(), text.unread()])
    return get_changes, live, set_changes, speed, text


@app.cell(hide_code=True)
def _(speed, text):
    mo.vstack([speed.cards(None, "linformer"), text.cards(None, "translation")], gap=1.5)
    return


@app.cell(hide_code=True)
def _(speed, text):
    mo.ui.tabs(page.recorded_charts(speed, text))
    return


@app.cell(hide_code=True)
def _():
    code.source(
        linformer_attention,
        r"\begin{gathered} Y = \mathrm{softmax}\!\left(\frac{Q\,(E K)^\top}{\sqrt{D}}\right) (F V)"
        r" \\ E, F \in \mathbb{R}^{k \times N} \end{gathered}",
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## A translator of numbers, trained here

    Three small Transformers put English numbers into German: twenty-three is *dreiundzwanzig*.
    Pale pieces are those that a model was not sure of.
    """)
    return


@app.cell(hide_code=True)
def _():
    typed = mo.ui.text(value=page.EXAMPLE, label="A number to 999,999, or a date", debounce=True)
    return (typed,)


@app.cell(hide_code=True)
def _(asked, get_changes, live, settings, typed):
    get_changes()
    made, _problem = controls.attempt(
        lambda _: page.translations(live, asked.jobs, typed.value, asked.device), settings
    )
    made = made or {}
    layout.live_only(
        layout.inputs(typed), _problem or page.answers(made, typed.value), page.cross_maps(made)
    )
    return (made,)


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("k", "Slots k", (1, 2, 4, 8, 16), 4),
        Control("n_steps", "Steps", (100, 200, 300, 500, 800, 1500, 3000), 300),
        Control("batch_size", "Batch size", (16, 32, 64, 128), 64),
        Control("attention", "Attention", page.ATTENTIONS, page.ATTENTIONS),
        controls.DEVICE,
    ]
    panel, _shown = controls.panel(PARAMETERS)
    _shown
    return (panel,)


@app.cell(hide_code=True)
def _(panel):
    settings = controls.chosen(panel)
    asked = running.asked(page.live_jobs, settings)
    return asked, settings


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
def _(asked, live, set_changes, tick):
    def _draw():
        shown = tidy.training_curves(live.showing(asked.jobs, asked.device))
        return curves.live_curves(shown, title="Learning number words")

    layout.live_only(running.watch(live, set_changes, tick, _draw))
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ### Where an encoder's work goes
    """)
    return


@app.cell(hide_code=True)
def _():
    sizes = mo.ui.dictionary(
        {
            "n": mo.ui.slider(steps=[2**e for e in range(7, 17)], value=1024, label="N"),
            "k": mo.ui.slider(steps=[16, 32, 64, 128, 256, 512], value=128, label="k"),
            "vocabulary": mo.ui.slider(
                steps=[0, 100, 8000, 32000, 50272], value=50272, label="vocabulary"
            ),
        }
    )
    return (sizes,)


@app.cell(hide_code=True)
def _(sizes, speed):
    _counted = charts.operations_chart(*(sizes.value[name] for name in ("n", "k", "vocabulary")))
    _timed = charts.time_parts_chart(speed.rows["linformer"], speed.rows["linformer_stack"])
    _charts = layout.grid([_counted, _timed] if _timed else [_counted], "26rem")
    mo.vstack([layout.inputs(*sizes.elements.values()), _charts])
    return


@app.cell(hide_code=True)
def _(asked, get_changes, live, made):
    get_changes()
    maps = page.own_maps(live, asked.jobs, made, asked.device)
    probes = {
        "The matrices of this sentence": maps,
        "What leaks from the future": page.leak_probe(),
        "What padding does": page.padding_probe(),
    }
    return (probes,)


@app.cell(hide_code=True)
def _(asked, get_changes, live, sizes, speed, text):
    get_changes()
    _n, _k = (sizes.value[name] for name in ("n", "k"))
    more = {
        "Right to the letter?": text.cards(live.rows(asked.jobs, asked.device), "number_words"),
        "Does k matter to the time?": speed.cards(None, "slots"),
        "Times of every length": mo.ui.tabs(page.every_time(speed.rows["linformer"])),
        "Matrices by the way they are shared": page.sharing_table(_n, _k),
        "BLEU, counted wrong and right": page.published_table(),
    }
    return (more,)


@app.cell(hide_code=True)
def _(get_changes, live, more, probes):
    get_changes()
    mo.accordion(
        {
            "Look inside": mo.ui.tabs(probes),
            "More of what is recorded": mo.ui.tabs(more),
            "Runs of this session": running.history(live),
        }
    )
    return


@app.cell(hide_code=True)
def _():
    linformer.CLAIM.method(translation.CLAIM)
    return


if __name__ == "__main__":
    app.run()
