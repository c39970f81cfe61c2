# make demo | test | test-floor | test-newest | lint | types | wheel-check | clean
#
# Each target works alone on a machine that has Python >= 3.10, make and a package index: the first
# one makes a virtual environment in .venv and installs into it; later ones find it done.
#
#   make test PYTHON=python3.12              another interpreter
#   make test PYTEST_ARGS="-k fusion -x"     part of the suite
#   make test PYTEST_ARGS="tests/fuzz --fuzz-cases 20000"     damaged input, more of it than usual

PYTHON ?= python3
PYTEST_ARGS ?=
# Tests run in as many processes as there are processors, up to four; JOBS=0 runs them in one.
# Each process takes whole files, whose tests share what they have made.
JOBS ?= auto
TEST := -m pytest -q -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What decides what an (editable) installation contains; the code itself is used in place.
INPUTS := pyproject.toml constraints.txt trimix_lm_eval/trimix_lm_eval.pth \
	trimix_lm_eval/trimix_lm_eval.start

# The oldest transformers that pyproject.toml admits.
FLOOR := $(shell sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
FLOOR_VENV := .venv-floor
FLOOR_STAMP := $(FLOOR_VENV)/.installed-$(FLOOR)

NEWEST_VENV := .venv-newest

WHEEL_VENV := .venv-wheel

.PHONY: demo test test-floor test-newest lint types wheel-check clean

demo: $(STAMP)
	@$(BIN)/python examples/demo/run.py

test: $(STAMP)
	$(BIN)/python $(TEST) $(PYTEST_ARGS)

test-floor: $(FLOOR_STAMP)
	$(FLOOR_VENV)/bin/python $(TEST) $(PYTEST_ARGS)

# Each run takes what has come out since the last. Only torch stays: its build without CUDA is not on
# every index, and is found by its version.
test-newest:
	$(check_python)
	test -x $(NEWEST_VENV)/bin/pip || $(PYTHON) -m venv $(NEWEST_VENV)
	grep '^torch==' constraints.txt > $(NEWEST_VENV)/constraints.txt
	$(NEWEST_VENV)/bin/pip install --quiet --upgrade --upgrade-strategy eager \
		-c $(NEWEST_VENV)/constraints.txt -e '.[dev]'
	$(NEWEST_VENV)/bin/python $(TEST) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# sdist -> wheel -> a clean environment -> an empty folder, where no checkout can help out.
wheel-check: $(STAMP)
	rm -rf dist $(WHEEL_VENV)
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/pip install --quiet -c constraints.txt dist/*.whl
	bin="$(CURDIR)/$(WHEEL_VENV)/bin"; empty=$$(mktemp -d) && cd "$$empty" \
	&& "$$bin/lm_eval" --model trimix --model_args pretrained=demo --tasks trimix_demo --limit 4 \
	&& "$$bin/python" -c "from lm_eval.api.registry import get_model; \
	print(get_model('hf'), get_model('trimix'))" \
	&& "$$bin/lm_eval" ls tasks > listed.txt && grep trimix_demo listed.txt \
	&& "$$bin/trimix" tasks \
	&& "$$bin/trimix" new-language swh_Latn --text listed.txt \
	&& cd / && rm -r "$$empty"
	@echo "wheel-check: ok"

clean:
	rm -rf $(VENV) $(FLOOR_VENV) $(NEWEST_VENV) $(WHEEL_VENV) build dist
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): $(INPUTS)
	$(check_python)
	@echo "Installing into $(VENV): a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# Libraries that move together with transformers are left for pip to choose.
$(FLOOR_STAMP): $(INPUTS)
	$(check_python)
	@echo "Installing into $(FLOOR_VENV) with transformers $(FLOOR)."
	$(PYTHON) -m venv --clear $(FLOOR_VENV)
	grep -E '^(torch|lm_eval|build|hatchling|hypothesis|pytest|pytest-randomly|pytest-xdist)==' constraints.txt \
		> $(FLOOR_VENV)/constraints.txt
	$(FLOOR_VENV)/bin/pip install --quiet -c $(FLOOR_VENV)/constraints.txt \
		-e '.[dev]' transformers==$(FLOOR)
	touch $@

define check_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	echo "Python 3.10 or newer is needed, and '$(PYTHON)' is not it." \
	"Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
endef
