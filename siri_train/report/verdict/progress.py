"""Is the run finished, how far is it, and are its files whole?"""

from __future__ import annotations

from .subject import Subject
from .types import Finding, Status
from .words import counted


def finished(subject: Subject) -> bool:
    """Whether the run has done all its steps, or sampled all its tokens.

    Args:
        subject: the run.
    """
    steps = subject.count("train", "steps")
    ended = (subject.run.folder / "summary.json").is_file()
    if steps is None:
        return ended
    by_tokens = subject.count("train", "max_tokens") is not None and ended
    return subject.done >= steps or by_tokens


def progress(subject: Subject) -> Finding:
    """The finding.

    Args:
        subject: the run.
    """
    done, steps = subject.done, subject.count("train", "steps")
    over = finished(subject)
    known = {row["step"] for row in subject.run.metrics}
    lacking = done - len([step for step in known if step < done])
    of = f" of {steps:,}" if steps is not None else ""
    figures = {"step": done, "steps": steps, "missing_rows": lacking, "notes": len(subject.notes)}
    if not done and not subject.run.evals:
        text = "No step and no evaluation is recorded yet."
        return Finding("state", "missing", "Nothing recorded yet", text, figures, subject.notes)
    if over:
        by_tokens = steps is not None and done < steps
        why = "; the token budget of training (train.max_tokens) ended it" if by_tokens else ""
        title = f"Finished: {counted(done, 'step')}"
        text = f"The run has done {done:,}{of} steps{why}."
    else:
        title = f"Not finished: {done:,}{of} steps"
        text = f"The run has done {done:,}{of} steps; what follows is about these."
        if steps is None:
            title = f"{counted(done, 'step')} done; whether that is all is not known"
            text = (
                f"The run has done {counted(done, 'step')}. config.yaml, which says how many it "
                "is to do, or summary.json, which a run writes at its end, is missing."
            )
    damaged = bool(lacking or subject.notes)
    if lacking:
        text += f" metrics.jsonl lacks {counted(lacking, 'step')} of them."
    if subject.notes:
        text += f" {counted(len(subject.notes), 'file')} could not be read whole."
    status: Status = "unclear" if damaged or not over else "good"
    if damaged:
        title += ", files damaged"
    return Finding("state", status, title, text, figures, subject.notes)
