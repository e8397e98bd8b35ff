"""Known GPUs: the figures of their makers' data sheets that a plan computes with.

Sources, by the maker's name of the sheet: NVIDIA H100 Tensor Core GPU (SXM5), NVIDIA H200 Tensor
Core GPU, NVIDIA DGX H100/H200 (one 400 Gb/s adapter a GPU), NVIDIA A100 Tensor Core GPU (SXM4) and
DGX A100 (one 200 Gb/s adapter a GPU), NVIDIA DGX B200, NVIDIA L40S, NVIDIA L4, NVIDIA A10 (A10G:
its figures as AWS gives them for G5), GeForce RTX 3090, 4090 and 5090 (Ampere, Ada and Blackwell
whitepapers; FP32 accumulation), AMD Instinct MI300X. H800 and H20 have no public sheet; theirs are
the values that their vendors list. Dense figures everywhere: sheets that print a figure "with
sparsity" are halved. Links are one direction, half of what sheets call the total. Cards without a
link have PCIe, and 100 Gb/s Ethernet between machines is assumed for four of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from siri_train.config.base import ConfigError


@dataclass(frozen=True)
class Gpu:
    """A GPU as its data sheet has it.

    Args:
        name: what ``--gpu`` calls it.
        memory_gb: in 10**9 bytes.
        flops: dense bfloat16 operations a second, a multiply-add counted as two.
        bandwidth: of its memory, bytes a second.
        link: bytes a second in one direction to the other GPUs of the node.
        network: bytes a second in one direction and per GPU between nodes.
        title: the maker's name.
    """

    name: str
    memory_gb: float
    flops: float
    bandwidth: float
    link: float
    network: float
    title: str

    def with_memory(self, memory_gb: float) -> Gpu:
        """The same GPU with another memory size (10**9 bytes)."""
        return replace(self, memory_gb=memory_gb)


_ALL = (
    Gpu("b200", 180, 2250e12, 8.0e12, 900e9, 50e9, "NVIDIA B200 (DGX)"),
    Gpu("h200", 141, 989e12, 4.8e12, 450e9, 50e9, "NVIDIA H200 SXM"),
    Gpu("h100", 80, 989e12, 3.35e12, 450e9, 50e9, "NVIDIA H100 SXM"),
    Gpu("h100-pcie", 80, 756e12, 2.0e12, 64e9, 25e9, "NVIDIA H100 PCIe"),
    Gpu("h800", 80, 989e12, 3.35e12, 200e9, 50e9, "NVIDIA H800 SXM"),
    Gpu("h20", 96, 148e12, 4.0e12, 450e9, 50e9, "NVIDIA H20"),
    Gpu("a100-80", 80, 312e12, 2.039e12, 300e9, 25e9, "NVIDIA A100 SXM, 80 GB"),
    Gpu("a100-40", 40, 312e12, 1.555e12, 300e9, 25e9, "NVIDIA A100 SXM, 40 GB"),
    Gpu("l40s", 48, 362e12, 0.864e12, 32e9, 3.1e9, "NVIDIA L40S"),
    Gpu("l4", 24, 121e12, 0.300e12, 32e9, 3.1e9, "NVIDIA L4"),
    Gpu("a10", 24, 125e12, 0.600e12, 32e9, 3.1e9, "NVIDIA A10"),
    Gpu("a10g", 24, 70e12, 0.600e12, 32e9, 3.1e9, "NVIDIA A10G"),
    Gpu("5090", 32, 209e12, 1.792e12, 64e9, 3.1e9, "GeForce RTX 5090"),
    Gpu("4090", 24, 165e12, 1.008e12, 32e9, 3.1e9, "GeForce RTX 4090"),
    Gpu("3090", 24, 71e12, 0.936e12, 32e9, 3.1e9, "GeForce RTX 3090"),
    Gpu("mi300x", 192, 1307e12, 5.3e12, 448e9, 50e9, "AMD Instinct MI300X"),
)
GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in _ALL}
"""Every known GPU by the name that ``--gpu`` takes."""

_OTHER_NAMES = {"a100": "a100-80", "rtx4090": "4090", "rtx3090": "3090", "rtx5090": "5090"}


def gpu_of(name: str) -> Gpu:
    """The GPU of a name; upper and lower case are the same.

    Args:
        name: as ``--gpu`` gives it.

    Raises:
        ConfigError: there is none of that name; the message lists those there are.
    """
    text = name.strip().lower()
    found = GPUS.get(_OTHER_NAMES.get(text, text))
    if found is None:
        raise ConfigError(
            f"--gpu: got {name[:40]!r}; takes one of {', '.join(GPUS)}. For another one give its "
            "memory by --gpu-memory, and --rates for hours"
        )
    return found


def matching(title: str, memory_gb: float) -> Gpu | None:
    """The known GPU that a device of this machine is; None where it is not in the table.

    Args:
        title: the device's name as torch gives it, "NVIDIA H200".
        memory_gb: of the device, in 10**9 bytes; told apart by it are cards of one name.
    """
    words = title.lower().replace("-", " ").split()
    fits = [
        gpu
        for gpu in _ALL
        if gpu.name.partition("-")[0] in words
        and ("pcie" in words) == gpu.name.endswith("-pcie")
        and abs(memory_gb / gpu.memory_gb - 1) < 0.15
    ]
    return fits[0].with_memory(memory_gb) if fits else None
