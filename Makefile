# Everything runs in .venv, made with $(PYTHON) and pinned by constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# A thread that waits for another gives its core away. Spinning, which is the default, makes a run
# ten times slower as soon as anything else wants the cores.
export OMP_WAIT_POLICY := passive

.PHONY: help tour test lab notebooks book compat smollm2 evaluate-model lint clean
.DEFAULT_GOAL := help

help:
	@echo "make tour       the method on heads of a real language model: table here, page in out/"
	@echo "make test       every test, then every notebook compared with its stored outputs"
	@echo "make lab        open the course in JupyterLab"
	@echo "make book       the course as a static site in out/book, every link checked"
	@echo "make compat     the tests of the transformers integration with the last transformers 4"
	@echo "make notebooks  re-execute and normalise every notebook in place"
	@echo "make smollm2    fetch SmolLM2-135M-Instruct, 93 MB, ahead of its first use"
	@echo "make evaluate-model CORPUS=books.jsonl.xz   every number of the model card; wants a GPU"
	@echo "make lint       ruff: code, notebooks, format"
	@echo "make clean      remove .venv, out and caches"
	@echo
	@echo "Another Python (3.11 to 3.13):  make tour PYTHON=python3.12"
	@echo "On Linux pip takes the CUDA build of torch. For the CPU build, a tenth of the size:"
	@echo "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make tour"

# bin/pip is the last file that venv writes: a .venv without it was interrupted and starts anew.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	    { echo "Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	           "Name another one: make PYTHON=python3.12 tour"; exit 1; }
	@test -x $(BIN)/pip || { echo "Making .venv; the first time takes minutes, mostly for torch."; \
	    $(PYTHON) -m venv --clear .venv; }
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt setuptools
	# Without isolation the build uses the pinned setuptools, not today's.
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[all]'
	@touch $@

tour: $(INSTALLED)
	@$(BIN)/python -m tools.tour

# A file is tested by one worker: its fixtures load the model once.
WORKERS := -n auto --maxprocesses 4 --dist loadfile

test: $(INSTALLED)
	$(BIN)/python -m pytest $(WORKERS) -p no:nbval
	$(BIN)/python -m pytest $(WORKERS) --nbval --nbval-current-env --nbval-cell-timeout 300 \
	    --nbval-sanitize-with tests/sanitize.cfg notebooks

lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir notebooks

notebooks: $(INSTALLED)
	$(BIN)/python -m tools.notebooks

book: $(INSTALLED)
	$(BIN)/python -m tools.book

compat: $(INSTALLED)
	$(BIN)/python -m tools.compat

smollm2: $(INSTALLED)
	$(BIN)/python -m anchor_models.smollm2

evaluate-model: $(INSTALLED)
	@test -n "$(CORPUS)" || { echo "Name the held-out books: make evaluate-model CORPUS=FILE"; exit 1; }
	$(BIN)/python -m anchor_lab model --corpus $(CORPUS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv out build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
