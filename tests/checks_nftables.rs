//! Checks of nftables mode on a live kernel: what a kernel takes, what it really holds, and what a real
//! kube-proxy says of its syncs.

#[path = "vm/api.rs"]
#[allow(dead_code, reason = "the machine's tests use the rest")]
mod api;
mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use api::Api;
use common::node::Proxyshift;
use common::{in_namespace, poll, program, run, run_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

/// The exit code of `check` with these words, and its document.
fn check(words: &str) -> (i32, Value, String) {
    let output = Command::new(program())
        .args(["--store", "/run/store", "--progress", "none", "-o", "json", "check"])
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .expect("proxyshift runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap_or(-1), document, text(&output.stderr))
}

fn finding(document: &Value, id: &str) -> Value {
    let all = document["findings"].as_array().expect("findings");
    all.iter().find(|f| f["id"] == id).unwrap_or_else(|| panic!("{id} did not run")).clone()
}

#[test]
fn expressions_are_tried_and_nothing_of_them_stays() {
    if !in_namespace("expressions_are_tried_and_nothing_of_them_stays") {
        return;
    }
    run("ip link set lo up");
    run("nft add table ip mine");
    let seen = || (run("nft -j list ruleset"), fs::read_to_string("/proc/modules").ok());
    let before = seen();
    let words =
        "--to nftables --only nftables.expressions,kernel.nftables-parts,kernel.nf-conntrack";
    let (code, document, err) = check(words);
    assert_eq!(code, 0, "{document}{err}");
    // The kernel of this machine has all of them; what a kernel lacks, unit tests ask.
    for id in ["nftables.expressions", "kernel.nftables-parts", "kernel.nf-conntrack"] {
        assert_eq!(finding(&document, id)["outcome"], "ok", "{document}");
    }
    let shown = finding(&document, "nftables.expressions")["evidence"][0].to_string();
    assert!(shown.contains("all 22 of them"), "{shown}");
    assert_eq!(seen(), before);
}

/// The rules of a kubelet whose DROP has a mark, or has lost it.
fn kubelets_rules(mark: &str) -> String {
    format!(
        "*filter\n:KUBE-FIREWALL - [0:0]\n-A OUTPUT -j KUBE-FIREWALL\n\
         -A KUBE-FIREWALL -m comment --comment \"kubernetes firewall for dropping marked packets\" \
         {mark} -j DROP\nCOMMIT\n"
    )
}

#[test]
fn a_match_that_the_kernel_lost_is_found_and_one_that_a_save_lost_is_refused() {
    if !in_namespace("a_match_that_the_kernel_lost_is_found_and_one_that_a_save_lost_is_refused") {
        return;
    }
    run("ip link set lo up");
    let load = |mark: &str| run_with(&kubelets_rules(mark), &["iptables-nft-restore"]);
    let ids = "--only backends.lost-match,backends.garbled";
    load("-m mark --mark 0x8000/0x8000");
    let (code, document, err) = check(ids);
    assert_eq!(code, 0, "{document}{err}");
    // In the kernel: it is captured, and blocks.
    load("");
    let (code, document, err) = check(ids);
    assert_eq!(code, 3, "{document}{err}");
    let found = finding(&document, "backends.lost-match");
    assert_eq!(found["outcome"], "found", "{document}");
    assert!(found["evidence"][0].to_string().contains("netlink shows no match"), "{found}");
    assert_eq!(finding(&document, "backends.garbled")["outcome"], "ok", "{document}");
    // The remedy works.
    let remedy = found["remedy"][0].as_str().expect("a command").to_owned();
    let done = Command::new("sh").args(["-c", &remedy]).status().expect("sh runs");
    assert!(done.success(), "{remedy}");
    assert_eq!(check(ids).0, 0);
    // In the save alone, as of an iptables that does not know the match: no rule is read.
    load("-m mark --mark 0x8000/0x8000");
    // Where Debian has the matches, whatever the machine.
    let triplet = run("find /usr/lib -maxdepth 3 -name libxt_mark.so");
    let folder = triplet.trim().trim_end_matches("/libxt_mark.so");
    fs::create_dir("/run/xtables").expect("a folder");
    for entry in fs::read_dir(folder).expect(folder).map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().expect("a name");
        if name != "libxt_mark.so" {
            fs::copy(&entry, std::path::Path::new("/run/xtables").join(name)).expect("a copy");
        }
    }
    run(&format!("mount --bind /run/xtables {folder}"));
    let save = run("iptables-nft-save");
    assert!(!save.contains("--mark"), "the match is not hidden: {save}");
    let (code, document, err) = check(ids);
    assert_eq!(code, 3, "{document}{err}");
    let found = finding(&document, "backends.garbled");
    assert!(found["evidence"][0].to_string().contains("a match was lost"), "{document}{err}");
}

/// A kube-proxy of today in nftables mode, which ends when this value is dropped. Its nft fails at each
/// write while the file /run/fail is there.
struct KubeProxy(Child);

impl KubeProxy {
    fn start(api: SocketAddr) -> KubeProxy {
        KubeProxy::in_mode(api, "nftables")
    }

    fn in_mode(api: SocketAddr, mode: &str) -> KubeProxy {
        let write = |path: &str, text: &str| {
            fs::write(path, text).expect(path);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect(path);
        };
        fs::create_dir_all("/run/bin").expect("a folder");
        write(
            "/run/bin/nft",
            "#!/bin/sh\ncase \" $* \" in\n*' --check '*) ;;\n\
             *' -f '*) [ ! -e /run/fail ] || exit 1;;\nesac\n\
             exec /usr/sbin/nft \"$@\"\n",
        );
        for program in ["iptables-restore", "ip6tables-restore"] {
            let script = format!(
                "#!/bin/sh\n[ ! -e /run/fail ] || exit 1\nexec /usr/sbin/{program} \"$@\"\n"
            );
            write(&format!("/run/bin/{program}"), &script);
        }
        write(
            "/run/kubeconfig",
            &json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": format!("http://{api}")}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
            })
            .to_string(),
        );
        write(
            "/run/config.conf",
            &format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                 clientConnection: {{kubeconfig: /run/kubeconfig, contentType: application/json}}\n\
                 hostnameOverride: node\nclusterCIDR: 10.244.0.0/16\nmode: {mode}\n\
                 conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, \
                 tcpCloseWaitTimeout: 0s}}\n"
            ),
        );
        let path = format!("/run/bin:{}", std::env::var("PATH").expect("a PATH"));
        let log = fs::File::create("/run/log").expect("a log");
        let child = Command::new(common::vm::kubernetes("1.37.2", "kube-proxy"))
            .arg("--config=/run/config.conf")
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn();
        KubeProxy(child.expect("kube-proxy starts"))
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn service(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
                 "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                 "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 80}]},
    })
}

/// The outcomes of the checks of a living kube-proxy's syncs and tables.
fn syncs() -> [String; 3] {
    let ids = ["nftables.sync-failures", "nftables.never-synced", "nftables.tables"];
    let (_, document, err) = check(&format!("--only {}", ids.join(",")));
    assert!(document.is_object(), "{err}");
    ids.map(|id| finding(&document, id)["outcome"].as_str().expect("an outcome").to_owned())
}

/// A node with a Service, whose kube-proxy has synced.
fn synced() -> (Api, KubeProxy) {
    let api = node_with_a_service();
    let kube_proxy = KubeProxy::start(api.address);
    poll("it has synced", || syncs() == ["ok", "ok", "ok"]);
    (api, kube_proxy)
}

/// A node with a Service, and its API.
fn node_with_a_service() -> Api {
    run("ip link set lo up");
    run("ip link add eth0 type bridge");
    run("ip addr add 192.0.2.7/24 dev eth0");
    run("ip link set eth0 up");
    let api = Api::start();
    let address = json!([{"type": "InternalIP", "address": "192.0.2.7"}]);
    api.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"},
        "status": {"addresses": address}}));
    api.apply(service("web", "10.96.1.1"));
    api
}

#[test]
fn a_real_kube_proxy_is_not_in_the_way_of_the_guard() {
    if !in_namespace("a_real_kube_proxy_is_not_in_the_way_of_the_guard") {
        return;
    }
    let (_api, _kube_proxy) = synced();
    let table = run("nft list table ip kube-proxy");
    assert!(table.contains("ct state new") && !table.contains("ct state invalid"), "{table}");
    run("iptables-nft -A FORWARD -m conntrack --ctstate INVALID -j DROP");
    let done = Proxyshift::new("store").expect(0, "guard --once --for 10.9.0.0/24 -o json");
    let document = done.json();
    assert_eq!(document["rules"].as_array().map(Vec::len), Some(2), "{document}");
    assert_eq!(document["overruled_by"], json!([]), "{document}{}", done.err);
    assert!(!done.err.contains("not known"), "{}", done.err);
}

#[test]
fn a_real_kube_proxys_syncs_are_known_by_its_metrics() {
    if !in_namespace("a_real_kube_proxys_syncs_are_known_by_its_metrics") {
        return;
    }
    let (api, kube_proxy) = synced();
    // Its writes fail from now on, and a Service comes.
    fs::write("/run/fail", "").expect("a file");
    api.apply(service("new", "10.96.1.2"));
    poll("a sync has failed", || syncs() == ["found", "ok", "ok"]);
    // The next one finds the table of the one before, and writes nothing either.
    drop(kube_proxy);
    let _kube_proxy = KubeProxy::start(api.address);
    poll("it has not synced", || syncs() == ["found", "found", "ok"]);
    fs::remove_file("/run/fail").expect("a file");
}

#[test]
fn syncs_of_iptables_mode_that_fail_are_known_by_its_metrics() {
    if !in_namespace("syncs_of_iptables_mode_that_fail_are_known_by_its_metrics") {
        return;
    }
    let api = node_with_a_service();
    let _kube_proxy = KubeProxy::in_mode(api.address, "iptables");
    let id = "kube-proxy.sync-failures";
    let outcome = || finding(&check(&format!("--only {id}")).1, id);
    poll("it has synced", || {
        outcome()["outcome"] == "ok" && run("iptables-nft-save").contains("shop/web")
    });
    fs::write("/run/fail", "").expect("a file");
    api.apply(service("new", "10.96.1.2"));
    poll("a sync has failed", || outcome()["outcome"] == "found");
    let found = outcome();
    assert!(found["evidence"][0].to_string().contains("syncs failed"), "{found}");
    fs::remove_file("/run/fail").expect("a file");
}

/// The node between a client outside and a pod.
const NODE: &str = "link set lo up
netns add outside
link add up0 type veth peer name eth0 netns outside
addr add 192.0.2.7/24 dev up0
link set up0 up
netns add pod
link add cni0 type veth peer name eth0 netns pod
addr add 10.244.1.1/24 dev cni0
link set cni0 up";
const OUTSIDE: &str = "link set lo up
addr add 192.0.2.2/24 dev eth0
link set eth0 up";
const POD: &str = "link set lo up
addr add 10.244.1.5/24 dev eth0
link set eth0 up
route add default via 10.244.1.1";

/// Runs `work` in the namespace called `host`. Sockets that `work` creates stay in that namespace.
fn at<T: Send>(host: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = fs::File::open(format!("/run/netns/{host}")).expect(host);
    let enter = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect(host);
        work()
    };
    thread::scope(|scope| scope.spawn(enter).join().expect("the thread inside"))
}

#[test]
fn a_closed_forward_drops_node_ports_until_its_remedy() {
    if !in_namespace("a_closed_forward_drops_node_ports_until_its_remedy") {
        return;
    }
    run_with(NODE, &["ip", "-batch", "-"]);
    run_with(OUTSIDE, &["ip", "-n", "outside", "-batch", "-"]);
    run_with(POD, &["ip", "-n", "pod", "-batch", "-"]);
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a sysctl");
    let _pod = at("pod", || TcpListener::bind("10.244.1.5:80")).expect("the pod listens");
    let api = Api::start();
    let address = json!([{"type": "InternalIP", "address": "192.0.2.7"}]);
    api.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"},
        "status": {"addresses": address}}));
    let mut web = service("web", "10.96.1.1");
    web["spec"]["type"] = json!("NodePort");
    web["spec"]["ports"][0]["nodePort"] = json!(30080);
    api.apply(web);
    api.apply(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": "web-1",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        "endpoints": [{"addresses": ["10.244.1.5"], "conditions": {"ready": true}}]}));
    let _kube_proxy = KubeProxy::start(api.address);
    let node_port: SocketAddr = "192.0.2.7:30080".parse().expect("an address");
    let connects =
        || at("outside", || TcpStream::connect_timeout(&node_port, Duration::from_secs(2))).is_ok();
    let id = "nftables.forward-closed-now";
    let only = format!("--only {id}");
    poll("the NodePort answers", connects);
    assert_eq!(finding(&check(&only).1, id)["outcome"], "ok");
    run("iptables-nft -P FORWARD DROP");
    assert!(!connects(), "a closed FORWARD lets it through");
    let found = finding(&check(&only).1, id);
    assert_eq!(found["outcome"], "found", "{found}");
    for remedy in found["remedy"].as_array().expect("commands").iter().take(2) {
        run(remedy.as_str().expect("a command"));
    }
    poll("the remedy opens it", connects);
    let (_, document, _) = check(&only);
    assert_eq!(finding(&document, id)["outcome"], "ok", "{document}");
}
