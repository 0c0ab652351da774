# Every target works on a new machine with Rust 1.95, gcc, make, git and python3. scripts/setup
# installs what else a target needs where it may (root, or sudo without a password; NO_INSTALL=1
# forbids it) and names it where it may not.
#
# No linker is chosen here: rustc links with its own lld on x86_64 Linux since 1.90, and RUSTFLAGS
# other than those of a plain `cargo build` would build every dependency twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check check-quick bench bench-instructions fuzz hostile h2spec chaos fleet \
	differential-tests network-tests cache-tests deb try-deb try-image release sbom

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile

# The dev profile builds fastest, and `make test` uses most of it again. Not for measurements.
demo: ## Gateway and a sandbox of the API on 127.0.0.1:8080 (ARGS="--listen ADDR")
	@scripts/setup demo
	@[[ -e $${CARGO_TARGET_DIR:-target}/debug/telecomx-gateway ]] || \
		echo "the first build takes about four minutes on two cores and 1.2 GB in target/"
	@cargo run --locked -- demo $(ARGS)

test: ## Unit, integration, documentation, client and cache tests
	@scripts/setup test
	@scripts/test

check: ## Format, lints, structure, wording, documentation, dependencies, deployment files
	@scripts/setup check deploy
	@scripts/check
	@scripts/check-deploy

check-quick: ## Format, structure, wording and the lints of the gateway, for work on a change
	@scripts/setup demo
	@scripts/check quick

bench: ## Comparison with nginx, Varnish, HAProxy and pingora (QUICK=1: two minutes; CASES=hit,miss)
	@scripts/setup bench
	@scripts/bench

bench-instructions: ## Instruction counts; fails if one grew by more than 5 % (ACCEPT=1)
	@scripts/setup bench
	@scripts/bench instructions

fuzz: ## Each fuzz target for FUZZ_SECONDS (60), or only FUZZ_TARGET
	@scripts/setup fuzz
	@scripts/fuzz

hostile: ## slowhttptest, h2load and smugglex against gateway and sandbox, with verdicts
	@scripts/setup hostile
	@scripts/hostile

h2spec: ## h2spec against the gateway, over cleartext and TLS (H2SPEC: the program)
	@scripts/setup h2spec
	cargo build --locked --lib --bins --tests
	@scripts/h2spec.py target/debug/telecomx-gateway

chaos: ## 100 reloads, 20 certificate changes, 5 upgrades, a TERM under load; counts lost requests
	@scripts/setup chaos
	cargo build --locked --release
	@scripts/chaos.py target/release/telecomx-gateway

fleet: ## A cluster of three gateways: delay, cost and faults of invalidations (as root)
	@scripts/setup fleet
	cargo build --locked --release
	@scripts/fleet.py target/release/telecomx-gateway spread
	@scripts/fleet.py target/release/telecomx-gateway cost
	@scripts/fleet.py target/release/telecomx-gateway bound
	@scripts/fleet.py target/release/telecomx-gateway restart

differential-tests: ## 10,000 random exchanges equal those of nginx and HAProxy (EXCHANGES, SEED)
	@scripts/setup test
	EXCHANGES=$${EXCHANGES:-10000} SEED=$${SEED:-$$RANDOM} \
		cargo test --locked --test it -- --exact --nocapture \
		differential::random_exchanges_equal_those_of_nginx_and_haproxy

network-tests: ## Failed requests while addresses of the API and DNS fail (as root)
	@scripts/setup network
	cargo build --locked --lib --bins --tests
	@tests/network/run --assert

cache-tests: ## The npm package http-cache-tests, compared with expected.json; the score of nginx
	@scripts/setup cache-tests
	@scripts/cache-tests

deb: ## The Debian package of a release build, in target/debian
	@scripts/setup package
	@scripts/deb

try-deb: ## Installs, runs, upgrades and removes the package on a Debian (as root)
	@scripts/setup try-deb
	@scripts/try-deb

try-image: ## Builds the image of the Dockerfile and runs it read-only in namespaces (as root)
	@scripts/setup try-image
	@scripts/try-image

release: ## .deb, .rpm and tarballs, built twice with the same bytes; SHA256SUMS (SIGNING_KEY=FILE)
	@scripts/setup package release
	@scripts/release

sbom: ## Bill of materials of the binary: target/sbom.cdx.json (CycloneDX)
	@scripts/setup package
	@scripts/sbom
