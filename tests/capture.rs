//! The capture, with the real kernel and the real tools, each case in a namespace of its own.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use proxyshift::error::Kind;
use proxyshift::event::{Event, Sink};
use proxyshift::node::capture::{Extent, capture, capture_reporting};
use proxyshift::node::processes;
use proxyshift::node::tools::{Tool, Tools};
use proxyshift::state::Files;

/// Runs `body` in network and mount namespaces of its own, with its own /run and /etc. For that, it
/// starts the test `test` again in those namespaces, where `body` is called.
fn in_namespace(test: &str, body: impl FnOnce()) {
    const INSIDE: &str = "PROXYSHIFT_CAPTURE_INSIDE";
    if let Some(marker) = env::var_os(INSIDE) {
        body();
        return fs::write(marker, "ran").unwrap();
    }
    // A misspelt test name would run no test and succeed, so a marker file shows that the test ran.
    let marker = tempfile::NamedTempFile::new().unwrap();
    let script = "mount -t tmpfs none /run && cp -a /etc /run/etc && mount --bind /run/etc /etc \
                  && exec \"$0\" \"$@\"";
    let status = Command::new("unshare")
        .args(["-nm", "--propagation", "private", "sh", "-c", script])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, marker.path())
        .status()
        .expect("unshare runs");
    assert!(status.success(), "the test failed in its namespace (it needs root)");
    assert_eq!(fs::read_to_string(marker).unwrap(), "ran");
}

/// Runs a program with `stdin` as its standard input, and returns its standard output.
fn run(argv: &[&str], stdin: &str) -> String {
    let mut child = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{argv:?}: {e}"));
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{argv:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn node(name: &str, file: &str) -> String {
    fs::read_to_string(Path::new("snapshots").join(name).join(file)).unwrap()
}

/// The lines of a save, except its comments, because the comments contain the time.
fn rules(save: &str) -> Vec<&str> {
    save.lines().filter(|l| !l.starts_with('#')).collect()
}

fn names(files: &Files) -> Vec<&str> {
    files.keys().map(String::as_str).collect()
}

/// The state of the kernel that a capture must not change.
fn kernel_state() -> Vec<String> {
    let proc = |path: &str| fs::read_to_string(path).unwrap_or_else(|e| e.to_string());
    let modules = proc("/proc/modules");
    vec![
        run(&["nft", "list", "tables"], ""),
        proc("/proc/net/ip_tables_names"),
        proc("/proc/net/ip6_tables_names"),
        modules.lines().filter_map(|l| l.split(' ').next()).collect(),
    ]
}

/// A child process that is killed when this value is dropped.
struct Running(Child);

impl Running {
    fn start(argv: &[&str]) -> Self {
        let child = Command::new(argv[0]).args(&argv[1..]).stdin(Stdio::piped()).spawn();
        Running(child.unwrap_or_else(|e| panic!("{argv:?}: {e}")))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until /proc shows that the child executes the program `name`, in whatever namespace
    /// the child runs.
    fn named(self, name: &str) -> Self {
        let exe = format!("/proc/{}/exe", self.pid());
        until(|| fs::read_link(&exe).is_ok_and(|exe| exe.ends_with(name)));
        self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "waited for 30 s");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Copies a program to /run/bin under the name `name`. Returns the path.
fn copy_as(program: &str, name: &str) -> String {
    fs::create_dir_all("/run/bin").unwrap();
    let path = format!("/run/bin/{name}");
    fs::copy(program, &path).unwrap();
    path
}

#[derive(Default)]
struct Notes(std::sync::Mutex<Vec<String>>);

impl Sink for Notes {
    fn emit(&self, event: Event) {
        if let Event::Note { text } = event {
            self.0.lock().unwrap().push(text);
        }
    }
}

#[test]
fn capturing_an_empty_namespace_changes_nothing() {
    in_namespace("capturing_an_empty_namespace_changes_nothing", || {
        let before = kernel_state();
        let files = capture(&Tools::find()).unwrap();
        assert_eq!(kernel_state(), before);
        assert!(
            names(&files).iter().all(|n| !n.contains(".save") && *n != "nft.json"),
            "{files:?}"
        );
        for file in ["addr.json", "rule.json", "sysctl.txt", "tools.txt", "files/etc/resolv.conf"] {
            assert!(files.contains_key(file), "{file}");
        }
        assert_eq!(&*files["processes.json"], "[]\n");
        let links: serde_json::Value = serde_json::from_str(&files["addr.json"]).unwrap();
        assert_eq!(links[0]["ifname"], "lo");
    });
}

#[test]
fn rules_of_both_families_are_captured_as_loaded() {
    in_namespace("rules_of_both_families_are_captured_as_loaded", || {
        let name = "docker-iptables-1.30";
        let files = ["iptables-nft.save", "ip6tables-nft.save"];
        for file in files {
            let restore = file.replace(".save", "-restore");
            run(&[&restore, "-c"], &node(name, file));
        }
        let captured = capture(&Tools::find()).unwrap();
        for file in files {
            assert_eq!(rules(&captured[file]), rules(&node(name, file)), "{file}");
        }
        assert!(!captured.contains_key("nft.json"), "all its tables are of iptables-nft");
        assert!(!captured.contains_key("iptables-legacy.save"));
    });
}

#[test]
fn rules_that_use_sets_are_captured_with_them() {
    in_namespace("rules_that_use_sets_are_captured_with_them", || {
        let name = "canal-stale-flannel-1.20";
        run(&["ipset", "restore"], &node(name, "ipset.save"));
        run(&["iptables-nft-restore", "-c"], &node(name, "iptables-nft.save"));
        let captured = capture(&Tools::find()).unwrap();
        let expected = node(name, "iptables-nft.save");
        assert_eq!(rules(&captured["iptables-nft.save"]), rules(&expected));
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&captured["ipset.save"]), sorted(&node(name, "ipset.save")));
    });
}

#[test]
fn legacy_rules_are_captured_table_by_table_beside_those_of_nft() {
    in_namespace("legacy_rules_are_captured_table_by_table_beside_those_of_nft", || {
        let save = node("docker-legacy-iptables-1.20-no-conntrack", "iptables-legacy.save");
        run(&["iptables-legacy-restore", "-c"], &save);
        run(&["iptables-nft", "-A", "INPUT", "-j", "ACCEPT"], "");
        let before = kernel_state();
        let captured = capture(&Tools::find()).unwrap();
        assert_eq!(kernel_state(), before);
        // Compared by table, because the save has the tables in the kernel's order, not in that of
        // the input.
        let tables = |text: &str| {
            let mut tables: Vec<_> =
                rules(text).split(|l| *l == "COMMIT").map(|t| t.join("\n")).collect();
            tables.sort();
            tables
        };
        assert_eq!(tables(&captured["iptables-legacy.save"]), tables(&save));
        assert!(captured["iptables-nft.save"].contains("-A INPUT -j ACCEPT"));
        assert!(!captured.contains_key("ip6tables-legacy.save"));
    });
}

#[test]
fn legacy_rules_are_captured_without_root_where_their_list_is_hidden() {
    const INSIDE: &str = "PROXYSHIFT_CAPTURE_USER";
    let test = "legacy_rules_are_captured_without_root_where_their_list_is_hidden";
    if env::var_os(INSIDE).is_some() {
        assert!(fs::read_to_string("/proc/net/ip_tables_names").is_err(), "the list is hidden");
        let lock = ["XTABLES_LOCKFILE=/dev/shm/proxyshift-test-lock"];
        let rule = ["iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"];
        run(&[&["env"][..], &lock, &rule].concat(), "");
        let captured = capture(&Tools::find()).unwrap();
        let save = &captured["iptables-legacy.save"];
        assert!(save.contains("[0:0] -A POSTROUTING -j MASQUERADE"), "{save}");
        assert!(!save.contains("*mangle"), "made by asking: {save}");
        assert!(!captured.contains_key("ip6tables-legacy.save"));
        return;
    }
    in_namespace(test, || {
        // The ordinary user may neither read the build's folder nor write to /run.
        let program = copy_as(env::current_exe().unwrap().to_str().unwrap(), "test");
        run(&["mount", "-t", "tmpfs", "-o", "mode=1777", "none", "/dev/shm"], "");
        let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        let namespace = ["env", "PROXYSHIFT_CAPTURE_USER=1", "unshare", "-Urnm"];
        let again = [program.as_str(), "--exact", test, "--nocapture"];
        run(&[&user[..], &namespace, &again].concat(), "");
    });
}

#[test]
fn native_tables_are_captured_as_json() {
    in_namespace("native_tables_are_captured_as_json", || {
        let script = "table inet firewall { chain in { type filter hook input priority 0; \
                      tcp dport { 22, 80 } counter accept; }; }
                      table ip kube-proxy { set s { type ipv4_addr; }; }";
        run(&["nft", "-f", "-"], script);
        run(&["iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"], "");
        let captured = capture(&Tools::find()).unwrap();
        let document: serde_json::Value = serde_json::from_str(&captured["nft.json"]).unwrap();
        let items = document["nftables"].as_array().unwrap();
        assert!(items[0].get("metainfo").is_some());
        assert_eq!(items.iter().filter(|i| i.get("metainfo").is_some()).count(), 1);
        let tables: Vec<_> = items.iter().filter_map(|i| i["table"]["name"].as_str()).collect();
        assert_eq!(tables, ["firewall", "kube-proxy"]);
        let rule = items.iter().find(|i| i.get("rule").is_some()).unwrap().to_string();
        assert!(rule.contains("[22,80]"), "{rule}");
        assert!(items.iter().any(|i| i["set"]["name"] == "s"));
        assert_eq!(names(&captured).iter().filter(|n| n.ends_with(".save")).count(), 1);
    });
}

#[test]
fn a_table_that_iptables_cannot_print_is_refused() {
    in_namespace("a_table_that_iptables_cannot_print_is_refused", || {
        let script = "table ip filter { chain x { type filter hook input priority 5; \
                      ip saddr 1.2.3.4 accept; }; }";
        run(&["nft", "-f", "-"], script);
        let e = capture(&Tools::find()).unwrap_err();
        assert_eq!((e.kind, e.object.as_str()), (Kind::LossyCapture, "iptables-nft.save"));
        assert!(e.cause.contains("Table `filter'"), "{}", e.cause);
    });
}

#[test]
fn processes_of_this_namespace_are_found_and_of_others_not() {
    in_namespace("processes_of_this_namespace_are_found_and_of_others_not", || {
        let flanneld = copy_as("/bin/sleep", "flanneld");
        let ours = Running::start(&[&flanneld, "1000"]).named("flanneld");
        let other = Running::start(&["unshare", "-n", &flanneld, "1000"]).named("flanneld");
        let found = processes::find().unwrap().processes();
        let pids: Vec<_> = found.iter().map(|p| p.pid).collect();
        assert_eq!(pids, [ours.pid()], "{} is elsewhere", other.pid());
        let captured = capture(&Tools::find()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&captured["processes.json"]).unwrap();
        assert_eq!(json[0]["name"], "flanneld");
        assert_eq!(json[0]["args"], serde_json::json!([flanneld, "<masked>"]));
        assert!(json[0].get("version").is_none());
    });
}

/// The kernel gives a process its program before its arguments. Each start is looked at just then.
#[test]
fn a_process_is_found_while_it_starts() {
    in_namespace("a_process_is_found_while_it_starts", || {
        let flanneld = copy_as("/bin/sleep", "flanneld");
        for start in 0..300 {
            let running = Running::start(&[&flanneld, "1000"]).named("flanneld");
            let found = processes::find().unwrap().processes();
            let pids: Vec<_> = found.iter().map(|p| p.pid).collect();
            assert_eq!(pids, [running.pid()], "start {start}");
            assert_eq!(found[0].args, [flanneld.as_str(), "<masked>"], "start {start}");
        }
    });
}

const CONFIG: &str =
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n";

#[test]
fn the_configuration_of_kube_proxy_is_read_in_its_own_root_and_secrets_are_masked() {
    let test = "the_configuration_of_kube_proxy_is_read_in_its_own_root_and_secrets_are_masked";
    in_namespace(test, || {
        let kube_proxy = copy_as("/bin/sh", "kube-proxy");
        let script = format!(
            "mkdir /run/inner && mount -t tmpfs none /run/inner && mkdir /run/inner/..data && \
             printf '{CONFIG}' > /run/inner/..data/c && ln -s /run/inner/..data/c /run/inner/conf && \
             exec {kube_proxy} -c 'read x; exit' --token=abc --config=/run/inner/conf"
        );
        let _running = Running::start(&["unshare", "-m", "sh", "-c", &script]).named("kube-proxy");
        assert!(!Path::new("/run/inner/conf").exists(), "it is in the other mount namespace");
        let captured = capture(&Tools::find()).unwrap();
        assert_eq!(captured["files/run/inner/conf"].as_ref(), CONFIG);
        let processes = &captured["processes.json"];
        assert!(processes.contains("--token=<masked>"), "{processes}");
        assert!(captured.values().all(|text| !text.contains("--token=abc")));
        assert!(!processes.contains("version"), "{processes}");
    });
}

#[test]
fn no_program_of_a_process_is_run_for_its_version() {
    in_namespace("no_program_of_a_process_is_run_for_its_version", || {
        let source = r#"fn main() {
            if std::env::args().len() > 1 {
                std::fs::write("/run/ran", "").unwrap();
                println!("Kubernetes v1.30.5");
            } else {
                std::thread::sleep(std::time::Duration::from_secs(1000));
            }
        }"#;
        fs::create_dir_all("/run/bin").unwrap();
        let kubelet = "/run/bin/kubelet";
        run(&["rustc", "--crate-name", "kubelet", "-o", kubelet, "-"], source);
        let _running = Running::start(&[kubelet]).named("kubelet");
        let found = processes::find().unwrap().processes();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].version, None);
        assert!(!Path::new("/run/ran").exists());
    });
}

#[test]
fn credentials_are_omitted_and_named() {
    in_namespace("credentials_are_omitted_and_named", || {
        fs::create_dir_all("/etc/cni/net.d").unwrap();
        let put =
            |name: &str, text: &str| fs::write(format!("/etc/cni/net.d/{name}"), text).unwrap();
        put("10-x.conflist", "{\"name\": \"x\", \"type\": \"y\"}\n");
        put("calico-kubeconfig", "kind: Config\nusers: [{user: {token: abc123}}]\n");
        put("hidden.conf", "kind: Config\nusers: [{user: {token: abc123}}]\n");
        fs::create_dir_all("/run/flannel").unwrap();
        fs::write("/run/flannel/subnet.env", "FLANNEL_SUBNET=192.168.64.1/24\n").unwrap();
        let notes = Notes::default();
        let captured = capture_reporting(&Tools::find(), Extent::Whole, &notes).unwrap();
        assert_eq!(
            captured["files/etc/cni/net.d/10-x.conflist"].as_ref(),
            "{\"name\":\"x\",\"type\":\"y\"}\n"
        );
        assert_eq!(captured["files/run/flannel/subnet.env"].as_ref(), "", "no whole lease");
        assert!(captured.values().all(|text| !text.contains("abc123")));
        let notes = notes.0.into_inner().unwrap();
        for name in ["calico-kubeconfig", "hidden.conf"] {
            assert!(notes.iter().any(|n| n.contains(name)), "{notes:?}");
        }
    });
}

#[test]
fn missing_tools_are_written_down_and_are_errors_when_needed() {
    in_namespace("missing_tools_are_written_down_and_are_errors_when_needed", || {
        let hide = |tool: Tool| {
            while let Ok(path) = Tools::find().tool(tool) {
                run(&["mount", "--bind", "/dev/null", path.to_str().unwrap()], "");
            }
        };
        hide(Tool::Conntrack);
        let captured = capture(&Tools::find()).unwrap();
        let tools = &captured["tools.txt"];
        assert!(tools.lines().any(|l| l == "conntrack missing"), "{tools}");
        assert!(tools.lines().any(|l| l.starts_with("nft /")), "{tools}");
        hide(Tool::Ip);
        let e = capture(&Tools::find()).unwrap_err();
        assert_eq!((e.kind, e.object.as_str()), (Kind::MissingTool, "ip"));
        assert!(e.hint.unwrap().contains("iproute2"));
    });
}
