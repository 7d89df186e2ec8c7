# GNU make 3.81 or newer (macOS has that one) and a POSIX shell. Relative paths only: the clone's path may have spaces.
# Every target sets up what it needs in .venv by itself; PYTHON=... chooses the interpreter.

SHELL = /bin/sh
# -P: the working directory is not importable, so a stranger's bank/ or workers/ cannot be picked up for ours.
py = .venv/bin/python -P

.PHONY: help setup demo bench soak benchmarks distances recording pictures test test-long test-pythons test-servers \
	soundness test-compose test-rabbitmq test-hosts check lock clean venv-run venv-dev

help: ## show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

setup: venv-dev ## make .venv with everything, for users and developers
	@echo "bankrun: .venv is ready"

demo: venv-run ## see the race: compare locking strategies on one and on several workers
	@$(py) -m bankrun compare
	@printf '\nTry next:\n  %s\n  %s\n  %s\n' \
		'.venv/bin/bankrun prove --strategy thread-lock --strategy row-lock' \
		'.venv/bin/bankrun audit' \
		'.venv/bin/bankrun compare --help'

bench: venv-run ## measure how fast this machine moves money
	@$(py) -m bankrun bench

soak: venv-run ## 100,000 transfers under 60 faults; some ten minutes
	@$(py) -m bankrun soak

benchmarks: venv-run ## write docs/benchmarks.md anew; twenty minutes, on a machine with nothing else to do
	.venv/bin/python -m pip install --quiet --require-hashes --requirement requirements-peers.lock
	@$(py) -m bankrun bench --full --rounds 3 --transfers 3000 \
		--export-json docs/benchmarks.json --export-markdown docs/benchmarks.md

distances: venv-run ## write docs/distances.md anew; five minutes, on a machine with nothing else to do
	@$(py) -m bankrun bench --distance-ms 0 --distance-ms 5 --distance-ms 30 --rounds 1 --transfers 1000 \
		$(addprefix --strategy ,row-lock atomic-update single-statement version-check table-lock redis-lock single-writer) \
		--export-json docs/distances.json --export-markdown docs/distances.md

recording: venv-run ## write anew what the live page shows before anything has run; half a minute
	@$(py) -m bankrun.page.recording

pictures: venv-dev ## write anew the frames of that recording in docs/; needs a chromium
	@$(py) tools/pictures.py

test: venv-dev ## test what is claimed; seven minutes
	@$(py) -m pytest --numprocesses=auto --dist=loadgroup -m "not long"

test-long: venv-dev ## the long tests: corpora of programs and faults, whole benchmarks; seven minutes
	@$(py) -m pytest --numprocesses=auto --dist=loadgroup -m long

test-pythons: ## unit tests, lessons and a comparison on Python 3.12 to 3.14, as far as they are here; or on PYTHONS="..."
	@tools/test-pythons.sh

test-servers: venv-dev ## the contract, the proof, the headline on your Postgres 15 to 18: TEST_SERVERS="postgresql://... ..."
	@$(py) -m pytest -rs tests/servers

soundness: venv-dev ## prove the prover: every pruned search against the full one, and 10,000 hostile inputs; half an hour
	@SOUNDNESS=1 SOUNDNESS_PAIRS=$${SOUNDNESS_PAIRS:-300} $(py) -m pytest -rs --numprocesses=1 \
		tests/integration/schedule/test_soundness.py tests/integration/test_proof_soundness.py tests/integration/test_examples.py \
		tests/integration/test_presets.py tests/acceptance/test_odd_settings.py tests/unit/test_hostile_files.py \
		tests/integration/test_audit_damage.py \
		tests/integration/test_hostile_wire.py tests/integration/test_hostile_broker.py \
		tests/integration/test_written_otherwise.py

test-compose: venv-dev ## run the tests of the compose stack, with a Docker engine that is up
	@$(py) -m pytest tests/compose

test-rabbitmq: venv-dev ## run the tests over RabbitMQ, where it is installed; five minutes
	@$(py) -m pytest tests/rabbitmq

test-hosts: venv-dev ## run the tests of many hosts, which are network namespaces: Linux, root, four minutes
	@tools/private-network --if-allowed $(py) -m pytest -rs tests/hosts

check: venv-dev ## formatting, lint, types, import layers, Kubernetes' schemas, no machine's address in the tree
	$(py) -m ruff format --check
	$(py) -m ruff check
	$(py) -m mypy
	$(py) -m mypy lessons
	.venv/bin/lint-imports
	$(py) -m kubernetes_validate --strict --quiet --kubernetes-version 1.31 \
		$(filter-out %/kustomization.yaml,$(wildcard deploy/kubernetes/*/*.yaml))
	tools/check-tree.sh

lock: .venv/bin/uv ## write the lock files anew from pyproject.toml, keeping pins that still fit
	$(compile) pyproject.toml --group build -o requirements.lock
	$(compile) -c requirements.lock --group dev -o requirements-dev.lock
	$(compile) -c requirements.lock -c requirements-dev.lock --group peers -o requirements-peers.lock

clean: ## remove .venv and the caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

compile = .venv/bin/uv --quiet pip compile --universal --generate-hashes --no-emit-index-url \
	--python-version 3.11 --custom-compile-command "make lock"

# Only if missing: a lock file that cannot be installed must not keep us from writing a better one.
.venv/bin/uv:
	@tools/venv.sh dev

venv-run:
	@tools/venv.sh run

venv-dev:
	@tools/venv.sh dev
