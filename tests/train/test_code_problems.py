"""Problems of HumanEval's and MBPP's form, and the program in a response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from siri_train.data.problems import OURS, load_problems
from siri_train.data.questions import Question
from siri_train.data.rows import DataError
from siri_train.data.supervised import supervised_text
from siri_train.rewards.code.extract import last_program
from siri_train.rewards.code.problems import ProblemError, read_problem
from siri_train.rewards.code.program import before, whole

HUMANEVAL = {
    "task_id": "Own/0",
    "prompt": "from typing import List\n\ndef half(x: int) -> int:\n    return x // 2\n\n\n"
    'def halves(numbers: List[int]) -> List[int]:\n    """Halve all."""\n',
    "canonical_solution": "    return [half(n) for n in numbers]\n",
    "test": "M = {}\n\ndef check(candidate):\n    assert candidate([4, 6]) == [2, half(6)]\n",
    "entry_point": "halves",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function that adds.",
    "code": "def helper(a):\n    return a\ndef add(a, b):\n    return helper(a) + b",
    "test_list": [
        "assert add(1, 2) == 3",
        "assert sorted([add(0, 0), math.floor(add(1, 1))])[1] == 2",
    ],
    "test_setup_code": "import math",
    "challenge_test_list": ["assert add('a', 'b') == 'ab'"],
}


def test_a_problem_of_humaneval() -> None:
    problem = read_problem(HUMANEVAL)
    gold = json.loads(problem.gold)
    assert problem.id == "Own/0" and gold["names"] == ["halves"]
    assert gold["setup"] == HUMANEVAL["prompt"]  # its tests may use what the prompt defines
    assert gold["tests"][0].endswith("check(halves)\n")
    assert gold["program"] == {"prompt": HUMANEVAL["prompt"], "entry": "halves"}
    assert HUMANEVAL["prompt"].strip() in problem.question and "`halves`" in problem.question
    assert problem.reference == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]
    # No test may be seen in the question.
    assert "[2, half(6)]" not in problem.question


def test_a_problem_of_mbpp() -> None:
    problem = read_problem(MBPP)
    gold = json.loads(problem.gold)
    assert problem.id == "11" and gold["names"] == ["add"] and gold["setup"] == "import math"
    assert gold["tests"] == [*MBPP["test_list"], *MBPP["challenge_test_list"]]
    assert problem.question.startswith(MBPP["text"]) and MBPP["test_list"][0] in problem.question
    assert MBPP["test_list"][1] not in problem.question
    assert problem.reference == MBPP["code"]


def test_the_sanitised_form_of_mbpp_and_rows_without_a_reference() -> None:
    row = {
        "prompt": "Add.",
        "test_imports": ["import math"],
        "test_list": ["x = [add(1, 2) for _ in range(3)]\nassert set(map(math.floor, x)) == {3}"],
    }
    problem = read_problem(row)
    gold = json.loads(problem.gold)
    assert problem.reference is None and gold["names"] == ["add"] and "import math" in gold["setup"]


def test_a_function_with_a_built_in_name_is_the_programs() -> None:
    row = {
        **MBPP,
        "code": "def sum(a, b):\n    return a + b",
        "test_list": ["assert sum(1, 2) == 3"],
    }
    row["challenge_test_list"] = []
    assert json.loads(read_problem(row).gold)["names"] == ["sum"]


def test_a_name_that_only_a_function_sees_is_not_the_programs() -> None:
    row = {
        "text": "Add.",
        "code": "def add(set, sum):\n    sorted = set + sum\n"
        "    return [max for max in [sorted]][0]",
        "test_list": ["assert set(sorted([max([sum([add(1, 2)])])])) == {3}"],
        "test_setup_code": "class Box:\n    def put(self, add): pass",
    }
    assert json.loads(read_problem(row).gold)["names"] == ["add"]
    del row["code"]
    assert json.loads(read_problem(row).gold)["names"] == ["add"]


def test_a_module_that_only_the_reference_imports_is_no_function() -> None:
    row = {**MBPP, "test_setup_code": "", "code": f"import math\n{MBPP['code']}"}
    assert json.loads(read_problem(row).gold)["names"] == ["add"]


@pytest.mark.filterwarnings("error")
def test_an_odd_escape_sequence_is_no_warning() -> None:
    tests = [r"assert add('\d', '') == '\d'"]
    assert json.loads(read_problem({**MBPP, "test_list": tests}).gold)["tests"][:1] == tests


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"entry_point": "class"}, "'entry_point': 'class' is no name of a function"),
        ({"entry_point": "no name"}, "'entry_point': 'no name' is no name of a function"),
        ({"entry_point": None}, "'entry_point': expected code or text, got nothing"),
        ({"prompt": " "}, "'prompt': expected code or text, got str"),
        ({"test": "assert True"}, "'test': defines no function check"),
        ({"test": "def check(:"}, "'test': no Python"),
        ({"test": 5}, "'test': expected code or text, got int"),
    ],
)
def test_rows_that_are_no_humaneval(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProblemError, match=reason.replace("(", r"\(")):
        read_problem({**HUMANEVAL, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"test_list": []}, "'test_list': holds no test"),
        ({"test_list": "assert"}, "'test_list': expected a list of texts, got str"),
        ({"test_list": ["assert ("]}, "'test_list': no Python"),
        ({"test_list": ["assert add(1, 2) == " + "-" * 50_000 + "3"]}, "'test_list': no Python: ."),
        ({"test_list": ["assert 1 == 1"], "challenge_test_list": []}, "call no function"),
        ({"test_setup_code": "import ("}, "'test_setup_code': no Python"),
        ({"text": None}, "'text': expected code or text, got nothing"),
    ],
)
def test_rows_that_are_no_mbpp(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProblemError, match=reason):
        read_problem({**MBPP, **changes})


def test_a_row_of_neither_form_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(MBPP) + "\n" + json.dumps({"question": "?", "answer": "1"}) + "\n")
    with pytest.raises(DataError, match="line 2: neither a problem of HumanEval .* has question"):
        load_problems(file)
    assert [q.form for q in load_problems(file, limit=1)] == ["code"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```python\na\n```", "a"),
        ("```py\na\n```\n```\nb\n```\nend", "b"),
        ("```python\na\n```\n```python\nb", "a"),  # truncated inside of the second
        ("```python\na", None),
        ("no block", None),
        ("```python\n\n```", None),
        ("```bash\nls\n```", None),
        ("```python\na\n```\n```text\nout\n```", "a"),
        ("~~~python\na\n```\nb\n~~~", "a\n```\nb"),
        ("````python\na\n```\nb\n````", "a\n```\nb"),
        ("1. Here:\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1"),
        ("```python\n    return 1\n```", "    return 1"),  # a body stays a body
        ("```python\r\na\r\n```\r\n", "a\r"),
        ('```python\n"""\n    ```\n    x\n    ```\n"""\n```', '"""\n    ```\n    x\n    ```\n"""'),
        ("- a\n\n  ```python\n  a\n     ```\n", "a"),
        ("```python\na\n\t```\n", None),  # nothing has closed it
        ("use ```x``` inline\n```python\na\n```", "a"),
        ("```Python title=x\na\n```", "a"),
    ],
)
def test_the_program_in_a_response(text: str, found: str | None) -> None:
    assert last_program(text, think="none") == found
    assert last_program(f"<think>\n```python\nno\n```\n</think>\n{text}") == found


def test_thoughts_hold_no_program() -> None:
    block = "```python\na\n```"
    assert last_program(block) is None
    assert last_program(block, think="optional") == "a"
    assert last_program(f"<think>{block}", think="optional") is None
    assert last_program(f"{block}</think>no", think="optional") is None
    with pytest.raises(ValueError, match="think: got 'maybe'"):
        last_program(block, think="maybe")  # type: ignore[arg-type]


def run(program: str) -> list[int]:
    names: dict[str, Any] = {}
    exec(program, names)
    result: list[int] = names["halves"]([4, 7])
    return result


@pytest.mark.parametrize(
    "answer",
    [
        "    return [half(n) for n in numbers]",
        "return [half(n) for n in numbers]",
        "def halves(numbers: List[int]) -> List[int]:\n    return [half(n) for n in numbers]",
        HUMANEVAL["prompt"] + "    return [half(n) for n in numbers]",
        "def half(x): return x // 2\n\ndef halves(numbers):\n    return [*map(half, numbers)]",
        "from __future__ import annotations\n"
        "def halves(numbers: List[Any]):\n    return [half(n) for n in numbers]",
        "    out = []\n\n    for n in numbers:\n        out.append(half(n))\n    return out",
    ],
)
def test_a_completion_and_a_whole_function_mean_the_same(answer: str) -> None:
    assert run(whole(answer, HUMANEVAL["prompt"], "halves")) == [2, 3]
    assert whole(answer) == answer


def test_what_stands_before_a_function() -> None:
    assert before("import a\n@a.b\ndef f():\n    'x'\n", "f") == "import a"
    assert before("import a\n", "f") == "import a\n"
    assert before("def f(:", "f") == ""


def test_marks_in_a_reference_do_not_close_its_block(tmp_path: Path) -> None:
    code = 'def add(a, b):\n    return a + b\n\nTEXT = """\n```\nx\n````\n"""'
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({**MBPP, "code": code}))
    (question,) = load_problems(file)
    assert last_program(question.solution or "", think="none") == code


def test_our_problems_are_the_recipes() -> None:
    train, held_out = load_problems(OURS), load_problems(OURS, split="test")
    assert len(train) == 36 and len(held_out) == 12
    texts = [q.prompt for q in train + held_out]
    assert len(set(texts)) == len(texts) and all(q.solution for q in train + held_out)


def test_the_response_to_learn_is_the_reference() -> None:
    question = Question("a", "?", "{}", "```python\nx\n```", form="code")
    assert supervised_text(question) == question.solution
    taught = supervised_text(question, think=True)
    assert last_program(taught) == "x" and taught.startswith("<think>\n")
