"""The commands of ``siri-train`` in the groups of its first screen, each with its examples.

Standard library only, see ``parser.py``.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A line of the first screen, and the examples at the end of the command's own help.

    Args:
        text: one line, for both.
        examples: (command line, what it does) each.
    """

    text: str
    examples: tuple[tuple[str, str], ...]


GROUPS: dict[str, dict[str, Command]] = {
    "start here": {
        "demo": Command(
            "the whole method on a CPU in minutes; ends with a table and a page",
            (("siri-train demo --out runs/demo", "the folder gets report.html"),),
        ),
        "doctor": Command(
            "what is installed, what works here, and why the rest does not",
            (("siri-train doctor", "a table; changes nothing"),),
        ),
    },
    "train": {
        "sft": Command(
            "the supervised stage before RL; run again to continue",
            (
                ("siri-train sft smollm2-135m", "as the recipe has it"),
                (
                    "siri-train sft smollm2-135m sft.steps=20 output=runs/try",
                    "a short try in another folder",
                ),
            ),
        ),
        "train": Command(
            "train with SIRI; run again to continue",
            (
                (
                    "siri-train train siri-1.5b --dry-run --ranks 8 --gpu h100",
                    "plan: memory, hours and money on 8 H100",
                ),
                ("siri-train train smollm2-135m train.steps=3", "three steps on a CPU"),
                (
                    "siri-train train siri-1.5b --halt-on non-finite-gradient",
                    "stop at this alarm; the newest checkpoint stays good",
                ),
            ),
        ),
        "ablate": Command(
            "methods and settings side by side over seeds, with paired tests",
            (
                (
                    "siri-train ablate demo --method siri,constant-max,constant-best --seeds 3",
                    "SIRI beside controls, three seeds each",
                ),
                (
                    "siri-train ablate demo --vary schedule.cycle=60,120 --jobs 2",
                    "two cycle lengths, two processes at a time",
                ),
                (
                    "siri-train ablate demo --method siri,dler,l1-max --match tokens --dry-run",
                    "the plan of a comparison at equal tokens",
                ),
            ),
        ),
        "verl": Command(
            "a recipe as the whole command of verl 0.9.1; prints or starts it",
            (
                ("siri-train verl siri-1.5b --gpus 8", "print it"),
                (
                    "siri-train verl siri-1.5b --nodes 2 --launch",
                    "print it and start it, on two nodes",
                ),
            ),
        ),
    },
    "look at a run": {
        "schedule": Command(
            "the cap over the steps, in the terminal and as SVG",
            (
                ("siri-train schedule", "of the paper's run"),
                (
                    "siri-train schedule siri-1.5b schedule.shape=stair --svg cap.svg",
                    "another shape, drawn into a file",
                ),
            ),
        ),
        "report": Command(
            "write a run's report.html, or print the verdict on it",
            (
                ("siri-train report runs/demo", "writes runs/demo/report.html"),
                ("siri-train report runs/demo --text", "the verdict in the terminal"),
                ("siri-train report runs/demo --serve", "while the run goes on, in a browser"),
            ),
        ),
        "eval": Command(
            "accuracy of a checkpoint at every budget from one generation pass",
            (
                (
                    "siri-train eval runs/siri-1.5b/checkpoints/step_000640",
                    "with the questions of the run",
                ),
                (
                    "siri-train eval my-model --recipe siri-1.5b eval.samples=4",
                    "any model, with the questions of a recipe",
                ),
            ),
        ),
        "compare": Command(
            "runs on the same questions: Pareto front, paired tests",
            (
                ("siri-train compare runs/demo", "the runs in the folder of a demo"),
                (
                    "siri-train compare runs/a runs/b --set aime24 --json",
                    "one evaluation set, all numbers as JSON",
                ),
                (
                    "siri-train compare runs/a runs/b --page both.html",
                    "their curves on one page",
                ),
            ),
        ),
        "tokens": Command(
            "words that move with the cap, by phase and right or wrong",
            (
                ("siri-train tokens runs/siri-1.5b", "the groups that the run counted"),
                (
                    'siri-train tokens runs/demo --words "maybe,not sure"',
                    "other words, in the responses that the run kept",
                ),
            ),
        ),
    },
    "models and data": {
        "data": Command(
            "public sets of questions by name, as files that recipes read",
            (
                ("siri-train data get aime24", "from the hub, into data/aime24.jsonl"),
                ("siri-train data get math500 --from test.jsonl", "from a file: no network"),
                ("siri-train data list", "the known sets, and which are there"),
            ),
        ),
        "export": Command(
            "copy a checkpoint out of a run, without trainer state",
            (
                (
                    "siri-train export runs/siri-1.5b --which high",
                    "siri-high, into runs/siri-1.5b/export",
                ),
            ),
        ),
        "convert": Command(
            "turn a GGUF file into a folder that from_pretrained loads",
            (("siri-train convert model.gguf my-model --dtype bfloat16", "in half the memory"),),
        ),
    },
    "shell": {
        "completion": Command(
            "print the script that lets your shell complete by TAB",
            (
                (
                    'eval "$(siri-train completion bash)"',
                    "in ~/.bashrc; for zsh in ~/.zshrc, with zsh as the last word",
                ),
                (
                    "siri-train completion fish > ~/.config/fish/completions/siri-train.fish",
                    "once, for fish",
                ),
            ),
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
"""All commands by name, in the order of the first screen."""
