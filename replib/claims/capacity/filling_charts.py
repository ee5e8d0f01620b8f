"""Charts of a memory that is filled write by write, and of the losses of memories in training."""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from replib.pages import style

POSITIVE, NEGATIVE = style.PALETTE["softmax"], style.PALETTE["linear"]
RULE_COLOURS = {
    "sum": style.PALETTE["linear"],
    "delta": style.PALETTE["delta"],
    "fwm": style.PALETTE["fwm"],
}
RULE_DASHES = {"sum": [1, 0], "delta": [7, 4], "fwm": [2, 3]}
ROLE_COLOURS = {
    "right value": style.PALETTE["delta"],
    "old value": style.PALETTE["linear"],
    "other values": style.NEUTRAL,
    "read": style.PALETTE["softmax"],
}
SHORT = 220  # pixels
WORTH_A_LABEL = 0.02  # of a share; smaller ones would stand in each other's way
LOSS_FLOOR = 1e-4  # lower losses are drawn here
SOLVED_LOSS = 1e-3  # where the retrieval task ends
CHANCE = 0.5


def matrix_chart(
    rows: Sequence[Sequence[float]],
    *,
    x: str,
    y: str,
    title: str,
    subtitle: str = "",
    height: int = style.HEIGHT,
    row: int | None = None,
) -> alt.LayerChart:
    """A matrix as a picture: blue above 0, orange below, the stronger the larger.

    Args:
        row: one to frame, counted from 0.
    """
    n_rows, n_columns = len(rows), len(rows[0])
    most = max((abs(value) for line in rows for value in line), default=0.0)
    corner = {"x": [0], "x2": [n_columns], "y": [0], "y2": [n_rows]}
    image = alt.Chart(pl.DataFrame(corner | {"url": [picture(rows, most)]}))
    place = {
        "x": _cells("x", x, n_columns),
        "y": _cells("y", y, n_rows, reverse=True),
        "x2": alt.X2("x2:Q"),
        "y2": alt.Y2("y2:Q"),
    }
    layers = [image.mark_image(aspect=False, smooth=False).encode(url="url:N", **place)]
    edge = {"fillOpacity": 0, "stroke": style.NEUTRAL}
    layers.append(image.mark_rect(strokeOpacity=0.5, **edge).encode(**place))
    if row is not None:
        framed = alt.Chart(pl.DataFrame(corner | {"y": [row], "y2": [row + 1]}))
        layers.append(framed.mark_rect(strokeWidth=2, **edge).encode(**place))
    scale = f"Blue above 0, orange below, full colour at {most:z.2g}" if most else "All 0 as yet"
    return style.finished(
        alt.layer(*layers),
        title,
        ". ".join(filter(None, (subtitle, scale))),
        f"{subtitle}. A picture of a matrix of {n_rows} rows ({y}) and {n_columns} columns ({x}); "
        f"its largest entry is {most:z.2g}.",
        height,
    )


def picture(rows: Sequence[Sequence[float]], most: float) -> str:
    """A PNG of a matrix as a data URL, a pixel an entry; what is 0 is transparent."""
    colours = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (POSITIVE, NEGATIVE)]
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


def _cells(channel: str, title: str, n: int, reverse: bool = False) -> alt.X | alt.Y:
    """The axis of n rows or columns: the first is 1, and a label stands in the middle of its
    own."""
    stride = next(s for s in (1, 5, 10, 20, 50, 100, 200, 500) if n / s <= 10)
    shown = [1, *range(stride, n + 1, stride)] if stride > 1 else range(1, n + 1)
    axis = alt.Axis(
        values=[i - 0.5 for i in shown],
        labelExpr="datum.value + 0.5",
        grid=False,
        ticks=False,
        domain=False,
        labelOverlap=True,
    )
    kind = alt.Y if channel == "y" else alt.X
    scale = alt.Scale(domain=[0, n], nice=False, reverse=reverse)
    return kind(f"{channel}:Q", title=title, scale=scale, axis=axis)


def reads_chart(frame: pl.DataFrame, *, x: str, title: str, subtitle: str) -> alt.LayerChart:
    """What a key reads, a bar a component, with a tick at what it should be.

    Args:
        frame: component (from 1), read, right, role (a key of ROLE_COLOURS).
    """
    n = len(frame)
    roles = [role for role in ROLE_COLOURS if role in set(frame["role"])]
    scale = alt.Scale(domain=roles, range=[ROLE_COLOURS[role] for role in roles])
    low = min(0.0, frame["read"].min(), frame["right"].min())
    high = max(frame["read"].max(), frame["right"].max(), 0.0) or 1.0
    drawn = style.records_of(frame.with_columns(x=pl.col("component") - 1, zero=pl.lit(0.0)))
    base = alt.Chart(drawn.with_columns(left=pl.col("x") + 0.12, right_edge=pl.col("x") + 0.88))
    margin = 0.08 * (high - low)
    domain = [low - margin if low < 0 else 0, high + margin]
    y = alt.Y(
        "read:Q",
        title="read",
        scale=alt.Scale(domain=domain, nice=False),
        axis=alt.Axis(tickCount=5, format="~g"),
    )
    tooltip = [
        alt.Tooltip("component:Q", title="component"),
        alt.Tooltip("read:Q", title="read", format=".4~g"),
        alt.Tooltip("right:Q", title="right", format=".4~g"),
    ]
    place = _cells("left", x, n), alt.X2("right_edge:Q")
    bars = base.mark_rect().encode(
        *place,
        y,
        alt.Y2("zero:Q"),
        alt.Color("role:N", title=None, scale=scale, legend=style.legend(roles, 3)),
        tooltip=tooltip,
    )
    ticks = base.mark_rule(strokeWidth=2.5, color=style.NEUTRAL).encode(
        *place, alt.Y("right:Q", title="read")
    )
    return style.finished(
        alt.layer(bars, ticks),
        title,
        subtitle,
        f"What a key reads from the memory in {n} components, a bar each, and a line at the right "
        "one.",
        SHORT,
    )


def writes_chart(
    frame: pl.DataFrame, *, marks: Mapping[str, int], n_writes: int, title: str, subtitle: str
) -> alt.LayerChart:
    """Loss over the writes of a filling, a line an update rule.

    Args:
        frame: rule, n_writes, loss.
        marks: texts to write at numbers of writes, where they are within the chart.
        n_writes: where the memory stands.
    """
    last = frame["n_writes"].max()
    most = max(1e-9, frame["loss"].max())
    rules = [rule for rule in RULE_COLOURS if rule in set(frame["rule"])]
    colour = alt.Scale(domain=rules, range=[RULE_COLOURS[rule] for rule in rules])
    dash = alt.Scale(domain=rules, range=[RULE_DASHES[rule] for rule in rules])
    x = alt.X(
        "n_writes:Q",
        title="writes",
        scale=alt.Scale(domain=[0, last], nice=False),
        axis=alt.Axis(grid=False, tickMinStep=1),
    )
    scale = alt.Scale(domain=[0, most * 1.25], nice=False)
    y = alt.Y("loss:Q", title="loss, 0.5·Σ squared error", scale=scale)
    legend = style.legend(rules, 3)
    lines = alt.Chart(style.records_of(frame)).encode(
        x,
        y,
        alt.Color("rule:N", title=None, scale=colour, legend=legend),
        alt.StrokeDash("rule:N", title=None, scale=dash, legend=legend),
    )
    tooltip = ["rule:N", alt.Tooltip("n_writes:Q", title="writes"), alt.Tooltip("loss:Q")]
    now = alt.Chart(pl.DataFrame({"n_writes": [n_writes]}))
    layers = [
        lines.mark_line(strokeWidth=2.5, clip=True),
        lines.mark_point(size=60, opacity=0).encode(tooltip=tooltip),
        now.mark_rule(color=style.NEUTRAL, strokeWidth=2).encode(x),
        *_marks({text: at for text, at in marks.items() if 0 < at <= last}, x, last),
    ]
    description = "Mean loss of all keys written so far against writes, a line an update rule."
    return style.finished(alt.layer(*layers), title, subtitle, description, SHORT)


def _marks(marks: Mapping[str, int], x: alt.X, last: int) -> list[alt.Chart]:
    """Dashed lines with their texts, on the side where there is room."""
    layers = []
    for line, (text, at) in enumerate(marks.items()):
        data = pl.DataFrame({"n_writes": [at], "text": [text]})
        base = alt.Chart(data).encode(x)
        side = {"align": "right", "dx": -4} if at > last / 2 else {"align": "left", "dx": 4}
        label = base.mark_text(baseline="top", color=style.NEUTRAL, **side)
        layers.append(base.mark_rule(color=style.NEUTRAL, strokeDash=[4, 3]))
        layers.append(label.encode(y=alt.value(2 + line * style.LABEL_PX), text="text:N"))
    return layers


def overwrite_chart(frame: pl.DataFrame, *, title: str, subtitle: str) -> alt.LayerChart:
    """How much of the new and of the old value a key reads that was written twice, by rule.

    Args:
        frame: rule, part (a key of ROLE_COLOURS), share: of that value, as a component.
    """
    parts = frame["part"].unique(maintain_order=True).to_list()
    scale = alt.Scale(domain=parts, range=[ROLE_COLOURS[part] for part in parts])
    rules = frame["rule"].unique(maintain_order=True).to_list()
    extent = [min(0.0, frame["share"].min()), 1.12 * max(1.0, frame["share"].max())]
    base = alt.Chart(style.records_of(frame)).encode(
        alt.X("rule:N", title=None, sort=rules, axis=alt.Axis(labelAngle=0)),
        alt.Y(
            "share:Q",
            title="how much of it is read",
            scale=alt.Scale(domain=extent, nice=False),
            axis=alt.Axis(tickCount=5),
        ),
        xOffset=alt.XOffset("part:N", sort=parts),
        color=alt.Color("part:N", title=None, scale=scale, legend=style.legend(parts, 3)),
    )
    text = base.mark_text(dy=-3, baseline="bottom", fontSize=10).encode(
        text=alt.Text("share:Q", format=".2f"), color=alt.value(style.NEUTRAL)
    )
    text = text.transform_filter(f"datum.share > {WORTH_A_LABEL}")
    bars = base.mark_bar().encode(
        tooltip=["rule:N", "part:N", alt.Tooltip("share:Q", format=".3f")]
    )
    return style.finished(
        alt.layer(bars, text),
        title,
        subtitle,
        "How much of its new value, its old value and others a key reads that was written twice, "
        "for each update rule.",
        SHORT,
    )


def rank_chart(
    frame: pl.DataFrame, *, n_features: int, n_keys: int, title: str, subtitle: str
) -> alt.LayerChart:
    """How many dimensions the features of the first n keys fill, with the line at R that they
    cannot pass.

    Args:
        frame: n_keys, rank, effective.
    """
    last = frame["n_keys"].max()
    long = frame.with_columns(ideal=pl.min_horizontal("n_keys", pl.lit(n_features))).unpivot(
        ["rank", "effective", "ideal"], index="n_keys", variable_name="what", value_name="value"
    )
    names = {"ideal": "if all were orthogonal", "rank": "rank", "effective": "effective rank"}
    long = long.with_columns(what=pl.col("what").replace_strict(names))
    order = list(names.values())
    colours = [style.NEUTRAL, style.PALETTE["dpfp"], style.PALETTE["softmax"]]
    dashes = [[2, 3], [7, 4], [1, 0]]
    legend = {"title": None, "legend": style.legend(order)}
    x = alt.X(
        "n_keys:Q",
        title="number of keys",
        scale=alt.Scale(domain=[0, last], nice=False),
        axis=alt.Axis(grid=False),
    )
    top = n_features * 1.2
    y = alt.Y("value:Q", title="dimensions", scale=alt.Scale(domain=[0, top], nice=False))
    lines = alt.Chart(style.records_of(long)).encode(
        x,
        y,
        alt.Color("what:N", scale=alt.Scale(domain=order, range=colours), **legend),
        alt.StrokeDash("what:N", scale=alt.Scale(domain=order, range=dashes), **legend),
    )
    limit = alt.Chart(pl.DataFrame({"n_keys": [0], "value": [n_features]}))
    shown = alt.Chart(pl.DataFrame({"n_keys": [n_keys]}))
    layers = [
        lines.mark_line(strokeWidth=2.5),
        lines.mark_point(size=60, opacity=0).encode(tooltip=["what:N", "n_keys:Q", "value:Q"]),
        limit.mark_rule(color=style.NEUTRAL).encode(alt.Y("value:Q")),
        limit.mark_text(
            text=f"R = {n_features}",
            color=style.NEUTRAL,
            align="left",
            dy=-9,
        ).encode(x=alt.value(6), y=alt.Y("value:Q")),
        shown.mark_rule(color=style.NEUTRAL, strokeDash=[4, 3]).encode(x),
    ]
    return style.finished(
        alt.layer(*layers),
        title,
        subtitle,
        "Rank and effective rank of the features of the first n keys against n, with a line at "
        f"the feature size {n_features}.",
        SHORT,
    )


def eigenvalues_chart(values: Sequence[float], *, title: str, subtitle: str) -> alt.LayerChart:
    """The eigenvalues of the cosines between keys, the largest first, with a line at 1, where
    those of orthogonal keys are."""
    floor = 1e-6
    data = pl.DataFrame(
        {"index": range(1, len(values) + 1), "value": [max(v, floor) for v in values]}
    )
    domain = style.log_domain([*data["value"], 0.1, 1.0], 1.3)
    points = alt.Chart(style.records_of(data)).encode(
        alt.X("index:Q", title="eigenvalue, by size", axis=alt.Axis(grid=False, tickMinStep=1)),
        style.log_axis("value", "eigenvalue", domain),
        tooltip=["index:Q", "value:Q"],
    )
    return style.finished(
        alt.layer(
            points.mark_point(filled=True, size=30, opacity=1, color=style.PALETTE["softmax"]),
            style.rule_at("y", 1.0),
        ),
        title,
        subtitle,
        "Eigenvalues of the matrix of cosines between the keys' features, the largest first.",
        SHORT,
    )


def memory_curves(frame: pl.DataFrame, *, title: str) -> alt.LayerChart:
    """Loss over the steps of runs of associative retrieval, a line a run, with a line where it
    counts as solved.

    Args:
        frame: of `frames.training_curves`, of runs that differ in features and seed alone.
    """
    if frame.is_empty():
        return style.no_data(title)
    value = pl.when(pl.col("loss").is_finite()).then(pl.col("loss").clip(lower_bound=LOSS_FLOOR))
    drawn = frame.with_columns(value=value)
    names = drawn.select("attention", "series").unique(maintain_order=True)
    order = style.ordered_attention(names["attention"])
    names = sorted(names.rows(), key=lambda row: order.index(row[0]))
    shown = [series for _, series in names]
    scale = alt.Scale(domain=shown, range=[style.colour(name) for name, _ in names])
    domain = style.log_domain([LOSS_FLOOR, CHANCE, *drawn["value"]], 1.3)
    lines = alt.Chart(style.records_of(drawn)).encode(
        style.step_axis(),
        style.log_axis("value", "loss, 0.5·Σ squared error", domain),
        alt.Color("series:N", title=None, scale=scale, legend=style.legend(shown, 3)),
        alt.Detail("seed:N"),
    )
    tooltip = ["series:N", "seed:Q", "step:Q", alt.Tooltip("loss:Q", format=".4~g")]
    layers = [
        style.rule_at("y", SOLVED_LOSS),
        style.rule_at("y", CHANCE),
        _text_at("solved", SOLVED_LOSS),
        _text_at("nothing read", CHANCE),
        lines.mark_line(strokeWidth=2, clip=True),
        lines.mark_point(filled=True, size=25, opacity=1).encode(tooltip=tooltip),
    ]
    return style.finished(
        alt.layer(*layers),
        title,
        style.devices_of(frame),
        "Loss of the runs of this session against training steps, on a log axis.",
    )


def _text_at(text: str, value: float) -> alt.Chart:
    """A text on the right, where curves are rarely."""
    base = alt.Chart(pl.DataFrame({"value": [value]}))
    mark = base.mark_text(align="right", baseline="bottom", dy=-2, text=text, color=style.NEUTRAL)
    return mark.encode(x=alt.value("width"), y=alt.Y("value:Q"))
