"""Names of targets, searches, trials and systems: the one place that builds and parses them.

target    `baseline` (all bones), `router`, `specialist:<bone>`
search    `<target>/<recipe>`
trial     `<search>/003`; its audit `<search>/003/audit`; a replicate of it `<search>/003/seed0`
system    `baseline_<recipe>`, `specialists_<recipe>_oracle|_routed`, `selected_oracle|_routed`
backbone  `<search>#0`: the network of a search's winner, numbered as its networks are

Files hold the names as text; a bone may have any characters, the separators included.
"""

from dataclasses import dataclass
from typing import Literal

BASELINE = "baseline"
ROUTER = "router"
_SPECIALIST = "specialist:"

SystemKind = Literal["baseline", "specialists", "selected"]
Routing = Literal["oracle", "routed"]
_ROUTINGS: tuple[Routing, ...] = ("oracle", "routed")


def specialist_target(bone: str) -> str:
    """Return the target of a bone's specialist."""
    return _SPECIALIST + bone


def parse_bone(target: str) -> str | None:
    """Return a specialist's bone; None for a target that sees all bones."""
    return target.removeprefix(_SPECIALIST) if target.startswith(_SPECIALIST) else None


@dataclass(frozen=True, order=True, slots=True)
class SearchId:
    """All trials of one target and recipe."""

    target: str
    recipe: str

    def __str__(self) -> str:
        return f"{self.target}/{self.recipe}"

    @classmethod
    def parse(cls, text: str) -> "SearchId":
        """Return the id of a search's name. Raises ValueError."""
        target, slash, recipe = text.rpartition("/")
        if not slash:
            raise ValueError(f"{text!r} is not the name of a search")
        return cls(target, recipe)

    @property
    def bone(self) -> str | None:
        """The bone of a specialist; None if the search sees all bones."""
        return parse_bone(self.target)

    @property
    def is_router(self) -> bool:
        """Whether the search trains models that name the bone."""
        return self.target == ROUTER

    def backbone_key(self, number: int) -> str:
        """Return the key of network `number` of the search's winner."""
        return f"{self}#{number}"


@dataclass(frozen=True, order=True, slots=True)
class TrialId:
    """One training: a trial of the plan, or its audit or replicate."""

    search: SearchId
    number: int
    variant: str = ""
    """Empty for a trial of the plan."""

    def __str__(self) -> str:
        return f"{self.search}/{self.number:03d}{self.variant}"

    def audit(self) -> "TrialId":
        """Return the id of this trial's audit."""
        return TrialId(self.search, self.number, "/audit")

    def replicate(self, number: int) -> "TrialId":
        """Return the id of this trial's replicate `number`."""
        return TrialId(self.search, self.number, f"/seed{number}")


@dataclass(frozen=True, order=True, slots=True)
class SystemId:
    """One system that answers for every test image."""

    kind: SystemKind
    recipe: str | None = None
    """None for the selected models, whose recipes differ from bone to bone."""
    routing: Routing | None = None
    """None for a baseline, which is the same model for all bones."""

    def __str__(self) -> str:
        return "_".join(part for part in (self.kind, self.recipe, self.routing) if part)

    @classmethod
    def parse(cls, text: str) -> "SystemId":
        """Return the id of a system's name. Raises ValueError."""
        kind, _, rest = text.partition("_")
        if kind == "baseline" and rest:
            return cls("baseline", rest)
        for routing in _ROUTINGS:
            recipe = rest.removesuffix(f"_{routing}")
            if kind == "specialists" and recipe and recipe != rest:
                return cls("specialists", recipe, routing)
            if kind == "selected" and rest == routing:
                return cls("selected", None, routing)
        raise ValueError(f"{text!r} is not the name of a system")


BONE_TASK = SearchId(ROUTER, "finetune")
"""The search whose winner names the bone with the whole network: a router, and the start of `intermediate_task`."""
SELECTED_ORACLE = SystemId("selected", None, "oracle")
SELECTED_ROUTED = SystemId("selected", None, "routed")
