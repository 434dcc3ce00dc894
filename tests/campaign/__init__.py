"""A campaign of bad input over every command: `python -m tests.campaign`, see `trial`."""
