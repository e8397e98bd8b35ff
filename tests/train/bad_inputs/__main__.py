"""Every wrong answer: ``python -m tests.train.bad_inputs [--remedies] [FAMILY ...]``.

``--remedies`` also wants a word in every line that says what to do or what is accepted.
"""

from __future__ import annotations

import collections
import sys
import time

from tests.train.bad_inputs.bed import answer, faults
from tests.train.bad_inputs.families import FAMILIES


def main(arguments: list[str]) -> int:
    """Run the families; 1 if any input is answered wrongly."""
    remedies = "--remedies" in arguments
    chosen = [name for name in arguments if name != "--remedies"]
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for name in chosen or FAMILIES:
        started = time.perf_counter()
        for bad in FAMILIES[name]():
            wrong = faults(bad, answer(bad, limit=60.0), remedies)
            counts[name][0] += 1
            counts[name][1] += bool(wrong)
            if wrong:
                print(f"WRONG {bad.family}/{bad.name}: siri-train {' '.join(bad.argv)[:120]!r}")
                print("".join(f"    {line}\n" for line in wrong), end="", flush=True)
        total, bad_ones = counts[name]
        took = time.perf_counter() - started
        print(f"{name}: {total - bad_ones} of {total} right, {took:.1f} s", flush=True)
    print(f"all: {sum(t - w for t, w in counts.values())} of {sum(t for t, _ in counts.values())}")
    return int(any(w for _, w in counts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
