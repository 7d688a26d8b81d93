"""What a look at a machine comes to: findings, each one line with its remedy."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mura_models.errors import ConfigError, UserError

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    text: str
    """Goes on where `what` ends."""
    remedy: str = ""

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.what} {self.text}" + (f": {self.remedy}" if self.remedy else "")


def ok(what: str, text: str) -> Finding:
    """Return what is as it should be."""
    return Finding(level="ok", what=what, text=text)


def warning(what: str, text: str, remedy: str) -> Finding:
    """Return what a run survives."""
    return Finding(level="warning", what=what, text=text, remedy=remedy)


def problem(what: str, text: str, remedy: str) -> Finding:
    """Return what would make a run fail."""
    return Finding(level="problem", what=what, text=text, remedy=remedy)


def not_checked(what: str, error: object, remedy: str) -> Finding:
    """Return what could not be found out."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return warning(what, f"could not be checked ({lines[-1].strip()[:200]})", remedy)


def from_error(what: str, error: UserError, *, remedy: str) -> Finding:
    """Return the problem that one of our own errors tells; `remedy` where it names none after its last semicolon."""
    text, semicolon, told = str(error).rpartition("; ")
    text = (text if semicolon else told).removeprefix(what).lstrip()
    return problem(what, text, told if semicolon else remedy)


def raise_first_problem(findings: Iterable[Finding]) -> None:
    """Raise ConfigError for the first problem, if there is one."""
    for finding in findings:
        if finding.level == "problem":
            raise ConfigError(str(finding))
