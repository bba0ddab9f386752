"""The verb that answers over HTTP."""

from shears.cli.app import app
from shears.cli.options import Values, with_stage_options
from shears.cli.writing import Adapter, Model
from shears.config import ServeConfig


@app.command()
@with_stage_options("serve", ServeConfig)
def serve(model: Model, adapter: Adapter = None, *, values: Values) -> None:
    """Serve a model over HTTP, as OpenAI's clients expect it.

    /v1/chat/completions and /v1/completions (streamed or not), /v1/models, /health. Requests share the model, one step
    for all of them at a time. Needs pip install 'shears[serve]'.

    \b
    shears serve package
    curl http://127.0.0.1:8000/v1/completions \\
        -d '{"model": "package", "prompt": "Once", "max_tokens": 20}'
    """
    import shears

    shears.serve(model, adapter, **values)
