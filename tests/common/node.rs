//! Loads a captured node into the namespace of a test: the node's rules, ipsets, links, files and
//! processes, so that a capture finds them again.

use std::fs;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use proxyshift::state::{Backend, Family, NodeState, RulesetId};
use proxyshift::store::snapshots::Snapshot;

use super::{program, run, run_with};

/// The folder of the captured node `name`.
pub fn captured(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots").join(name)
}

/// The names of all captured nodes.
pub fn all_captured() -> Vec<String> {
    let entries = fs::read_dir(captured("")).expect("snapshots/");
    let mut names: Vec<String> = entries
        .map(|e| e.expect("an entry"))
        .filter(|e| e.path().is_dir())
        .map(|e| e.file_name().into_string().expect("text"))
        .collect();
    names.sort();
    assert!(names.len() >= 7, "{names:?}");
    names
}

/// The program under test, with a store of its own and the options for all its calls.
#[derive(Clone)]
pub struct Proxyshift {
    pub store: PathBuf,
    /// How many seconds the program waits for locks.
    pub lock_wait: u32,
    /// The command that runs the program, for example in other namespaces; empty to run it
    /// directly.
    pub within: Vec<String>,
}

impl Proxyshift {
    /// The program with the store /run/`name`, in the private /run.
    pub fn new(name: &str) -> Self {
        Proxyshift { lock_wait: 30, ..Proxyshift::of_store(Path::new("/run").join(name)) }
    }

    /// The program with the store in the folder `store`. It does not wait for locks.
    pub fn of_store(store: PathBuf) -> Self {
        Proxyshift { store, lock_wait: 0, within: Vec::new() }
    }

    /// A command that runs the program with the arguments `words`, which are separated by spaces.
    pub fn command(&self, words: &str) -> Command {
        let program = program().display().to_string();
        let line = [&*self.within, &[program, "--store".into()]].concat();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).arg(&self.store);
        command.args(["--lock-wait", &self.lock_wait.to_string()]);
        command.args(words.split_whitespace()).stdin(Stdio::null());
        command
    }

    /// Runs the program with the arguments `words` to its end.
    pub fn run(&self, words: &str) -> Ended {
        Ended::of(self.command(words))
    }

    /// Runs the program to its end. Its exit code must be `code`.
    pub fn expect(&self, code: i32, words: &str) -> Ended {
        let ended = self.run(words);
        assert_eq!(ended.code, Some(code), "proxyshift {words}\n{}{}", ended.out, ended.err);
        ended
    }

    /// Takes a snapshot of the node. Returns the state that it holds.
    pub fn captured(&self) -> NodeState {
        self.expect(0, "snapshot create");
        let folders = fs::read_dir(self.store.join("snapshots")).expect("snapshots");
        let folders = folders.map(|entry| entry.expect("an entry").path());
        // Their names begin with the time.
        let newest = folders.filter(|folder| folder.is_dir()).max().expect("one");
        NodeState::parse(Snapshot::load(&newest).expect("a snapshot").files).expect("a state")
    }

    /// Runs the program until it is killed at `point` of its journal, such as `after:3` for line 3.
    pub fn killed(&self, words: &str, point: &str) -> Ended {
        let mut command = self.command(words);
        let output = command.env("PROXYSHIFT_CRASH", point).output().expect("the program starts");
        let signal = output.status.signal();
        let ended = Ended::from(output);
        assert_eq!(signal, Some(9), "proxyshift {words}, {point}\n{}{}", ended.out, ended.err);
        ended
    }
}

/// The exit code and the output of a program that has ended.
pub struct Ended {
    /// The exit code; none if a signal ended the program.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub fn of(mut command: Command) -> Ended {
        Ended::from(command.output().expect("the program starts"))
    }

    /// The program's standard output, parsed as one JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}{}", self.out, self.err))
    }

    /// Fails unless the program's standard error contains each of `parts`.
    pub fn reports(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in: {}", self.err);
        }
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A captured node before any run, with the program under test.
pub struct Case {
    pub node: Node,
    pub proxyshift: Proxyshift,
    /// The node's rules before any run.
    pub before: String,
}

impl Case {
    /// The captured node `name`, loaded by [`Node::load`].
    pub fn of(name: &str, backend: Backend) -> Case {
        let node = Node::load(name, backend);
        let before = node.rules();
        Case { node, proxyshift: Proxyshift::new("store"), before }
    }
}

/// A captured node in this namespace. The node's processes end when this value is dropped.
pub struct Node {
    backend: Backend,
    _components: Vec<Component>,
}

impl Node {
    /// Loads the captured node `name` into this namespace. Its IPv4 rules go into `backend`, even
    /// if the node had them in the other backend.
    pub fn load(name: &str, backend: Backend) -> Node {
        let dir = captured(name);
        let state = NodeState::parse(Snapshot::load(&dir).expect(name).files).expect(name);
        private_files(&state);
        links(&state);
        if let Some(sets) = state.files.get("ipset.save") {
            run_with(sets, &["ipset", "restore"]);
        }
        let processes = state.processes.iter().flatten();
        let node = Node {
            backend,
            _components: processes.map(|p| Component::start(&p.name, &p.args)).collect(),
        };
        node.load_rules(&Self::captured_rules(&state));
        node
    }

    fn captured_rules(state: &NodeState) -> String {
        let of = |backend| state.rulesets.get(&RulesetId { family: Family::Ipv4, backend });
        let ruleset = of(Backend::Nft).or_else(|| of(Backend::Legacy)).expect("IPv4 rules");
        ruleset.text().to_string()
    }

    /// Replaces the content of each table that `save` contains by the content in `save`.
    pub fn load_rules(&self, save: &str) {
        run_with(save, &[&self.program("restore"), "-c"]);
    }

    /// The node's IPv4 rules, without counters and comments.
    pub fn rules(&self) -> String {
        without_counters(&run(&self.program("save")))
    }

    /// The name of a program for the node's backend: `what` is `save`, `restore`, or `""` for
    /// iptables itself.
    pub fn program(&self, what: &str) -> String {
        let backend = if self.backend == Backend::Nft { "nft" } else { "legacy" };
        format!("iptables-{backend}-{what}").trim_end_matches('-').to_owned()
    }
}

/// The text of a save, with all counters set to 0 and the comments removed.
pub fn without_counters(save: &str) -> String {
    let line = |l: &str| match l.split_once(" [") {
        Some((chain, _)) if l.starts_with(':') => format!("{chain} [0:0]\n"),
        _ => format!("{l}\n"),
    };
    save.lines().filter(|l| !l.starts_with('#')).map(line).collect()
}

/// The objects in nft's JSON, each as a line, without handles and with the elements of sets in order.
pub fn nft_objects(text: &str) -> Vec<String> {
    fn settle(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => {
                fields.shift_remove("handle");
                fields.shift_remove("expires");
                for (name, field) in fields.iter_mut() {
                    settle(field);
                    if let ("elem", serde_json::Value::Array(elements)) = (name.as_str(), field) {
                        elements.sort_by_cached_key(serde_json::Value::to_string);
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(settle),
            _ => {}
        }
    }
    let parsed = serde_json::from_str(text);
    let mut document: serde_json::Value = parsed.unwrap_or_else(|e| panic!("{e}: {text:?}"));
    settle(&mut document);
    let objects = document["nftables"].as_array().expect("objects");
    objects.iter().map(ToString::to_string).collect()
}

/// Mounts copies of /etc and /var/lib, in this mount namespace alone, and writes the node's files
/// there.
fn private_files(state: &NodeState) {
    let script = "mkdir /run/etc /run/var-lib && cp -a /etc/. /run/etc && mount --bind /run/etc /etc \
                  && mount --bind /run/var-lib /var/lib";
    run_with(script, &["sh", "-e"]);
    for (name, text) in &state.files {
        let Some(path) = name.strip_prefix("files").map(Path::new) else { continue };
        // Log files are left out, because a live node's logs are not read from there.
        if !path.starts_with("/var/log") {
            fs::create_dir_all(path.parent().expect("absolute")).expect("a folder");
            fs::write(path, &**text).expect("a file");
        }
    }
}

/// Creates the node's links by name and address. All become bridges, because many kernels lack the
/// other types. They make no IPv6 address of their own: it would come while a test runs, with its routes.
fn links(state: &NodeState) {
    let mut batch = String::from("link set lo up\n");
    for link in state.links.iter().filter(|l| l.name != "lo") {
        batch += &format!("link add {0} type bridge\nlink set {0} addrgenmode none\n", link.name);
        for address in link.addresses.iter().filter(|a| a.addr().is_ipv4()) {
            batch += &format!("addr add {address} dev {}\n", link.name);
        }
        if link.up {
            batch += &format!("link set {} up\n", link.name);
        }
    }
    run_with(&batch, &["ip", "-batch", "-"]);
}

/// A process with the name and arguments of a component. It is a copy of `echo` that writes to a
/// pipe which nobody reads, so it blocks until this value is dropped or the test ends.
struct Component {
    child: Child,
    _unread: std::io::PipeReader,
}

impl Component {
    fn start(name: &str, args: &[String]) -> Component {
        fs::create_dir_all("/run/components").expect("a folder");
        let program = format!("/run/components/{name}");
        fs::copy("/bin/echo", &program).expect("a copy of echo");
        let (unread, mut full) = std::io::pipe().expect("a pipe");
        full.write_all(&[0; 65536]).expect("filling the pipe");
        let mut command = Command::new(&program);
        command.arg0(&args[0]).args(&args[1..]).stdout(full);
        Component { child: command.spawn().expect("a component starts"), _unread: unread }
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails unless both texts are equal, and then names the lines that differ.
pub fn assert_same(found: &str, wanted: &str, what: &str) {
    if found != wanted {
        let diff = similar::TextDiff::from_lines(wanted, found);
        let diff = diff.unified_diff().context_radius(1).header("wanted", "found").to_string();
        let shown: Vec<&str> = diff.lines().take(30).collect();
        panic!("{what}:\n{}", shown.join("\n"));
    }
}
