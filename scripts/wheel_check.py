"""What ``scripts/wheel.sh`` asks of an installed wheel; run outside of the tree."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from importlib import metadata
from pathlib import Path


def kernels(readme: Path) -> None:
    """With torch, triton and numpy alone all of siri_kernels imports; README's example runs."""
    present = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    theirs = present & {"transformers", "pydantic", "liger-kernel", "rich", "pyyaml"}
    assert not theirs, f"this environment is for the kernels alone, it has {sorted(theirs)}"
    import siri_kernels

    assert "site-packages" in str(siri_kernels.__file__), siri_kernels.__file__
    for module in pkgutil.walk_packages(siri_kernels.__path__, "siri_kernels."):
        # An integration imports the trainer that it is for; the aot report has a command line.
        if ".integrations." not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    _example(readme)


def _example(readme: Path) -> None:
    """README's lines on a small head; the loss reaches both gradients."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(300, 16)
            self.lm_head = torch.nn.Linear(16, 300, bias=False)

        def model(self, input_ids: torch.Tensor) -> object:
            class Output:
                last_hidden_state = self.embedding(input_ids)

            return Output()

    torch.manual_seed(0)
    model = Model()
    input_ids = torch.randint(0, 300, (16, 12))
    response_mask = torch.rand(16, 12) < 0.7
    scope = {
        "model": model,
        "input_ids": input_ids,
        "response_mask": response_mask,
        "rewards": (torch.rand(16) < 0.5).float(),
        "old_logprobs": torch.full((int(response_mask[:, 1:].sum()),), -5.0),
    }
    code = re.search(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.S)
    assert code is not None
    exec(compile(code[1], "README.md", "exec"), scope)
    for weight in model.parameters():
        assert weight.grad is not None and weight.grad.isfinite().all()
        assert weight.grad.abs().sum() > 0


def trained(run: Path) -> None:
    """The table of a run has its three models, the page is there, and problems are in the wheel."""
    names = {entry["name"] for entry in json.loads((run / "summary.json").read_text())}
    assert {"start", "siri-low", "siri-high"} <= names, names
    assert (run / "report.html").stat().st_size > 10_000
    import siri_train

    problems = Path(str(siri_train.__file__)).parent / "data" / "code_problems"
    assert "site-packages" in str(problems) and len(list(problems.glob("*.jsonl"))) >= 1


if __name__ == "__main__":
    {"kernels": kernels, "run": trained}[sys.argv[1]](Path(sys.argv[2]))
