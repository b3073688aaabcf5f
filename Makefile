# The two commands: `make demo` and `make test`. Each makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTO_VENV := .venv-proto
FRAMEWORKS_VENV := .venv-frameworks
NNCF_VENV := .venv-nncf
MODELOPT_VENV := .venv-modelopt
PROTOS := $(wildcard proto/punnet/v1/*.proto)

COUNT ?= 100000
CALLS ?= 10000
DATA ?= ../shared/data
STUDENTS ?= resnet18
KEPT := .bench/int8-students

.PHONY: setup demo test test-slow test-client test-frameworks fuzz fuzz-rpc lint proto proto-check bench \
	peer-environments bench-int8-peers clean

setup: $(STAMP)

# torch first and pinned: a range would take the newest build with its CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -qq -c constraints.txt -e ".[cpu,rtx,dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/python -m benchmarks.demo --out demo-out

test: $(STAMP) node_modules/.installed
	$(BIN)/python -m pytest -q --durations=10

test-slow: $(STAMP) node_modules/.installed
	$(BIN)/python -m pytest -q -m slow

# Pythons 3.10 to 3.14 as far as the machine has them; needs nothing of the engine on them.
test-client: $(STAMP)
	$(BIN)/python -m tests.packaging.client_pythons

fuzz: $(STAMP)
	$(BIN)/python -m tests.hostile.fuzz --count $(COUNT) $(if $(SEED),--seed $(SEED))

fuzz-rpc: $(STAMP)
	$(BIN)/python -m tests.hostile.rpc_fuzz --count $(CALLS)

# Trains and exports models of other frameworks, for which it needs 5 GB of their packages.
$(FRAMEWORKS_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FRAMEWORKS_VENV)
	$(FRAMEWORKS_VENV)/bin/python -m pip install -qq -c constraints.txt torch==2.13.0
	$(FRAMEWORKS_VENV)/bin/python -m pip install -qq -c constraints.txt -e ".[cpu,dev,frameworks]"
	touch $@

test-frameworks: $(FRAMEWORKS_VENV)/.installed
	$(FRAMEWORKS_VENV)/bin/python -m pytest -q -p no:logging -m frameworks tests/frameworks

lint: $(STAMP) node_modules/.installed proto-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	node_modules/.bin/buf lint
	node_modules/.bin/buf format --diff --exit-code
	node_modules/.bin/buf breaking --against proto/released.binpb

bench: $(STAMP)
	$(BIN)/python -m benchmarks.transport --out .bench/transport.json

# Other tools' int8 of our students. Each tool pins packages that Punnet can't share; 2 GB together. ModelOpt's own
# requirements ask for onnxruntime-gpu and CuPy, so its environment is listed whole and installed as listed.
$(NNCF_VENV)/.installed: benchmarks/int8_peers_nncf.txt
	$(PYTHON) -m venv $(NNCF_VENV)
	$(NNCF_VENV)/bin/python -m pip install -qq --no-deps -r $<
	touch $@

$(MODELOPT_VENV)/.installed: benchmarks/int8_peers_modelopt.txt
	$(PYTHON) -m venv $(MODELOPT_VENV)
	$(MODELOPT_VENV)/bin/python -m pip install -qq torch==2.13.0
	$(MODELOPT_VENV)/bin/python -m pip install -qq --no-deps -r $<
	touch $@

peer-environments: $(NNCF_VENV)/.installed $(MODELOPT_VENV)/.installed

$(STUDENTS:%=$(KEPT)/%/student.json): $(KEPT)/%/student.json: | $(STAMP)
	$(BIN)/python -m benchmarks.exports --data $(DATA) --students $* --keep $(KEPT) --out .bench/exports-$*.json

bench-int8-peers: $(STAMP) peer-environments $(STUDENTS:%=$(KEPT)/%/student.json)
	$(BIN)/python -m benchmarks.int8_peers --kept $(KEPT) --students $(STUDENTS) --out .bench/int8-peers.json

# Generated with an old compiler, so that every runtime that Punnet accepts can read the stubs.
$(PROTO_VENV)/.installed:
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/python -m pip install -qq grpcio-tools==1.76.0 mypy-protobuf==5.1.0
	touch $@

proto: $(PROTO_VENV)/.installed
	tools/generate_stubs.sh .

proto-check: $(PROTO_VENV)/.installed
	tools/check_stubs.sh

node_modules/.installed: package.json
	npm install --silent --no-audit --no-fund --no-package-lock
	touch $@

clean:
	rm -rf $(VENV) $(PROTO_VENV) $(FRAMEWORKS_VENV) $(NNCF_VENV) $(MODELOPT_VENV) node_modules demo-out .bench .fuzz
