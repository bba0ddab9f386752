"""A recipe small enough to run through in seconds."""

from pathlib import Path

from tests.tiny import save_tiny

RECIPE = """\
model: {base}
sparsify: {{method: wanda, sparsity: 0.5, num_samples: 4, sequence_length: 64, calibration: arithmetic:train}}
train:
  data: {train}
  ranks: [6, 4, 2]
  alpha: 12
  max_steps: 12
  save_steps: 3
  batch_size: 4
  learning_rate: 0.01
  device: cpu
search: {{data: {validation}, strategy: {strategy}, max_evaluations: 8, device: cpu}}
evaluate: {{task: number, data: {test}, max_new_tokens: 8, device: cpu}}
"""


def write_recipe(folder: Path, strategy: str = "hill-climbing") -> Path:
    """Save a tiny model, a few embedded examples of every split, and the recipe; return the recipe's path."""
    import json

    from shears.data.rows import arithmetic_rows

    files = {}
    for split, count in (("train", 48), ("validation", 8), ("test", 12)):
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("".join(json.dumps(row) + "\n" for row in arithmetic_rows(split)[:count]))
    base = save_tiny(folder / "base")
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base, strategy=strategy, **files))
    return folder / "recipe.yaml"
