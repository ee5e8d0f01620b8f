"""Charts of a memory that is filled write by write.

The memory itself is one view with sliders of its own: a move of them changes signals in the
browser, and neither the server nor the page has to draw anew.
"""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from replib.claims.capacity.filling import Filling
from replib.pages import style

RULE_DASHES = {"sum": [1, 0], "delta": [7, 4], "fwm": [2, 3]}
SHORT = 180  # pixels
MEMORY_PX, ROW_PX = (160, 360), 9  # least and most of the memory's height, and a row's
W_ENDS, READS_BEGIN = (alt.ExprRef(f"{share} * width") for share in (0.56, 0.64))
TICK_MS = 160  # from one write to the next as it fills by itself


def memory_chart(filling: Filling, rule: str) -> alt.LayerChart:
    """W as a picture with a row a component of the values, and beside each row what a key reads of
    that component. Sliders choose the write and the key; at first the memory fills by itself."""
    config, last = filling.config, filling.config.last_writes
    n_writes, (n_rows, n_columns) = config.n_writes, filling.w.shape[1:]
    records = [
        {
            "after": after,
            "of": key + 1,
            "row": (row := int(last[after, key])),
            "old": key if row >= config.n_keys else -1,
            "read": [round(x, 4) for x in filling.reads[after, key].tolist()],
        }
        for after in range(n_writes + 1)
        for key in range(config.n_keys)
    ]
    colour, most = _colour(filling, rule), filling.w.abs().max().item()
    pictures = [
        {"after": i, "url": picture(w.tolist(), most, colour), "left": 0, "right": n_columns}
        for i, w in enumerate(filling.w)
    ]
    rows = {"y": _cells("y", "row", "component of the value", n_rows), "y2": "below:Q"}
    columns = alt.Scale(domain=[0, n_columns], range=[0, W_ENDS], nice=False)
    image = (
        alt.Chart(style.Records(values=pictures))
        .transform_filter("datum.after == writes")
        .transform_calculate(row="0", below=f"{n_rows}")
        .mark_image(aspect=False, smooth=False)
        .encode(_cells("x", "left", "W: feature", n_columns, columns), x2="right:Q", url="url:N")
        .encode(**rows)
    )
    asked = alt.Chart(style.Records(values=records)).transform_filter(
        "datum.after == writes && datum.of == asked_key"
    )
    low, high = min(0.0, filling.reads.min().item()), max(1.0, filling.reads.max().item())
    scale = alt.Scale(domain=[low, high], range=[READS_BEGIN, alt.ExprRef("width")], nice=False)
    axis = alt.Axis(orient="bottom", values=[0, 0.5, 1], grid=False, format="~g")
    x = alt.X("value:Q", title="what is read", scale=scale, axis=axis)
    bars = asked.transform_flatten(["read"], as_=["value"]).transform_window(i="row_number()")
    ones = alt.Chart(style.Records(values=[{"value": 0}, {"value": 1}]))
    reads = alt.layer(
        bars.transform_calculate(row="datum.i - 0.85", below="datum.i - 0.15", zero="0")
        .mark_rect()
        .encode(
            x,
            alt.X2("zero:Q"),
            color=alt.condition("datum.value < 0", alt.value(style.NEUTRAL), alt.value(colour)),
            tooltip=[alt.Tooltip("i:Q", title="component"), alt.Tooltip("value:Q", title="read")],
            **rows,
        ),
        ones.mark_rule(color=style.NEUTRAL, strokeDash=[2, 3]).encode(x),
    )
    frames = [
        asked.transform_calculate(row=f"datum.{field}", below=f"datum.{field} + 1")
        .transform_filter("datum.row >= 0")
        .mark_rect(fillOpacity=0, stroke=style.NEUTRAL, strokeWidth=2, strokeDash=dash)
        .encode(x=alt.value(0), x2=alt.value("width"), **rows)
        for field, dash in (("row", [1, 0]), ("old", [4, 3]))
    ]
    chart = style.finished(
        alt.layer(image, reads, *frames).resolve_scale(x="independent"),
        f"What a memory with the rule {rule} holds",
        "Grey is below 0. Framed: the component of the key's value, where 1 is right, and 0 "
        "elsewhere; dashed: that of its old value",
        f"The matrix W, {n_rows} x {n_columns}, after each write, and what a key reads of it.",
        min(MEMORY_PX[1], max(MEMORY_PX[0], ROW_PX * n_writes)),
    )
    written = f"'After ' + writes + ' of {n_writes} writes ({rule}):'"
    said = f"[{written}, 'what key ' + asked_key + ' reads']"  # two lines: a phone
    return _with_signals(chart, said, _sliders(n_writes, config.n_keys))


def _sliders(n_writes: int, n_keys: int) -> list[dict[str, Any]]:
    """Signals of Vega: Vega-Lite knows no clock."""
    tick, steps = {"type": "timer", "throttle": TICK_MS}, {"input": "range", "step": 1}
    is_short = f"writes < {n_writes}"
    again = {"events": {"signal": "filling"}, "update": f"filling && !({is_short}) ? 0 : writes"}
    return [
        {
            "name": "writes",
            "value": 0,
            "bind": steps | {"min": 0, "max": n_writes, "name": "writes "},
            "on": [
                {"events": tick, "update": f"filling && {is_short} ? writes + 1 : writes"},
                again,
            ],
        },
        {
            "name": "filling",
            "value": True,
            "bind": {"input": "checkbox", "name": "fill by itself "},
            "on": [{"events": tick, "update": f"filling && {is_short}"}],
        },
        {
            "name": "asked_key",
            "value": 1,
            "bind": steps | {"min": 1, "max": n_keys, "name": "key to ask for "},
        },
    ]


def _with_signals(
    chart: alt.LayerChart, title: str, signals: Sequence[Mapping[str, Any]]
) -> alt.LayerChart:
    """The chart with signals, and a title that follows them, in the Vega that a page compiles it
    to."""
    known = chart.usermeta["embedOptions"]["patch"] if isinstance(chart.usermeta, dict) else []
    patch = [*known, {"op": "replace", "path": "/title/text", "value": {"signal": title}}]
    patch += [{"op": "add", "path": "/signals/-", "value": signal} for signal in signals]
    return chart.properties(usermeta={"embedOptions": {"patch": patch}})


def picture(rows: Sequence[Sequence[float]], most: float, colour: str) -> str:
    """A PNG of a matrix as a data URL, a pixel an entry, as opaque as it is large, in a colour, and
    grey where it is negative; what is 0 is transparent."""
    colours = [tuple(bytes.fromhex(text[1:])) for text in (colour, style.NEUTRAL)]
    scale = 255 / most if most else 0.0
    lines = b"".join(
        b"\0" + b"".join(bytes((*colours[value < 0], round(abs(value) * scale))) for value in line)
        for line in rows
    )
    shape = struct.pack(">2I5B", len(rows[0]), len(rows), 8, 6, 0, 0, 0)  # 8 bits, RGBA
    parts = ((b"IHDR", shape), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _cells(
    channel: str, field: str, title: str, n: int, scale: alt.Scale | None = None
) -> alt.X | alt.Y:
    """The axis of n rows or columns: the first is 1, and a label stands in the middle of its
    own."""
    stride = next(s for s in (1, 5, 10, 20, 50, 100, 200, 500) if n / s <= 8)
    axis = alt.Axis(
        values=[i - 0.5 for i in ([1] * (stride > 1) + list(range(stride, n + 1, stride)))],
        labelExpr="datum.value + 0.5",
        orient="bottom" if channel == "x" else "left",
        grid=False,
        ticks=False,
        domain=False,
        labelOverlap=True,
    )
    kind = alt.Y if channel == "y" else alt.X
    scale = scale or alt.Scale(domain=[0, n], nice=False, reverse=True)
    return kind(f"{field}:Q", title=title, scale=scale, axis=axis)


def _colour(filling: Filling, rule: str) -> str:
    """Of a rule: a sum is what linear attention with these features does."""
    return style.colour(filling.config.memory.attention if rule == "sum" else rule)


def _rule_colour(fillings: Mapping[str, Filling]) -> alt.Color:
    colours = {rule: _colour(filling, rule) for rule, filling in fillings.items()}
    return style.looks(alt.Color, "rule:N", colours, legend=style.legend(colours, 3))


def losses_chart(fillings: Mapping[str, Filling]) -> alt.LayerChart:
    """The mean loss of all keys written so far along the writes, a line an update rule, with the
    places of R keys, and of the first key that comes back."""
    config = next(iter(fillings.values())).config
    losses = {rule: filling.losses.tolist() for rule, filling in fillings.items()}
    lines = [
        {"rule": rule, "n_writes": i, "loss": loss}
        for rule, of_rule in losses.items()
        for i, loss in enumerate(of_rule, start=1)
    ]
    scale = alt.Scale(domain=[0, config.n_writes], nice=False)
    x = alt.X("n_writes:Q", title="writes", scale=scale, axis=alt.Axis(grid=False, tickMinStep=1))
    most = max(1e-9, *map(max, losses.values()))
    dashes = {rule: RULE_DASHES[rule] for rule in losses}
    drawn = alt.Chart(style.records_of(pl.DataFrame(lines))).encode(
        x,
        alt.Y("loss:Q", title="loss", scale=alt.Scale(domain=[0, most * 1.3], nice=False)),
        _rule_colour(fillings),
        style.looks(alt.StrokeDash, "rule:N", dashes, legend=style.legend(losses, 3)),
        tooltip=["rule:N", alt.Tooltip("n_writes:Q", title="writes"), "loss:Q"],
    )
    layers = [drawn.mark_line(strokeWidth=2.5), drawn.mark_point(size=60, opacity=0)]
    marks = {"keys come back": config.n_keys} if config.n_again else {}
    marks[f"R = {config.memory.n_features}"] = config.memory.n_features
    for line, (text, at) in enumerate(marks.items()):
        if at < config.n_writes:
            base = alt.Chart(pl.DataFrame({"n_writes": [at]})).encode(x)
            place = ("right", -4) if at > config.n_writes / 2 else ("left", 4)
            label = base.mark_text(text=text, align=place[0], dx=place[1], color=style.NEUTRAL)
            y = alt.value(8 + line * style.LABEL_PX)
            layers += [style.rule_at(at, x), label.encode(y=y)]
    return style.finished(
        alt.layer(*layers),
        f"Lowest loss of all keys at the end: {min(losses, key=lambda rule: losses[rule][-1])}",
        "0.5·Σ squared error of what written keys read; 0 is all right",
        "Mean loss of all keys written so far against writes, a line an update rule.",
        SHORT,
    )


def overwrite_chart(fillings: Mapping[str, Filling]) -> alt.LayerChart:
    """How much of their new and of their old value keys read that were written twice, by rule."""
    title = "Keys that were given a new value"
    if not next(iter(fillings.values())).config.n_again:
        return style.no_data(f"{title}: none, move the slider")
    shares = {rule: filling.shares() for rule, filling in fillings.items()}
    lines = pl.DataFrame(
        [
            {"rule": rule, "part": part, "share": share}
            for rule, of_rule in shares.items()
            for part, share in of_rule.items()
        ]
    )
    extent = [min(0.0, lines["share"].min()), 1.12 * max(1.0, lines["share"].max())]
    base = alt.Chart(style.records_of(lines)).encode(
        alt.X("part:N", title=None, sort=None, axis=alt.Axis(labelAngle=0)),
        alt.Y("share:Q", title="how much is read", scale=alt.Scale(domain=extent, nice=False)),
        alt.XOffset("rule:N", sort=None),
    )
    text = base.mark_text(dy=-3, baseline="bottom", fontSize=10, color=style.NEUTRAL)
    old = {rule: of_rule["old value"] for rule, of_rule in shares.items()}
    return style.finished(
        alt.layer(
            base.mark_bar().encode(_rule_colour(fillings), tooltip=["rule:N", "part:N", "share:Q"]),
            text.encode(text=alt.Text("share:Q", format=".2f")),
        ),
        f"{title}: a sum reads {old['sum']:z.2f} of the old one, delta {old['delta']:z.2f}",
        "after all writes, mean of these keys",
        "How much of their new value, their old value and others keys read that were written "
        "twice, for each update rule.",
        SHORT,
    )
