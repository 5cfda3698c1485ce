PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,detection,notebooks,serving,test
WORKDIR ?= runs/digits

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(BIN)/python -m train.imagenet --config digits_resnet20 --workdir $(WORKDIR)

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Made anew when the dependencies change.
$(VENV)/installed: setup.cfg pyproject.toml
	$(BIN)/python --version 2>/dev/null || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
