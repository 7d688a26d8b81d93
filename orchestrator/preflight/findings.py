"""Findings: what the checks of machine and cluster found, one line each, with a remedy."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mura_models.errors import ConfigError, SettingError, UserError
from orchestrator.progress import Progress

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    level: Level
    subject: str
    text: str
    """Continues the line that `subject` begins."""
    remedy: str = ""
    cause: UserError | None = None
    """One of our own errors that it was made from."""

    def __str__(self) -> str:
        return f"{self.subject} {self.text}" + (f": {self.remedy}" if self.remedy else "")

    def spell(self, write: Callable[[str, object], str]) -> str:
        """Return the finding in one line, with a setting at fault as `write` writes it."""
        if not isinstance(self.cause, SettingError):
            return str(self)
        message = self.cause.spell(write)
        return message if "; " in message else f"{message}: {self.remedy}"

    @classmethod
    def ok(cls, subject: str, text: str) -> "Finding":
        """Return a finding that needs no action."""
        return cls("ok", subject, text)

    @classmethod
    def warning(cls, subject: str, text: str, remedy: str) -> "Finding":
        """Return a finding that a run survives."""
        return cls("warning", subject, text, remedy)

    @classmethod
    def error(cls, subject: str, text: str, remedy: str) -> "Finding":
        """Return a finding that would make a run fail."""
        return cls("error", subject, text, remedy)

    @classmethod
    def not_checked(cls, subject: str, error: object, remedy: str) -> "Finding":
        """Return a warning that a check could not be made, with the last line of `error`."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return cls.warning(subject, f"could not be checked ({lines[-1].strip()[:200]})", remedy)

    @classmethod
    def from_error(cls, subject: str, error: UserError, *, remedy: str) -> "Finding":
        """Return one of our own errors as a finding. The part after its last semicolon, if any, is its remedy."""
        text, semicolon, rest = str(error).rpartition("; ")
        text = (text if semicolon else rest).removeprefix(subject).lstrip()
        return cls("error", subject, text, rest if semicolon else remedy, error)


def report_findings(findings: Iterable[Finding], progress: Progress) -> None:
    """Log every warning; raise ConfigError for the first error."""
    errors = []
    for finding in findings:
        if finding.level == "warning":
            progress.log(f"warning: {finding}")
        elif finding.level == "error":
            errors.append(finding)
    if errors:
        raise ConfigError(str(errors[0]))


def format_bytes(num_bytes: int) -> str:
    """Return a size in kB, MB or GB."""
    if num_bytes < 10**6:
        return f"{math.ceil(num_bytes / 1000)} kB"
    return f"{num_bytes / 10**6:.0f} MB" if num_bytes < 10**9 else f"{num_bytes / 10**9:.1f} GB"
