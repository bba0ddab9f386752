"""A backend computes logits, an engine turns them into text, a worker shares the engine."""
