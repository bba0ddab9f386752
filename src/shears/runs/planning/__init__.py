"""What a run will do and need, before it does it: no weights are loaded and nothing is downloaded."""
