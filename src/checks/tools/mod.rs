//! The programs, the privileges and the disk space that kube-proxy and proxyshift need.

mod disk_room;
mod host;
mod iptables;
mod nft_versions;
mod privileges;
mod programs;

use super::{Check, Facts, Found, Verdict};
use crate::kube_proxy::proxy_state::ProxyState;
use crate::state::kube_proxy::Delivery;
use crate::state::tools::{InstalledTool, ToolList, Version};

pub(super) const CHECKS: &[&Check] = &[
    &programs::CONNTRACK,
    &disk_room::CHECK,
    &host::CHECK,
    &programs::IPSET,
    &iptables::CHECK,
    &iptables::OLD,
    &programs::NFT,
    &nft_versions::NEWER_HOST,
    &nft_versions::OLD_HOST,
    &privileges::CHECK,
];

/// The path of kube-proxy's log on a kubeadm node, and on a node where kube-proxy is a service.
const LOG: &str = "/var/log/kube-proxy.log";

/// A program as the kube-proxy process finds it in its own root directory.
struct Program<'a> {
    tool: &'a InstalledTool,
    /// The root directory of the kube-proxy process, `/proc/PID/root`; `None` if it is the host's
    /// root.
    root: Option<&'a str>,
    /// Whether kube-proxy runs in a container or a host program, so that the host's package does not
    /// help it.
    contained: bool,
    /// The lines in which kube-proxy's logs report the program as missing.
    complaints: Vec<String>,
}

/// The program `name` as the kube-proxy process finds it in its own root directory, because a
/// container has other programs than the host, and a host program brings its own. The error names
/// the missing data.
fn program<'a>(facts: &Facts<'a>, name: &str) -> Result<Program<'a>, String> {
    let own = facts.live.and_then(|a| a.kube_proxy_tools.as_ref());
    let of_host = |name: &str| {
        let tools = own.or(facts.now.tools.as_ref()).ok_or("the tools are not in this state")?;
        tools.get(name).ok_or(format!("the list of tools does not name {name}"))
    };
    let found = if own.is_some() { None } else { elsewhere(facts, name) };
    // If the program is in kube-proxy's root now, log lines that report it as missing are out of
    // date.
    let complaints = match (own, of_host(name)) {
        (Some(_), Ok(tool)) if tool.path.is_some() => Vec::new(),
        _ => complaints(facts, name),
    };
    // What its log says is known, wherever the program is looked up.
    if let Some(why) = found.filter(|_| complaints.is_empty()) {
        return Err(why);
    }
    let root = facts.live.and_then(|a| a.kube_proxy_root.as_deref());
    let delivery = facts.proxy.delivery(facts.now);
    let contained =
        root.is_some() || delivery.in_container() || matches!(delivery, Delivery::PartOf(_));
    Ok(Program { tool: of_host(name)?, root, contained, complaints })
}

/// Why the host's list of tools does not tell what kube-proxy finds; none if it does.
fn elsewhere(facts: &Facts<'_>, name: &str) -> Option<String> {
    match &facts.proxy {
        ProxyState::PartOf(host, _) => {
            Some(format!("kube-proxy is a part of {host}, which brings its own {name}"))
        }
        ProxyState::One(_) if facts.live.is_some() => {
            Some("the root of kube-proxy's process cannot be read".into())
        }
        ProxyState::Many(_) => {
            facts.live.is_some().then(|| "more than one kube-proxy runs".to_owned())
        }
        ProxyState::One(_) if facts.proxy.delivery(facts.now).in_container() => {
            Some("kube-proxy runs in a container; a capture does not hold what is in it".into())
        }
        // The one that is down may run in a container, and the host has what the capture lists.
        ProxyState::Down(_) | ProxyState::Replaced(_) | ProxyState::Gone => {
            let missing = |tools: &ToolList| tools.get(name).is_some_and(|t| t.path.is_none());
            let missing = facts.now.tools.as_ref().is_some_and(missing);
            missing
                .then(|| "no kube-proxy runs, so whether its container has it is not known".into())
        }
        ProxyState::One(_) | ProxyState::Unknown(_) => None,
    }
}

/// The first line of the captured log, and the first line of a live node's logs, in which
/// kube-proxy reports the program `name` as missing.
fn complaints(facts: &Facts<'_>, name: &str) -> Vec<String> {
    let tells = |line: &&str| {
        line.contains("executable file not found") && line.split('"').any(|word| word == name)
            || line.contains(&format!("looking for path of {name}"))
            || line.contains(&format!("getting {name} version"))
    };
    let captured = facts.now.file(LOG).unwrap_or_default();
    let captured = captured.lines().find(tells).map(|l| format!("{LOG}: {l}"));
    let live = facts.live.iter().flat_map(|a| &a.kube_proxy_complaints);
    captured.into_iter().chain(live.filter(|l| tells(&l.as_str())).take(1).cloned()).collect()
}

impl Program<'_> {
    /// The program's path and the version that it reported, as evidence.
    fn shown(&self) -> String {
        let path = self.tool.path.as_deref().unwrap_or_default();
        format!("{}{path} {}", self.root.unwrap_or_default(), self.tool.text).trim().to_owned()
    }

    /// The finding if kube-proxy cannot run the program; `None` if it can.
    fn missing(&self, package: &str, effect: &str) -> Option<Found> {
        let name = &self.tool.name;
        if self.tool.path.is_some() && self.complaints.is_empty() {
            return None;
        }
        let first = match (&self.tool.path, self.root) {
            (None, Some(root)) => format!("{name}: not in kube-proxy's own root, {root}"),
            _ if self.contained && self.root.is_none() => {
                format!("{name}: not where kube-proxy runs, by its log")
            }
            (None, None) => format!("{name}: not installed"),
            (Some(path), _) => format!("{path} is there, but kube-proxy did not find it:"),
        };
        Some(Found {
            evidence: [vec![first], self.complaints.clone()].concat(),
            effect: effect.into(),
            remedy: vec![self.install(package)],
            fix: Vec::new(),
        })
    }

    /// The advice to install `package` where kube-proxy runs: in the container or on the host.
    fn install(&self, package: &str) -> String {
        let name = &self.tool.name;
        match &self.tool.path {
            _ if self.contained => {
                format!("run a kube-proxy image that has {name}, as registry.k8s.io/kube-proxy has")
            }
            Some(path) => format!(
                "install {package} in kube-proxy's image if it runs in a container; if not, \
                 restart it with {} in its PATH",
                path.rsplit_once('/').map_or("", |(folder, _)| folder),
            ),
            None => format!("apt-get install {package}   # or dnf, zypper install"),
        }
    }
}

/// Reports the program `tool` if it is missing or older than `needed`. `package` is the package to
/// install.
fn at_least(
    facts: &Facts<'_>,
    tool: &str,
    package: &str,
    needed: Version,
    effect: &str,
) -> Verdict {
    let program = match program(facts, tool) {
        Err(why) => return Verdict::Unknown(why),
        Ok(program) => program,
    };
    if let Some(found) = program.missing(package, effect) {
        return Verdict::Found(found);
    }
    match program.tool.version() {
        Some(version) if version >= needed => Verdict::Ok(program.shown()),
        Some(version) => Verdict::Found(Found {
            evidence: vec![format!("{}: {version} is older than {needed}", program.shown())],
            effect: effect.into(),
            remedy: vec![program.install(package)],
            fix: Vec::new(),
        }),
        None => {
            Verdict::Unknown(format!("{} is there, but its version is not known", program.shown()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};
    use crate::state::live_facts::LiveFacts;

    const IPTABLES: &Check = &super::iptables::CHECK;

    fn live(tools: Option<&str>) -> LiveFacts {
        LiveFacts {
            kube_proxy_tools: tools.map(|t| ToolList::parse("t", t).unwrap()),
            kube_proxy_root: tools.map(|_| "/proc/7/root".into()),
            ..LiveFacts::default()
        }
    }

    #[test]
    fn kube_proxys_own_root_decides() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(IPTABLES, &state), Verdict::Ok(_)));
        let with = |own: Option<&str>| given(&state).live(&live(own)).verdict(IPTABLES);
        let Verdict::Found(found) = with(Some("kernel 6.1\niptables missing\n")) else {
            panic!("not found");
        };
        assert_eq!(found.evidence, ["iptables: not in kube-proxy's own root, /proc/7/root"]);
        assert!(found.remedy[0].contains("image"), "{:?}", found.remedy);
        let verdict = with(Some("kernel 6.1\niptables /sbin/iptables package iptables 1.8.9-2\n"));
        let shown = "/proc/7/root/sbin/iptables package iptables 1.8.9-2";
        assert_eq!(verdict, Verdict::Ok(shown.into()));
        assert!(matches!(with(None), Verdict::Unknown(why) if why.contains("cannot be read")));
    }

    #[test]
    fn a_log_contradicts_the_hosts_list_but_not_its_own_root() {
        let line = "E1121 exec: \"iptables\": executable file not found in $PATH\n";
        let state = Node::captured("docker-iptables-1.30").put_file(LOG, line).state();
        let Verdict::Found(found) = verdict_of(IPTABLES, &state) else { panic!("not found") };
        assert!(found.evidence[1].starts_with("/var/log/kube-proxy.log: E1121"), "{found:?}");
        assert!(matches!(verdict_of(&super::programs::CONNTRACK, &state), Verdict::Ok(_)));
        let own = live(Some("kernel 6.1\niptables /sbin/iptables package iptables 1.8.9-2\n"));
        let verdict = given(&state).live(&own).verdict(IPTABLES);
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
    }
}
