//! Captures a node: reads every file of a node state from the current namespaces.
//!
//! A capture changes nothing. A program is run only when the kernel shows that its part of
//! netfilter is loaded ([`super::subsystems`]), because running it would load that part. A lossy
//! save is refused, naming the save ([`super::lossy_save`]).

mod nft_tables;
pub mod parts;

use std::borrow::Cow;
use std::thread;
use std::time::Duration;

use serde::de::IgnoredAny;

use self::nft_tables::NftTableName;
use super::command::CommandOutput;
use super::lossy_save::{lossy, suspect_rules};
use super::nfnetlink::Netfilter;
use super::processes::RunningComponent;
use super::tools::{Tool, Tools};
use super::{
    cluster_capture, config_files, kube_proxy_api, native_rules, prerequisites, processes,
};
use super::{subsystems, sysctls};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Silent, Sink};
use crate::state::cluster_facts::{self, CLUSTER, ClusterAnswer};
use crate::state::ipvs::{ConnectionLimits, VirtualServers};
use crate::state::kube_proxy::controller::PROGRAM;
use crate::state::links::parse_links;
use crate::state::lookalikes;
use crate::state::tools::{NOT_KNOWN, render_processes};
use crate::state::{Backend, Family, Files, RulesetId};

/// The deadline of a save. It is long, because a save of 115,000 lines restarts again and again
/// while another program writes.
const SAVE_DEADLINE: Duration = Duration::from_secs(30);

/// How much is captured. Each extent reads what the ones before it read, and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// What the kernel holds: netfilter objects, links, addresses, routes, sysctls, modules. No
    /// process, no configuration file and no reply of a program is read, because any of these may
    /// be a stranger's, and a rollback must depend on no stranger.
    Objects,
    /// Also the processes and configuration files of components, and kube-proxy's version. They
    /// show which owner is alive.
    Owners,
    /// Everything that a snapshot keeps: counters and the versions of tools too. No run changes
    /// these, and to read each of them a program must be started.
    Whole,
}

/// Captures the whole node, without reporting notes; see [`capture_reporting`].
pub fn capture(tools: &Tools) -> Result<Files> {
    capture_reporting(tools, Extent::Whole, &Silent)
}

/// Captures the state of the node in the current namespaces. A file that is absent from the result
/// means that nothing of its kind exists on the node. Sends a note to `sink` for each configuration
/// file that is not captured, because it is too large or holds a secret.
///
/// Fails with [`Kind::LossyCapture`] for a save that differs from the kernel's rules,
/// [`Kind::MissingTool`] when no installed program can print what the kernel has, and
/// [`Kind::Command`] when a program fails.
pub fn capture_reporting(tools: &Tools, extent: Extent, sink: &dyn Sink) -> Result<Files> {
    let mut files = Files::new();
    // In parallel, because saving the rules and saving the ipsets both take long on a large node.
    let (rules, sets) = thread::scope(|scope| {
        let sets = scope.spawn(|| ipsets(tools));
        (legacy(tools, &mut files).and_then(|()| nft(tools, &mut files, sink)), sets.join())
    });
    rules?;
    let failed = |_| Error::new(Kind::Unexpected, "ipset save", "cannot be read");
    put(&mut files, "ipset.save", sets.map_err(failed)??);
    match prerequisites::capture_named(&files) {
        Ok(named) => {
            for (name, text) in named {
                put(&mut files, name, text);
            }
        }
        // An undo is not to fail for what others have made meanwhile.
        Err(error) if extent < Extent::Whole => sink.emit(Event::Note { text: error.to_string() }),
        Err(error) => return Err(error),
    }
    beside_rules(tools, extent, sink, &mut files)?;
    Ok(files)
}

/// Captures all that is neither a rule nor a set: what can still be judged of a node whose rules
/// cannot be read.
pub fn capture_beside_rules(tools: &Tools, sink: &dyn Sink) -> Result<Files> {
    let mut files = Files::new();
    beside_rules(tools, Extent::Whole, sink, &mut files)?;
    Ok(files)
}

fn beside_rules(tools: &Tools, extent: Extent, sink: &dyn Sink, files: &mut Files) -> Result<()> {
    ipvs(tools, files)?;
    links(tools, files)?;
    put(files, "sysctl.txt", sysctls::read()?);
    put(files, "modules.txt", subsystems::read_if_exists("/proc/modules")?.unwrap_or_default());
    if extent >= Extent::Owners {
        let components = owners(files, sink)?;
        if extent >= Extent::Whole {
            cluster(files, &components, sink)?;
            counters_and_versions(tools, files)?;
        }
    }
    Ok(())
}

/// Captures the processes of components and their configuration files. Returns those that count.
fn owners(files: &mut Files, sink: &dyn Sink) -> Result<Vec<RunningComponent>> {
    let found = processes::find()?;
    let (configuration, notes) = config_files::read(&found.components);
    let mut processes = found.processes();
    if processes.iter().any(|p| p.name == PROGRAM && p.version.is_none()) {
        let links = files.get("addr.json").map_or("[]", |text| text);
        let links = parse_links("addr.json", links)?;
        kube_proxy_api::fill_in_version(&mut processes, &configuration, &links);
    }
    if processes::are_the_nodes(&processes)? {
        put(files, "processes.json", render_processes(&processes)?);
    } else {
        let text = "the node's processes are not seen from this PID namespace, so no owner counts as \
                    gone (in a pod, hostPID shows them)";
        sink.emit(Event::Note { text: text.into() });
        put(files, "processes.json", NOT_KNOWN.into());
    }
    if !found.lookalikes.is_empty() {
        put(files, "lookalikes.json", lookalikes::render(&found.lookalikes)?);
    }
    files.extend(configuration);
    for text in notes {
        sink.emit(Event::Note { text });
    }
    Ok(found.components)
}

/// Captures what the API server says of kube-proxy. That it does not answer is noted.
fn cluster(files: &mut Files, components: &[RunningComponent], sink: &dyn Sink) -> Result<()> {
    let Some(facts) = cluster_capture::capture(components) else { return Ok(()) };
    if let Some(ClusterAnswer::Unanswered(why)) = &facts.kube_proxy {
        let text = format!("what the API server has of kube-proxy is not captured: {why}");
        sink.emit(Event::Note { text });
    }
    put(files, CLUSTER, cluster_facts::render(&facts)?);
    Ok(())
}

fn counters_and_versions(tools: &Tools, files: &mut Files) -> Result<()> {
    let conntrack = subsystems::read_if_exists("/proc/net/stat/nf_conntrack")?;
    put(files, "nf_conntrack.stat", conntrack.unwrap_or_default());
    put(files, "tools.txt", tools.tools_txt());
    if files.contains_key("ipvs.save") {
        for (file, more) in [("ipvs.list", &[][..]), ("ipvs.stats", &["--stats", "--exact"])] {
            let listed = save(tools, Tool::Ipvsadm, &[&["-L", "-n"], more].concat())?;
            put(files, file, listed.stdout);
        }
    }
    Ok(())
}

/// Adds a file with this name and text, unless the text is empty.
fn put(files: &mut Files, name: &str, text: String) {
    if !text.is_empty() {
        files.insert(name.to_owned(), text.into());
    }
}

/// Runs a program with [`SAVE_DEADLINE`].
fn save(tools: &Tools, tool: Tool, args: &[&str]) -> Result<CommandOutput> {
    tools.command(tool)?.args(args).deadline(SAVE_DEADLINE).run()
}

/// The captured files that `ip` prints, each with the arguments of `ip`.
const LINKS: [(&str, &str); 3] = [
    ("addr.json", "addr show"),
    ("route.json", "route show table all"),
    ("rule.json", "rule show"),
];

/// Captures links with their addresses, routes, and routing rules, in one run of `ip`.
fn links(tools: &Tools, files: &mut Files) -> Result<()> {
    let questions: String = LINKS.iter().map(|(_, question)| format!("{question}\n")).collect();
    let ip = tools.command(Tool::Ip)?.args(["-j", "-d", "-batch", "-"]).stdin(questions);
    let printed = ip.lossy().run()?.stdout;
    let answers = with_escapes(&printed);
    for ((file, _), answer) in LINKS.iter().zip(documents(&answers)?) {
        put(files, file, format!("{answer}\n"));
    }
    Ok(())
}

/// JSON as `ip` prints it, with the escapes that it leaves out: those of control characters in the
/// names and aliases of links, which anyone may choose who makes a link.
pub(crate) fn with_escapes(text: &str) -> Cow<'_, str> {
    let is_raw = |c: char| c.is_ascii_control() && c != '\n';
    if !text.contains(is_raw) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_raw(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Splits a text into the JSON documents that follow one another in it, each as printed.
fn documents(text: &str) -> Result<Vec<&str>> {
    let mut documents = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let (mut found, mut begin) = (Vec::new(), 0);
    while let Some(document) = documents.next() {
        document.map_err(|e| Error::new(Kind::Parse, "ip -j", e))?;
        let end = documents.byte_offset();
        found.push(text[begin..end].trim());
        begin = end;
    }
    if found.len() != LINKS.len() {
        return Err(Error::new(Kind::Parse, "ip -j", "it did not answer each question"));
    }
    Ok(found)
}

/// Adds the output of a save, or refuses it if it is lossy.
fn put_save(files: &mut Files, id: RulesetId, output: CommandOutput) -> Result<()> {
    let file = id.file();
    if let Some(refused) = lossy(&file, &output.stdout, &output.stderr) {
        return Err(refused);
    }
    // iptables-legacy-save fails at a match that it does not know, and so loses none.
    if id.backend == Backend::Nft {
        refuse_lost_matches(&file, id.family, &output.stdout)?;
    }
    put(files, &file, output.stdout);
    Ok(())
}

/// Refuses a save of the backend nft that lacks a condition which the kernel's rule has.
fn refuse_lost_matches(file: &str, family: Family, save: &str) -> Result<()> {
    let suspects = suspect_rules(save);
    if suspects.is_empty() {
        return Ok(());
    }
    let mut netfilter = Netfilter::open()?;
    for suspect in suspects {
        let rules = netfilter.rules(family, suspect.table, suspect.chain)?;
        // A rule that is not there any more is as good as one with a condition: the save is old.
        if !rules.get(suspect.position).is_some_and(|rule| rule.unconditional) {
            return Err(suspect.error(file));
        }
    }
    Ok(())
}

/// Captures the legacy tables. Where the kernel's list of them cannot be read, each table is saved
/// by name; that creates the table if it is missing.
fn legacy(tools: &Tools, files: &mut Files) -> Result<()> {
    Family::ALL.into_iter().try_for_each(|family| legacy_of(tools, family, files))
}

fn legacy_of(tools: &Tools, family: Family, files: &mut Files) -> Result<()> {
    let id = RulesetId { family, backend: Backend::Legacy };
    let output = match subsystems::legacy_tables(family)? {
        Some(listed) if listed.is_empty() => return Ok(()),
        Some(_) => save(tools, Tool::Save(id), &["-c"])?,
        None => legacy_by_name(tools, id)?,
    };
    put_save(files, id, output)
}

/// Saves each legacy table of a family whose code is in the kernel, and keeps those that are in
/// use.
fn legacy_by_name(tools: &Tools, id: RulesetId) -> Result<CommandOutput> {
    let mut whole = CommandOutput { stdout: String::new(), stderr: String::new() };
    for table in subsystems::legacy_tables_loaded(id.family) {
        let output = save(tools, Tool::Save(id), &["-c", "-t", &table])?;
        if !untouched(&output.stdout) {
            whole.stdout.push_str(&output.stdout);
            whole.stderr.push_str(&output.stderr);
        }
    }
    Ok(whole)
}

/// True for the save of an unused table: it has no rules, and only built-in chains with the policy
/// ACCEPT.
fn untouched(save: &str) -> bool {
    let plain = |l: &str| !l.starts_with(':') || l.contains(" ACCEPT [");
    save.lines().all(|l| plain(l) && !l.contains("-A "))
}

/// Captures the tables of nf_tables: iptables-nft's by iptables-nft-save, native tables as nft's
/// JSON.
fn nft(tools: &Tools, files: &mut Files, sink: &dyn Sink) -> Result<()> {
    if !subsystems::nf_tables() {
        return Ok(());
    }
    let tables = nft_tables::listed()?;
    for family in Family::ALL {
        xtables(tools, &tables, family, files).map_err(|refused| refused.error)?;
    }
    nft_tables::capture_native(tools, &tables, files, sink)
}

/// A save that is not captured, and what it printed, if it printed anything.
struct RefusedSave {
    error: Error,
    text: Option<String>,
}

/// Captures the tables of iptables-nft of one family, if there are any.
fn xtables(
    tools: &Tools,
    tables: &[NftTableName],
    family: Family,
    files: &mut Files,
) -> Result<(), RefusedSave> {
    if !tables.iter().any(|t| t.is_of(family)) {
        return Ok(());
    }
    let id = RulesetId { family, backend: Backend::Nft };
    let explained = |error| native_rules::explained(error, id);
    let output = save(tools, Tool::Save(id), &["-c"])
        .map_err(|error| RefusedSave { error: explained(error), text: None })?;
    let text = output.stdout.clone();
    put_save(files, id, output)
        .map_err(|error| RefusedSave { error: explained(error), text: Some(text) })
}

/// The output of `ipset save`; empty if ip_set is not loaded.
fn ipsets(tools: &Tools) -> Result<String> {
    if !subsystems::ip_set() {
        return Ok(String::new());
    }
    Ok(save(tools, Tool::Ipset, &["save"])?.stdout)
}

/// Captures the ipvs virtual servers, if there are any.
fn ipvs(tools: &Tools, files: &mut Files) -> Result<()> {
    if !subsystems::ip_vs() {
        return Ok(());
    }
    let rules = save(tools, Tool::Ipvsadm, &["-S", "-n"])?.stdout;
    if rules.is_empty() {
        return Ok(());
    }
    put(files, "ipvs.save", limited(tools, rules)?);
    Ok(())
}

/// Adds connection limits to the output of `ipvsadm -S`, which omits them although `ipvsadm -R`
/// reads them.
fn limited(tools: &Tools, rules: String) -> Result<String> {
    let listed = save(tools, Tool::Ipvsadm, &["-L", "-n", "--thresholds"])?.stdout;
    let limits = ConnectionLimits::parse("ipvsadm --thresholds", &listed)?;
    if limits.is_empty() {
        return Ok(rules);
    }
    let mut ipvs = VirtualServers::parse("ipvs.save", &rules)?;
    limits.put(&mut ipvs);
    Ok(ipvs.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unused_table_is_distinguished_from_a_used_one() {
        assert!(untouched("# x\n*raw\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"));
        for line in [":OUTPUT DROP [0:0]", ":MINE - [0:0]", "[0:0] -A OUTPUT -j ACCEPT"] {
            assert!(!untouched(&format!("*raw\n:OUTPUT ACCEPT [0:0]\n{line}\nCOMMIT\n")), "{line}");
        }
    }
}
