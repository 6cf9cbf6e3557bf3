# What continuous integration runs, in the environment that is active.
.PHONY: check format

check:
	ruff format --check
	ruff check
	lint-imports
	pyright
	pytest

format:
	ruff format
	ruff check --fix
