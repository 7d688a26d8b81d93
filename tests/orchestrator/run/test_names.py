"""Names of searches, trials and systems: what is built is parsed back, whatever characters a bone has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.run.names import (
    BASELINE,
    BONE_TASK,
    ROUTER,
    SELECTED_ORACLE,
    SELECTED_ROUTED,
    SearchId,
    SystemId,
    TrialId,
    parse_bone,
    specialist_target,
)

BONES = st.text() | st.sampled_from(["a/b", "a:b", "x/000", "x/000/audit", "specialist:hand", "router", "\n"])
RECIPES = st.sampled_from(["linear_probe", "mlp_probe", "two_stage_probe", "intermediate_task", "finetune"])
TARGETS = st.sampled_from([BASELINE, ROUTER]) | st.builds(specialist_target, BONES)
SEARCHES = st.builds(SearchId, TARGETS, RECIPES)


def test_names_are_spelled_as_files_hold_them():
    search = SearchId(specialist_target("hand"), "mlp_probe")
    trial = TrialId(search, 3)
    assert str(search) == "specialist:hand/mlp_probe"
    assert str(trial) == "specialist:hand/mlp_probe/003"
    assert str(trial.audit()) == "specialist:hand/mlp_probe/003/audit"
    assert str(trial.replicate(0)) == "specialist:hand/mlp_probe/003/seed0"
    assert str(BONE_TASK) == "router/finetune"
    assert BONE_TASK.backbone_key(1) == "router/finetune#1"
    assert str(SystemId("baseline", "mlp_probe")) == "baseline_mlp_probe"
    assert str(SystemId("specialists", "two_stage_probe", "oracle")) == "specialists_two_stage_probe_oracle"
    assert (str(SELECTED_ORACLE), str(SELECTED_ROUTED)) == ("selected_oracle", "selected_routed")


@given(BONES)
def test_the_bone_of_a_specialist_is_parsed_back(bone):
    assert parse_bone(specialist_target(bone)) == bone
    assert parse_bone(BASELINE) is None and parse_bone(ROUTER) is None


@given(SEARCHES)
def test_a_search_is_parsed_back(search):
    assert SearchId.parse(str(search)) == search
    assert search.is_router == (search.target == ROUTER)


@given(RECIPES, st.sampled_from(["oracle", "routed"]))
def test_a_system_is_parsed_back(recipe, routing):
    for system in (
        SystemId("baseline", recipe),
        SystemId("specialists", recipe, routing),
        SystemId("selected", None, routing),
    ):
        assert SystemId.parse(str(system)) == system


@pytest.mark.parametrize(
    "text", ["", "baseline", "baseline_", "specialists_mlp_probe", "selected", "selected_x", "x_y"]
)
def test_another_text_is_no_system(text):
    with pytest.raises(ValueError, match="not the name of a system"):
        SystemId.parse(text)


def test_another_text_is_no_search():
    with pytest.raises(ValueError, match="not the name of a search"):
        SearchId.parse("baseline")
