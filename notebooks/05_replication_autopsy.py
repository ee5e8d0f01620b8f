# /// script
# [tool.marimo.opengraph]
# title = "5 · Autopsy of a replication"
# description = "Why did the 2022 replication find 3149? Switch its defects on and off"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Autopsy of a replication")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims.autopsy import hypotheses, judge, step_times
    from replib.claims.autopsy import page as parts
    from replib.lab.recorded import recorded_rows
    from replib.pages import controls
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.pages.live_jobs import AUTOPSY_MODELS
    from replib.published import published


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Why did the 2022 replication find 3149?

    Katharopoulos et al. 2020 say that linear attention learns as softmax does and is faster from
    some hundred tokens on. **The 2022 replication** (Do & Bergner) finds no stable convergence, 8
    to 24 times the time of softmax at N = 8 to 64, and a crossover at N = 3149; and, as the paper
    says, a time that grows linearly. Its code, read line by line, has defects. Here each is a
    **switch** on our own model, on the article's task, so that you can break it as it was broken:
    *mended* has none of them, *broken* all that the article's runs had and an ablation of a small
    model has. Its authors believe the paper's claims all the same, and suspect their
    implementation.
    """)
    return


@app.cell(hide_code=True)
def _():
    article = published()["dm2022"]
    losses, times = recorded_rows("autopsy"), recorded_rows("autopsy_time")
    full_size = recorded_rows("autopsy_full")
    steps = [*recorded_rows("step_time"), *recorded_rows("autopsy_longer")]
    live = LiveRuns("autopsy_time")
    get_changes, set_changes = mo.state(0)
    controls.unread("autopsy", "autopsy_full", "autopsy_time", "step_time", "autopsy_longer")
    return article, full_size, get_changes, live, losses, set_changes, steps, times


@app.cell(hide_code=True)
def _(article, losses, steps, times):
    recorded = parts.cards(losses, times, steps, article)
    device = controls.device_names([*losses, *times])
    article_says = judge.article_said(article)
    return article_says, device, recorded


@app.cell(hide_code=True)
def _(article, article_says, device, get_changes, jobs, live, recorded, settings):
    get_changes()
    _session = parts.session_cards(live.rows(jobs, settings["device"]), article)
    mo.vstack(
        [
            parts.verdict_cards(article_says, recorded, _session, device),
            mo.md(judge.STANDS),
        ],
        gap=1.5,
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The slowdown

    The time of one training step, with one defect more (*alone on*, in a mended run) and with one
    less (*alone off*, in a broken run). Where the two differ, defects do not simply multiply. All
    of this is of the device named: it says what the defects cost there, not on the article's GPU.
    """)
    return


@app.cell(hide_code=True)
def _(times):
    controls.device_tabs(times, parts.effects_chart)
    return


@app.cell(hide_code=True)
def _(article, times):
    controls.device_tabs(times, lambda rows: parts.slowdown_tabs(rows, article))
    return


@app.cell(hide_code=True)
def _(article, times):
    mo.vstack(
        [
            mo.md("**The article's four points, and ours**"),
            controls.device_tabs(times, lambda rows: mo.md(step_times.four_points(article, rows))),
        ]
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The losses

    Where runs end, in nats (natural-log units) a token; guessing one of ten symbols costs ln 10 =
    2.30. A decoder that sees its target can reach 0 without copying anything. These runs are of a
    small model; where they differ from the article's, and what its own size does, stands below.
    """)
    return


@app.cell(hide_code=True)
def _(article, losses):
    controls.device_tabs(losses, lambda rows: parts.losses_chart(rows, article))
    return


@app.cell(hide_code=True)
def _(article, losses):
    mo.vstack(
        [
            mo.md(judge.failure_table(losses)),
            *(mo.md(judge.loss_table(article, losses, _name)) for _name in ("linear", "softmax")),
        ],
        gap=1.5,
    )
    return


@app.cell(hide_code=True)
def _(article, losses):
    mo.vstack(
        [
            mo.md(f"## The loss scale\n\n{judge.scale_text(article, losses)}"),
            parts.scale_chart(losses, article),
        ]
    )
    return


@app.cell(hide_code=True)
def _(article, losses):
    mo.vstack(
        [
            mo.md("## The article's curves, beside broken runs here"),
            parts.loss_curves_chart(losses, article),
            mo.md(judge.level_text(article, losses)),
        ]
    )
    return


@app.cell(hide_code=True)
def _(article, full_size):
    mo.vstack(
        [
            mo.md("## At the article's own size"),
            controls.device_tabs(full_size, lambda rows: parts.full_size(rows, article)),
        ]
    )
    return


@app.cell(hide_code=True)
def _(losses, times):
    found = hypotheses.findings(losses, times)
    mo.vstack(
        [
            mo.md(f"## What was expected by reading the code\n\n{hypotheses.headline(found)}"),
            mo.accordion({"Every expectation, as measured": mo.md(hypotheses.table(found))}),
        ]
    )
    return (found,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try it: break the replication

    Turn defects on; the runs with them and mended ones are trained and timed here. Softmax takes
    those that its runs had. The address bar holds the switches, to be shared. To time each defect
    by itself, whatever the switches are, measure *each defect alone*.
    """)
    return


@app.cell(hide_code=True)
def _():
    get_chosen, set_chosen = mo.state(parts.chosen_at_first())
    buttons = parts.presets(set_chosen)
    return buttons, get_chosen


@app.cell(hide_code=True)
def _(get_chosen):
    switches = parts.switches(get_chosen())
    return (switches,)


@app.cell(hide_code=True)
def _(buttons, found, switches):
    parts.show_switches(switches, buttons, found)
    return


@app.cell(hide_code=True)
def _():
    parts.half_an_encoder()
    return


@app.cell(hide_code=True)
def _(article):
    PARAMETERS = [
        Control("seq_len", "Sequence length", (8, 16, 32, 64, 128, 256), 8),
        Control("n_steps", "Steps of a run", (50, 100, 200, 300, 500, 1000, 3000), 200),
        Control("seeds", "Seeds of a run", (1, 2, 3), 1),
        Control("repeats", "Repeats of a timed step", (3, 5, 9, 15, 31), 9),
        Control("model", "Model", AUTOPSY_MODELS, AUTOPSY_MODELS[0]),
        Control("measure", "Measure", parts.MEASURES, "step times"),
        controls.DEVICE,
        Control("attention", "Attention", ("softmax", "linear"), ("softmax", "linear")),
    ]
    OF_PREDICTION = parts.prediction_choices(article)
    panel, notes = controls.panel(PARAMETERS, OF_PREDICTION, [parts.SWITCHES])
    return OF_PREDICTION, PARAMETERS, notes, panel


@app.cell(hide_code=True)
def _(notes, panel):
    controls.show_panel(panel, notes)
    return


@app.cell(hide_code=True)
def _(panel, switches):
    settings = panel.value | parts.chosen(switches)
    controls.share(panel.value)
    return (settings,)


@app.cell(hide_code=True)
def _(settings):
    jobs, problem = controls.attempt(parts.live_jobs, settings)
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
    controls.live_only(_progress, parts.session_charts(_rows))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Where 3149 comes from

    The article has four points, up to N = 64. Choose which of them the regression may use, and what
    softmax is supposed to grow as: the prediction moves by thousands, or goes away.
    """)
    return


@app.cell(hide_code=True)
def _(OF_PREDICTION, PARAMETERS):
    prediction_panel, prediction_notes = controls.panel(OF_PREDICTION, PARAMETERS, [parts.SWITCHES])
    return prediction_notes, prediction_panel


@app.cell(hide_code=True)
def _(prediction_notes, prediction_panel):
    controls.show_panel(prediction_panel, prediction_notes)
    return


@app.cell(hide_code=True)
def _(article, prediction_panel):
    controls.share(prediction_panel.value)
    parts.prediction(article, prediction_panel.value)
    return


@app.cell(hide_code=True)
def _(article, steps, times):
    mo.md(step_times.prediction_table(article, times, steps))
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Defects of other earlier works

    Each is run when this page opens; its switch marks what a reader of that work was shown.
    """)
    return


@app.cell(hide_code=True)
def _():
    others = parts.other_switches()
    return (others,)


@app.cell(hide_code=True)
def _(others):
    parts.show_others(others)
    return


@app.cell(hide_code=True)
def _(losses):
    _text = mo.md(f"""
    - **What is re-enacted.** Twelve differences that can be in torch, on our `EncoderDecoder`, its
      task and its loop; with all switches off a run is the real one, bit for bit. Three of them
      were found later, at the article's own size, and are not in the ablation of the small model.
      What Julia's compiler, GPU and libraries did is not re-enacted: it is in what stays
      unexplained.
    - **The article's own size.** 512, 8 heads of 64, feed-forward 1024, post-norm, dropout 0.1, 2
      encoder layers that count and 4 of the decoder, as in `LinTrans.jl`. Its softmax stands there
      as a comment: that its softmax runs had all else of that file is inferred. *Deviation:*
      positions count from 0, there from 1; labels are not smoothed, there by a millionth; a loss
      is of fresh sequences, there of those that were just learned from. The extra evaluations are
      left out, as they change no loss. Our other details are those of the paper's model:
      gradients clipped to norm 1, last norms, dropout of the embedding.
    - **Conclusions.** A card says *supported* where the article's conclusion stands after
      mending, *not supported* where it falls. No stable convergence: most mended linear runs end
      below 99 % accuracy (all lengths together, Wilson interval). Slower: at each length the ratio
      of linear to softmax steps is above 1, and at or above the article's least. Crossover: the
      interval of a measured crossover holds 3149; an extrapolated one decides nothing.
    - **Times.** The article's sizes, batch 8 (the switch makes it 32); all sets of defects of a
      length are timed in turns, and rounds are resampled together. Factors are multiplied, so
      shares are of logarithms; *between* is the geometric mean of alone on and alone off, and
      the rest what remains of the whole, other defects and how they act together.
    - **What a switch does besides.** A compiled kernel takes float32 alone: a step in float64 falls
      back to torch operations, so that its factor is of both. Unfused attention is compared with
      the compiled kernel, so that its factor holds what compiling gains. A time is the median of
      repeated steps: of the extra evaluations, the one before each eighth update does not count.
      *Half an encoder* costs less than a whole one, as its unused layers have no backward pass, and
      more than a model that has only the layers it uses. *Adam* here costs less than RAdam, whose
      step is more operations.
    - **Losses.** *Deviation:* recorded with a smaller model than the article's:
      {judge.recorded_text(losses)}. Differences are by Welch's t. Losses are nats a token
      for all runs, whatever the batch.
    - **The article's losses** are our reading of its figures; its batches are inferred from the
      plateaus (its text says 8 for both). Of its curves the plateaus, ends, jumps and spikes were
      read, and drawn; what is between them is not known. That its runs end where the order is
      unknown is our inference.
    - **The interval of a prediction** draws both fits anew with errors of the size of their
      residuals; that a model may be wrong beyond the data is not in it.
    - **Devices.** Charts of steps and losses, and the article's four points, have a tab for each
      device where there are several; other tables are of the one with most rows; cards judge each.
    - **Other works.** The corpus is generated; the language models have one layer, 2 heads of 32.
    """)
    mo.accordion({"Method and limits": _text})
    return


if __name__ == "__main__":
    app.run()
