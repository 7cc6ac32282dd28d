# What one does with this tree. Everything runs as root on Debian; what is missing is installed quietly.

PREFIX ?= /usr/local
DESTDIR ?=
PROGRAMS = podwright podwrightd podwright-monitor wright
TRIPLE = x86_64-unknown-linux-gnu
DEBUG = target/$(TRIPLE)/debug
RELEASE = target/$(TRIPLE)/release

.PHONY: help build release demo test check bench install uninstall deps clean

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

build: ## Builds the programs, without optimisation
	@tests/deps.sh build
	cargo build --quiet --workspace --bins

release: ## Builds the programs as they are installed
	@tests/deps.sh build
	cargo build --quiet --workspace --bins --release

demo: ## Runs a pod from a directory before your eyes, then cleans up
	@tests/deps.sh build demo
	@echo "building the programs (unoptimised: quicker to build, quick enough to show)"
	@cargo build --quiet --workspace --bins
	@PODWRIGHT_BIN_DIR=$(DEBUG) tests/demo.sh

test: ## Runs every test lane, on this kernel and in a virtual machine
	@tests/deps.sh build test
	@tests/deps.sh peers vm criu
	@tests/kubectl.sh
	cargo build --quiet --workspace --bins
	@tests/lanes.sh unit oci cri survival vm

check: ## Formatting, lints, and what the dependency tree must not contain
	@tests/deps.sh build
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	@tests/check-tree.sh
	@if command -v cargo-deny >/dev/null; then cargo deny --log-level error check; else echo "check: cargo-deny is not installed: licences and advisories not checked"; fi

bench: ## Measures against Debian's containerd, crun and runc, side by side
	@tests/deps.sh build demo bench
	cargo build --quiet --release --workspace --bins
	cargo build --quiet --release -p podwright-tests --bin bench
	PODWRIGHT_BIN_DIR=$(RELEASE) $(RELEASE)/bench $(BENCH_ARGS)

install: release ## Installs under $(DESTDIR)$(PREFIX), with the systemd units
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/etc/podwright/config.toml.d $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 0755 $(RELEASE)/podwright $(RELEASE)/podwrightd $(RELEASE)/podwright-monitor $(RELEASE)/wright $(DESTDIR)$(PREFIX)/bin/
	[ -e $(DESTDIR)/etc/podwright/config.toml ] || install -m 0644 manifests/config.toml $(DESTDIR)/etc/podwright/config.toml
	for unit in podwrightd.service podwrightd.socket; do sed 's|@PREFIX@|$(PREFIX)|g' manifests/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit; done

uninstall: ## Removes what install put there, but no configuration and no pod
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS))
	rm -f $(DESTDIR)$(PREFIX)/lib/systemd/system/podwrightd.service $(DESTDIR)$(PREFIX)/lib/systemd/system/podwrightd.socket

deps: ## Installs the Debian packages that building, testing and measuring need
	@tests/deps.sh build demo test
	@tests/deps.sh peers vm bench criu

clean: ## Removes what was built, and the kernel and criu kept for the tests
	cargo clean
	rm -rf .vm-cache .criu-cache
