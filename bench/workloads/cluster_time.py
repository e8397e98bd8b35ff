"""How long decoding and training take on a GPU: a roofline with stated efficiencies.

`Clock` is the seam: the simulator asks it for seconds and knows nothing of GPUs or models. Another
model of time takes its place by having the same methods.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU's published rates.

    Attributes:
        name: for the page.
        bandwidth: bytes a second.
        flops: dense bfloat16 operations a second.
        memory: bytes.
    """

    name: str
    bandwidth: float
    flops: float
    memory: float


@dataclass(frozen=True)
class Shape:
    """A model's sizes that matter for time.

    Attributes:
        name: for the page.
        parameters: all of them; 2 bytes each.
        cache: bytes of keys and values of one token, 16 bits.
        attention: hidden width times layers; attention does 4 times as many operations for each
            pair of tokens.
    """

    name: str
    parameters: float
    cache: int
    attention: int


H100 = Gpu("H100 SXM", 3.35e12, 989e12, 80e9)
QWEN_1_5B = Shape("1.5B", 1.78e9, 28 * 2 * 2 * 128 * 2, 28 * 1536)
QWEN_7B = Shape("7B", 7.62e9, 28 * 2 * 4 * 128 * 2, 28 * 3584)


@dataclass(frozen=True)
class Clock:
    """Seconds of a GPU. None of the shares is measured here; they are usual values.

    Attributes:
        gpu: its rates.
        shape: the model.
        bandwidth_used: share of the bandwidth that decoding reaches.
        flops_used: share of the operations that reading prompts and training reach.
        overhead: seconds of a decoding step besides: launches, sampling, the scheduler.
        cache_share: share of the memory that keys and values may take.
        between: seconds of a step besides sampling and training: weights handed over, grading.
    """

    gpu: Gpu = H100
    shape: Shape = QWEN_1_5B
    bandwidth_used: float = 0.7
    flops_used: float = 0.4
    overhead: float = 2e-3
    cache_share: float = 0.6
    between: float = 5.0

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys and values fit into a GPU."""
        return int(self.cache_share * self.gpu.memory / self.shape.cache)

    def decode(self, rows: int, held: float, steps: int) -> float:
        """Decoding steps of a batch whose rows all go on.

        The matrices take the longer of reading the weights and of multiplying; attention reads
        the keys and values of every token held, and each step holds ``rows`` more.

        Args:
            rows: sequences.
            held: tokens in the cache before the first step.
            steps: decoding steps.
        """
        weights = 2 * self.shape.parameters / (self.gpu.bandwidth * self.bandwidth_used)
        products = 2 * self.shape.parameters * rows / (self.gpu.flops * self.flops_used)
        read = steps * held + rows * steps * (steps - 1) / 2
        attention = read * self.shape.cache / (self.gpu.bandwidth * self.bandwidth_used)
        return steps * (self.overhead + max(weights, products)) + attention

    def read(self, tokens: int) -> float:
        """Reading ``tokens`` of one prompt (or of a response that was interrupted)."""
        work = 2 * self.shape.parameters * tokens + 2 * self.shape.attention * tokens**2
        return work / (self.gpu.flops * self.flops_used)

    def train(self, lengths: list[int]) -> float:
        """Forward and backward, with recomputed layers, of one packed micro-batch."""
        forward = sum(
            2 * self.shape.parameters * n + 2 * self.shape.attention * n**2 for n in lengths
        )
        return 4 * forward / (self.gpu.flops * self.flops_used)
