"""One self-contained HTML page of a run: pictures made here, no network, every text escaped."""
