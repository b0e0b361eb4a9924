# `make run` and `make test` need nothing prepared: they build .venv from envs/ first.
#   ARGS       more arguments for snakemake (run) or pytest (test)
#   PYTHON     interpreter for a new .venv, 3.11 or 3.12
#   TORCH_ARGS more options for installing torch (see CONTRIBUTING.md)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv run test gpu-check lint clean

export PYTHON TORCH_ARGS
# First on PATH for everything below and for the jobs snakemake starts.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Of a shell's own environment, which would come before .venv's packages.
unexport PYTHONPATH PYTHONHOME

help:
	@echo 'make run    set up .venv if needed, then run the experiment of config.yaml'
	@echo '            another: make run ARGS="--configfile experiments/smoke.yaml"'
	@echo 'make test   set up .venv if needed, then lint, types and tests'
	@echo 'make gpu-check  test and time the GPU operators; fails where there is no GPU'
	@echo 'make lint   only the linters and types'
	@echo 'make venv   only set up .venv'
	@echo 'make clean  delete scratch/ (intermediate files); results and .venv stay'

venv:
	@bash envs/venv.sh

run: venv
	snakemake $(ARGS)

lint: venv
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile workflow
	snakemake --lint

test: lint
	pytest --numprocesses=2 --dist=loadfile --durations=10 $(ARGS)

gpu-check: venv
	python -m benchmarks.gpu_check

clean:
	rm -rf scratch
