PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,detection,notebooks,serving,export,test,docs
WORKDIR ?= runs/digits

.PHONY: demo test lint docs dist clean

demo: $(VENV)/installed
	$(BIN)/python -m train.demo --workdir $(WORKDIR)

# In parts, each with workers of its own: their memory grows with every model. All of them run,
# also after one that fails.
REST := $(addprefix --ignore=,tests/train tests/serving tests/commands tests/benchmarks tests/layers)
test: lint
	@failed=0; \
	for part in "tests/train" "tests/serving tests/commands tests/benchmarks tests/layers" "$(REST)"; do \
		$(BIN)/python -m pytest -n 2 --dist loadgroup $$part || failed=1; \
	done; \
	exit $$failed

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

dist: $(VENV)/installed
	rm -rf build dist
	$(BIN)/python -m build --outdir dist
	bash .ci/check-wheel dist/*.whl

# Made anew when the dependencies change.
$(VENV)/installed: setup.cfg pyproject.toml
	$(BIN)/python --version 2>/dev/null || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
