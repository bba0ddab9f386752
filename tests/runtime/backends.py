"""The backends that every test of the engine runs on, each over the same tiny model."""

import torch
from transformers import PreTrainedModel

from shears.runtime.engine import Engine
from shears.runtime.transformers_backend import TransformersBackend
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id
PROMPTS = ["a", "Question: how many apples?\nAnswer:", "xy" * 20, "the same length!!", "and another one.."]


def lively(name: str = "llama") -> PreTrainedModel:
    """A random model repeats one token for ever; larger weights make it wander."""
    model = tiny_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


def always(token: int) -> PreTrainedModel:
    """A model whose next token is always the same."""
    model = tiny_model("llama_untied")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("model.norm.weight").fill_(1.0)
        model.get_parameter("model.embed_tokens.weight").fill_(1.0)
        model.get_parameter("lm_head.weight")[token] = 1.0
    return model


def greedy(model: PreTrainedModel, prompt: str, count: int) -> str:
    """Oracle: no cache and no padding, the whole text is computed again for every token."""
    ids = TOKENIZER(prompt)["input_ids"]
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == END:
            break
        ids = [*ids, token]
    return str(TOKENIZER.decode(ids[start:]))


def engine_of(model: PreTrainedModel, max_sequences: int = 16) -> Engine:
    """Return an engine over transformers."""
    return Engine(TransformersBackend(model, max_sequences=max_sequences), TOKENIZER, frozenset([END]))
