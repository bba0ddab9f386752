"""A model over HTTP, as clients of OpenAI's interface expect it."""
