"""Which implementation of an operation runs."""

from __future__ import annotations

BACKENDS = ("triton", "portable", "reference")


def resolve_backend(op: str, backend: str | None) -> str:
    """The implementation of ``op`` that ``backend`` asks for; None: the fastest there is."""
    if backend is None:
        return "portable"
    if backend not in BACKENDS:
        raise ValueError(
            f"{op}: backend must be None, {', '.join(map(repr, BACKENDS))}; got {backend!r}"
        )
    if backend == "triton":
        raise NotImplementedError(
            f"{op}: the Triton backend is not there yet (see CHANGELOG.md; issues 3 and 4 of the "
            "roadmap); backend=None, 'portable' and 'reference' are"
        )
    return backend
