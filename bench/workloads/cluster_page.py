"""The page and the plot of the simulated cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def _share(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.0%}"


def _gain(figure: dict[str, float]) -> str:
    return f"{figure['mean']:+.1%} ({figure['low']:+.1%} to {figure['high']:+.1%})"


def _seconds(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.0f}"


def find(rows: list[Row], **wanted: Any) -> Row:
    """The one row with these values.

    Args:
        rows: of a section of the result.
        **wanted: values by key.

    Raises:
        LookupError: none or several.
    """
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows with {wanted}")
    return found[0]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def main_table(result: Row, lengths: str, points: list[str] | None = None) -> list[str]:
    """Idle time and gains by ranks and point of the cycle.

    Args:
        result: as ``python -m bench cluster`` writes it.
        lengths: the model of lengths.
        points: of the cycle; None: all.
    """
    base = [r for r in result["main"] if r["lengths"] == lengths and r["policy"] == "in order"]
    rows = []
    for row in base:
        if points is not None and row["point"] not in points:
            continue
        at = {"lengths": lengths, "ranks": row["ranks"], "point": row["point"]}

        def of(policy: str, at: Row = at) -> Row:
            return find(result["main"], policy=policy, **at)

        divided = of("groups divided over ranks")
        rows.append(
            [
                str(row["ranks"]), row["point"], str(row["cap"]), f"{row['cut']['mean']:.1%}",
                _share(row["waiting"]), _share(divided["waiting"]),
                f"{_seconds(row['rollout_s'])} + {_seconds(row['train_s'])}",
                _gain(of("dealt by expected length")["gain"]), _gain(divided["gain"]),
                _gain(of("lengths known")["gain"]),
            ]
        )  # fmt: skip
    head = [
        "ranks", "point of the cycle", "cap", "cut", "waiting", "waiting, divided",
        "rollout + update, s", "dealt by expected length", "groups divided", "lengths known",
    ]  # fmt: skip
    return _table(head, rows)


def page(result: Row) -> str:
    """The Markdown page of a result.

    Args:
        result: as ``python -m bench cluster`` writes it.
    """
    fit, real = result["lengths"]["published"], result["lengths"]["recorded"]
    clock = result["clock"]
    lines = [
        "# Simulated cluster", "",
        "**Simulated, not measured**: no GPU ran. Lengths are drawn and time is computed. Dealing, "
        "collecting and packing are the trainer's own code.", "",
        f"{result['questions']} questions x {result['group_size']} responses a step, "
        f"{result['mini_batches']} mini-batches, model {clock['shape']['name']} on "
        f"{clock['gpu']['name']}, vLLM with 256 rows a rank. \"Waiting\" is the share of the "
        "ranks' rollout time in which they wait for the slowest. Gains are shares of a whole step "
        f"(rollout, update and {clock['between']:.0f} s for weights and grading) against questions "
        "dealt in order, paired on the same draws; in brackets 95 % intervals over "
        f"{result['seeds']} draws (the last four tables: {max(2, result['seeds'] // 2)}, except "
        "the worth of knowledge).",
        "", "## Fitted lengths", "",
        f"Lognormal, sigma {fit['sigma']:.2f}, correlation within a question {fit['within']} and "
        f"between epochs {fit['epochs']} (both assumed).", "",
        *main_table(result, "published"),
        "## Recorded lengths", "",
        "The demo run's histograms, each step's cap scaled to that of the point; correlation "
        f"within a question {real['within']:.2f} (the start: {real['within_at_the_start']:.2f}), "
        f"between epochs {real['epochs']:.2f}, both measured.", "",
        *main_table(result, "recorded"),
        "## One step ahead", "",
        "Some GPUs only sample and the others only train, at the same time; groups divided in "
        "both. The gain is against all GPUs in turn.", "",
        *_table(
            ["ranks", "point of the cycle", "GPUs that sample", "step, s", "gain"],
            [
                [str(r["ranks"]), r["point"], str(r["samplers"]), _seconds(r["step_s"]),
                 _gain(r["gain"])]
                for r in result["asynchronous"]
            ],
        ),
        "## Where the order within a rank matters", "",
        "8 ranks at the start of the cycle: 256 responses a rank. Longest first is by the lengths "
        "half a cycle before.", "",
        *_table(
            ["max_num_seqs", "policy", "rollout, s", "waiting", "gain"],
            [
                [str(r["max_num_seqs"]), r["policy"], _seconds(r["rollout_s"]),
                 _share(r["waiting"]), _gain(r["gain"])]
                for r in result["rows_and_order"]
            ],
        ),
        "## What knowledge of lengths is worth", "",
        "16 ranks at the compressed end.", "",
        *_table(
            ["within a question", "between epochs", "waiting, in order",
             "dealt by expected length", "groups divided"],
            _knowledge(result["knowledge"]),
        ),
        "## 7B on 16 ranks, and several rounds", "",
        *_table(
            ["model", "point of the cycle", "max_rounds", "policy", "waiting", "step, s", "gain"],
            [
                [r["model"], r["point"], str(r["max_rounds"]), r["policy"], _share(r["waiting"]),
                 _seconds(r["step_s"]), _gain(r["gain"])]
                for r in [*result["larger_model"], *result["rounds"]]
            ],
        ),
        "## What is not simulated", "",
        "Measured rates (decoding reaches "
        f"{clock['bandwidth_used']:.0%} of the bandwidth and training {clock['flops_used']:.0%} of "
        "the operations by assumption), traffic between ranks, gathering of sharded weights, "
        "faults, slow nodes, and answers that a changed order would change. The lognormal's tail "
        "has no loops; a share of responses that never end would make the cap's time the floor.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _knowledge(rows: list[Row]) -> list[list[str]]:
    made = []
    for row in rows:
        if row["policy"] != "in order":
            continue
        at = {"within": row["within"], "epochs": row["epochs"]}
        made.append(
            [
                str(row["within"]), str(row["epochs"]), _share(row["waiting"]),
                _gain(find(rows, policy="dealt by expected length", **at)["gain"]),
                _gain(find(rows, policy="groups divided over ranks", **at)["gain"]),
            ]
        )  # fmt: skip
    return made


def plot(result: Row, path: Path) -> None:
    """Waiting over the cycle, by ranks and policy.

    Args:
        result: as ``python -m bench cluster`` writes it.
        path: of the SVG.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    policies: dict[str, Callable[[int], Any]] = {
        "in order": lambda i: plt.cm.Blues(0.4 + 0.25 * i),
        "groups divided over ranks": lambda i: plt.cm.Oranges(0.4 + 0.25 * i),
    }
    with matplotlib.rc_context({"svg.hashsalt": "bench", "font.size": 9}):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
        for axis, lengths in zip(axes, ("published", "recorded"), strict=True):
            for policy, colour in policies.items():
                for number, ranks in enumerate(sorted({r["ranks"] for r in result["main"]})):
                    rows = [
                        r for r in result["main"]
                        if (r["lengths"], r["policy"], r["ranks"]) == (lengths, policy, ranks)
                    ]  # fmt: skip
                    places = range(len(rows))
                    axis.plot(
                        places, [100 * r["waiting"]["mean"] for r in rows], marker="o",
                        color=colour(number), label=f"{policy}, {ranks} ranks",
                    )  # fmt: skip
                    axis.set_xticks(
                        places, [f"{r['point']}\n{r['cap']}".replace(", ", "\n") for r in rows],
                        fontsize=7,
                    )  # fmt: skip
            axis.set_title(f"{lengths} lengths (simulated)")
        axes[0].set_ylabel("waiting, % of rollout time")
        axes[1].legend(fontsize=7)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
