"""The documentation holds together: links, named files, the index, the log."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from siri_train import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "log").glob("*.md")]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`((?:siri_kernels|siri_train|bench|tests|scripts|docs)/[\w./-]+\.\w+)`")


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings: lower case, blanks to hyphens, no punctuation."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def dead_links(page: Path) -> list[str]:
    """Links to files that are not there, or to headings that are not in them."""
    found = []
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    assert dead_links(ROOT / name) == []


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("docs/log/")])
def test_files_that_a_page_names_exist(name: str) -> None:
    """Entries of the log keep the names of their day."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [path for path in FILE.findall(text) if not (ROOT / path).exists()] == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c\n## vLLM: its [x](y), 0.9.1\n[a](#a-b-c) [b](#vllm-its-x-091) [c](page.md#a-b-c)"
        "\n[d](no.md) [e](#no) [f](https://x/no)\n```\n# no heading\n[g](no.py)\n```\n"
    )
    assert dead_links(page) == ["y", "no.md", "#no"]


def test_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[([\w-]+\.md)\]\(\1\):", index, re.MULTILINE)
    there = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(listed) == sorted({*there, "architecture.md"})


def test_log_lists_every_topic_and_entries_have_dates_in_order() -> None:
    log = (ROOT / "LOG.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[([\w-]+\.md)\]\(docs/log/\1\)", log, re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs" / "log").glob("*.md"))
    for name in listed:
        text = (ROOT / "docs" / "log" / name).read_text(encoding="utf-8")
        dates = re.findall(r"^## (\d{4}-\d\d-\d\d) \S", text, re.MULTILINE)
        assert len(dates) == len(re.findall(r"^## ", text, re.MULTILINE)) > 0
        assert dates == sorted(dates)


def test_changelog_has_its_usual_form() -> None:
    """Keep a Changelog: a version's sections have known names, each once."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert versions
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limitations"}
    for version in versions:
        sections = re.findall(r"^### (.+)$", version, re.MULTILINE)
        assert sections and set(sections) <= known and len(set(sections)) == len(sections)


def test_each_page_begins_with_what_it_is_for() -> None:
    """Below its title a page has a sentence, not a table, a command or a list."""
    for page in (ROOT / "docs").glob("*.md"):
        first = page.read_text(encoding="utf-8").split("\n\n")[1]
        assert re.match(r"[A-Z`].*[.:]", first, re.DOTALL), page.name


def test_glossary_has_the_terms_of_the_field_in_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", text.split("## Glossary\n")[1], re.MULTILINE)[1:]
    terms = [row for row in rows if not row.startswith("--")]
    assert terms == sorted(terms, key=str.lower)
    named = {name for term in terms for name in re.split(r", ", term)}
    assert named >= {
        "online softmax", "upcast", "masked token", "unmasked token", "top entries", "error bound",
        "micro-batch", "dummy micro-batch", "shard", "truncated", "prefetch", "graceful shutdown",
        "phase", "model_config", "token", "sequence", "response", "record", "case", "data row",
        "vocabulary entry",
    }  # fmt: skip


def commands(text: str) -> list[list[str]]:
    """The words of every command in a page's code blocks; backslashes continue a line."""
    found = []
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for language, block in blocks:
        if language not in ("", "sh", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(siri-train|make|sh|python|torchrun) ", line):
                found.append(shlex.split(line, comments=True))
    return found


def problem(words: list[str]) -> str | None:
    """Why a command cannot run in this repository, or None; only its words are looked at."""
    name, *rest = words
    if name == "make":
        lines = re.findall(r"^([a-z][\w -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        targets = {target for line in lines for target in line.split()}
        wrong = [word for word in rest if "=" not in word and word not in targets]
        return f"no target {wrong[0]}" if wrong else None
    if name == "sh":
        return None if (ROOT / rest[0]).is_file() else f"no file {rest[0]}"
    if name in ("python", "torchrun") and "-m" in rest:
        module, *rest = rest[rest.index("-m") + 1 :]
        if importlib.util.find_spec(module) is None:
            return f"no module {module}"
        name = "siri-train" if module == "siri_train" else name
    if name == "siri-train":
        files = [word for word in rest if word.startswith("recipes/")]
        if lost := [file for file in files if not (ROOT / file).is_file()]:
            return f"no file {lost[0]}"
        try:
            cli.main(rest)
        except SystemExit:
            return "not understood"
    return None


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_a_page_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_errors_told", lambda arguments: 0)  # parsed, but not run
    if not name.startswith("docs/log/"):  # entries of the log keep the commands of their day
        text = (ROOT / name).read_text(encoding="utf-8")
        assert [f"{' '.join(c)}: {why}" for c in commands(text) if (why := problem(c))] == []
    wrong = commands(
        "```python\nx\n```\n```\nmake no-such\nsiri-train trian x.yaml\n"
        "python -m bench.no x\nsh no.sh\n```\n"
    )
    assert len(wrong) == 4 and all(problem(words) for words in wrong)
