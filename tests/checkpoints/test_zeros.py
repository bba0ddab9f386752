"""Kinds of linears: short names that tell all of a block's paths apart."""

from hypothesis import given
from hypothesis import strategies as st

from shears.checkpoints.zeros import kinds_of


def test_kinds_have_the_shortest_unique_names() -> None:
    assert kinds_of(["mlp.down_proj", "mlp.experts.down_proj", "mlp.shared_experts.down_proj", "self_attn.q_proj"]) == {
        "self_attn.q_proj": "q_proj",
        "mlp.down_proj": "mlp.down_proj",
        "mlp.experts.down_proj": "experts.down_proj",
        "mlp.shared_experts.down_proj": "shared_experts.down_proj",
    }
    assert kinds_of(["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]) == {
        "attn.c_attn": "c_attn",
        "attn.c_proj": "attn.c_proj",
        "mlp.c_fc": "c_fc",
        "mlp.c_proj": "mlp.c_proj",
    }


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), max_size=8))
def test_no_two_paths_share_a_kind_and_every_kind_ends_its_path(paths: list[str]) -> None:
    names = kinds_of(paths)
    assert names.keys() == set(paths)
    assert len(set(names.values())) == len(names)
    assert all(f".{path}".endswith(f".{kind}") for path, kind in names.items())
