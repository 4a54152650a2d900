# make demo    the main job, shown on a captured node; touches nothing of this machine's network
# make test    everything, with what needs private namespaces and a virtual machine
# make fuzz    every parser of foreign text on made-up input, some seconds each; see fuzz/README.md
# make soak    every case on a virtual machine, each stage failing or killed; writes docs/soak.md; and the other
#              cases of the real cluster: thousands of Services, an upgrade from 1.28, and more
# make dist    one static binary with its checksum, and the Ansible collection with it, in dist/
# make ansible gets what the tests with Ansible need: two versions of it, ansible-lint, sshd, kubectl
# make vm      gets what that machine needs: Debian's kernel, virtme-ng, kube-proxy 1.20.2
# make kubernetes  builds the Kubernetes programs of today
# make cluster gets what a real cluster in namespaces needs beside them: etcd, containerd, images
# make bench   how fast it is, and how long kube-proxy's own moves take
# make readme  runs the README's transcript and the wizard again, and writes them there
# make man     writes the manual pages again
# make clean   removes what was built
#
# What a target needs from Debian it installs first, when run as root. Cargo brings the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := demo
.PHONY: demo test fuzz dist ansible vm kubernetes cluster soak bench readme man clean debian rust

export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin

RUST := 1.89
# The target is named so that the flags are the program's alone: macros and build scripts cannot be static.
target := x86_64-unknown-linux-gnu
static := -C target-feature=+crt-static
build := build --release
built := release
out := dist
NODE := snapshots/nftables-beside-iptables-1.37
STALE := snapshots/canal-stale-flannel-1.20
OTHER := snapshots/iptables-1.37
CARRIES := cases::migrate::carries::iptables_to_ipvs_breaks_nothing
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
	show 'A node of kube-proxy 1.37, where a second one has left its rules behind' 'proxyshift snapshot show $(NODE)'
	show 'What would go, and why' 'proxyshift plan --snapshot $(NODE)'
	show 'Doing and undoing it, on a private copy of that node' 'proxyshift rehearse --snapshot $(NODE)'
	show 'A node with one rule that flannel left behind' 'proxyshift plan --snapshot $(STALE)'
	show 'Another node, from iptables to nftables mode: the stages, and what each would do' 'proxyshift plan --to nftables --snapshot $(OTHER)'
	show 'The bridge that serves meanwhile, and removing the old rules, tried before anything is begun' 'proxyshift rehearse --to nftables --snapshot $(OTHER)'
	# The case brings its own API server, pods and services, in private namespaces; it loads no module.
	missing=
	for module in br_netfilter ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh ip_set nf_conntrack; do
	    [ -e /sys/module/$$module ] || missing+=" $$module"
	done
	if [ -z "$$missing" ] && [ "$$(id -u)" = 0 ]; then
	    printf '\n%s# This kernel has ip_vs: the whole migration, with the real kube-proxy and traffic beside it%s\n' "$$bold" "$$plain"
	    tests/vm/setup
	    PROXYSHIFT_VM=1 cargo test --quiet --test vm -- --ignored --nocapture --exact $(CARRIES)
	    exit
	fi
	[ -z "$$missing" ] || printf '\nThis kernel has not loaded:%s. So kube-proxy cannot go to ipvs mode here' "$$missing"
	[ -n "$$missing" ] || printf '\nOnly root can start kube-proxy here'
	echo "; \`make test\` does the whole migration with the real kube-proxy, in a virtual machine."

# The tests and the program that Ansible and the machine get are built once, together: static, but not
# optimized as far as what `make dist` is for. Alone, the program would be built with other features of
# the crates that it shares with its tests.
test soak: export RUSTFLAGS := $(static)
test soak: build := test --no-run
test soak: built := debug
test soak: out := target/dist
test: debian cluster vm ansible dist rust
	[ "$$(id -u)" = 0 ] || { echo 'make test: run it as root, the tests make network namespaces' >&2; exit 1; }
	# 200 clean-ups beside another writer; 20 are enough for a quick `cargo test`.
	export PROXYSHIFT_RUNS=$${PROXYSHIFT_RUNS:-200}
	# A test that hangs fails by this limit, in seconds, and what it printed is there.
	part() { timeout --kill-after 10 $$1 cargo test --no-fail-fast --target $(target) "$${@:2}"; }
	failed=()
	# Most of these wait for half of their time, so there are more at once than cores.
	RUST_TEST_THREADS=4 part 1800 -- --skip every_case_passes || failed+=("cargo test")
	# These want both cores for themselves.
	part 1800 --test vm -- every_case_passes || failed+=("the virtual machine")
	part 1800 --test cluster -- every_case_passes || failed+=("the cluster")
	[ $${#failed[@]} = 0 ] || { printf 'failed: %s\n' "$${failed[@]}" >&2; exit 1; }

# libFuzzer is C++, and one seed is a program.
fuzz: programs += c++:g++ as:binutils
fuzz: debian rust
	fuzz/run

dist: debian rust
	RUSTFLAGS='$(static)' cargo $(build) --quiet --target $(target)
	rm -rf $(out)
	mkdir -p $(out)
	install -s -m 755 target/$(target)/$(built)/proxyshift $(out)/
	cp -r playbooks/ansible $(out)/collection
	cd $(out)
	sha256sum proxyshift > SHA256SUMS
	install -m 755 proxyshift collection/plugins/modules/

ansible:
	tests/ansible/setup

vm:
	tests/vm/setup

kubernetes:
	tests/kubernetes/setup

cluster: kubernetes
	tests/cluster/setup

# Every case, on the machine that `make test` boots too, for as long as it takes.
soak: debian cluster vm ansible dist rust
	tests/kubernetes/setup soak
	tests/cluster/setup soak
	export PROXYSHIFT_SOAK_PAGE=$$PWD/docs/soak.md PROXYSHIFT_WRITE_README=1
	PROXYSHIFT_CASES=cases:: cargo test --target $(target) --test vm -- --nocapture
	# One after the other: beside thousands of Services, nothing else has its time.
	for cases in bridge::soak_ daemonset_upgrade:: follows::soak_ requested_switch:: services::soak_ upgrades:: thousands::; do
	    PROXYSHIFT_CASES=$$cases cargo test --target $(target) --test cluster -- --nocapture
	done

bench: debian rust kubernetes
	cargo bench --bench scale
	cargo bench --bench gap

readme: debian rust
	PROXYSHIFT_WRITE_README=1 cargo test --quiet --test docs -- --exact the_transcript_is_what_the_program_prints
	PROXYSHIFT_WRITE_README=1 cargo test --quiet --test wizard -- --exact the_happy_way_cleans_the_node_and_says_how_without_questions
	git diff --stat README.md docs

man: debian rust
	PROXYSHIFT_WRITE_MAN=1 cargo test --quiet --test manual -- --exact the_manual_pages_are_those_of_the_arguments
	git status --short docs/man

clean:
	cargo clean
	rm -rf dist

# Each program that is needed, with the package that has it.
programs := iptables-nft-save:iptables iptables-legacy-save:iptables nft:nftables ipset:ipset \
    ipvsadm:ipvsadm conntrack:conntrack ip:iproute2 unshare:util-linux sysctl:procps modprobe:kmod \
    chattr:e2fsprogs cc:gcc cc:libc6-dev nfacct:nfacct nfct:nfct

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
