"""How findings are shown: a block of text each, or JSON; and the exit code."""

import json
from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.text import Text

from neighbor_grpo.run.findings import Finding

SCHEMA = 1
COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}
EXIT = {"ok": 0, "note": 0, "warning": 1, "error": 3}  # 2 is a mistake of the user


def show(finding: Finding, stream: IO[str]) -> None:
    """Print a finding: one line where all is well, else with its remedy and link."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    text = Text(f"{finding.verdict:8}", COLOURS[finding.verdict])
    seen = "".join(letter if letter.isprintable() else " " for letter in finding.text)  # a reward's error may hold anything
    text.append(f"{finding.name:16}", "bold").append(seen, "default")
    if finding.verdict != "ok":
        text.append(f"\n        {finding.remedy}\n        {finding.link}", "default")
    console.print(text)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 without warnings, 1 with warnings, 3 with errors."""
    return max((EXIT[finding.verdict] for finding in findings), default=0)


def as_json(subject: str, findings: Sequence[Finding]) -> str:
    """Return findings as JSON: {schema, subject, exit_code, findings: [{name, verdict, text, value, threshold, ...}]}."""
    record = {
        "schema": SCHEMA,
        "subject": subject,
        "exit_code": exit_code(findings),
        "findings": [finding.record() for finding in findings],
    }
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
