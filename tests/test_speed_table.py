"""The speed table: every preset's shape is measured, or named with why it is not."""

from __future__ import annotations

import pytest

import speed_table
from rankmill.models.presets import presets


def test_every_preset_is_measured_or_named_with_the_reason():
    chosen, left_out = speed_table.choose(names=None, most_gib=8.0)
    measured = {preset.name for preset in chosen}
    assert {"jina-bert", "causal-lm", "gte"} <= {preset.architecture for preset in chosen}
    assert measured | left_out.keys() == {preset.name for preset in presets()}
    assert not measured & left_out.keys()
    large = [name for name, why in left_out.items() if "GiB in float32, above 8" in why]
    assert large == ["Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3-Reranker-8B"]


def test_shapes_are_chosen_by_name():
    names = ["jinaai/jina-reranker-v1-tiny-en", "demo"]
    chosen, left_out = speed_table.choose(names, most_gib=8.0)
    assert sorted(preset.name for preset in chosen) == sorted(names)
    assert not left_out
    with pytest.raises(SystemExit, match="no presets: nothing"):
        speed_table.choose(["nothing"], most_gib=8.0)
