"""The verbs that run a model: they write text."""

import sys
from typing import Annotated

import typer

from shears.cli.app import app
from shears.cli.options import Values, with_stage_options
from shears.recipe import GenerateConfig, SamplingConfig


@app.command()
@with_stage_options("generate", GenerateConfig)
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="smollm2-135m, a hub id, a model folder or a .gguf file.")
    ],
    prompt: Annotated[str, typer.Option(help="Text to continue, used as it is.")],
    adapter: Annotated[str | None, typer.Option(help="PEFT adapter to put on the model.")] = None,
    *,
    values: Values,
) -> None:
    """Continue a prompt, streaming.

    shears generate sparse --adapter sub_adapter --prompt "Question: Ann has 3 pens and buys 4. How many? Answer:"
    """
    from shears.resolve import build
    from shears.runtime.loading import load_model_engine

    wanted = build(GenerateConfig, "generate", values)
    engine = load_model_engine(model, adapter, wanted.dtype, wanted.device)
    for piece in engine.stream(prompt, **wanted.model_dump(include=set(SamplingConfig.model_fields))):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
