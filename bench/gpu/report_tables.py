"""The Markdown of a GPU run, from ``gpu.json``'s object alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

Result = dict[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Lines of a Markdown table; none without rows."""
    titles, body = list(head), [[cell(x) for x in row] for row in rows]
    if not body:
        return []
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return [*lines, *["| " + " | ".join(row) + " |" for row in body], ""]


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")


def markdown(result: Result) -> str:
    """All tables; sections without a record are left out."""
    lines = [f"# GPU run: {result['device']}", "", *heading(result)]
    sections = (
        ("Predictions", predictions(result)),
        ("Parts", parts(result)),
        ("What is wrong", wrong(result)),
        ("Rates", rates(result)),
        ("Values against float64", values(result)),
        ("Head", head(result)),
        ("Where the time goes", kernels(result)),
        ("Losses and advantages", elementwise(result)),
        ("Training step", steps(result)),
        ("Peers", peers(result)),
        ("Tests", tests(result)),
    )
    for title, body in sections:
        if body:
            lines += [f"## {title}", "", *body]
            if body[-1]:
                lines.append("")
    return "\n".join(lines)


def heading(result: Result) -> list[str]:
    """Where, with what, at which commit."""
    lines = []
    if result["rehearsal"]:
        lines += ["**A rehearsal: tiny sizes on a CPU. None of these figures is a result.**", ""]
    for call in result["calls"]:
        known = {k: v for k, v in call["versions"].items() if v != "not installed"}
        lines.append(
            f"{call['call'].capitalize()} call: {call.get('gpu', 'no GPU')}, driver "
            f"{call.get('driver', 'unknown')}, {call['cores']} cores, Python {call['python']}, "
            + ", ".join(f"{k} {v}" for k, v in known.items())
            + f"; commit {call['commit']}, source {call['source']}; SM clock "
            f"{call.get('sm_mhz', '?')} of {call.get('most_sm_mhz', '?')} MHz at the start."
        )
    return [*lines, "", "Where two calls measured a figure, the last one counts.", ""]


def predictions(result: Result) -> list[str]:
    """Hit, missed by how much, or why it was not measured."""
    rows = [
        (p["name"], f"{p['low']:.3g} to {p['high']:.3g}", p["values"][-1] if p["values"] else None,
         p["outcome"], p["text"], p["source"])
        for p in result["predictions"]
    ]  # fmt: skip
    counts = {o: sum(r[3] == o for r in rows) for o in ("hit", "missed", "not measured")}
    first = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    titles = ("prediction", "range", "measured", "outcome", "by how much, or why", "source")
    return [f"{first}.", "", *table(titles, rows)] if rows else []


def parts(result: Result) -> list[str]:
    """How each process ended, in both calls."""
    rows = [(p["call"], p["part"], p["status"], p.get("seconds"), p.get("why"))
            for p in result["all_parts"]]  # fmt: skip
    return table(("call", "part", "ended", "s", "why"), rows)


def wrong(result: Result) -> list[str]:
    """Checks that failed, steps that raised, steps for which no time was left."""
    rows = [(c["part"], c["name"], str(c.get("wrong") or c.get("why") or c.get("examples") or ""))
            for c in result["checks"] if not c["ok"]]  # fmt: skip
    rows += [(f["part"], f["step"], f["why"]) for f in result["failures"]]
    rows += [(x["part"], x["step"], "left out: " + x["why"]) for x in result["left_out"]]
    return table(("part", "what", "why"), rows)


def rates(result: Result) -> list[str]:
    """Copies, products, tiles."""
    figures = result["figures"]
    rows = [
        (key.removeprefix("rates."), f"{f['value'] / 1e12:.3g} T{f['unit']}"
         if f["unit"].endswith("/s") else cell(f["value"]) + " " + f["unit"])
        for key, f in figures.items()
        if key.startswith("rates.")
    ]  # fmt: skip
    tiles = [
        (t["dim"], f"{t['rows']} x {t['ids']}", t["mib"], t["product_flop_per_s"] / 1e12,
         t["and_read_flop_per_s"] / 1e12)
        for t in sorted(result["tiles"], key=lambda t: (t["dim"], -t["and_read_flop_per_s"]))
    ]  # fmt: skip
    titles = ("D", "tile", "MiB of fp32", "TFLOP/s, product", "TFLOP/s, and read again")
    return [*table(("rate", "measured"), rows), *table(titles, tiles)]


def values(result: Result) -> list[str]:
    """Relative errors beside eager's."""
    rows = []
    for check in result["checks"]:
        if "rounded" in check.get("errors", {}):  # of a logit gradient, beside its rounding alone
            errors = check["errors"]
            for name in sorted(errors.keys() - {"rounded"}):
                share = errors[name] / errors["rounded"]
                rows.append((check["name"], f"logit gradient, {name}", f"{errors[name]:.1e}",
                             f"{errors['rounded']:.1e} (rounding)", share, "",
                             "right" if check["ok"] else "WRONG"))  # fmt: skip
            continue
        for name, error in check.get("errors", {}).items():
            other = check["eager"][name]["relative"]
            share = error["relative"] / other if other else None
            rows.append((check["name"], name, f"{error['relative']:.1e}", f"{other:.1e}", share,
                         f"{error['bias']:+.1e}", "right" if check["ok"] else "WRONG"))  # fmt: skip
    rows += [(c["name"], "logit gradient, L1", f"{c['relative_l1']:.1e}", "", "", "",
              "right" if c["ok"] else "WRONG")
             for c in result["checks"] if "relative_l1" in c]  # fmt: skip
    titles = ("case", "of", "error", "eager's", "/ eager's", "bias", "")
    return table(titles, rows)


def _by_dim(result: Result, start: str) -> dict[str, dict[str, Any]]:
    """Figures ``start.NAME.DIM`` as DIM -> NAME -> figure."""
    found: dict[str, dict[str, Any]] = {}
    for key, figure in result["figures"].items():
        match = re.fullmatch(re.escape(start) + r"\.(.+)\.([^.]+)", key)
        if match:
            found.setdefault(match[2], {})[match[1]] = figure
    return found


def head(result: Result) -> list[str]:
    """Times and their ratios to both products, the worst case too."""
    lines = []
    for start, title in (("head", "0.5 nats"), ("worst", "uniform")):
        for dim, times in _by_dim(result, f"{start}.ms").items():
            base = {n: times[n]["value"] for n in ("product_bf16", "product_fp32") if n in times}
            rows = []
            for name, f in times.items():
                ratios = [f["value"] / base[b] if b in base else None
                          for b in ("product_bf16", "product_fp32")]  # fmt: skip
                spread = f"{f.get('p20', 0):.3g} to {f.get('p80', 0):.3g}"
                extra = [result["figures"].get(f"head.{what}.{name}.{dim}", {}).get("value")
                         if start == "head" else None
                         for what in ("host_ms", "launches", "gap_ms", "peak_mib")]  # fmt: skip
                rows.append((name, f["value"], spread, *ratios, *extra))
            titles = ("call", "ms", "p20 to p80", "/ bf16 product", "/ fp32 product", "host ms",
                      "launches", "gaps ms", "peak MiB")  # fmt: skip
            lines += [f"D {dim}, {title}:", "", *table(titles, rows)]
    facts = re.compile(r"head\.(overlap_gain|tile_ms|dense_row_frac|entries_kept|tail_mass)")
    rows = [(key.removeprefix("head."), f["value"]) for key, f in result["figures"].items()
            if facts.match(key)]  # fmt: skip
    rows += [(k, f["value"]) for k, f in result["figures"].items() if k.startswith("repeats.")]
    rows += [(k, f["value"]) for k, f in result["figures"].items() if k.startswith("fused.")]
    return [*lines, *table(("figure", "measured"), rows)]


def kernels(result: Result) -> list[str]:
    """The longest kernels of each call that was profiled, in the last call that did."""
    last = {(k["part"], k["function"], k["dim"]): k for k in result["kernels"] if k.get("kernels")}
    lines = []
    for (part, function, dim), found in last.items():
        lines += [f"{part}, {function}, {dim}: {found['launches']} launches, "
                  f"{found['busy_ms']:.3g} ms busy of {found['span_ms']:.3g}", ""]  # fmt: skip
        rows = [(k["name"][:90], k["count"], k["ms"]) for k in found["kernels"][:12]]
        lines += table(("kernel", "count", "ms"), rows)
    return lines


def _rows(result: Result, part: str) -> list[str]:
    lines = []
    last = {r["name"]: r for r in result["rows"] if r["part"].startswith(part)}
    for name, record in last.items():
        row, clock = record["result"], record["clock"]
        entries = {**row["contenders"], **{f"*{n} alone*": e for n, e in
                                           row.get("yardsticks", {}).items()}}  # fmt: skip
        timed = {n: e[f"seconds_{clock}"]["median"] for n, e in entries.items()
                 if f"seconds_{clock}" in e}  # fmt: skip
        ours = timed.get("ours")
        rows = [(n, 1e6 * timed[n], timed[n] / ours if ours else None,
                 row["bytes"] / timed[n] / 1e12, entries[n].get("launches"),
                 entries[n].get("peak_mib"))
                for n in sorted(timed, key=timed.__getitem__)]  # fmt: skip
        rows += [(n, e["wrong"], "", "", "", "") for n, e in entries.items() if "wrong" in e]
        rows += [(n, why, "", "", "", "") for n, why in row["missing"].items()]
        titles = ("contender", "us", "/ ours", "TB/s of useful bytes", "launches", "peak MiB")
        lines += [f"{name}:", "", *table(titles, rows)]
    return lines


def elementwise(result: Result) -> list[str]:
    """Each row's contenders, the fastest first."""
    return _rows(result, "losses")


def peers(result: Result) -> list[str]:
    """The same for the heads of others, and why some were not measured."""
    absent = [(p["part"], p["why"]) for p in result["parts"].values()
              if p["part"].startswith("peer-") and p["status"] != "done"]  # fmt: skip
    absent += [(f"{p['part']}: {p['name']}", p["why"]) for p in result["peers"]]
    return [*_rows(result, "peer-"), *table(("not measured", "why"), absent)]


def steps(result: Result) -> list[str]:
    """Tokens a second, utilisation, memory."""
    rows = [
        (s["context"], s.get("liger", ""), s.get("error") or s["tokens_per_s"], s.get("tflops"),
         s.get("mfu"), s.get("peak_gib"), s.get("head_share"), s.get("dense_row_frac"),
         s.get("attention"))
        for s in [*result["steps"], *result["full_steps"]]
    ]  # fmt: skip
    titles = ("tokens a row", "Liger", "tokens/s", "TFLOP/s", "MFU", "peak GiB", "head's share",
              "rows recomputed", "attention")  # fmt: skip
    return table(titles, rows)


def tests(result: Result) -> list[str]:
    """Counts, and every failure by name."""
    rows = [(t["call"], t.get("run"), t["passed"], t["failed"], t["skipped"], t["exit"])
            for t in result["tests"]]  # fmt: skip
    failed = [(t["call"], t["test"], t["message"][:300]) for t in result["failed_tests"]]
    titles = ("call", "run", "passed", "failed", "skipped", "exit code")
    return [*table(titles, rows), *table(("call", "failed test", "message"), failed)]
