"""Model cards: the README.md of an artifact's folder, made from its record alone."""
