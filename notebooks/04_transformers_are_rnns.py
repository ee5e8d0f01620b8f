# /// script
# [tool.marimo.opengraph]
# title = "4 · Transformers are RNNs"
# description = "Generation at constant cost: a recurrent state, a cache, or everything again"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Transformers are RNNs")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import judging
    from replib.claims.generation import judge
    from replib.claims.generation import page as parts
    from replib.claims.images import page as drawing
    from replib.lab.recorded import recorded_rows
    from replib.pages import controls
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.pages.live_jobs import live_generation_jobs, live_stream_jobs
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
    recorded = recorded_rows("generation")
    article, paper = published()["dm2022"], published()["katharopoulos2020"]
    live, streams = LiveRuns("generation"), LiveRuns("generation")
    get_changes, set_changes = mo.state(0)
    get_streamed, set_streamed = mo.state(0)
    controls.unread("generation", "images")
    return (
        article,
        get_changes,
        get_streamed,
        live,
        paper,
        recorded,
        set_changes,
        set_streamed,
        streams,
    )


@app.cell(hide_code=True)
def _(article, recorded):
    beside = [
        ("Paper", judging.PAPER_SAYS["generation"]),
        ("2022 replication", judging.article_generation(article)),
    ]
    recorded_here = f"Recorded here, {controls.device_names(recorded)}"
    return beside, recorded_here


@app.cell(hide_code=True)
def _(beside, get_changes, jobs, live, recorded, recorded_here, settings):
    get_changes()
    _session = judging.of_session(judge.constant_cost, live.rows(jobs, settings["device"]))
    controls.verdict_card(
        "With linear attention a token costs the same at every position; with softmax it does not.",
        [
            *beside,
            (recorded_here, judge.constant_cost(recorded)),
            (controls.THIS_MACHINE, _session),
        ],
    )
    return


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded, recorded_here, settings):
    get_changes()
    _session = judging.of_session(judge.faster_generation, live.rows(jobs, settings["device"]))
    controls.verdict_card(
        "Linear attention generates faster than softmax, even where softmax has a cache.",
        [
            (recorded_here, judge.faster_generation(recorded)),
            (controls.THIS_MACHINE, _session),
        ],
    )
    return


@app.cell(hide_code=True)
def _(recorded):
    parts.recorded_tabs(recorded)
    return


@app.cell(hide_code=True)
def _(recorded):
    parts.recorded_tabs(recorded, "state_bytes")
    return


@app.cell(hide_code=True)
def _(paper, recorded):
    mo.vstack(
        [
            mo.md("## The paper's images"),
            parts.speedup_chart(recorded, paper),
            mo.md(judge.generation_table(recorded, paper)),
        ]
    )
    return


@app.cell(hide_code=True)
def _(recorded):
    mo.vstack(
        [
            mo.md("## A stream without end"),
            parts.recorded_streams(recorded),
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
    panel, notes = controls.panel(PARAMETERS, OF_STREAMS, OF_DRAWINGS)
    return notes, panel


@app.cell(hide_code=True)
def _(notes, panel):
    controls.show_panel(panel, notes)
    return


@app.cell(hide_code=True)
def _(panel):
    settings = panel.value
    controls.share(settings)
    return (settings,)


@app.cell(hide_code=True)
def _(settings):
    _asked = mo.md("**The same function with your sizes?** Logits of 100 random tokens:")
    mo.vstack([_asked, parts.agreement_table(settings)])
    return


@app.cell(hide_code=True)
def _(settings):
    jobs, problem = controls.attempt(live_generation_jobs, settings)
    problem
    return (jobs,)


@app.cell(hide_code=True)
def _():
    auto = mo.ui.switch(value=True, label="run short settings automatically")
    return (auto,)


@app.cell(hide_code=True)
def _(auto, get_changes, jobs, live, settings):
    get_changes()
    run, _why_none = controls.gate(live, jobs, auto=auto.value, device=settings["device"])
    controls.show_gate(run, _why_none, auto)
    return (run,)


@app.cell(hide_code=True)
def _(get_changes, jobs, live, run, set_changes, settings):
    get_changes()
    if controls.pressed(run):
        live.start(jobs, settings["device"])
        set_changes(lambda n: n + 1)
    stop, tick = controls.stop_button(live), controls.ticker(live)
    controls.show_stop(stop, tick)
    return stop, tick


@app.cell(hide_code=True)
def _(live, stop):
    if controls.pressed(stop):
        live.stop()
    return


@app.cell(hide_code=True)
def _(jobs, live, set_changes, settings, tick):
    tick
    _progress = controls.watch(live, set_changes)
    _rows = live.showing(jobs, settings["device"])
    controls.live_only(_progress, parts.token_chart(_rows), parts.token_chart(_rows, "state_bytes"))
    return


@app.cell(hide_code=True)
def _(get_changes, jobs, live, paper, settings):
    get_changes()
    controls.live_only(parts.speedup_chart(live.rows(jobs, settings["device"]), paper))
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
    stream_panel, stream_notes = controls.panel(OF_STREAMS, PARAMETERS, OF_DRAWINGS)
    return stream_notes, stream_panel


@app.cell(hide_code=True)
def _(stream_notes, stream_panel):
    controls.show_panel(stream_panel, stream_notes)
    return


@app.cell(hide_code=True)
def _(stream_panel):
    stream_settings = stream_panel.value
    controls.share(stream_settings)
    return (stream_settings,)


@app.cell(hide_code=True)
def _(stream_settings):
    stream_jobs = live_stream_jobs(stream_settings)
    return (stream_jobs,)


@app.cell(hide_code=True)
def _(auto, get_streamed, settings, stream_jobs, streams):
    get_streamed()
    start, _why_none = controls.gate(
        streams, stream_jobs, auto=auto.value, device=settings["device"]
    )
    controls.show_gate(start, _why_none)
    return (start,)


@app.cell(hide_code=True)
def _(get_streamed, set_streamed, settings, start, stream_jobs, streams):
    get_streamed()
    if controls.pressed(start):
        streams.start(stream_jobs, settings["device"])
        set_streamed(lambda n: n + 1)
    end, stream_tick = controls.stop_button(streams), controls.ticker(streams)
    controls.show_stop(end, stream_tick)
    return end, stream_tick


@app.cell(hide_code=True)
def _(end, streams):
    if controls.pressed(end):
        streams.stop()
    return


@app.cell(hide_code=True)
def _(set_streamed, settings, stream_jobs, stream_tick, streams):
    stream_tick
    _progress = controls.watch(streams, set_streamed)
    _rows = streams.showing(stream_jobs, settings["device"])
    controls.live_only(_progress, parts.stream_chart(_rows))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _():
    recorded_images = recorded_rows("images")
    return (recorded_images,)


@app.cell(hide_code=True)
def _(paper, recorded_images):
    _here = f"Recorded here, {controls.device_names(recorded_images)}"
    mo.vstack(
        [
            mo.md("## Images for real\n\nModels of the 8 x 8 handwritten digits, trained here."),
            controls.verdict_card(
                "Linear attention models images as well as softmax, to 0.05 bits per dimension.",
                [("Paper", judging.paper_images(paper)), (_here, judging.images(recorded_images))],
            ),
            drawing.bits_chart(recorded_images),
        ]
    )
    return


@app.cell(hide_code=True)
def _(OF_DRAWINGS, OF_STREAMS, PARAMETERS):
    drawing_panel, drawing_notes = controls.panel(OF_DRAWINGS, PARAMETERS, OF_STREAMS)
    draw_slowly = mo.ui.run_button(label="Draw pixel by pixel")
    return draw_slowly, drawing_notes, drawing_panel


@app.cell(hide_code=True)
def _(draw_slowly, drawing_notes, drawing_panel):
    mo.vstack(
        [
            mo.md("### Complete a digit"),
            controls.show_panel(drawing_panel, drawing_notes),
            controls.live_only(draw_slowly),
        ]
    )
    return


@app.cell(hide_code=True)
def _(drawing_panel):
    drawing_settings = drawing_panel.value
    controls.share(drawing_settings)
    return (drawing_settings,)


@app.cell(hide_code=True)
def _(draw_slowly, drawing_settings, missing_models, models):
    _slowly = controls.pressed(draw_slowly)
    mo.vstack([missing_models, drawing.completion(models, drawing_settings, slowly=_slowly)])
    return


@app.cell(hide_code=True)
def _():
    _text = mo.md("""
    - **A token.** The N-th token is generated again and again from a state that was filled at
      random, and the most likely next one is chosen from its logits. A sample is
      the mean of such tokens for 30 ms, and the ways of one position are sampled in random order.
      Times are of a whole batch.
    - **A sequence.** Timed as one where that takes minutes at most, and counted so from three runs
      on; else summed over positions: medians at 1, 2, 3, 6, ... N, with straight lines between them
      in log-log. The table marks sums with ~, and the verdict tells how sums compare with runs
      where there are both. A ratio is of runs on both sides, or of two sums. The interval of a sum
      comes from resampling the repeats, not from those lines.
    - **Verdict.** Growth exponents of the position over its longer half, with 95 % intervals:
      constant means within ± 0.15 of 0. Faster means that the interval of the ratio of times lies
      above 1. Speed-ups over recomputing are evidence only: nobody need recompute. *By the paper's
      figures*: 317 and 4462 are printed; the others are our quotients of the throughputs and times
      that it prints.
    - **Memory.** *Kept between tokens* is measured on the tensors of the state, the cache or the
      tokens. A cache is allocated for all positions up to N at once; that of a stream doubles.
    - **Models.** Those of the paper's tables: 8 or 16 layers, 8 heads of 32, feed-forward 1024.
      *Deviation:* 256 output classes instead of a mixture of logistics, and weights drawn at
      random; the paper's own softmax is not fused, here it is torch's, which is faster. Linear
      attention's parallel form, with which the steps are compared, is its *torch* kernel and, where
      that takes the dtype, the device's compiled one. Ways *agree* where they differ by at most the
      tolerance, a share of the largest output that is 3 to 50 times what rounding came to.
    - **CUDA.** A step is one launch of a recorded graph, whose shapes are fixed: with a cache it
      attends to all N positions that there is room for, so a whole run costs N times its last
      token, and more than the sum over tokens.
    - **The stream.** No token is dropped: sinusoids go on, the state adds up in float32. The memory
      of the process is what the system reports, notebooks and libraries included.
    - **Images.** 3 layers, 4 heads of 16, pre-norm, 10 logistics, AdamW, 2000 steps; the settings
      were chosen on a part of the images to train on. *Deviation:* the paper's are 8 and 16 layers
      on MNIST and CIFAR-10 (the `paper` scale of `images`, with files that you download); its bits
      per dimension are of other images. The first level counts too. A temperature other than 1
      sharpens or blurs the mixture. The kept weights are rounded to float16.
    """)
    mo.accordion({"Method and limits": _text})
    return


if __name__ == "__main__":
    app.run()
