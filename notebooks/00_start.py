import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Does linear attention do what the paper says?")

with app.setup(hide_code=True):
    import marimo as mo

    from replib.attention import by_hand
    from replib.claims import start
    from replib.pages import code, controls, layout, step_through
    from replib.pages.controls import Control


@app.cell(hide_code=True)
def _():
    mo.md(f"""
    # {start.QUESTION}

    *Transformers are RNNs* (Katharopoulos et al. 2020) leaves the softmax out of attention and
    promises the same learning, a cost that grows as N in place of N², and a Transformer that writes
    like an RNN. A replication of 2022 (Do & Bergner) found it slower, and not learning. Here both
    are tried again: on recorded runs, and live on your machine.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.vstack([mo.md(f"## {start.ANSWER}"), start.answers()])
    return


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## What linear attention is

    A position asks with a query $q_i$; every position up to it has a key $k_j$ and a value $v_j$.
    **Softmax attention** returns the mean of the values, each weighted by how well its key fits:

    $$y_i = \sum_{j \le i} \frac{e^{q_i \cdot k_j / \sqrt{D}}}
      {\sum_{l \le i} e^{q_i \cdot k_l / \sqrt{D}}} \, v_j$$

    The exponential ties each query to each key: N positions need N² of them. **Linear attention**
    takes another similarity, $\varphi(q_i) \cdot \varphi(k_j)$, with a *feature map* such as
    $\varphi(x) = \mathrm{elu}(x) + 1$ (eq. 4 and 7). Then the query can be taken out of the sums
    (eq. 5, 6 and 9):

    $$y_i = \frac{\sum_{j \le i} \big(\varphi(q_i) \cdot \varphi(k_j)\big) \, v_j}
      {\sum_{j \le i} \varphi(q_i) \cdot \varphi(k_j)}
      = \frac{\varphi(q_i)^\top S_i}{\varphi(q_i)^\top z_i}$$

    $$S_i = \sum_{j \le i} \varphi(k_j) v_j^\top, \qquad z_i = \sum_{j \le i} \varphi(k_j)$$

    $S$ and $z$ are sums: each position adds to them, and their size never changes. That is the
    state of an RNN (eq. 18 to 20). The order of a product is all that differs, $(AB)C = A(BC)$.
    """)
    return


@app.cell(hide_code=True)
def _():
    _matrix = (
        r"\begin{gathered} A = \mathrm{tril}\big(\varphi(Q) \varphi(K)^\top\big) \\ "
        r"y_i = \textstyle\sum_j A_{ij} v_j \,/\, \sum_j A_{ij} \end{gathered}"
    )
    _rnn = (
        r"\begin{gathered} S_i = S_{i-1} + \varphi(k_i) v_i^\top, \quad z_i = z_{i-1} + "
        r"\varphi(k_i) \\ y_i = \varphi(q_i)^\top S_i \,/\, \varphi(q_i)^\top z_i \end{gathered}"
    )
    layout.grid(
        [code.source(by_hand.as_matrix, _matrix), code.source(by_hand.as_rnn, _rnn)], "26rem"
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Watch it: one position after another

    Both functions on a short text; each letter is a query, a key and a value, and equal letters
    have equal ones. Move the position, or let it play.
    """)
    return


@app.cell(hide_code=True)
def _():
    panel, _shown = controls.panel(
        [
            Control("seq_len", "Sequence length", (4, 6, 8, 10, 12, 16, 20, 24, 32), 12),
            Control("head_dim", "Head size", (4, 6, 8), 4),
            Control("feature_map", "Feature map", tuple(step_through.FEATURE_MAPS), "elu1"),
        ]
    )
    get_position, set_position = mo.state(1)
    get_playing, set_playing = mo.state(True, allow_self_loops=True)
    shown = {"position": 1}
    _shown
    return get_playing, get_position, panel, set_playing, set_position, shown


@app.cell(hide_code=True)
def _(set_position, shown):
    def move(n):
        shown["position"] = n
        set_position(n)

    def position_slider(n, last, **options):
        options |= {"label": "Position", "show_value": True, "full_width": True}
        return mo.ui.slider(1, last, value=min(n, last), **options)

    return move, position_slider


@app.cell(hide_code=True)
def _(panel):
    walk = step_through.walk(**controls.chosen(panel))
    last = len(walk.letters)
    return last, walk


@app.cell(hide_code=True)
def _(get_playing, last, move, set_playing, shown):
    def _press(_):
        if not get_playing() and shown["position"] >= last:
            move(1)
        set_playing(lambda playing: not playing)

    tick = mo.ui.refresh(default_interval=step_through.EVERY_S) if get_playing() else None
    play = mo.ui.button(label="Pause" if get_playing() else "Play", on_click=_press)
    layout.inputs(play, layout.unseen(tick))
    return (tick,)


@app.cell(hide_code=True)
def _(last, move, set_playing, shown, tick):
    if tick is not None and tick.value:
        move(min(shown["position"] + 1, last))
        if shown["position"] == last:
            set_playing(False)
    return


@app.cell(hide_code=True)
def _(get_playing, get_position, last, position_slider):
    # Two cells: this one is made anew at each step of the player, and what a reader does with a
    # slider that has been replaced meanwhile would be dropped.
    layout.inputs(position_slider(get_position(), last, disabled=True)) if get_playing() else None
    return


@app.cell(hide_code=True)
def _(get_playing, last, move, position_slider, shown):
    position = position_slider(shown["position"], last, on_change=move)
    None if get_playing() else layout.inputs(position)
    return


@app.cell(hide_code=True)
def _(get_position, last, walk):
    step_through.picture(walk, min(get_position(), last))
    return


@app.cell(hide_code=True)
def _():
    mo.md(step_through.at_real_size())
    return


@app.cell(hide_code=True)
def _():
    mo.vstack([mo.md("## The claims, a page each"), start.cards()])
    return


@app.cell(hide_code=True)
def _():
    start.glossary()
    return


if __name__ == "__main__":
    app.run()
