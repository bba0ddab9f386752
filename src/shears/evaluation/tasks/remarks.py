"""What stands beside compared accuracies: other rules, readings, answers and prompts, questions seen in training."""

from collections.abc import Mapping, Sequence

from shears.evaluation.measurements import Arms, Key, Measurement
from shears.evaluation.statistics import pooled_accuracy
from shears.records.measures import CONTAMINATION


def remarks(arms: Arms, base: str) -> list[str]:
    """Return it in sentences; nothing where the records say nothing. The arms are on the same examples."""
    return [*_rules(arms, base), *_readings(arms), *_seen(arms), *_prompts(arms, base)]


def _rules(arms: Arms, base: str) -> list[str]:
    """Tell of arms that were judged by another rule than the base's, or by other right answers."""
    first = arms[base][0]
    others = {arm: {each.rule for each in of if each.rule != first.rule} for arm, of in arms.items()}
    told = [f"{arm} ({', '.join(sorted(rules))})" for arm, rules in others.items() if any(rules)]
    words = f"Judged by another rule than {base} ({first.rule}): {', '.join(told)}. Figures differ by that too."
    return [*([words] if told and first.rule else []), *_answers(arms, base)]


def _answers(arms: Arms, base: str) -> list[str]:
    right, rule = arms[base][0].column("answer"), arms[base][0].rule
    columns = [(arm, each.column("answer")) for arm, of in arms.items() for each in of if each.rule == rule]
    counts = {arm: sum(column[key] != right[key] for key in right) for arm, column in columns}
    return [
        f"Of the {len(right):,} questions, {count:,} have another right answer in {arm} than in {base}."
        for arm, count in counts.items()
        if count
    ]


def _readings(arms: Arms) -> list[str]:
    names = dict.fromkeys(
        key for each in arms.values() for key in each[0].records[0] if key.startswith("correct_")
    )  # fmt: skip
    found = {name: {arm: _accuracy(each, name) for arm, each in arms.items()} for name in names}
    words = {name: name.removeprefix("correct_").replace("_", " ") for name in found}
    return [f"Accuracy {words[name]}: {_told(values)}." for name, values in found.items()]


def _seen(arms: Arms) -> list[str]:
    seen = {arm: {key for each in of for key, flag in each.column(CONTAMINATION).items() if flag}
            for arm, of in arms.items()}  # fmt: skip
    keys = list(next(iter(arms.values()))[0].column("id"))
    others = [key for key in keys if not any(key in of for of in seen.values())]
    if len(others) == len(keys):
        return []
    told = ", ".join(f"{len(of):,} in that of {arm}" for arm, of in seen.items() if of)
    words = f"Of the {len(keys):,} questions, some stand in training data: {told}"
    if not others:
        return [f"{words}; there are no others."]
    values = {arm: _accuracy(each, "correct", others) for arm, each in arms.items()}
    return [f"{words}. On the other {len(others):,} the accuracy is: {_told(values)}."]


def _prompts(arms: Arms, base: str) -> list[str]:
    asked = arms[base][0].column("prompt")
    moved = [arm for arm, of in arms.items() if any(each.column("prompt") != asked for each in of)]
    words = f"Asked in other prompts than {base}: {', '.join(moved)}. Figures differ by that too."
    return [words] if moved else []


def _accuracy(runs: Sequence[Measurement], name: str, keys: Sequence[Key] | None = None) -> float | None:
    """Return the share of True under a name over the examples, seeds pooled; None where a record lacks it."""
    columns = [each.column(name) for each in runs]
    rows = [[column[key] for key in keys or columns[0]] for column in columns]
    known = all(isinstance(value, bool) for row in rows for value in row)
    return pooled_accuracy(rows).value if known else None


def _told(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{arm} {value:.1%}" for arm, value in values.items() if value is not None)
