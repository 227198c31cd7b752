# make demo    everything on generated phantoms, in minutes; the report's path comes last
# make test    the test suite; with MEDCLR_TEST_DATA=FOLDER also the tests on real data
# make lint    ruff, mypy --strict, import-linter
# make bench   side by side with other packages; with MEDCLR_TEST_DATA=FOLDER also on real data
# The first of these makes .venv and installs the pinned versions into it; later ones reuse it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
INSTALLED := .venv/.installed
NEED_DATA := $(addprefix benchmarks/,ablation.py beside_peers.py corrupted_arms.py corrupted_targets.py five_folds.py label_grid.py \
               regularisation.py)

.PHONY: demo test lint bench clean

demo: $(INSTALLED)
	.venv/bin/medclr demo --out runs/demo

test: $(INSTALLED)
	.venv/bin/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: $(INSTALLED)
	.venv/bin/python -m pip install -qq -c constraints.txt -e ".[bench,codecs]"
	.venv/bin/python -m pip install -qq --no-deps lightly==1.6.0  # what it asks for breaks Lightning
	@set -e; for script in $(filter-out $(NEED_DATA),$(wildcard benchmarks/*.py)); do \
	  echo "$$script"; .venv/bin/python "$$script"; done
	@set -e; [ -z "$$MEDCLR_TEST_DATA" ] || for script in scan_headers beside_peers; do \
	  echo "$$script, real"; .venv/bin/python "benchmarks/$$script.py" "$$MEDCLR_TEST_DATA/dicom_series_multivendor"; done
	@[ -z "$$MEDCLR_TEST_DATA" ] || .venv/bin/python benchmarks/label_grid.py "$$MEDCLR_TEST_DATA/pneumoniamnist"

# runs/ stays, except for the demo's: it holds people's work.
clean:
	rm -rf .venv build dist runs/demo .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find medclr tests benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing the pinned versions into .venv (minutes, once) ..."
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -qq -c constraints.txt torch
	.venv/bin/python -m pip install -qq -c constraints.txt -e ".[dev]"
	.venv/bin/python -m pip install -qq -c constraints.txt --no-deps timm  # its torchvision may not fit torch
	@touch $@
