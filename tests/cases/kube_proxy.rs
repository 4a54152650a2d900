//! How kube-proxy is on a node: as a process, in another program, down, gone.

use proxyshift::state::Files;
use serde_json::{Value, json};

use crate::case::Case;
use crate::nodes;
use crate::report::{finding, has, outcome, texts, with_processes};

const IPTABLES_NFT: &str = "iptables-nft.save";
const PROCESSES: &str = "processes.json";
const KUBEADM: &str = "files/var/lib/kube-proxy/config.conf";

/// Why a migration to `mode` would stop at the stage `switch`.
fn stop(case: &Case, mode: &str) -> String {
    let plan = case.json(&format!("plan --to {mode}"));
    let stages = plan["stages"].as_array().expect("stages");
    let switch = stages.iter().find(|stage| stage["stage"] == "switch").expect("switch");
    switch["stops"].as_str().unwrap_or_default().to_owned()
}

fn kubelet() -> Value {
    json!({"pid": 903, "name": "kubelet", "args": ["kubelet"], "version": "v1.30.5"})
}

/// A kube-proxy in a capture: its arguments, its version, and the control group that it runs in.
fn kube_proxy(args: &str, version: &str, cgroup: &str) -> Value {
    let args: Vec<&str> = args.split(' ').collect();
    let mut process = json!({"pid": 1450, "name": "kube-proxy", "args": args, "version": version,
        "version_source": "http://127.0.0.1:10249/metrics"});
    if !cgroup.is_empty() {
        process["version_source"] = json!("its build information");
        process["cgroups"] = json!([cgroup]);
    }
    process
}

/// The files of a case without rules.
fn without_rules(case: &Case) -> Files {
    let mut files = case.files();
    files.remove(IPTABLES_NFT);
    files
}

#[test]
fn a_distributions_mark_hides_no_version() {
    for case in Case::both("b01-rke2-version-masked") {
        let report = case.json("check --to ipvs");
        for id in ["tools.conntrack", "kube-proxy.ipvs-removed", "kube-proxy.ipvs-deprecated"] {
            assert_eq!(outcome(&report, id), "ok", "{}: {id}", case.name);
        }
        let report = case.json("check --to nftables");
        assert_eq!(outcome(&report, "kube-proxy.nftables-available"), "ok", "{}", case.name);
    }
    let conntrack = |version: &str| {
        let proxy = kube_proxy("kube-proxy --proxy-mode=iptables", version, "/");
        let case = with_processes("b01-rke2-version-masked", json!([kubelet(), proxy]));
        outcome(&case.json("check"), "tools.conntrack")
    };
    for version in ["v1.34.2+k0s", "v1.33.4-eks-a737599", "v1.32.1-gke.1000", "v1.32.0-rc.0"] {
        assert_eq!(conntrack(version), "ok", "{version}");
    }
    for version in ["v1.31.9+rke2r1", "v1.30.4-eks-a737599", "v1.32.0-alpha.1"] {
        assert_eq!(conntrack(version), "found", "{version}");
    }
}

/// The kubelet up to 1.26 makes chains that kube-proxy makes too. Its version is its own, whichever
/// supervisor runs before it.
#[test]
fn a_supervisor_hides_no_version_of_the_kubelet() {
    let action = |kubelet: &str| {
        let mut files = nodes::files("nftables-leftovers-1.30");
        let mut all: Value = serde_json::from_str(&files[PROCESSES]).expect("processes");
        let processes = all.as_array_mut().expect("processes");
        let of_kubelet = processes.iter_mut().find(|p| p["name"] == "kubelet").expect("kubelet");
        of_kubelet["version"] = json!(kubelet);
        processes.insert(0, json!({"pid": 7, "name": "rke2", "args": ["rke2", "agent"]}));
        files.insert(PROCESSES.into(), all.to_string().into());
        let chain = "\n:KUBE-MARK-MASQ ";
        nodes::replace(
            &mut files,
            IPTABLES_NFT,
            chain,
            &format!("\n:KUBE-MARK-DROP - [0:0]{chain}"),
        );
        let plan = Case::of(kubelet, files).json("-v plan");
        let objects = plan["objects"].as_array().expect("objects");
        let chain = |o: &&Value| o["name"] == "KUBE-MARK-MASQ" && o["family"] == "ipv4";
        objects.iter().find(chain).expect("the chain")["action"].clone()
    };
    assert_eq!(action("v1.30.5+rke2r1"), "remove");
    assert_eq!(action("v1.26.9+rke2r1"), "keep");
}

#[test]
fn a_containers_programs_are_not_the_hosts() {
    let asked = [("ipvs", "tools.conntrack"), ("ipvs", "tools.ipset"), ("nftables", "tools.nft")];
    let judge = |case: &Case, words: &[&str]| {
        for (mode, id) in asked {
            let report = case.json(&format!("check --to {mode}"));
            let found = finding(&report, id);
            assert_eq!(found["outcome"], "unknown", "{}: {found}", case.name);
            has(&texts(&found, "evidence"), words);
            assert!(!report.to_string().contains("apt-get install conntrack"), "{}", case.name);
        }
    };
    let container = ["kube-proxy runs in a container; a capture does not hold what is in it"];
    for case in Case::both("b02-container-judged-by-host") {
        judge(&case, &container);
    }
    let kubeadm = "kube-proxy --config=/var/lib/kube-proxy/config.conf";
    let flags = "kube-proxy --proxy-mode=iptables";
    for (args, version, cgroup) in [
        (kubeadm, "v1.30.5", "/kubepods.slice/kubepods-pod7.slice/cri-containerd-9.scope"),
        (flags, "v1.30.5", "/kubepods/besteffort/pod7/9"),
        (flags, "v1.30.5", "/system.slice/docker-9.scope"),
        (flags, "v1.30.5+rke2r1", ""),
        ("kube-proxy --config=/var/lib/kube-proxy-config/config", "v1.30.4-eks-a737599", ""),
    ] {
        let processes = json!([kubelet(), kube_proxy(args, version, cgroup)]);
        judge(&with_processes("b02-container-judged-by-host", processes), &container);
    }
    for (name, args) in [
        ("k3s", "/usr/local/bin/k3s server"),
        ("k3s-agent", "k3s agent"),
        ("kubelite", "/snap/kubelite"),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let processes = json!([{"pid": 700, "name": name, "args": args}]);
        judge(&with_processes("b02-container-judged-by-host", processes), &["brings its own"]);
    }
    // A unit of the host finds the host's programs.
    let processes = json!([kubelet(), kube_proxy(flags, "v1.30.5", "/system.slice/kp.service")]);
    let case = with_processes("b02-container-judged-by-host", processes);
    assert_eq!(outcome(&case.json("check --to ipvs"), "tools.conntrack"), "found");
}

#[test]
fn a_part_of_another_program_is_named_and_how_it_is_set() {
    for case in Case::both("b03-k3s-does-not-run-here") {
        has(
            &stop(&case, "ipvs"),
            &["a part of k3s", "kube-proxy-arg", "/etc/rancher/k3s/config.yaml"],
        );
        let report = case.json("check");
        assert_eq!(outcome(&report, "tools.conntrack"), "unknown", "{}", case.name);
        assert_eq!(outcome(&report, "kube-proxy.absent"), "ok", "{}", case.name);
        has(&texts(&finding(&report, "kube-proxy.instances"), "evidence"), &["a part of k3s"]);
        assert!(!report.to_string().contains("apt-get"), "{}: {report}", case.name);
    }
    let kubelite = json!([{"pid": 700, "name": "kubelite", "args": ["/snap/microk8s/1/kubelite"]}]);
    let case = with_processes("b03-k3s-does-not-run-here", kubelite);
    has(&stop(&case, "ipvs"), &["kubelite", "/var/snap/microk8s/current/args/kube-proxy"]);
    // A k3s that has it switched off has none; a second program beside k3s is kube-proxy itself.
    let off =
        json!([{"pid": 700, "name": "k3s", "args": ["k3s", "server", "--disable-kube-proxy"]}]);
    let case = with_processes("b03-k3s-does-not-run-here", off);
    assert!(!stop(&case, "ipvs").contains("a part of"), "{}", stop(&case, "ipvs"));
    assert_eq!(outcome(&case.json("check"), "kube-proxy.absent"), "found");
}

#[test]
fn one_that_is_down_is_found_with_the_end_of_its_log() {
    let down = "no kube-proxy runs here, although kubelet";
    for case in Case::both("b04-kube-proxy-down") {
        let found = finding(&case.json("check"), "kube-proxy.absent");
        assert_eq!(found["outcome"], "found", "{}", case.name);
        has(&texts(&found, "evidence"), &[down, "KUBE-SVC-", "no support for IPv6"]);
        has(&texts(&found, "effect"), &["no change of a service reaches this node"]);
        has(&texts(&found, "remedy"), &["crictl logs", "journalctl -u kube-proxy"]);
    }
    let [case, _] = Case::both("b04-kube-proxy-down");
    for (log, fatal) in [
        (
            "F0825 10:00:00.1 1 server.go:495] unable to create proxier: x\nI0825 fine\n",
            "unable to",
        ),
        (
            "E0825 1 server.go:1] \"Error running ProxyServer\" err=\"can't use the IPVS proxier\"\n",
            "can't use",
        ),
        ("Error: unknown flag: --resource-container\n", "unknown flag"),
    ] {
        let mut files = case.files();
        files.insert("files/var/log/kube-proxy.log".into(), log.into());
        let found = finding(&Case::of(log, files).json("check"), "kube-proxy.absent");
        has(&texts(&found, "evidence"), &[fatal]);
    }
    let mut files = case.files();
    files.remove("files/var/log/kube-proxy.log");
    let log = "2026-11-30T09:00:00.1Z stderr F F0825 10:00:00.1 1 server.go:490] whatever\n";
    let path = "/var/log/pods/kube-system_kube-proxy-x_1/kube-proxy/3.log";
    files.insert(format!("files{path}"), log.into());
    let found = finding(&Case::of("a pod's log", files).json("check"), "kube-proxy.absent");
    has(&texts(&found, "evidence"), &[path, "server.go:490] whatever"]);
    let rke2 = json!([{"pid": 812, "name": "rke2", "args": ["rke2", "agent"]}, kubelet()]);
    let found =
        finding(&with_processes("b04-kube-proxy-down", rke2).json("check"), "kube-proxy.absent");
    has(&texts(&found, "remedy"), &["/var/lib/rancher/rke2/bin", "crictl logs"]);
    for (name, args) in [("k3s", "k3s"), ("kubelite", "kubelite")] {
        let processes = json!([{"pid": 700, "name": name, "args": [args]}]);
        let case = with_processes("b04-kube-proxy-down", processes);
        assert_eq!(outcome(&case.json("check"), "kube-proxy.absent"), "ok", "{name}");
    }
    // Cilium serves in its place, and nothing of kube-proxy's is left.
    let cilium = json!([kubelet(), {"pid": 700, "name": "cilium-agent", "args": ["cilium-agent"]}]);
    let case = with_processes("b04-kube-proxy-down", cilium);
    let replaced = Case::of("no rules", without_rules(&case));
    assert_eq!(outcome(&replaced.json("check"), "kube-proxy.absent"), "ok");
    let [case, _] = Case::both("b04-kube-proxy-down");
    let mut files = case.files();
    files.remove(PROCESSES);
    let unknown = Case::of("no processes", files);
    assert_eq!(outcome(&unknown.json("check"), "kube-proxy.absent"), "unknown");
}

#[test]
fn a_silent_fallback_is_said_so() {
    for case in Case::both("b05-silent-fallback") {
        let report = case.json("check");
        let found = finding(&report, "kube-proxy.mode");
        let evidence = texts(&found, "evidence");
        has(
            &evidence,
            &["1.25.11 was asked for ipvs and runs iptables: it fell back (", "silently"],
        );
        let remedy = texts(&found, "remedy");
        has(
            &remedy,
            &["modprobe -a ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh", "systemctl restart rke2-agent"],
        );
        assert!(!remedy.contains("kubectl"), "{remedy}");
        // What ipvs mode needs is asked, although iptables mode runs.
        for id in ["tools.ipset", "kernel.modules-at-boot", "kernel.schedulers"] {
            finding(&report, id);
        }
    }
    let evidence = |args: &str, version: &str| {
        let processes = json!([kubelet(), kube_proxy(args, version, "/system.slice/kp.service")]);
        let report = with_processes("b05-silent-fallback", processes).json("check");
        texts(&finding(&report, "kube-proxy.mode"), "evidence")
    };
    let flags = "kube-proxy --proxy-mode=ipvs";
    has(&evidence(flags, "v1.21.14"), &["it fell back (up to 1.25"]);
    let later = evidence(flags, "v1.28.2");
    assert!(!later.contains("fell back"), "1.26 and later end instead: {later}");
    // A file may have been changed while it runs.
    let [case, _] = Case::both("b02-container-judged-by-host");
    let mut files = case.files();
    nodes::replace(&mut files, KUBEADM, "mode: iptables", "mode: ipvs");
    nodes::replace(&mut files, PROCESSES, "v1.30.5", "v1.24.3");
    let report = Case::of("changed file", files).json("check");
    let found = finding(&report, "kube-proxy.mode");
    has(&texts(&found, "evidence"), &["fell back, or its file was changed since it started"]);
    has(&texts(&found, "remedy"), &["kubectl -n kube-system delete pod -l k8s-app=kube-proxy"]);
}

#[test]
fn rules_of_a_kube_proxy_that_is_gone_are_stale_and_kept() {
    for case in Case::both("a09-kube-proxy-gone") {
        let found = finding(&case.json("check"), "kube-proxy.absent");
        assert_eq!(found["outcome"], "found", "{}", case.name);
        has(
            &texts(&found, "evidence"),
            &["antrea-agent", "which can serve in its place", "KUBE-SVC-"],
        );
        has(&texts(&found, "effect"), &["stale service rules"]);
        has(&texts(&found, "remedy"), &["kube-proxy --cleanup"]);
        let plan = case.json("plan");
        let objects = plan["objects"].as_array().expect("objects");
        let ours: Vec<&Value> = objects.iter().filter(|o| o["owner"] == "kube-proxy").collect();
        assert!(!ours.is_empty(), "{}", case.name);
        for object in ours {
            assert_eq!(object["action"], "keep", "{object}");
            let reason = object["reason"].as_str().expect("a reason");
            has(reason, &["no kube-proxy runs here", "antrea-agent"]);
        }
    }
    // Nothing of Kubernetes is left at all.
    let docker = json!([{"pid": 7, "name": "dockerd", "args": ["dockerd"]}]);
    let found =
        finding(&with_processes("a09-kube-proxy-gone", docker).json("check"), "kube-proxy.absent");
    has(&texts(&found, "evidence"), &["neither kube-proxy nor the kubelet runs here"]);
    // A process that may be kube-proxy, and does not count, makes it unknown.
    let [case, _] = Case::both("a09-kube-proxy-gone");
    let mut files = case.files();
    let other = json!([{"pid": 9, "name": "kube-proxy", "uid": 1000, "doubt": "user"}]);
    files.insert("lookalikes.json".into(), other.to_string().into());
    assert_eq!(
        outcome(&Case::of("lookalike", files).json("check"), "kube-proxy.absent"),
        "unknown"
    );
}

#[test]
fn hyperkube_is_the_program_that_its_arguments_name() {
    for case in Case::both("b17-hyperkube") {
        let state = case.state();
        let names: Vec<&str> =
            state.processes.iter().flatten().map(|process| process.name.as_str()).collect();
        assert_eq!(names, ["kubelet", "kube-proxy"], "{}", case.name);
        let report = case.json("check");
        has(&texts(&finding(&report, "kube-proxy.instances"), "evidence"), &["one: process"]);
        let flags = texts(&finding(&report, "kube-proxy.flags"), "evidence");
        has(&flags, &["--proxy-mode beside --config=/etc/kubernetes/kube-proxy/c.yaml"]);
    }
    for (line, expected) in [
        ("/hyperkube kube-proxy --config=/etc/kubernetes/kube-proxy/c.yaml", "one: process"),
        ("/usr/local/bin/kube-proxy --config=/etc/kubernetes/kube-proxy/c.yaml", "one: process"),
        ("/hyperkube apiserver --x", "none"),
        ("/hyperkube kubelet --proxy", "none"),
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let processes = json!([{"pid": 1450, "name": "hyperkube", "args": args}]);
        let report = with_processes("b17-hyperkube", processes).json("check");
        has(&texts(&finding(&report, "kube-proxy.instances"), "evidence"), &[expected]);
    }
}

#[test]
fn a_daemon_sets_settings_are_in_a_config_map() {
    for case in Case::both("b18-plan-on-captured-daemonset") {
        has(
            &stop(&case, "ipvs"),
            &[
                "DaemonSet",
                "ConfigMap kube-system/kube-proxy",
                "every node",
                "nothing on this host is edited",
                "`proxyshift cluster prepare --to MODE`",
                "the node's label",
                "a capture cannot tell whether the cluster is prepared",
            ],
        );
        assert!(!case.text("plan --to ipvs").contains("edits /var/lib"), "{}", case.name);
        let remedy = texts(&finding(&case.json("check"), "kube-proxy.mode-empty"), "remedy");
        has(
            &remedy,
            &["mode: iptables   # in the ConfigMap kube-system/kube-proxy, of every node"],
        );
    }
    let kubeadm = "kube-proxy --config=/var/lib/kube-proxy/config.conf";
    let eks = "kube-proxy --config=/var/lib/kube-proxy-config/config";
    for (args, version, cgroup, stops, setting) in [
        (
            kubeadm,
            "v1.37.2",
            "/kubepods.slice/x.scope",
            "kube-system/kube-proxy,",
            "ConfigMap kube-system/kube-proxy,",
        ),
        (kubeadm, "v1.31.0+k0s", "", "k0s.yaml", "k0s.yaml"),
        (
            eks,
            "v1.30.4-eks-a737599",
            "",
            "kube-system/kube-proxy-config",
            "ConfigMap kube-system/kube-proxy-config",
        ),
        (
            "kube-proxy --v=2",
            "v1.34.2+rke2r1",
            "",
            "/etc/rancher/rke2/config.yaml",
            "kube-proxy-arg: [\"proxy-mode=iptables\"]   # in /etc/rancher/rke2",
        ),
    ] {
        let processes = json!([kubelet(), kube_proxy(args, version, cgroup)]);
        let mut files = with_processes("b18-plan-on-captured-daemonset", processes).files();
        let text = files[KUBEADM].clone();
        files.insert("files/var/lib/kube-proxy-config/config".into(), text);
        let case = Case::of(version, files);
        has(&stop(&case, "ipvs"), &[stops]);
        let remedy = texts(&finding(&case.json("check"), "kube-proxy.mode-empty"), "remedy");
        has(&remedy, &[setting]);
    }
    // A unit of the host has the same file, and it is the host's.
    let processes = json!([kubelet(), kube_proxy(kubeadm, "v1.30.5", "/system.slice/kp.service")]);
    let case = with_processes("b18-plan-on-captured-daemonset", processes);
    assert_eq!(stop(&case, "ipvs"), "");
    let remedy = texts(&finding(&case.json("check"), "kube-proxy.mode-empty"), "remedy");
    has(
        &remedy,
        &[
            "mode: iptables   # in /var/lib/kube-proxy/config.conf; then: systemctl restart kp.service",
        ],
    );
}
