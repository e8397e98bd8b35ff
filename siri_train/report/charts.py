"""The charts of the report: their metrics, and the explanation under each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from siri_train.statistics.pareto import front

from .alarm_lanes import alarm_chart
from .checkpoint_names import measured, point_name
from .data import Evaluation, Run, RunFolder, interval, number, series
from .entropy_band import WINDOW, Seen, seen
from .group_charts import group_charts
from .held_out import ends_chart, held_out_chart
from .lengths import length_map
from .many import MOST_BANDS, MOST_FAINT, waiting
from .pareto import Spot
from .run_looks import colours
from .samples import evenly
from .scale import running_mean, show
from .specs import SPECS, Spec
from .svg import Chart, Line, extent
from .table import COLOUR, accuracy_text, css_of

__all__ = ["SPECS", "Figure", "colours", "ends", "figures", "phases", "quiet", "spots"]

MOST_SPOTS = 600
"""Points of the accuracy-length plane; of more, those on the front and others evenly apart."""
MOST_MAPS = 4
"""Runs whose lengths have a map."""
_CYCLED = ("compression", "expansion")
Mark = tuple[float, str, str]
Span = tuple[float, float, str, str]


@dataclass(frozen=True)
class Figure:
    """A chart with the explanation that stands under it."""

    chart: Chart
    text: str


def figures(folder: RunFolder) -> tuple[list[Figure], list[str]]:
    """The charts that the folder has data for, and the titles of the charts without data."""
    spans, marks, closed = phases(folder), ends(folder), waiting(folder)
    result: list[Figure] = []
    missing: list[str] = []
    chosen = colours(folder)
    groups = group_charts(folder, chosen)
    candidates = [
        (_length(folder), False),
        (ends_chart(folder, chosen), True),
        (held_out_chart(folder, chosen), False),
    ]
    candidates += [(found, True) for found in _maps(folder)]
    for spec in SPECS:
        if spec.title != "Backtracking" or not groups:
            hidden = spec.optional or _noise(spec, folder) is not None
            candidates.append((_from_spec(spec, folder), hidden))
        if spec.title == "Backtracking":
            candidates += [(group, True) for group in groups]
    lanes = alarm_chart(folder)
    if lanes is not None:
        candidates.insert(3, (lanes, True))
    for (chart, text), optional in candidates:
        if closed and not chart.y_names:
            lines = [replace(line, waiting=line.run in closed) for line in chart.lines]
            chart = replace(chart, lines=lines)
        if extent(chart) is None:
            missing += [] if optional else [chart.title]
            continue
        shown = [*spans, *_whole(folder)] if chart.y_names else spans
        xs = [a for a, *_ in shown] + [b for _, b, *_ in shown] if chart.y_names else []
        low, high = (extent(chart) or ((0.0, 0.0),))[0]
        low, high = min(low, *xs) if xs else low, max(high, *xs) if xs else high
        within = [mark for mark in marks if low <= mark[0] <= high + 1]
        # the first chart names the phases, on the others the shading is enough
        shades = [(a, b, css, "" if result else label) for a, b, css, label in shown]
        result.append(Figure(replace(chart, spans=shades, marks=within), text))
    return result, missing


def quiet(folder: RunFolder) -> list[str]:
    """The charts that would show rounding errors alone, in words.

    Args:
        folder: as it was read.
    """
    said = []
    for spec in SPECS:
        largest = _noise(spec, folder)
        if largest is not None:
            off = f"differ from {spec.about:g} by" if spec.about else "are"
            said.append(
                f"{spec.title}: all values {off} at most {largest:.1g}, which is rounding"
                if largest
                else f"{spec.title}: all values are exactly {spec.about:g}"
            )
    return said


def _noise(spec: Spec, folder: RunFolder, only: str | None = None) -> float | None:
    """The largest distance of a spec's values if all are rounding errors; None if not.

    Args:
        spec: the chart.
        folder: as it was read.
        only: one of its metrics; None: all of them.
    """
    if spec.noise is None:
        return None
    values = [
        abs(value - spec.about)
        for run in folder.runs
        for row in run.metrics
        for key, _ in spec.metrics
        if only in (None, key) and (value := number(row.get(key))) is not None
    ]
    return max(values) if values and max(values) < spec.noise else None


def _whole(folder: RunFolder) -> list[Span]:
    """All steps, unseen: alarms have the same axis as the other charts."""
    steps = [float(row["step"]) for run in folder.runs for row in run.metrics]
    return [(min(steps), max(steps) + 1, "whole", "")] if steps else []


def phases(folder: RunFolder) -> list[Span]:
    """Compression and expansion phases of the first run that has them."""
    for run in folder.runs:
        spans: list[Span] = []
        for row in run.metrics:
            phase, step = row.get("phase"), float(row["step"])
            if phase not in _CYCLED:
                continue
            if spans and spans[-1][2] == phase:
                spans[-1] = (spans[-1][0], step + 1, phase, phase)
            else:
                spans.append((step, step + 1, phase, phase))
        if spans:
            return spans
    return []


def ends(folder: RunFolder) -> list[Mark]:
    """The steps of the siri-low and siri-high checkpoints, from the manifest or the summary.

    Of several runs those of the run whose phases are shaded.
    """
    found: dict[str, float] = {}
    for row in folder.summary:
        step = number(row.get("step"))
        if row.get("name") in ("siri-low", "siri-high") and step is not None:
            found[row["name"]] = step
    run = _cycled(folder)
    manifest = {} if run is None or measured(folder) else run.manifest
    for name in ("siri-low", "siri-high"):
        entry = manifest.get(name)
        step = number(entry.get("step")) if isinstance(entry, dict) else None
        if step is not None:
            found[name] = step
    return [(step, COLOUR[name], COLOUR[name]) for name, step in sorted(found.items())]


def _cycled(folder: RunFolder) -> Run | None:
    """The run whose phases are shaded; without any the first that is no control."""
    runs = [run for run in folder.runs if not run.control]
    shaded = (r for r in runs if any(row.get("phase") in _CYCLED for row in r.metrics))
    return next(shaded, next((run for run in runs if run.manifest), None))


def spots(folder: RunFolder) -> tuple[list[tuple[str, list[Spot]]], list[Spot]]:
    """The accuracy-length plane: each run's path, and the checkpoints to label."""
    chosen = colours(folder)
    paths = []
    for run in folder.runs:
        path = [_spot(folder, one, run, chosen[run.name]) for one in run.evals]
        paths.append((chosen[run.name], [spot for spot in path if spot is not None]))
    paths = _thinned(paths)
    named = []
    places = {run.name: place for place, run in enumerate(folder.runs)}
    for row in folder.summary:
        tokens, accuracy = number(row.get("tokens")), number(row.get("accuracy"))
        if tokens is None or accuracy is None:
            continue
        name = str(row.get("name", ""))
        bounds = row.get("accuracy_interval")
        text = accuracy_text(accuracy, bounds)
        tip = f"{name}: {text}, {tokens:,.1f} tokens"
        css = css_of(row, chosen if folder.several else {})
        place = places.get(str(row.get("run")))
        named.append(Spot(tokens, accuracy, interval(bounds), css, tip, name, place))
    if not named:  # a run that is still going: the latest evaluation of each name
        latest = {(run.name, one.name): (one, run) for run in folder.runs for one in run.evals}
        for one, run in latest.values():
            spot = _spot(folder, one, run, COLOUR.get(one.name or "", "other"))
            if one.name and spot is not None:
                named.append(replace(spot, label=one.name, run=places[run.name]))
    # a control without an evaluation at step 0 started from the same weights as the others
    start = next((spot for spot in named if spot.label == "start"), None)
    for run, (_, spots_of_run) in zip(folder.runs, paths, strict=True):
        if start and spots_of_run and not any(one.step == 0 for one in run.evals):
            spots_of_run.insert(0, start)
    return paths, named


def _thinned(paths: list[tuple[str, list[Spot]]]) -> list[tuple[str, list[Spot]]]:
    every = [spot for _, path in paths for spot in path]
    if len(every) <= MOST_SPOTS:
        return paths
    best = {id(every[k]) for k in front([(one.tokens, one.accuracy) for one in every])}
    most = max(MOST_SPOTS // len(paths), 2)
    thin = []
    for css, path in paths:
        kept = best | {id(spot) for spot in evenly(path, most)}
        thin.append((css, [spot for spot in path if id(spot) in kept]))
    return thin


def _spot(folder: RunFolder, one: Evaluation, run: Run, css: str) -> Spot | None:
    if one.tokens is None or one.best is None:
        return None
    text = accuracy_text(one.best, one.best_interval)
    tip = f"{point_name(folder, run, one)}: {text}, {one.tokens:,.1f} tokens"
    return Spot(one.tokens, one.best, one.best_interval, css, tip)


def _length(folder: RunFolder) -> tuple[Chart, str]:
    """The cap and how long responses are under it."""
    chosen, several = colours(folder), len(folder.runs) > 1
    bands = len(folder.runs) <= MOST_BANDS
    lines = []
    for place, run in enumerate(folder.runs):
        css, prefix = chosen[run.name], f"{run.label} " if several else ""
        middle, upper = (series(run.metrics, f"response_len_{p}") for p in ("p50", "p95"))
        band = [(x, low, high) for (x, low), (_, high) in zip(middle, upper, strict=True)]
        lines.append(
            Line(
                f"{prefix}mean", series(run.metrics, "response_len_mean"), css,
                band=band if bands and css != "control" else (), window=1, run=place,
            )
        )  # fmt: skip
        lines.append(
            Line(
                f"{prefix}cap", series(run.metrics, "cap"),
                "control" if css == "control" else "cap", "dashed", run=place,
            )
        )  # fmt: skip
    text = (
        "Thin dashes: the cap on response tokens at each step. In colour: the mean response"
        + (
            "; the band runs from the median to the 95th percentile. Where it touches the cap, "
            "responses are truncated. "
            if bands
            else f". More than {MOST_BANDS} runs have no bands. "
        )
        + "Shaded background: compression. Length usually follows the cap with a delay."
    )
    return Chart("Cap and response length", lines, "tokens"), text


def _maps(folder: RunFolder) -> list[tuple[Chart, str]]:
    """The lengths of the first runs that have recorded them."""
    chosen, several = colours(folder), len(folder.runs) > 1
    text = (
        "Each column is the histogram of the responses of a step, or of several where there are "
        "many: the darker, the larger their share. Dashed: the cap. Solid: the mean response."
    )
    found = []
    for place, run in enumerate(folder.runs):
        title = f"Response lengths of {run.label}" if several else "Response lengths"
        chart = length_map(run, place, title, chosen[run.name])
        if chart is not None:
            found.append((chart, text))
    more = len(found) - MOST_MAPS
    if more > 0:
        found = found[:MOST_MAPS]
        chart, text = found[-1]
        found[-1] = chart, f"{text} {more} more runs have recorded lengths and have no map here."
    return found


def _from_spec(spec: Spec, folder: RunFolder) -> tuple[Chart, str]:
    chosen, several = colours(folder), len(folder.runs) > 1
    lines, text = [], spec.text
    averaged = 0
    if _noise(spec, folder) is not None:
        return Chart(spec.title, []), text
    shown = []
    for key, label in spec.metrics:
        off = _noise(spec, folder, key)
        if off is None:
            shown.append((key, label))
        else:
            text += f" Not drawn: “{label}”, at most {off:.1g} from {spec.about:g}."
    for place, run in enumerate(folder.runs):
        for index, (key, label) in enumerate(shown):
            raw = series(run.metrics, key)
            window = max(5, len(raw) // 30)
            points, behind, mean = raw, (), 1
            if len(raw) >= 40:
                mean = window
                averaged = max(averaged, window)
                points, behind = running_mean(raw, window), raw  # type: ignore[assignment]
            name = " ".join(filter(None, [run.label if several else "", label]))
            look = "dashed" if index else "line"
            means = seen(run.metrics) if key == "entropy" else None
            band = None if means is None else means.of_cycle
            if means is not None and band is not None:
                text += _of_band(run, means, band, several, "Shaded:" not in text)
            # a lone curve is named by the title above it
            lines.append(
                Line(
                    name or spec.title.lower(), points, chosen[run.name], look, behind,
                    band=[(x, *band) for x in (raw[0][0], raw[-1][0])] if band else (),
                    beside="end" if name else "nowhere", window=mean, run=place,
                )
            )  # fmt: skip
    if averaged:
        text += (
            f" Faint: single steps. Strong: their mean over {averaged} steps."
            if len(folder.runs) <= MOST_FAINT
            else f" Curves are means over {averaged} steps; the values under the pointer are those "
            "of single steps."
        )
    unit, ceiling = spec.unit, spec.ceiling
    if unit == "share":  # written as a share of the groups, or as their number
        biggest = max([y for line in lines for _, y in line.points if y is not None], default=0.0)
        unit, ceiling = ("percent", 1.0) if biggest <= 1 else ("number", None)
    return Chart(spec.title, lines, unit, ceiling=ceiling, from_floor=spec.from_floor), text


def _of_band(run: Run, means: Seen, band: tuple[float, float], several: bool, first: bool) -> str:
    """The entropy's band in words, and how much of the run left it; the first says what it is."""
    below, above, steps = means.outside()
    whose = f" of {run.label}" if several else ""
    low, high = show(band[0], "number"), show(band[1], "number")
    left = f"{below:,} of the {steps:,} steps behind that cycle lie below it and {above:,} above"
    if not first:
        return f" {run.label}: {low} to {high} nats" + (f"; {left}." if steps else ".")
    text = (
        f" Shaded: the band{whose}, {low} to {high} nats: what the first cycle covered behind its "
        "first quarter, and half of that height on either side, at least 15 % of the mean."
    )
    return text + (f" Of means over {WINDOW} steps, {left}." if steps else "")
