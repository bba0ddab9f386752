"""The verb that continues a text."""

import sys
from typing import Annotated

import typer

from shears.cli.app import app
from shears.cli.options import Values, with_stage_options
from shears.config import GenerateConfig, SamplingConfig
from shears.config.serve import RunningConfig

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Package, model folder, hub id, .gguf or smollm2-135m.")]
Adapter = Annotated[str | None, typer.Option(help="PEFT adapter to put on the model; a package comes with its own.")]


@app.command()
@with_stage_options("generate", GenerateConfig)
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Text to continue, used as it is.")],
    adapter: Adapter = None,
    *,
    values: Values,
) -> None:
    """Continue a prompt, streaming.

    shears generate package --prompt "The capital of France is"

    shears generate sparse --adapter sub_adapter --prompt "Question: Ann has 3 pens and buys 4. How many? Answer:"
    """
    from shears.config.resolve import build
    from shears.runtime.loading import load

    wanted = build(GenerateConfig, "generate", values)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may know fewer characters
    engine = load(model, adapter, **wanted.model_dump(include=set(RunningConfig.model_fields)))
    for piece in engine.stream(prompt, **wanted.model_dump(include=set(SamplingConfig.model_fields))):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
