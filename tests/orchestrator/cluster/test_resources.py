"""Which cluster a run joins, by `--address` and $RAY_ADDRESS."""

import pytest

from mura_models.errors import ConfigError
from orchestrator.cluster.connection import resolve_address
from orchestrator.run.execution import ExecutionOptions


@pytest.mark.parametrize(
    ("given", "in_environment", "joined"),
    [
        (None, None, None),
        (None, "", None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
        ("auto", None, "auto"),
        ("auto", "10.0.0.1:6379", "10.0.0.1:6379"),
        # Without an address Ray is started with everything that keeps others out: so it must be for "local".
        ("local", None, None),
        ("local", "10.0.0.1:6379", None),
        (None, "local", None),
        ("auto", "local", None),
    ],
)
def test_the_cluster_to_join(
    given: str | None, in_environment: str | None, joined: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if in_environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", in_environment)
    assert resolve_address(ExecutionOptions(address=given)) == joined


@pytest.mark.parametrize("given", [None, "auto"])
@pytest.mark.parametrize(
    ("in_environment", "text"),
    [
        ("ray://10.0.0.1:10001", "cannot join by a URL; give the head's HOST:PORT .* or submit .* ray job submit$"),
        ("http://127.0.0.1:8265", "cannot join by a URL"),
        ("nonsense", "must be HOST:PORT, auto or local$"),
    ],
)
def test_an_address_that_a_run_cannot_join_by_is_refused_by_its_name(
    given: str | None, in_environment: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", in_environment)
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS={in_environment}: .*{text}"):
        resolve_address(ExecutionOptions(address=given))
    with pytest.raises(ConfigError, match=f"^address={in_environment}: .*{text}"):
        ExecutionOptions(address=in_environment)
