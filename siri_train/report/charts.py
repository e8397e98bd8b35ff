"""The charts of the report: their metrics, and the explanation under each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .data import Evaluation, Run, RunFolder, interval, number, series
from .lengths import length_map
from .pareto import Spot
from .scale import Point, running_mean
from .svg import Chart, Line, extent
from .table import COLOUR, accuracy_text

MOST_MAPS = 4
"""Runs whose lengths have a map."""
Mark = tuple[float, str, str]
Span = tuple[float, float, str, str]


@dataclass(frozen=True)
class Figure:
    """A chart with the explanation that stands under it."""

    chart: Chart
    text: str


@dataclass(frozen=True)
class Spec:
    """One chart over the steps: its metrics (key in metrics.jsonl, label) and what they mean."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    text: str
    unit: str = "number"
    ceiling: float | None = None
    optional: bool = False
    from_floor: bool = True


SPECS = (
    Spec(
        "Accuracy in training",
        (("accuracy", "all"), ("accuracy_finished", "finished")),
        "Share of sampled responses that are right. “All” takes every response; a truncated one "
        "seldom holds its answer yet. “Finished” leaves truncated responses out. The gap between "
        "the two curves is what the cap costs.",
        "percent",
        1.0,
        from_floor=False,
    ),
    Spec(
        "Entropy",
        (("entropy", ""),),
        "How undecided the policy is about its next token, in nats. With SIRI it tends to fall "
        "while the cap tightens and to recover as the cap opens. An entropy that stays near zero "
        "means that the policy no longer explores.",
    ),
    Spec(
        "Truncated responses",
        (("truncated_frac", ""),),
        "Share of sampled responses that reached the cap before they ended. What such a response "
        "holds is graded (or pays 0, with reward.truncated=zero), but it rarely holds its final "
        "answer yet. This is the pressure that shortens responses; near 100 % almost no response "
        "earns a reward and little is left to learn from.",
        "percent",
        1.0,
    ),
    Spec(
        "Groups all right or all wrong",
        (("groups_all_zero", "all wrong"), ("groups_all_one", "all right")),
        "A response's advantage compares it with the other responses to its question, its group. "
        "Where all of them are wrong, or all are right, every advantage is 0 and the question "
        "gives no gradient.",
        "share",
    ),
    Spec(
        "Backtracking",
        (("backtrack_per_1k", ""),),
        "How often a response says “wait” or “hold on”, per 1,000 tokens: a sign that it checks "
        "its own reasoning. In the paper these words become rare in compression and return in "
        "expansion.",
    ),
    Spec(
        "Gradient norm",
        (("grad_norm", ""),),
        "Norm of the gradient before clipping. Single spikes are harmless. A steady climb is "
        "usually the first sign that a run will diverge.",
    ),
    Spec(
        "Clipped tokens",
        (("clip_frac_low", "low"), ("clip_frac_high", "high")),
        "Share of tokens whose gradient the clip removes, at the lower and at the upper bound. "
        "High values mean that the policy has moved far from the one that sampled the responses.",
        "percent",
        1.0,
    ),
    Spec(
        "Sampler against trainer",
        (("rollout_kl", ""),),
        "KL divergence between the sampler's probabilities and the trainer's for the same tokens, "
        "in nats per token. It should stay near zero. If it grows, the engine samples from other "
        "weights or computes them differently.",
        optional=True,
    ),
    Spec(
        "Throughput",
        (("rollout_tokens_per_s", "rollout"), ("train_tokens_per_s", "train")),
        "Response tokens per second, when they are sampled (rollout) and when the policy is "
        "updated with them (train). Batches of shorter responses use the hardware less well, so "
        "both curves move with the cap.",
        "tokens",
    ),
)


def figures(folder: RunFolder) -> tuple[list[Figure], list[str]]:
    """The charts that the folder has data for, and the titles of the charts without data."""
    spans, marks = phases(folder), ends(folder)
    result: list[Figure] = []
    missing: list[str] = []
    candidates = [(_length(folder), False), (_held_out(folder), False)]
    candidates += [(found, True) for found in _maps(folder)]
    candidates += [(_from_spec(spec, folder), spec.optional) for spec in SPECS]
    for (chart, text), optional in candidates:
        if extent(chart) is None:
            missing += [] if optional else [chart.title]
            continue
        low, high = (extent(chart) or ((0.0, 0.0),))[0]
        within = [mark for mark in marks if low <= mark[0] <= high + 1]
        # the first chart names the phases, on the others the shading is enough
        shades = [(a, b, css, "" if result else label) for a, b, css, label in spans]
        result.append(
            Figure(
                Chart(
                    chart.title, chart.lines, chart.unit, chart.x_label, shades, within,
                    chart.floor, chart.ceiling, chart.from_floor, heat=chart.heat,
                ),
                text,
            )
        )  # fmt: skip
    return result, missing


def colours(folder: RunFolder) -> dict[str, str]:
    """Run name to colour class: SIRI blue, a control grey, further runs in colours of their own."""
    others = iter(["siri", *(f"alt{i}" for i in range(1, 8))] * len(folder.runs))
    alone = all(run.control for run in folder.runs)
    grey = next((run.name for run in folder.runs if run.control and not alone), None)
    return {run.name: "control" if run.name == grey else next(others) for run in folder.runs}


def phases(folder: RunFolder) -> list[Span]:
    """Compression and expansion phases of the first run that has them."""
    for run in folder.runs:
        spans: list[Span] = []
        for row in run.metrics:
            phase, step = row.get("phase"), float(row["step"])
            if phase not in ("compression", "expansion"):
                continue
            if spans and spans[-1][2] == phase:
                spans[-1] = (spans[-1][0], step + 1, phase, phase)
            else:
                spans.append((step, step + 1, phase, phase))
        if spans:
            return spans
    return []


def ends(folder: RunFolder) -> list[Mark]:
    """The steps of the siri-low and siri-high checkpoints, from the manifest or the summary."""
    found: dict[str, float] = {}
    for row in folder.summary:
        step = number(row.get("step"))
        if row.get("name") in ("siri-low", "siri-high") and step is not None:
            found[row["name"]] = step
    for run in folder.runs:
        for name in ("siri-low", "siri-high"):
            entry = run.manifest.get(name)
            step = number(entry.get("step")) if isinstance(entry, dict) else None
            if step is not None and not run.control:
                found[name] = step
    return [(step, COLOUR[name], COLOUR[name]) for name, step in sorted(found.items())]


def spots(folder: RunFolder) -> tuple[list[tuple[str, list[Spot]]], list[Spot]]:
    """The accuracy-length plane: each run's path, and the checkpoints to label."""
    chosen = colours(folder)
    paths = []
    for run in folder.runs:
        path = [_spot(one, run, chosen[run.name]) for one in run.evals]
        paths.append((chosen[run.name], [spot for spot in path if spot is not None]))
    named = []
    for row in folder.summary:
        tokens, accuracy = number(row.get("tokens")), number(row.get("accuracy"))
        if tokens is None or accuracy is None:
            continue
        name = str(row.get("name", ""))
        bounds = row.get("accuracy_interval")
        text = accuracy_text(accuracy, bounds)
        tip = f"{name}: {text}, {tokens:,.1f} tokens"
        css = COLOUR.get(name, "other")
        named.append(Spot(tokens, accuracy, interval(bounds), css, tip, name))
    if not named:  # a run that is still going: the latest evaluation of each name
        latest = {(run.name, one.name): (one, run) for run in folder.runs for one in run.evals}
        for one, run in latest.values():
            spot = _spot(one, run, COLOUR.get(one.name or "", "other"))
            if one.name and spot is not None:
                named.append(replace(spot, label=one.name))
    # a control without an evaluation at step 0 started from the same weights as the others
    start = next((spot for spot in named if spot.label == "start"), None)
    for run, (_, spots_of_run) in zip(folder.runs, paths, strict=True):
        if start and spots_of_run and not any(one.step == 0 for one in run.evals):
            spots_of_run.insert(0, start)
    return paths, named


def _spot(one: Evaluation, run: Run, css: str) -> Spot | None:
    if one.tokens is None or one.best is None:
        return None
    name = f" ({one.name})" if one.name else ""
    text = accuracy_text(one.best, one.best_interval)
    tip = f"{run.label} after {one.step:,} steps{name}: {text}, {one.tokens:,.1f} tokens"
    return Spot(one.tokens, one.best, one.best_interval, css, tip)


def _length(folder: RunFolder) -> tuple[Chart, str]:
    """The cap and how long responses are under it."""
    chosen, several = colours(folder), len(folder.runs) > 1
    lines = []
    for place, run in enumerate(folder.runs):
        css, prefix = chosen[run.name], f"{run.label} " if several else ""
        middle, upper = (series(run.metrics, f"response_len_{p}") for p in ("p50", "p95"))
        band = [(x, low, high) for (x, low), (_, high) in zip(middle, upper, strict=True)]
        lines.append(
            Line(
                f"{prefix}mean", series(run.metrics, "response_len_mean"), css,
                band=() if css == "control" else band, window=1, run=place,
            )
        )  # fmt: skip
        lines.append(
            Line(
                f"{prefix}cap", series(run.metrics, "cap"),
                "control" if css == "control" else "cap", "dashed", run=place,
            )
        )  # fmt: skip
    text = (
        "Dashed: the cap on response tokens at each step. Solid: the mean response; the band runs "
        "from the median to the 95th percentile. Shaded background: compression. Length usually "
        "follows the cap with a delay. Where the band touches the cap, responses are truncated."
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
    return found[:MOST_MAPS]


def _held_out(folder: RunFolder) -> tuple[Chart, str]:
    """Evaluations over the steps, at the largest and the smallest budget."""
    chosen, several = colours(folder), len(folder.runs) > 1
    lines = []
    both = False
    for order, run in enumerate(folder.runs):
        css, prefix = chosen[run.name], f"{run.label} " if several else ""
        budgets = sorted({budget for one in run.evals for budget in one.budgets})
        for budget in [budgets[-1], *budgets[:1]] if len(budgets) > 1 else budgets:
            points: list[Point] = []
            bars = []
            for one in run.evals:
                if budget in one.budgets:
                    place = one.budgets.index(budget)
                    points.append((float(one.step), one.accuracy[place]))
                    bounds = one.intervals[place]
                    if bounds and one.accuracy[place] is not None:
                        bars.append((float(one.step), *bounds))
            low = len(budgets) > 1 and budget == budgets[0]
            both = both or low
            lines.append(
                Line(
                    f"{prefix}at {budget:,}", points, css, "rings" if low else "dots", bars=bars,
                    run=order,
                )
            )  # fmt: skip
    text = (
        "Accuracy on held-out questions after so many steps, with its interval. “At N”: with at "
        "most N response tokens."
    )
    if both:
        text += (
            " Hollow: the same responses truncated at the smallest budget; a response that has "
            "not given its answer by then is wrong."
        )
    chart = Chart(
        "Held-out accuracy", lines, "percent", "steps done", ceiling=1.0, from_floor=False
    )
    return chart, text


def _from_spec(spec: Spec, folder: RunFolder) -> tuple[Chart, str]:
    chosen, several = colours(folder), len(folder.runs) > 1
    lines, text = [], spec.text
    averaged = 0
    for place, run in enumerate(folder.runs):
        for index, (key, label) in enumerate(spec.metrics):
            raw = series(run.metrics, key)
            window = max(5, len(raw) // 30)
            points, behind, mean = raw, (), 1
            if len(raw) >= 40:
                mean = window
                averaged = max(averaged, window)
                points, behind = running_mean(raw, window), raw  # type: ignore[assignment]
            name = " ".join(filter(None, [run.label if several else "", label]))
            look = "dashed" if index else "line"
            # a lone curve is named by the title above it
            lines.append(
                Line(
                    name or spec.title.lower(), points, chosen[run.name], look, behind,
                    beside="end" if name else "nowhere", window=mean, run=place,
                )
            )  # fmt: skip
    if averaged:
        text += f" Faint: single steps. Strong: their mean over {averaged} steps."
    unit, ceiling = spec.unit, spec.ceiling
    if unit == "share":  # written as a share of the groups, or as their number
        biggest = max([y for line in lines for _, y in line.points if y is not None], default=0.0)
        unit, ceiling = ("percent", 1.0) if biggest <= 1 else ("number", None)
    return Chart(spec.title, lines, unit, ceiling=ceiling, from_floor=spec.from_floor), text
