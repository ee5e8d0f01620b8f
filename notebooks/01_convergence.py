import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Convergence")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.attention import causal_names
    from replib.claims import convergence
    from replib.claims.convergence import page
    from replib.pages import controls, curves, frames
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Does linear attention learn as softmax attention does?

    **The claim** (Katharopoulos et al. 2020, *Transformers are RNNs*, section 4.1 and figure 2):
    on the causal copy task a Transformer with linear attention converges smoothly, to a lower loss
    than one with LSH attention, and to the same as one with softmax attention. **The 2022
    replication** (Do & Bergner) trained an encoder-decoder on a copy task of its own and found no
    stable convergence.
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
def _(get_changes, jobs, live, recorded, settings):
    get_changes()
    _rows = live.rows(jobs, settings["device"])
    recorded.cards(_rows, "convergence", "below_lsh")
    return


@app.cell(hide_code=True)
def _(recorded):
    _curves = frames.training_curves(recorded.rows["convergence"])
    mo.ui.tabs(
        {
            "Loss": curves.learning_curves(_curves, y="loss", title="Loss while learning to copy"),
            "Accuracy": curves.learning_curves(
                _curves, y="accuracy", title="Accuracy while learning to copy"
            ),
            "Every seed": curves.seeds_chart(
                frames.training_summaries(recorded.rows["convergence"]),
                title="Where each seed ended",
            ),
        }
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try it

    Choose a setting and train both models here. Loss (in nats, natural-log units: guessing one of
    ten symbols costs ln 10 = 2.30) and accuracy are of freshly drawn sequences; below N = 24 there
    are so few sequences that training has met many of them. The address bar holds the setting, to
    be shared.
    """)
    return


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("seq_len", "Sequence length", (8, 16, 24, 32, 48, 64, 96, 128, 192, 256), 32),
        Control("batch_size", "Batch size", (4, 8, 16, 32, 64, 128), 32),
        Control(
            "n_steps", "Steps", (50, 100, 200, 300, 400, 500, 1000, 2000, 3000, 5000, 10000), 400
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
        live, page.live_jobs, settings, auto, set_changes, auto
    )
    _shown
    return jobs, run, stop, tick


@app.cell(hide_code=True)
def _(jobs, live, recorded, set_changes, settings, tick):
    tick
    _progress = controls.watch(live, set_changes)
    _shown = frames.training_curves(live.showing(jobs, settings["device"]))
    _behind = page.recorded_behind(_shown, frames.training_curves(recorded.rows["convergence"]))
    _title = page.title_of(_shown, _behind)
    controls.live_only(_progress, curves.live_curves(_shown, _behind, title=_title))
    return


@app.cell(hide_code=True)
def _():
    letters = mo.ui.text(label="Letters a to j", placeholder="drawn at random", debounce=True)
    shuffle = mo.ui.button(label="Shuffle", value=0, on_click=lambda n: n + 1)
    return letters, shuffle


@app.cell(hide_code=True)
def _(get_changes, jobs, letters, live, settings, shuffle):
    get_changes()
    controls.live_only(
        mo.md("### Let the trained models copy a sequence"),
        controls.inputs(letters, shuffle),
        page.copies(live, jobs, letters.value, shuffle.value, settings["device"]),
    )
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _(recorded):
    _rows = recorded.rows["sequence_copy"]
    _title = "Loss on the sequence-to-sequence copy task"
    mo.vstack(
        [
            mo.md(page.sequence_copy_table(_rows)),
            curves.learning_curves(frames.training_curves(_rows), title=_title),
        ]
    )
    return


@app.cell(hide_code=True)
def _():
    convergence.CLAIM.method()
    return


if __name__ == "__main__":
    app.run()
