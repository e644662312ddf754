"""Some hundred hostile inputs of each kind; `-m slow` tries thousands.

None kills or hangs its process, and what is refused is refused by an error of ours: a VlgenError, or a TypeError or
ValueError that names the argument. A picture stays within its bound of memory.
"""

from pathlib import Path

import pytest

from .pool import outcomes

LIMIT_S = 20.0
"""For one input, on a busy machine; the slowest takes some tenths."""

ATTACKS = {
    "calls": 80, "hf_calls": 80, "messages": 80, "sources": 80, "picture_files": 20, "checkpoint_files": 40,
    "sounds": 80, "sound_calls": 50,
}  # fmt: skip
"""How many inputs of each the suite tries."""


def check(attack: str, seeds: range, folder: Path) -> None:
    bad = [outcome for outcome in outcomes(attack, seeds, folder, LIMIT_S) if outcome.bad]
    assert not bad, "\n".join(f"{attack} {o.seed} {o.name}: {o.result}" for o in bad)


# Checkpoint files, and more of them, in the unit tests of loading.
@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack != "checkpoint_files"])
def test_some(attack: str, tmp_path: Path) -> None:
    check(attack, range(ATTACKS[attack]), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("attack", ATTACKS)
def test_thousands(attack: str, tmp_path: Path) -> None:
    check(attack, range(1000, 1000 + 30 * ATTACKS[attack]), tmp_path)


def test_what_goes_wrong_is_told(tmp_path: Path) -> None:
    """The workers themselves: an input that crashes, hangs, takes memory or raises anything is not missed."""
    results = {o.name: o.result for o in outcomes("decoys", range(6), tmp_path, limit_s=1.0)}
    assert results["fine"] == "passed"
    assert results["refused"] == "refused"
    assert results["crash"].startswith("died of SIGSEGV")
    assert results["hang"].startswith("hangs")
    assert results["memory"].startswith("took ")
    assert results["raw"].startswith("KeyError")
