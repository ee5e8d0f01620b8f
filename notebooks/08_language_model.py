import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Language models")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.attention import causal_names
    from replib.claims import language_model, update_rules_text
    from replib.claims.language_model import charts, page
    from replib.language_model import LanguageModelTraining
    from replib.pages import code, controls, curves, layout, running, tidy
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.perplexity import perplexity


@app.cell(hide_code=True)
def _():
    language_model.CLAIM.head("""
    A language model predicts each word, byte or letter of a text from those before it.
    Softmax attention looks at all of them again; linear attention at a state of one size.
    """)
    return


@app.cell(hide_code=True)
def _():
    text, rules = language_model.CLAIM.recorded(), update_rules_text.CLAIM.recorded()
    live = LiveRuns("language_model")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    mo.vstack([text.unread(), rules.unread()])
    return get_changes, live, rules, set_changes, text


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("batch_size", "Batch size", (4, 8, 16, 32, 64), 8),
        Control("lr", "Learning rate", (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), 1e-2),
        Control("n_layers", "Layers", (1, 2, 3, 5, 8, 11), 2),
        Control("n_heads", "Heads", (1, 2, 4, 8), 4),
        Control("seq_len", "Sequence length", (16, 32, 64, 128, 256, 512, 1024), 64),
        Control("n_steps", "Steps", (50, 100, 200, 400, 600, 800, 1500, 3000, 10000), 600),
        Control("embedding_dropout", "Embedding dropout", (0.0, 0.1, 0.3, 0.5), 0.0),
        Control("positions", "Positions", tuple(page.POSITIONS), "sinusoids"),
        Control("attention", "Attention", causal_names(), ("softmax", "linear", "delta")),
        controls.DEVICE,
    ]
    panel, sliders = controls.panel(PARAMETERS, page.CHOICES)
    return PARAMETERS, panel, sliders


@app.cell(hide_code=True)
def _(panel):
    settings = controls.chosen(panel)
    asked = running.asked(page.live_jobs, settings)
    return asked, settings


@app.cell(hide_code=True)
def _(asked, get_changes, live, text):
    get_changes()
    rows = live.known(asked.jobs, asked.device)
    text.cards(rows, "language_model")
    return (rows,)


@app.cell(hide_code=True)
def _(rules, text):
    mo.ui.tabs(page.recorded_charts(text, rules))
    return


@app.cell(hide_code=True)
def _():
    _equation = (
        r"\begin{gathered} \mathrm{perplexity} = \exp\Big(\!-\tfrac{1}{N} \textstyle\sum_i "
        r"\ln p(x_i \mid x_{<i})\Big) \\ \text{bits per byte} = -\tfrac{1}{\#\text{bytes}} "
        r"\textstyle\sum_i \log_2 p(x_i \mid x_{<i}) \end{gathered}"
    )
    code.source(perplexity, _equation)
    return


@app.cell(hide_code=True)
def _(sliders):
    _text = """
    ## Train them on Shakespeare

    Three small models read the plays letter by letter. Guessing costs ln 65 = 4.17 nats a letter;
    knowing the letter before, about 2.45. To try what the language-model study
    ([its code](https://github.com/395t/coding-assignment-week-7-eff-1)) did otherwise, choose
    positions *by batch row*, or an embedding dropout of 0.5.
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
def _(asked, live, set_changes, tick):
    def _draw():
        shown = tidy.training_curves(live.showing(asked.jobs, asked.device))
        return curves.live_curves(shown, title="Learning Shakespeare")

    layout.live_only(running.watch(live, set_changes, tick, _draw))
    return


@app.cell(hide_code=True)
def _(PARAMETERS):
    prompt = mo.ui.text_area(value=page.PROMPT, label="Begin with", rows=2, debounce=True)
    choices, _shown = controls.panel(page.CHOICES, PARAMETERS)
    layout.live_only(mo.md("### Let them write"), layout.inputs(prompt), _shown)
    return choices, prompt


@app.cell(hide_code=True)
def _(asked, choices, get_changes, live, prompt):
    get_changes()
    made, _problem = controls.attempt(
        lambda how: page.written(live, asked.jobs, prompt.value, how, asked.device),
        controls.chosen(choices),
    )
    made = made or {}
    layout.live_only(_problem or page.texts(made))
    return (made,)


@app.cell(hide_code=True)
def _():
    at = mo.ui.slider(1, page.N_DRAWN, value=1, label="Letter", show_value=True)
    return (at,)


@app.cell(hide_code=True)
def _(asked, at, get_changes, live, made):
    get_changes()
    _rows = live.rows(asked.jobs, asked.device)
    _bars = mo.vstack([layout.inputs(at), page.bars(made, at.value)])
    _tabs = {"The next letter": _bars, "Loss by position": charts.position_chart(_rows)}
    layout.live_only(mo.ui.tabs(_tabs)) if made else None
    return


@app.cell(hide_code=True)
def _(rows, rules, text):
    _cards = {
        "Layers": "layers",
        "Batch": "batch",
        "Length": "length",
        "Heads": "heads",
        "Defects": "text_defects",
    }
    more = {
        "Sum or delta?": rules.cards(rows, "update_rules_text", "text_carry"),
    } | {_label: text.cards(None, _name) for _label, _name in _cards.items()}
    return (more,)


@app.cell(hide_code=True)
def _(get_changes, live, more):
    get_changes()
    mo.accordion(
        {
            "More of what is recorded": mo.ui.tabs(more),
            "The study's table": page.published_table(),
            "A step whose state is carried": code.source(LanguageModelTraining._outputs),
            "Runs of this session": running.history(live),
        }
    )
    return


@app.cell(hide_code=True)
def _():
    language_model.CLAIM.method(update_rules_text.CLAIM)
    return


if __name__ == "__main__":
    app.run()
