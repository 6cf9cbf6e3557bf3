.PHONY: quick check format

# While you work: under a minute on two cores.
quick:
	ruff check
	pytest -m "not (slow or hub or gpu or fuzz or network)"

# What continuous integration runs, in the environment that is active.
check:
	ruff format --check
	ruff check
	lint-imports
	pyright
	pytest

format:
	ruff format
	ruff check --fix
