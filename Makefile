# make demo    the main job, shown on a captured node; touches nothing of this machine's network
# make test    everything, with what needs private namespaces and a virtual machine
# make soak    every case on a virtual machine, each stage failing or killed; writes docs/soak.md
# make vm      gets what that machine needs: Debian's kernel, virtme-ng, kube-proxy
# make bench   how fast it is
# make readme  runs the README's transcript again and writes it there
# make clean   removes what was built
#
# What a target needs from Debian it installs first, when run as root. Cargo brings the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := demo
.PHONY: demo test vm soak bench readme clean debian rust

export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin

RUST := 1.89
NODE := snapshots/canal-stale-flannel-1.20
# The dumps of other machines' rules, where they lie beside this folder.
dumps := $(realpath ../shared/dumps)
ifneq ($(dumps),)
export PROXYSHIFT_DUMPS ?= $(dumps)
endif

demo: debian rust
	[ -x target/debug/proxyshift ] || echo 'Building; the first time, this takes a few minutes.'
	cargo build --quiet
	PATH="$$PWD/target/debug:$$PATH"
	bold= plain=
	[ ! -t 1 ] || bold=$$'\033[1m' plain=$$'\033[0m'
	show() { printf '\n%s# %s%s\n$$ %s\n' "$$bold" "$$1" "$$plain" "$$2"; $$2 2>&1; }
	show 'A node captured with a rule that flannel left behind' 'proxyshift snapshot show $(NODE)'
	show 'What would go, and why' 'proxyshift plan --snapshot $(NODE)'
	show 'Doing and undoing it, on a private copy of that node' 'proxyshift rehearse --snapshot $(NODE)'

test: debian vm rust
	[ "$$(id -u)" = 0 ] || { echo 'make test: run it as root, the tests make network namespaces' >&2; exit 1; }
	# 200 clean-ups beside another writer; 20 are enough for a quick `cargo test`.
	export PROXYSHIFT_RUNS=$${PROXYSHIFT_RUNS:-200}
	cargo test --no-fail-fast

vm:
	tests/vm/setup

# Every case, on the machine that `make test` boots too, for as long as it takes.
soak: debian vm rust
	PROXYSHIFT_CASES=cases:: PROXYSHIFT_SOAK_PAGE=$$PWD/docs/soak.md cargo test --test vm -- --nocapture
	PROXYSHIFT_CASES=reboot cargo test --test vm -- --nocapture

bench: debian rust
	cargo bench --bench scale

readme: debian rust
	PROXYSHIFT_WRITE_README=1 cargo test --quiet --test docs -- --exact the_transcript_is_what_the_program_prints
	git diff --stat README.md

clean:
	cargo clean

# Each program that is needed, with the package that has it.
programs := iptables-nft-save:iptables iptables-legacy-save:iptables nft:nftables ipset:ipset \
    ipvsadm:ipvsadm conntrack:conntrack ip:iproute2 unshare:util-linux sysctl:procps modprobe:kmod \
    cc:gcc cc:libc6-dev

debian:
	missing=()
	for pair in $(programs); do command -v "$${pair%%:*}" >/dev/null || missing+=("$${pair#*:}"); done
	[ $${#missing[@]} -gt 0 ] || exit 0
	install="apt-get install -y --no-install-recommends $$(printf '%s\n' "$${missing[@]}" | sort -u | xargs)"
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	    printf 'Some programs are missing. On Debian, as root: %s\n' "$$install" >&2
	    exit 1
	fi
	echo "$$install"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq </dev/null
	$$install -qq </dev/null >/dev/null

rust:
	have=$$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
	if [ -z "$$have" ] || [ "$$(printf '%s\n' $(RUST) "$$have" | sort -V | head -n1)" != $(RUST) ]; then
	    printf 'proxyshift needs Rust %s or later; this is %s. See https://rustup.rs\n' $(RUST) "$${have:-none}" >&2
	    exit 1
	fi
