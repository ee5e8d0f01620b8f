# /// script
# [tool.marimo.opengraph]
# title = "2 · Linear scaling"
# description = "Do time and memory of linear attention grow as N, and those of softmax as N²?"
# ///

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Linear scaling")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import charts, judging
    from replib.claims.scaling import judge, page
    from replib.lab.recorded import old_rows, recorded_rows
    from replib.pages import controls, frames
    from replib.pages.controls import Control
    from replib.pages.live import LiveRuns
    from replib.pages.live_jobs import live_cost_jobs
    from replib.published import published


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Do time and memory grow linearly?

    **The claim** (Katharopoulos et al. 2020, section 3.2 and figure 1): for a sequence of N
    tokens, linear attention takes time and memory that grow as N, where softmax attention takes
    N². **The 2022 replication** (Do & Bergner) fitted N² to softmax and N to linear, on four
    lengths up to 64.
    """)
    return


@app.cell(hide_code=True)
def _():
    recorded = recorded_rows("scaling")
    live = LiveRuns("scaling")
    get_changes, set_changes = mo.state(0)
    controls.unread("scaling")
    return get_changes, live, recorded, set_changes


@app.cell(hide_code=True)
def _(recorded):
    recorded_columns = [
        ("Paper", judging.PAPER_SAYS["scaling"]),
        ("2022 replication", judging.article_scaling(published()["dm2022"])),
        (f"Recorded here, {controls.device_names(recorded)}", judge.scaling(recorded)),
    ]
    return (recorded_columns,)


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded_columns, settings):
    get_changes()
    _rows = live.rows(jobs, settings["device"])
    _session = judging.of_session(lambda rows: judge.scaling(rows, settings["work"]), _rows)
    controls.verdict_card(
        "Linear attention costs O(N), softmax attention O(N²).",
        [*recorded_columns, (controls.THIS_MACHINE, _session)],
    )
    return


@app.cell(hide_code=True)
def _(recorded):
    mo.ui.tabs(
        {
            "Forward and backward": page.scaling_charts(recorded, "forward_backward"),
            "Forward": page.scaling_charts(recorded, "forward"),
        }
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md(page.first_figure(old_rows("scaling")))
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try it

    Measure on this machine. The batch shrinks as N grows, so that every point holds the same
    number of tokens; figures are per sequence. Points appear as they are measured.
    """)
    return


@app.cell(hide_code=True)
def _():
    PARAMETERS = [
        Control("seq_len", "Longest N", tuple(2**e for e in range(7, 17)), 2048),
        Control("shortest", "Shortest N", tuple(2**e for e in range(4, 11)), 64),
        Control("tokens", "Tokens a batch", tuple(2**e for e in range(8, 17)), 2048),
        Control("n_heads", "Heads", (1, 2, 4, 8, 16), 8),
        Control("head_dim", "Head size", (8, 16, 32, 64, 128), 32),
        Control("repeats", "Repeats", (1, 3, 5, 7, 15, 31), 5),
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
    _costs = frames.costs(live.showing(jobs, settings["device"]))
    _time, _memory = (
        charts.cost_chart(_costs, y=_y, title=f"{_what} per sequence, this session")
        for _y, _what in (("time_ms_per_sample", "Time"), ("memory_bytes_per_sample", "Memory"))
    )
    controls.live_only(_progress, _time, _memory)
    return


@app.cell(hide_code=True)
def _(get_changes, jobs, live, settings):
    get_changes()
    page.exponents(live.rows(jobs, settings["device"]), settings["work"])
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _():
    _text = mo.md("""
    - **What is measured.** The attention operation alone (no projections), causal, float32, 8
      heads of 32 in the recorded runs. *Deviation:* the paper's figure 1 has the whole
      self-attention layer, on a GTX 1080 Ti.
    - **Judged** are the textbook softmax, which the paper had, and the fastest implementation of
      linear attention in the rows, a rule that was written before compiled kernels were measured;
      the exponents of the others are evidence. *plain* forms the N² weights that linear attention
      does without, to show that the equation alone does not make it linear.
    - **Time.** All mechanisms of a length are timed together, in a new random order each round;
      those that take seconds a call have rounds of their own after the others'. A call is repeated
      untimed until its page faults and its time settle, and the faults of each timed one are kept:
      a sample with others than its own is counted on the card. The line is the median, the band
      the quartiles.
    - **Batch.** Every batch has the same number of tokens, as in the paper: at the longest N it is
      one sequence (here, where *tokens a batch* is less than the longest N, that many). A batch of
      one at every N is the other curve; where it is short, a call does too little to fill the
      machine.
    - **Recordings.** Each point was recorded several times, by processes of their own at different
      times (`record scaling --recording 0`, `1`, ...); the line is of all samples together.
    - **Memory.** The most that one call holds beyond its inputs, from the allocation trace of
      torch's profiler (CPU) or its allocator (CUDA). Scratch memory of MKL is not seen.
    - **Out of memory** is a point at the top of the chart; what would not fit is not tried,
      since Linux would end the process.
    - **Exponent.** The log-log slope over the longer half of the lengths, the mean of that of each
      recording. Its 95 % interval holds what varies between recordings (Student's t of their
      slopes) and how far their mean departs from a line; of a single recording, such as one made
      here, it is from resampled repeats and the scatter about the line. The criterion is claim ±
      0.15. Fused softmax needs no N² memory: the paper's claim is about the textbook form.
    """)
    mo.accordion({"Method and limits": _text})
    return


if __name__ == "__main__":
    app.run()
