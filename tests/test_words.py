"""The project's words are the field's words, in sentences that say one thing each.

``python tests/test_words.py PATHS...`` prints what it finds as ``file:line: what``.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".md", ".html", ".js", ".css", ".svg", ".yaml", ".toml", ".sh", ".txt", ""}

LEFT_OUT = (
    "bench/results/",  # records of what was measured
    "docs/log/",  # the log keeps the words of its day
    "CHANGELOG.md",
    "LICENSE",
    "tests/test_words.py",
    "tests/bench/gpu_rehearsal/",
    "tests/data/",
    "scripts/",
    "constraints.txt",
    "siri_train/model/embedded_start/",
    "siri_train/model/embedded_search_start/",
)

QUOTED = re.compile(r"<!-- bench/results/.*?<!-- end -->", re.DOTALL)  # tables written by the bench


class Rule(NamedTuple):
    """What is not written, what is written instead, and where the rule holds."""

    pattern: str  # a blank also matches a line break in a comment or a text
    instead: str
    within: tuple[str, ...] = ("",)
    ignore_case: bool = True


KERNELS = ("siri_kernels/linear_logprob/", "siri_kernels/aot/")

RULES = (
    Rule(
        r"(?<![A-Za-z])(?:[Ff]old(?:s|ed|ing)?(?![a-z])|FOLD(?![A-Za-z]))",
        "online softmax; the verb: update the running maximum and sums",
        ignore_case=False,
    ),
    Rule(r"(?<![a-z])widen(?:s|ed|ing)?(?![a-z])", "upcast"),
    Rule(
        r"\bcounted[ _](?:rows?|tokens?|ids|targets?|positions?|ratio|mask)\b",
        "unmasked tokens; the opposite: masked tokens",
    ),
    Rule(
        r"(?<![\w'\"])(?<!is[ ])(?<!are[ ])(?<!was[ ])(?<!be[ ])counted"
        r"(?=(?: =|\.(?:all|any|nonzero|sum|where|float|device|shape)\b|[\[:,)] ))",
        "unmasked: the name of a mask",
        (*KERNELS, "siri_kernels/integrations/", "bench/rows/", "bench/gpu/", "examples/", "docs/"),
        False,
    ),
    Rule(
        r"\b(?:with|without|without any) lists\b|\blisted (?:entries|entry|ids|id|logits)\b",
        "top-probability entries, short: top entries",
        (*KERNELS, "bench/", "docs/", "README.md", "tests/kernels/"),
    ),
    Rule(
        r"\b(?:its|no|their|the|row's|saved) lists\b",
        "top entries",
        (*KERNELS, "tests/kernels/"),
    ),
    Rule(
        r"\b(?:lists|listed|Listed|LISTED|LISTS)\b",
        "top entries",
        ("siri_kernels/linear_logprob/",),
        False,
    ),
    Rule(
        r"(?<![a-z])certif(?:y|ied|ies|icates?)(?![a-z])",
        "error bound; rows within the error bound",
    ),
    Rule(r"(?<![a-z])ballast(?![a-z])", "dummy micro-batch"),
    Rule(
        r"\b(?:three|each|every|largest) moments?\b|\bmoments? (?:is|are) counted\b"
        r"|\bfor \w+ in moments\b",
        "phases of a step (AdamW's moments are moments)",
    ),
    Rule(
        r"\bcut (?:at|by) (?:the|its|every|a) (?:cap|budget|length)\b"
        r"|\bresponses? (?:is |are |was |were )?cut\b"
        r"|\b(?:a|each|every) cut response\b|\bbefore (?:it is|the) cut\b|\bthe response is cut\b",
        "truncate (a response)",
    ),
    Rule(
        r"\bcut (?:by vocabulary|over the ranks|over ranks|into shards)\b|\bstays? cut\b"
        r"|\bcannot be cut\b|\bvocabulary is cut\b|\bhead cut\b",
        "shard (a weight, a vocabulary)",
    ),
    Rule(r"\bcut into (?:micro-batches|rows|mini-batches|batches)\b", "split into"),
    Rule(
        r"\bcut (?:the|its|a) logs? back\b|\blogs? (?:is |are )?cut\b|\bcut back to\b",
        "trim (a log)",
    ),
    Rule(r"\b(?:a|the) run (?:that was|is) cut\b|\ba cut run\b", "interrupted (a run)"),
    Rule(
        r"\bdef live\(|(?<![.\w])live\((?=\w)",
        "a name that says: needs a gradient",
        ("siri_train/",),
        False,
    ),
    # Riddles.
    Rule(r"\bunlooked[- ]for\b", "unexpected"),
    Rule(r"\bas it comes\b", "say with which settings"),
    Rule(r"\boutlives nobody\b|\bgone with the trainer\b", "stops when the trainer does"),
    Rule(r"\bfirst asks, the second one insists\b|\binsists?\b", "the second signal stops at once"),
    Rule(r"\bwhat became of\b", "say what is counted: kept, dropped, cancelled"),
    Rule(r"\bif it is this sync's turn\b|\bthis sync's turn\b", "say when it happens"),
    Rule(r"\bforget what others did before\b", "say what is reset"),
    Rule(
        r"\bsteps that a bad gradient does not take\b",
        "updates with a non-finite gradient are skipped",
    ),
    Rule(r"\bits two largest wastes\b", "name the two costs"),
    Rule(
        r"\bmend(?:s|ed|ing)?\b", "correct", ("siri_kernels/", "siri_train/", "bench/gpu/", "docs/")
    ),
    Rule(r"\b(?:is|are|was|were) told\b(?! apart| to)", "say who prints or passes what"),
    Rule(
        r'"""Of |(?:^|[.!?:] |\n *# )Of '
        r"(?:a|an|the|what|its|each|all|these|those|it|them|every) ",
        "a sentence whose subject comes first",
        ignore_case=False,
    ),
    Rule(
        r'"""What (?!.*\?)',
        "a docstring that begins with a noun or a verb",
        ("siri_kernels/", "siri_train/", "bench/", "examples/"),
        ignore_case=False,
    ),
)

INNOCENT = (
    # path, part of the line, reason
    ("siri_train/rewards/unit_table.py", "times fold tens", "an English unit: tenfold"),
    ("siri_train/rewards/units.py", "fold$", "an English unit: tenfold"),
    ("siri_train/schedule/waves.py", "Folded into the first quarter", "geometry of a cosine"),
    ("tests/bench/test_gpu_parts.py", "fold", "a name of a module that the test makes up"),
    ("", "cut-cross-entropy", "the name of a peer"),
    ("", "fold_ms", "a key of recorded results"),
    ("bench/", '"fold', "a kernel's name in recorded results"),
    ("bench/gpu/predictions.py", "", "predictions stand as they were made"),
    ("bench/gpu/parts/values.py", "certificate", "a key of recorded results"),
    ("bench/workloads/proof.py", '"certified"', "a name in recorded results"),
    ("bench/workloads/rollout.py", "| sampler |", "the heading of a recorded table"),
    ("docs/results.md", '"certified"', "a name in recorded results"),
    ("tests/kernels/test_counts.py", "certified", "a key of counts.json"),
    ("tests/bench/", '"fold', "a kernel's name in recorded results"),
)


def compiled(rule: Rule) -> re.Pattern[str]:
    """The rule's pattern with blanks that match a line break, with or without a comment sign."""
    pattern = re.sub(r"(?<!\[)(?<!\\n) (?![*\]])", r"(?: |\\s*\\n[ ]*#?[ ]*)", rule.pattern)
    return re.compile(pattern, (re.IGNORECASE if rule.ignore_case else 0) | re.MULTILINE)


def findings(path: str, text: str) -> list[str]:
    """What one file should say otherwise.

    Args:
        path: relative to the repository; rules and exceptions go by it.
        text: of the file.

    Returns:
        One line each, ``path:line: what``.
    """
    if path.startswith(LEFT_OUT):
        return []
    text = QUOTED.sub(lambda block: "\n" * block.group().count("\n"), text)
    lines, found = text.split("\n"), []
    for rule in RULES:
        if not path.startswith(rule.within):
            continue
        for match in compiled(rule).finditer(text):
            first = text.count("\n", 0, match.start() + match.group().startswith("\n"))
            here = "\n".join(lines[first : first + 1 + match.group().strip().count("\n")])
            if any(path.startswith(p) and part in here for p, part, _ in INNOCENT):
                continue
            said = " ".join(match.group().split())
            found.append((first + 1, f"{path}:{first + 1}: {said!r}: write {rule.instead}"))
    return [line for _, line in sorted(found)]


def tracked(*under: str) -> list[str]:
    """Tracked text files, by path relative to the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *under],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return [p for p in listing if Path(p).suffix in SUFFIXES and (ROOT / p).is_file()]


def check(*under: str) -> list[str]:
    """The findings in all tracked files under the given paths."""
    paths = tracked(*under)
    return [line for p in paths for line in findings(p, (ROOT / p).read_text(errors="replace"))]


def test_the_project_speaks_the_words_of_the_field() -> None:
    found = check()
    assert not found, "words of our own:\n" + "\n".join(found)


def test_each_rule_finds_its_word() -> None:
    bad = {
        "siri_kernels/linear_logprob/x.py": (
            "state = fold(tile)",
            "class FoldState:",
            "x = widened(y)",
            "# the counted rows alone",
            "counted = targets != ignore_index",
            "# rows without lists",
            "LISTS: tl.constexpr",
            "# the certificate holds",
            "certified_rows(cost)",
            "# a head cut by vocabulary",
        ),
        "siri_train/x.py": (
            "# as ballast",
            "# Three moments are counted",
            "# responses cut by the cap",
            "# a response that\n# is longer. Responses\n# cut at the cap",
            "# cut into micro-batches",
            "def live(samples):",
            '"""As it comes."""',
            "# the first asks, the second one\n    # insists",
            "# what became of the others",
            '"""Of the periodic ones."""',
            '"""What a step costs."""',
            "# It is long. Of a sharded model it is short.",
            "# the caller is told",
        ),
    }
    for path, texts in bad.items():
        for text in texts:
            assert findings(path, text), text
            assert findings(path, f"a = 1\n{text}")[0].startswith(f"{path}:"), text


def test_innocent_uses_pass() -> None:
    for path, text in (
        (
            "siri_train/x.py",
            "# a hidden folder; tokens are counted; AdamW moments; a list of files",
        ),
        ("siri_train/x.py", "left, right = cut(text); alive(x); self.live(row)"),
        ("bench/x.py", 'PEER = "cut-cross-entropy"'),
        ("docs/x.md", "<!-- bench/results/cpu/proof.md -->\n| certified | 1 |\n<!-- end -->"),
        ("docs/log/x.md", "the fold of a tile"),
        ("siri_train/x.py", "# Of course it is."),
    ):
        assert not findings(path, text), text


if __name__ == "__main__":
    ROOT = Path.cwd()
    print(*check(*sys.argv[1:]), sep="\n")
