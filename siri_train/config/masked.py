"""Hides passwords and keys in text that is shown or written: they become ``***``.

A configuration that would hold one is refused (``values.py``, ``rollout.py``). Text from elsewhere
is masked: a configuration of an older version, a path or an address in a message.
"""

from __future__ import annotations

import re

# A user and password in an address; the password may hold slashes, as in ``_url`` of values.
_ADDRESS = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s\"'<>]*@")
_WORD = r"(?:api[-_]?key|token|passw(?:or)?d|passphrase|secret|credentials)"
# ``--hf-token X``, ``--api-key=X``, [--api-key, X], and on lines of their own in YAML.
_FLAG = re.compile(
    rf"(--(?:[\w.-]*[-_.])?{_WORD}[\"']?(?:\s*[=,]\s*|\s+(?:-\s+)?)[\"']?)([^\s\"',\[\]{{}}-][^\s\"',\]}}]*)",
    re.IGNORECASE,
)
# ``password: X`` and ``"hf_token": "X"``; not ``eos_token: X``, and not null.
_ENTRY = re.compile(
    rf"((?<![\w-])[\"']?(?:(?:hf|auth|access|api)[-_])?{_WORD}[\"']?\s*:\s*[\"']?)"
    r"(?!null\b|~|true\b|false\b)([^\s\"',{}\[\]]+)",
    re.IGNORECASE,
)
# What services give out, wherever it stands.
_KNOWN = re.compile(r"\b(hf_|ghp_|github_pat_|sk-(?:[a-z]+-)*)[A-Za-z0-9]{20,}\w*")


def masked(text: str) -> str:
    """A message with ``***`` for passwords in addresses and for what services give out."""
    return _KNOWN.sub(r"\1***", _ADDRESS.sub(r"\1***@", text))


def masked_settings(text: str) -> str:
    """Settings with ``***`` also for the values of keys and flags whose name says secret.

    Args:
        text: YAML, JSON or a list of flags.
    """
    return _ENTRY.sub(r"\1***", _FLAG.sub(r"\1***", masked(text)))


def holds_secret(setting: str) -> bool:
    """Whether :func:`masked_settings` would change it."""
    return masked_settings(setting) != setting
