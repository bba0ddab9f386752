"""`python -m shears`, also under `accelerate launch -m shears`."""

from shears.cli import main

main()
