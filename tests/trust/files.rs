//! Files, links and directories that somebody else chose.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::common::node::Proxyshift;
use crate::common::{in_namespace, poll, run, run_with};
use crate::{Stranger, everyone_looks, newest_snapshot, soon};

const CONFIG: &str =
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n";

/// An /etc of this test's own.
fn private_etc() {
    let script = "mkdir /run/etc && cp -a /etc/. /run/etc && mount --bind /run/etc /etc";
    run_with(script, &["sh", "-e"]);
    fs::create_dir_all("/etc/cni/net.d").unwrap();
}

#[test]
fn nothing_in_a_directory_of_networks_stops_anyone() {
    if !in_namespace("files::nothing_in_a_directory_of_networks_stops_anyone") {
        return;
    }
    private_etc();
    let proxyshift = Proxyshift::new("store");
    let net = |name: &str| format!("/etc/cni/net.d/{name}");
    fs::write("/etc/shadow-like", "root:s3cret-hash:19000:0:99999:7:::\n").unwrap();
    fs::write("/run/token", "eyJs3cret.e30.c2ln").unwrap();
    for (name, target) in [
        ("kmsg.conf", "/proc/kmsg"),
        ("trace.conf", "/sys/kernel/debug/tracing/trace_pipe"),
        ("zero.conf", "/dev/zero"),
        ("environ.conf", "/proc/1/environ"),
        ("shadow.conf", "/etc/shadow-like"),
        ("up.conf", "../../../run/token"),
        ("loop.conf", "loop.conf"),
        ("dangling.conf", "/nowhere"),
        ("tty.conf", "/dev/tty"),
    ] {
        symlink(target, net(name)).unwrap();
    }
    run(&format!("mkfifo {}", net("pipe.conflist")));
    let _socket = std::os::unix::net::UnixListener::bind(net("socket.conf")).unwrap();
    fs::create_dir(net("directory.conf")).unwrap();
    fs::File::create(net("sparse.conf")).unwrap().set_len(4 << 30).unwrap();
    fs::write(net("deep.conf"), "[".repeat(1 << 20)).unwrap();
    fs::write(net("node-token"), "K10s3cret::server:s3cret").unwrap();
    everyone_looks(&proxyshift);
    let kept = newest_snapshot(&proxyshift);
    assert!(!kept.contains("s3cret"), "{kept}");
}

#[test]
fn the_number_of_files_has_an_end() {
    if !in_namespace("files::the_number_of_files_has_an_end") {
        return;
    }
    private_etc();
    let proxyshift = Proxyshift::new("store");
    let network = format!("{{\"name\": \"n\", \"type\": \"{}\"}}", "x".repeat((1 << 20) - 99));
    for n in 0..1300 {
        fs::write(format!("/etc/cni/net.d/{n:04}.conf"), &network).unwrap();
    }
    everyone_looks(&proxyshift);
    let size = run(&format!("du -sm {}", proxyshift.store.join("snapshots").display()));
    let size: u32 = size.split_whitespace().next().unwrap().parse().unwrap();
    assert!(size < 20, "{size} MiB");
}

#[test]
fn only_a_configuration_is_kept_of_what_kube_proxy_names() {
    if !in_namespace("files::only_a_configuration_is_kept_of_what_kube_proxy_names") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    fs::write("/run/shadow", "root:$6$s3cret:19000:0:99999:7:::\n").unwrap();
    fs::write("/run/jwt", "eyJhbGciOiJSUzI1NiJ9.s3cret.c2ln").unwrap();
    fs::write("/run/token", "K10s3cret::server:s3cret").unwrap();
    fs::write("/run/mode-only", "mode: ipvs\npassphrase: s3cret\n").unwrap();
    let secrets = "authToken: s3cret\nclientSecret: s3cret\nPSK: s3cret\nprivateKey: [s3cret]\n\
        clientConnection: {kubeconfig: /k, apiKey: s3cret, url: 'https://u:s3cret@h/'}\n# s3cret\n";
    fs::write("/run/config", format!("{CONFIG}{secrets}")).unwrap();
    symlink("/run/shadow", "/run/link").unwrap();
    for file in ["shadow", "jwt", "token", "mode-only", "config", "link"] {
        let script = format!("exec -a kube-proxy bash -c 'sleep 1000; :' --config=/run/{file}");
        let _root = Stranger::root(&script).named("kube-proxy");
        everyone_looks(&proxyshift);
        let kept = newest_snapshot(&proxyshift);
        assert!(!kept.contains("s3cret"), "{file}: {kept}");
        assert_eq!(kept.contains("mode: ipvs"), file == "config", "{file}: {kept}");
    }
}

#[test]
fn arguments_keep_no_secrets() {
    if !in_namespace("files::arguments_keep_no_secrets") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    fs::create_dir("/run/bin").unwrap();
    for (name, arguments) in [
        ("k3s", "agent -t s3cret --server https://u:s3cret@h"),
        ("tailscaled", "--vpn-auth joinKey=s3cret,x=s3cret"),
        ("netbird", "up --setup-key -s3cret"),
        ("flanneld", "--etcd-endpoints=u:s3cret@h/s3cret --etcd-keyfile s3cret"),
        (
            "kube-proxy",
            "--psk=s3cret --jwt s3cret --client-key-data=s3cret --master=http://u:s3cret@h",
        ),
        ("dockerd", "--log-opt splunk-token=s3cret -H x"),
        ("kubelet", "--private-key=s3cret -- s3cret"),
    ] {
        let program = format!("/run/bin/{name}");
        fs::copy("/usr/bin/tail", &program).unwrap();
        // tail takes what it does not know for files, if told so.
        let script = format!("exec {program} -f /dev/null -- {arguments}");
        let _component = Stranger::root(&script).named(name);
        everyone_looks(&proxyshift);
        let kept = newest_snapshot(&proxyshift);
        assert!(kept.contains(&format!("\"name\": \"{name}\"")), "{name}: {kept}");
        assert!(!kept.contains("s3cret"), "{name}: {kept}");
    }
}

/// A container whose root holds what never answers, and that changes between two looks.
#[test]
fn a_container_cannot_stop_anyone() {
    if !in_namespace("files::a_container_cannot_stop_anyone") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    fs::write("/run/host-secret", "of the host: s3cret\n").unwrap();
    let container = "mkdir -p /run/root/{bin,c,var/lib/dpkg/status.d,usr/sbin,lib,lib64,proc,dev,etc} && \
        mount -t tmpfs none /run/root/c && \
        for d in bin lib lib64 usr; do mount --rbind /$d /run/root/$d; done; \
        mount -t proc proc /run/root/proc; \
        touch /run/root/c/keep; mkfifo /run/root/var/lib/dpkg/status.d/iptables; \
        truncate -s 4G /run/root/var/lib/dpkg/status; \
        ln -s /proc/kmsg /run/root/var/lib/dpkg/status.d/nftables; \
        exec chroot /run/root bash -c 'exec -a kube-proxy tail -f /c/keep -- --config=/c/conf'";
    let script = format!("exec unshare -m bash -c \"{}\"", container.replace('$', "\\$"));
    let inside = Stranger::root(&script).named("kube-proxy");
    let directory = format!("/proc/{}/root/c", inside.0.id());
    let change = format!(
        "cd {directory} && while :; do mkfifo a; mv a conf; echo 'mode: ipvs' > a; mv a conf; \
         ln -s /proc/kmsg a; mv -T a conf; ln -s /run/host-secret a; mv -T a conf; \
         ln -s ../../../run/host-secret a; mv -T a conf; done 2>/dev/null"
    );
    let mut changes = Stranger::root(&change);
    let process = inside.0.id();
    let changing = format!("{directory}/conf");
    poll("it changes", || fs::symlink_metadata(&changing).is_ok());
    for _ in 0..15 {
        soon(&proxyshift, "plan");
        assert_eq!(soon(&proxyshift, "snapshot create").code, Some(0));
        let kept = newest_snapshot(&proxyshift);
        assert!(!kept.contains("s3cret"), "{kept}");
        assert!(kept.contains(&format!("\"pid\": {process}")), "the container lives: {kept}");
    }
    everyone_looks(&proxyshift);
    assert!(changes.0.try_wait().unwrap().is_none(), "it changes still");
}

/// A file system whose server never answers: a FUSE mount that nobody serves.
#[test]
fn a_file_system_that_never_answers_is_not_entered() {
    if !in_namespace("files::a_file_system_that_never_answers_is_not_entered") {
        return;
    }
    private_etc();
    let proxyshift = Proxyshift::new("store");
    fs::create_dir("/etc/cni/net.d/fuse").unwrap();
    fs::create_dir("/run/fuse").unwrap();
    // One descriptor serves one mount.
    let mounted = |at: &str| {
        use std::os::fd::AsRawFd;
        let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse");
        let fuse = fuse.expect("a kernel with FUSE");
        rustix::io::fcntl_setfd(&fuse, rustix::io::FdFlags::empty()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
        run(&format!("mount -i -t fuse -o {options} nobody {at}"));
        fuse
    };
    let _fuses = ["/run/fuse", "/etc/cni/net.d/fuse"].map(mounted);
    symlink("fuse/x", "/etc/cni/net.d/inner.conf").unwrap();
    symlink("/run/fuse/x", "/etc/cni/net.d/fuse.conf").unwrap();
    symlink("/run/fuse", "/etc/cni/net.d/root.conf").unwrap();
    let script = "exec -a kube-proxy bash -c 'sleep 1000; :' --config=/run/fuse/config";
    let _root = Stranger::root(script).named("kube-proxy");
    everyone_looks(&proxyshift);
}

/// A file that shows that Calico lives is not hidden among others.
#[test]
fn a_sign_of_life_is_not_hidden() {
    if !in_namespace("files::a_sign_of_life_is_not_hidden") {
        return;
    }
    private_etc();
    let proxyshift = Proxyshift::new("store");
    let _kubelet = Stranger::root("exec -a kubelet sleep 1000").named("kubelet");
    run("iptables-nft -N cali-FORWARD");
    run_with(
        "iptables-nft -A FORWARD -m comment --comment cali:wUHhoiAYhphO9Mso -j cali-FORWARD",
        &["sh", "-e"],
    );
    let gone = soon(&proxyshift, "plan -o json").json();
    let goes = |object: &Value| object["action"] == "remove";
    assert!(gone["objects"].as_array().unwrap().iter().any(goes), "without it, they go: {gone}");
    fs::write("/etc/cni/net.d/10-calico.conflist", "no network").unwrap();
    for number in [0, 100, 5000] {
        for n in 0..number {
            fs::write(format!("/etc/cni/net.d/0{n}.conf"), "").unwrap();
        }
        let plan = soon(&proxyshift, "plan -o json").json();
        let objects = plan["objects"].as_array().unwrap();
        assert!(!objects.iter().any(goes), "{number}: {plan}");
    }
}
