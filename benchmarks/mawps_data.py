"""MAWPS (LLM-Adapters' files) as prompt/completion rows: question -> equation = answer."""

import ast
import json
import re
from pathlib import Path
from typing import Any

from shears.data.prompts import render_completion, render_prompt
from shears.evaluation.tasks.answers import evaluate_equation, numbers_equal

TEMPLATE = "question"


def write_splits(source: Path, target: Path, *, keep_seen: bool = False) -> dict[str, Path]:
    """Write train, validation and test as JSONL.

    Questions of the test file are dropped from the other splits, and those of the training split from the validation
    split, unless `keep_seen` keeps the latter, as all results up to 2026-11-26 did.
    """
    test = json.loads((source / "test.json").read_text())
    leaked = {question_key(row["instruction"]) for row in test}
    rows = {"test": [{"prompt": render_prompt(TEMPLATE, row["instruction"]), "answer": row["answer"]} for row in test]}
    for split, name in (("train", "trainset.json"), ("validation", "validset.json")):
        given = json.loads((source / name).read_text())
        clean = [row for row in given if question_key(row["original_text"]) not in leaked]
        rows[split] = [made for row in clean if (made := _row(row))]
        leaked |= set() if keep_seen else {question_key(row["original_text"]) for row in clean if _row(row)}
        print(
            f"{split}: {len(given)} rows, {len(given) - len(clean)} leaked, {len(rows[split])} with a usable equation"
        )
    paths = {}
    for split, content in rows.items():
        paths[split] = target / f"{split}.jsonl"
        paths[split].write_text("".join(json.dumps(row) + "\n" for row in content))
    return paths


def question_key(question: str) -> str:
    """Return the letters and digits of a question, which two ways to write it share."""
    return re.sub(r"\W+", "", question.lower())


def _row(row: dict[str, Any]) -> dict[str, str] | None:
    """Return the row with its equation in the shortest form, None if the equation does not give the answer."""
    left, _, right = row["equation"].partition("=")
    try:
        expression = _shortest(right) if left.strip().lower() == "x" else ""
    except SyntaxError:
        return None
    text = f"{expression} = {_number(row['ans'])}"
    value = evaluate_equation(text)
    if value is None or not numbers_equal(value, float(row["ans"])):
        return None
    return {
        "prompt": render_prompt(TEMPLATE, row["original_text"]),
        "completion": render_completion(TEMPLATE, text),
        "answer": _number(row["ans"]),
    }


def _shortest(expression: str) -> str:
    tree = ast.parse(expression.strip(), mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value.is_integer():
            node.value = int(node.value)
    return ast.unparse(tree).replace(" ", "")


def _number(value: float) -> str:
    return f"{round(float(value), 6):.10g}"
