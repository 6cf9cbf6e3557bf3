.PHONY: quick check format docs

# A folder that `circuits compare` wrote, or is to write: the site shows its report.
CIRCUITS_RESULTS ?= results

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

# The site, with the report of the embedded pair: some minutes where there is none yet.
docs: $(CIRCUITS_RESULTS)/report.html
	CIRCUITS_RESULTS=$(CIRCUITS_RESULTS) mkdocs build --strict

$(CIRCUITS_RESULTS)/report.html:
	circuits compare --out $(CIRCUITS_RESULTS)
