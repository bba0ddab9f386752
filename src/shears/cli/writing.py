"""The verbs that run a model: they write text."""

import sys
from typing import Annotated

import typer

from shears.cli.app import app
from shears.cli.options import Values, with_stage_options
from shears.recipe import GenerateConfig, SamplingConfig, ServeConfig
from shears.recipe.serving import RunningConfig

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
    from shears.resolve import build
    from shears.runtime.loading import load

    wanted = build(GenerateConfig, "generate", values)
    engine = load(model, adapter, **wanted.model_dump(include=set(RunningConfig.model_fields)))
    for piece in engine.stream(prompt, **wanted.model_dump(include=set(SamplingConfig.model_fields))):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()


@app.command()
@with_stage_options("serve", ServeConfig)
def serve(model: Model, adapter: Adapter = None, *, values: Values) -> None:
    """Answer requests over HTTP, as clients of OpenAI's interface expect it.

    /v1/chat/completions, /v1/completions (streamed or not), /v1/models, /health. Requests share the model, a step of
    all of them at a time. Needs pip install 'shears[serve]'.

    shears serve package

    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"model": "package", "messages": [{"role": "user", "content": "Hello"}]}'
    """
    from shears.serving.server import serve as serve_model

    serve_model(model, adapter, **values)
