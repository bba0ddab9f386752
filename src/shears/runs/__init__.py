"""Runs: every stage of a recipe in one folder, and the plan of a run before it starts."""
