"""The decoder blocks are found by structure, not by architecture."""

import pytest
import torch
from torch import nn
from transformers import GitConfig, GitForCausalLM, GitVisionConfig

from shears.errors import InputError
from shears.models.blocks import decoder_blocks, linears, matching
from tests.tiny import CONFIGS, tiny_model

BLOCKS = {
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "gpt2": "transformer.h",
    "bloom": "transformer.h",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_and_linears_are_found_in_every_architecture(name: str) -> None:
    prefix, blocks = decoder_blocks(tiny_model(name))
    assert prefix == BLOCKS.get(name, "model.layers")
    assert len(blocks) == (3 if name == "gemma2" else 2)
    assert all(len(linears(block)) >= 4 for block in blocks)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="must have a list of decoder blocks, Linear has none"):
        decoder_blocks(nn.Linear(2, 2))


def _seeing() -> nn.Module:
    """GIT: a small text decoder behind an image encoder that is larger than it."""
    vision = GitVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, image_size=32, patch_size=16,
                             num_attention_heads=4)  # fmt: skip
    config = GitConfig(
        vision_config=vision.to_dict(), vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GitForCausalLM(config)


def test_a_larger_image_encoder_is_not_taken_for_the_decoder() -> None:
    model = _seeing()
    prefix, blocks = decoder_blocks(model)
    assert prefix == "git.encoder.layer"
    encoder = model.get_submodule("git.image_encoder")
    assert sum(each.numel() for each in encoder.parameters()) > sum(each.numel() for each in blocks.parameters())
    seen = []
    blocks[0].register_forward_hook(lambda *_: seen.append(True))
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert seen  # what text passes through


NAMES = ["model.layers.0.q_proj", "model.layers.0.k_proj", "model.layers.1.q_proj", "model.layers.1.k_proj"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], [0, 2]),
        (["1.q_proj", "0.k_proj"], [1, 2]),
        ([r".*layers\.1\..*"], [2, 3]),
        (["q_proj", ".*q_proj"], [0, 2]),
        ([], []),
    ],
)
def test_targets_match_by_suffix_or_whole_regex_in_the_models_order(targets: list[str], expected: list[int]) -> None:
    assert matching(NAMES, targets) == [NAMES[index] for index in expected]


def test_a_misspelt_target_gets_a_suggestion_and_a_bad_regex_its_reason() -> None:
    with pytest.raises(InputError, match=r"'q_porj'; this model has q_proj, k_proj; did you mean 'q_proj'\?"):
        matching(NAMES, ["q_proj", "q_porj"])
    with pytest.raises(InputError, match=r"must be a name or a regex, got '\*'"):
        matching(NAMES, ["*"])
