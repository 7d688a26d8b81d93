"""The exceptions of both packages.

MuraError
├── UserError            a mistake the user can correct: one line on the terminal, exit code 2
│   ├── ConfigError      an option or setting
│   │   └── SettingError one setting, by its name and value
│   ├── DataError        the data set as a whole
│   ├── WeightsError     a file of weights, or none where one is needed
│   └── BundleError      a bundle that is damaged or of another version
├── ImageError           one image that cannot be used: a row in quarantine.csv
└── RunError             a part of the run that failed: recorded and reported, exit code 1
    └── StorageError     a disk that is full or fails: the same command continues once it works
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_CHARACTERS = 1000
"""Of a message: a name read from a file may be as long as the file (chosen by us)."""


_FOLDERS = re.compile(r"(?<![^\s'\"=:(\[,])(?:[A-Za-z]:[/\\]|[/\\])(?:[^\s/\\'\"]+[/\\])*")


def hide_folders(text: object) -> str:
    """Return text with the folders cut off absolute paths: reports and journals are shared, a machine's paths not."""
    return _FOLDERS.sub("", str(text))


def to_one_line(text: str) -> str:
    """Return text as one line: control characters escaped, and the middle of a long text left out."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    half = MAX_CHARACTERS // 2
    return line if len(line) <= MAX_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


class MuraError(Exception):
    """Root of all errors raised on purpose; its text is always one line, also if a name in it contains line breaks."""

    def __str__(self) -> str:
        return to_one_line(super().__str__())


class UserError(MuraError):
    """A mistake the user can correct; its text is one line with what was given and what is allowed."""


class ConfigError(UserError):
    """An option or setting that is not allowed."""


class SettingError(ConfigError):
    """A setting with a value that is not allowed; the command line writes the option in place of the name.

    `rule` may refer to other settings, as in "must be below {num_epochs}", whose values are in `others`.
    """

    def __init__(self, name: str, value: object, rule: str, others: Mapping[str, object] | None = None) -> None:
        super().__init__(name, value, rule, others)
        self.name, self.value, self.rule, self.others = name, value, rule, others or {}

    def __str__(self) -> str:
        return self.spell(lambda name, value: f"{name}={value}")

    def spell(self, write: Callable[[str, object], str]) -> str:
        """Return the message, in one line, with every setting as `write` writes it."""
        rule = self.rule
        for name, value in self.others.items():
            rule = rule.replace(f"{{{name}}}", write(name, value))
        return to_one_line(f"{write(self.name, self.value)}: {rule}")


class DataError(UserError):
    """A data set that cannot be used as a whole."""

    excluded: Sequence[Mapping[Any, Any]] = ()
    """The files that were excluded, `{"path": ..., "reason": ...}`, if `Bundle.predict` has no image left."""


class WeightsError(UserError):
    """Weights that are missing, damaged or made for another network."""


class BundleError(UserError):
    """A bundle that is damaged, tampered with or of another version."""


class ImageError(MuraError):
    """One image that cannot be used; its text is the reason written to quarantine.csv."""


class RunError(MuraError):
    """A part of the run that failed while the rest goes on."""


class StorageError(RunError):
    """A disk that is full or fails; what was written before is intact, and the same command continues."""
