import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Transformers are RNNs")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import generation, images
    from replib.claims.generation import charts
    from replib.claims.generation import page as parts
    from replib.claims.generation.measured import speedups
    from replib.claims.images import page as drawing
    from replib.claims.images.charts import bits_chart
    from replib.pages import controls
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.published import published


@app.cell(hide_code=True)
def _():
    mo.md("""
    # What does the next token cost?

    **The claim** (Katharopoulos et al. 2020, section 3.4): a causal Transformer with linear
    attention is a recurrent network. What it has read is in a state of one size, so that every
    token takes the same time and memory. Softmax can keep its keys and values: a **cache**, which
    grows. Against that linear attention is 18.9 and 55.8 times as fast on the paper's images: our
    quotients of its figures, as the supplement prints how much faster softmax is with a cache than
    without, 16.8 and 80 times. The 317 and 4462 times of its tables are against softmax that
    computes everything again for every token. **The 2022 replication** (Do & Bergner) generated
    nothing.

    Three ways to generate with the same weights: *recurrent* (linear attention), *cache* and
    *recompute* (softmax).
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded, recorded_images = generation.CLAIM.recorded(), images.CLAIM.recorded()
    paper = published()["katharopoulos2020"]
    live, streams = LiveRuns("generation"), LiveRuns("generation")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    get_streamed, set_streamed = mo.state(0, allow_self_loops=True)
    controls.unread("generation", "images")
    return (
        get_changes,
        get_streamed,
        live,
        paper,
        recorded,
        recorded_images,
        set_changes,
        set_streamed,
        streams,
    )


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded, settings):
    get_changes()
    _rows = live.rows(jobs, settings["device"])
    recorded.cards(_rows, "constant_cost", "faster_generation")
    return


@app.cell(hide_code=True)
def _(recorded):
    parts.recorded_tabs(recorded.rows["generation"])
    return


@app.cell(hide_code=True)
def _(recorded):
    parts.recorded_tabs(recorded.rows["generation"], "state_bytes")
    return


@app.cell(hide_code=True)
def _(paper, recorded):
    mo.vstack(
        [
            mo.md("## The paper's images"),
            charts.speedup_chart(speedups(recorded.rows["generation"]), paper),
            mo.md(parts.generation_table(recorded.rows["generation"], paper)),
        ]
    )
    return


@app.cell(hide_code=True)
def _(recorded):
    mo.vstack(
        [
            mo.md("## A stream without end"),
            parts.recorded_streams(recorded.rows["generation"]),
        ]
    )
    return


@app.cell(hide_code=True)
def _():
    models, missing_models = drawing.kept_models()
    return missing_models, models


@app.cell(hide_code=True)
def _(models):
    _asked = mo.md("""
    ## The same function?

    Two trained models of handwritten digits, one of linear attention and one of softmax, each with
    one set of weights. What they say of a test image: a pixel at a time from what was kept, of the
    whole image at once, and with everything computed again for each pixel.
    """)
    mo.vstack([_asked, parts.kept_agreement(models)])
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try it

    A model of your sizes, with weights drawn at random: what a token costs does not depend on
    them. Up to some hundred tokens the three ways cost about the same, and the cards above may well
    say so of your machine; set *Last position* to 2048 to see them part.
    """)
    return


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("seq_len", "Last position", tuple(2**e for e in range(4, 13)), 256),
        Control("batch_size", "Batch size", (1, 2, 4, 8, 16, 32, 64), 1),
        Control("n_layers", "Layers", (1, 2, 4, 8, 16), 2),
        Control("n_heads", "Heads", (1, 2, 4, 8), 8),
        Control("head_dim", "Head size", (8, 16, 32, 64), 32),
        Control("repeats", "Repeats", (3, 5, 7, 15, 31), 5),
        controls.DEVICE,
        Control("ways", "Ways", tuple(parts.WAY_LABELS), tuple(parts.WAY_LABELS)),
    ]
    LENGTHS = (1_000, 5_000, 20_000, 100_000, 500_000, 1_000_000)
    OF_STREAMS = [
        Control("n_tokens", "Tokens", LENGTHS, 20_000),
        Control("n_cached", "With a cache up to", (500, 1_000, 2_000, 5_000, 20_000), 2_000),
    ]
    OF_DRAWINGS = drawing.choices()
    return OF_DRAWINGS, OF_STREAMS, PARAMETERS


@app.cell(hide_code=True)
def _(OF_DRAWINGS, OF_STREAMS, PARAMETERS):
    panel, _shown = controls.panel(PARAMETERS, OF_STREAMS, OF_DRAWINGS)
    _shown
    return (panel,)


@app.cell(hide_code=True)
def _(panel):
    settings = controls.chosen(panel)
    return (settings,)


@app.cell(hide_code=True)
def _(settings):
    _asked = mo.md("**The same function with your sizes?** Logits of 100 random tokens:")
    mo.vstack([_asked, parts.agreement_table(settings)])
    return


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
    controls.live_only(
        _progress, charts.token_chart(_rows), charts.token_chart(_rows, "state_bytes")
    )
    return


@app.cell(hide_code=True)
def _(get_changes, jobs, live, paper, settings):
    get_changes()
    controls.live_only(charts.speedup_chart(speedups(live.rows(jobs, settings["device"])), paper))
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try a long stream

    A small model (2 layers, 4 heads of 16) goes on and on; beside it the same model with softmax
    and a cache, as far as you let it.
    """)
    return


@app.cell(hide_code=True)
def _(OF_DRAWINGS, OF_STREAMS, PARAMETERS):
    stream_panel, _shown = controls.panel(OF_STREAMS, PARAMETERS, OF_DRAWINGS)
    _shown
    return (stream_panel,)


@app.cell(hide_code=True)
def _(stream_panel):
    stream_settings = controls.chosen(stream_panel)
    return (stream_settings,)


@app.cell(hide_code=True)
def _(auto, get_streamed, set_streamed, settings, stream_settings, streams):
    get_streamed()
    _settings = stream_settings | {"device": settings["device"]}
    stream_jobs, start, end, stream_tick, _shown = controls.run_panel(
        streams, parts.live_stream_jobs, _settings, auto, set_streamed
    )
    _shown
    return end, start, stream_jobs, stream_tick


@app.cell(hide_code=True)
def _(set_streamed, settings, stream_jobs, stream_tick, streams):
    stream_tick
    _progress = controls.watch(streams, set_streamed)
    _rows = streams.showing(stream_jobs, settings["device"])
    controls.live_only(_progress, charts.stream_chart(_rows))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _(recorded_images):
    mo.vstack(
        [
            mo.md("## Images for real\n\nModels of the 8 x 8 handwritten digits, trained here."),
            recorded_images.cards(),
            bits_chart(recorded_images.rows["images"]),
        ]
    )
    return


@app.cell(hide_code=True)
def _(OF_DRAWINGS, OF_STREAMS, PARAMETERS):
    drawing_panel, _shown = controls.panel(OF_DRAWINGS, PARAMETERS, OF_STREAMS)
    draw_slowly = mo.ui.run_button(label="Draw pixel by pixel")
    mo.vstack([mo.md("### Complete a digit"), _shown, controls.live_only(draw_slowly)])
    return draw_slowly, drawing_panel


@app.cell(hide_code=True)
def _(drawing_panel):
    drawing_settings = controls.chosen(drawing_panel)
    return (drawing_settings,)


@app.cell(hide_code=True)
def _(draw_slowly, drawing_settings, missing_models, models):
    _slowly = draw_slowly.value
    mo.vstack([missing_models, drawing.completion(models, drawing_settings, slowly=_slowly)])
    return


@app.cell(hide_code=True)
def _():
    generation.CLAIM.method(images.CLAIM)
    return


if __name__ == "__main__":
    app.run()
