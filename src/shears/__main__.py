"""Run the command line as `python -m shears` or `accelerate launch -m shears`."""

from shears.cli import main

main()
