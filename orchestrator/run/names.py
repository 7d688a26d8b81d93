"""What models are trained for: `baseline` (all bones), `router`, and `specialist:<bone>`."""

BASELINE = "baseline"
ROUTER = "router"
_SPECIALIST = "specialist:"


def specialist_target(bone: str) -> str:
    """Return the target of a bone's specialist."""
    return _SPECIALIST + bone


def parse_bone(target: str) -> str | None:
    """Return a specialist's bone; None where the target sees all bones."""
    return target.removeprefix(_SPECIALIST) if target.startswith(_SPECIALIST) else None


BONE_TASK = "router/finetune"
"""The search whose winner names the bone with the whole network: a router, and the start of `intermediate_task`."""
