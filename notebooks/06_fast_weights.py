import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Fast weights")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.claims import capacity, update_rules
    from replib.claims.capacity import page as parts
    from replib.pages import controls
    from replib.pages.live import LiveRuns
    from replib.published import published


@app.cell(hide_code=True)
def _():
    mo.md("""
    # How many keys does linear attention remember?

    Linear attention is a **fast weight memory**: a matrix W to which every token adds its value
    times the features of its key, and from which a query reads. **The claims** (Schlag, Irie &
    Schmidhuber 2021, *Linear Transformers Are Secretly Fast Weight Memory Systems*, section 6.1):
    with R features it holds at most R keys apart, so that more features (*DPFP*) remember more;
    and as a sum never forgets, a key that is given a new value needs the **delta rule**, which
    first takes away what the key reads. **The 2022 replication** (Do & Bergner) did not look at
    either. The task: S keys with a value each, then a query for one of them.

    Features are not enough by themselves: training must find keys that they keep apart. *FAVOR+*,
    random exponentials that approximate softmax, has up to 1024, and the cards say how far it gets.
    """)
    return


@app.cell(hide_code=True)
def _():
    logs = published()["fastweights_logs"]
    recorded, recorded_rules = capacity.CLAIM.recorded(), update_rules.CLAIM.recorded()
    live = LiveRuns("capacity")
    get_changes, set_changes = mo.state(0, allow_self_loops=True)
    recorded.unread()
    return get_changes, live, logs, recorded, recorded_rules, set_changes


@app.cell(hide_code=True)
def _(get_changes, jobs, live, recorded, recorded_rules, settings):
    get_changes()
    _rows = live.rows(jobs, settings["device"])
    mo.vstack([recorded.cards(_rows), recorded_rules.cards(_rows)], gap=1.5)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## How many keys trained memories solve

    The loss of each memory against the number of keys S: recorded here, and hollow, as the authors
    published it. Below 0.001 a memory has solved S; with nothing remembered the loss is 0.5.
    """)
    return


@app.cell(hide_code=True)
def _(logs, recorded):
    parts.recorded_tabs(recorded.rows, logs)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Fill a memory and watch

    Random keys, no training: each write adds to W. Move *writes* to see it fill, and ask for a
    key: beside its own value it reads **crosstalk**, what other keys left in directions that are
    not orthogonal to it. Training, further below, is the search for keys without crosstalk; where
    there are more keys than features there are none. The rules: *sum* adds a value times the
    features of its key; *delta* adds the difference to what the key reads; *fwm*, its forerunner,
    does so and then shrinks W to length 1 (here without the layer normalisation of what is read,
    which trained memories have).
    """)
    return


@app.cell(hide_code=True)
def _():
    filling_panel, _shown = controls.panel(
        parts.filling_controls(), parts.training_controls(), [parts.SWITCHES]
    )
    _shown
    return (filling_panel,)


@app.cell(hide_code=True)
def _(filling_panel):
    _filling = controls.chosen(filling_panel)
    rule = _filling["fill_rule"]
    fill, _problem = controls.attempt(parts.fill_config, _filling)
    _problem
    return fill, rule


@app.cell(hide_code=True)
def _(fill):
    key, watch = parts.key_slider(fill), parts.fill_button()
    return key, watch


@app.cell(hide_code=True)
def _(fill, watch):
    watch  # which leaves all writes behind it
    writes = parts.write_slider(fill)
    return (writes,)


@app.cell(hide_code=True)
def _(key, watch, writes):
    parts.show_sliders(writes, key, watch)
    return


@app.cell(hide_code=True)
def _(fill, key, rule, watch, writes):
    parts.memory_view(fill, rule, writes.value, key.value, slowly=watch.value)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ### A key is given a new value

    By *sum* it reads the average of both, less what crosstalk takes, whatever the features; *delta*
    writes the difference of the new value and what the key reads, and so replaces the old one,
    where β is 1 and features have length 1; what later writes do to it is crosstalk again.
    """)
    return


@app.cell(hide_code=True)
def _(fill, key):
    parts.overwrite_view(fill, key.value)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ### Room for R keys

    The features of a key are a direction in R dimensions, and there are R orthogonal ones: from
    R + 1 keys on, some must overlap. Random keys overlap long before; the *effective rank* counts
    the dimensions that they use, by the eigenvalues of their cosines.
    """)
    return


@app.cell(hide_code=True)
def _(fill):
    parts.crosstalk_view(fill)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Try it: train a memory

    Keys and queries are learned here, as in the paper; a run ends when its loss is 0.001 or makes
    no progress in ten evaluations. Its end is a point among the recorded curves.
    """)
    return


@app.cell(hide_code=True)
def _():
    panel, _shown = controls.panel(
        parts.training_controls(), parts.filling_controls(), [parts.SWITCHES]
    )
    _shown
    return (panel,)


@app.cell(hide_code=True)
def _():
    switches = controls.switches(parts.SWITCHES, controls.asked_for(parts.SWITCHES))
    parts.show_defects(switches)
    return (switches,)


@app.cell(hide_code=True)
def _(panel, switches):
    settings = controls.chosen(panel, **parts.chosen_defects(switches))
    return (settings,)


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
def _(jobs, live, logs, recorded, set_changes, settings, tick):
    tick
    _progress = controls.watch(live, set_changes)
    _rows = live.showing(jobs, settings["device"])
    controls.live_only(_progress, parts.session_charts(_rows, recorded.rows, logs))
    return


@app.cell(hide_code=True)
def _(get_changes, live):
    get_changes()
    controls.history(live)
    return


@app.cell(hide_code=True)
def _():
    capacity.CLAIM.method(update_rules.CLAIM)
    return


if __name__ == "__main__":
    app.run()
