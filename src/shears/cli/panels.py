"""How configuration fields look on the command line: panel of the help and kind of value.

Other fields are in the panel `Options`, with a kind made from their type.
"""

from collections.abc import Mapping

REQUIRED = "Required"
OTHER = "Options"
PANELS: Mapping[str, tuple[str, ...]] = {
    "Data": (
        "data", "columns", "validation", "test", "task", "harness", "include_path", "template",
        "max_length", "limit", "protocol", "shots", "calibration", "num_samples", "sequence_length",
        "teacher", "teacher_top_k", "tokens",
    ),
    "Loss and healing": ("kl", "cross_entropy", "recovery", "heal"),
    "Pruning": (
        "sparsity", "method", "pattern", "allocation", "reconstruct", "skip", "sparsity_of",
    ),
    "Adapter": (
        "ranks", "groups", "alpha", "init", "sampling",
        "sparse_adapter", "quantize_aware", "dropout", "recover_rank", "recover_by",
    ),
    "Schedule": (
        "epochs", "max_steps", "learning_rate", "warmup_steps", "validation_every", "early_stopping",
    ),
    "Goal and budget": (
        "target", "objective", "constraint", "strategy", "max_evaluations", "tie_layers", "sparsities",
        "attempts",
    ),
    "Text": (
        "chats", "system", "max_new_tokens", "num_beams", "temperature", "top_k", "top_p",
        "repetition_penalty", "stop",
    ),
    "Server": (
        "host", "port", "name", "api_key", "max_waiting", "max_request_bytes", "shutdown_seconds",
    ),
    "Measurement": ("against", "prompt_tokens", "new_tokens", "rounds", "baselines"),
    "Memory and speed": (
        "batch_size", "micro_batch_size", "recompute", "quantize", "shard",
        "precision", "device", "threads", "activation_budget", "cache_budget", "backend",
    ),
    "Output": (
        "output", "format", "values", "embeddings", "dtype", "report_to", "save_steps",
    ),
    "Strategy options": ("step", "reference_points"),
    "Several workers": ("storage", "study", "stale_after"),
    "Advanced": ("seed",),
}  # fmt: skip
"""The fields of every panel, in the order of the help; a name has one panel in all verbs."""

METAVARS: Mapping[str, str] = {
    **dict.fromkeys(("data", "test", "validation", "calibration"), "FILE"),
    **dict.fromkeys(("output", "include_path", "against"), "FOLDER"),
    "teacher": "MODEL",
    "tokens": "COUNT",
    "heal": "COUNT",
    "target": "BITS|SIZE|SPEED",
    "device": "auto|cpu|cuda|mps",
    "pattern": "row|N:M",
    "activation_budget": "SIZE",
    "cache_budget": "SIZE",
    "storage": "URL",
}
"""The kind of value of fields whose type does not say it."""


def panel_of(name: str) -> str:
    """Return the panel of a field."""
    return next((panel for panel, fields in PANELS.items() if name in fields), OTHER)
