"""Model cards: what an artifact is, in the README.md of its folder, from its record alone."""
