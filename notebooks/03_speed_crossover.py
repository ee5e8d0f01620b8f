# /// script
# [tool.marimo.opengraph]
# title = "3 · Speed crossover"
# description = "From which length is linear attention faster than softmax: 512, 3149, or less?"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Speed crossover")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import charts, judging
    from replib.claims.scaling import page
    from replib.lab.recorded import recorded_rows
    from replib.pages import controls, frames
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.pages.live_jobs import live_cost_jobs
    from replib.published import published


@app.cell(hide_code=True)
def _():
    mo.md("""
    # From which length is linear attention faster?

    **The claim** (Katharopoulos et al. 2020, figure 1): linear attention is faster at every
    length shown, from N = 512 on. **The 2022 replication** (Do & Bergner) measured N = 8 to 64
    and extrapolated the crossover to N = 3149. The answer depends on who computes: softmax in its
    textbook form, which stores N² weights, or in a fused kernel, which does not; linear attention
    as its equation stands (*plain*), in chunks of torch operations (*torch*), or in a kernel
    compiled for the device (*cpu*, *cuda*).
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded = recorded_rows("crossover")
    steps = recorded_rows("step_time")
    article = published()["dm2022"]
    live = LiveRuns("crossover")
    get_changes, set_changes = mo.state(0)
    controls.unread("crossover", "step_time")
    return article, get_changes, live, recorded, set_changes, steps


@app.cell(hide_code=True)
def _(article, recorded):
    recorded_columns = [
        ("Paper", judging.PAPER_SAYS["crossover"]),
        ("2022 replication", judging.article_crossover(article)),
        (f"Recorded here, {controls.device_names(recorded)}", judging.speed_crossover(recorded)),
    ]
    return (recorded_columns,)


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded_columns, settings):
    get_changes()
    _rows = live.rows(jobs, settings["device"])
    _session = judging.of_session(
        lambda rows: judging.speed_crossover(rows, work=settings["work"]), _rows
    )
    controls.verdict_card(
        "Linear attention is faster from N = 512 on.",
        [*recorded_columns, (controls.THIS_MACHINE, _session)],
    )
    return


@app.cell(hide_code=True)
def _(recorded):
    page.crossover_tabs(recorded)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The crossover is one of implementations

    The same equations at three or four stages of work: each bar is the 95 % interval of the N from
    which linear attention stays faster.
    """)
    return


@app.cell(hide_code=True)
def _(recorded):
    mo.ui.tabs(
        {
            _text.capitalize(): page.crossings_chart(recorded, _work)
            for _work, _text in reversed(controls.WORK_LABELS.items())
        }
    )
    return


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded, settings):
    get_changes()
    _session = judging.of_session(
        lambda rows: judging.implementations(rows, work=settings["work"]),
        live.rows(jobs, settings["device"]),
    )
    controls.verdict_card(
        "The crossover moves to shorter N as the implementation of linear attention improves.",
        [
            (
                f"Recorded here, {controls.device_names(recorded)}",
                judging.implementations(recorded),
            ),
            (controls.THIS_MACHINE, _session),
        ],
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try it

    Find the crossover of this machine. More repeats narrow its interval; more heads or a larger
    batch give the processor more to do at once.
    """)
    return


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("seq_len", "Longest N", tuple(2**e for e in range(5, 15)), 1024),
        Control("shortest", "Shortest N", tuple(2**e for e in range(3, 10)), 16),
        Control("batch_size", "Batch size", (1, 2, 4, 8, 16, 32, 64), 1),
        Control("n_heads", "Heads", (1, 2, 4, 8, 16), 8),
        Control("head_dim", "Head size", (8, 16, 32, 64, 128), 32),
        Control("repeats", "Repeats", (3, 5, 7, 15, 31), 7),
        controls.WORK,
        controls.DEVICE,
        controls.variants(),
    ]
    panel, notes = controls.panel(PARAMETERS)
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
    jobs, problem = controls.attempt(live_cost_jobs, settings)
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
    controls.live_only(_progress, page.session_crossover_chart(_rows))
    return


@app.cell(hide_code=True)
def _(get_changes, jobs, live, settings):
    get_changes()
    page.session_crossings(live.rows(jobs, settings["device"]))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _(article):
    _fits = judging.article_fits(article)
    mo.vstack(
        [
            mo.md(judging.extrapolation_text(_fits)),
            charts.extrapolation_chart(
                article, _fits, title="Four points up to N = 64, extended to 8192"
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def _(article, steps):
    mo.vstack(
        [
            mo.md(judging.table_1(article, steps)),
            charts.replication_chart(
                frames.costs(frames.steps_alike(steps)),
                article,
                title="3000 training steps of the 2022 model",
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def _():
    _text = mo.md("""
    - **Crossover.** The length from which linear attention stays faster: log-log interpolation
      between measured lengths, with a 95 % interval from resampling the repeats. It is called
      *extrapolated* only where no crossing was measured.
    - **Verdict.** Judged are the textbook softmax, which the paper had in 2020, and the fastest
      implementation of linear attention in the rows; the fused softmax, which came later, and the
      other implementations are given as evidence. That linear attention is judged at its best was
      settled before its compiled kernels were measured; that softmax is judged in its textbook form
      was chosen after the first rows were seen: with the fused one among the criteria they read
      "inconclusive".
    - **Times.** Attention alone, causal, float32, 8 heads of 32 in the recorded runs; all
      mechanisms of a length timed together in random order. Training steps: the model of the
      2022 article (4 + 4 layers, 8 heads of 64, feed-forward 1024, batch 8), 3000 times the
      median of 11 steps. *Deviation:* the article's times include further evaluations of the loss
      at each step and other overheads, and its linear runs seem to have used batch 32 (our
      inference from its losses).
    - **Linear attention** is computed in one of these, which give the same numbers to rounding:
      *plain* forms the (N, N) weights; *torch* goes through chunks with torch operations and a
      closed-form backward pass; *cpu* (Numba) and *cuda* (Triton) do the same in one compiled
      pass. The order in which they improve is this one, and is not taken from their times.
    - **First use.** The CPU kernel is compiled when it is first needed, and kept on disk; no
      timing includes that.
    """)
    mo.accordion({"Method and limits": _text})
    return


if __name__ == "__main__":
    app.run()
