//! Virtual servers of other programs. In ipvs mode kube-proxy deletes each of them that its
//! configuration does not exclude; as it starts in nftables mode it flushes all of them.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::serves_by_servers;
use crate::checks::kube_proxy::setting;
use crate::checks::{Check, Facts, Found, Severity, Verdict, nftables};
use crate::owners::component::KUBE_PROXY;
use crate::state::ipvs::{VirtualServer, VirtualServerId};
use crate::state::kube_proxy::Mode;

const TITLE: &str = "virtual servers of others that kube-proxy is not told to leave alone";
const REFERENCE: &str = "https://github.com/kubernetes/kubernetes/issues/59507";

/// Before a switch to ipvs mode: virtual servers of other programs that kube-proxy would delete.
pub(super) const BEFORE: Check = Check {
    id: "ipvs.foreign-servers",
    title: TITLE,
    severity: Severity::Block,
    when: "ipvs mode is the target, and does not run yet",
    applies: |facts| facts.to == Some(Mode::Ipvs) && facts.running.mode != Some(Mode::Ipvs),
    evaluate,
    reference: REFERENCE,
};

/// While ipvs mode runs: virtual servers of other programs that kube-proxy will delete but has not
/// deleted yet.
pub(super) const BESIDE: Check = Check {
    id: "ipvs.foreign-servers-beside",
    title: TITLE,
    severity: Severity::Warn,
    when: "ipvs mode runs",
    applies: |facts| facts.running.mode == Some(Mode::Ipvs),
    evaluate,
    reference: REFERENCE,
};

/// Before a switch to nftables mode: virtual servers of other programs that kube-proxy flushes.
pub(super) const FLUSHED: Check = Check {
    id: "ipvs.foreign-servers-flushed",
    title: "virtual servers of others that kube-proxy flushes as it starts in nftables mode",
    severity: Severity::Block,
    when: "nftables mode is the target, and does not run yet",
    applies: nftables::is_target,
    evaluate: evaluate_flushed,
    reference: "https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/proxy/ipvs/cleanup.go",
};

/// The foreign virtual servers, each with its owner and its evidence.
fn foreign(facts: &Facts<'_>) -> Vec<(String, String)> {
    let servers = facts.now.ipvs.servers.iter();
    let foreign = servers.filter_map(|server| {
        let owner = facts.ownership.virtual_server(&server.service)?;
        let shown = describe(server, owner.name);
        (owner.name != KUBE_PROXY).then(|| (owner.name.to_owned(), shown))
    });
    foreign.collect()
}

/// A virtual server with its owner, as evidence.
fn describe(server: &VirtualServer, owner: &str) -> String {
    let VirtualServer { service, scheduler, reals, .. } = server;
    format!("{service} {scheduler} with {} real servers; owner: {owner}", reals.len())
}

fn evaluate_flushed(facts: &Facts<'_>) -> Verdict {
    let found = foreign(facts);
    if found.is_empty() {
        return Verdict::Ok("there is no virtual server of others".into());
    }
    if let Some(version) = facts.running.version
        && version.minor < FLUSHES
    {
        return Verdict::Ok(format!("kube-proxy {version} has no nftables mode, and flushes none"));
    }
    let owners: BTreeSet<&str> = found.iter().map(|(owner, _)| owner.as_str()).collect();
    let restart = owners.iter().map(|owner| match *owner {
        "keepalived" => "systemctl restart keepalived   # at once after the switch".to_owned(),
        owner => format!("have {owner} make them again, at once after the switch"),
    });
    Verdict::Found(Found {
        evidence: found.iter().map(|(_, shown)| shown.clone()).collect(),
        effect: "from 1.29 on kube-proxy flushes every virtual server of the node as it starts in \
                 nftables mode, and heeds no excludeCIDRs: what they serve is down until their \
                 owner makes them again"
            .into(),
        remedy: std::iter::once("move them to another node before the switch".to_owned())
            .chain(restart)
            .collect(),
        fix: Vec::new(),
    })
}

/// The first minor version of Kubernetes 1 that flushes them.
const FLUSHES: u32 = 29;

fn evaluate(facts: &Facts<'_>) -> Verdict {
    // ipvs mode always has a virtual server, because every cluster has at least a service for its
    // API.
    if serves_by_servers(facts) && facts.now.ipvs.servers.is_empty() {
        return Verdict::Unknown("ipvs mode runs, but no virtual server is in this state".into());
    }
    let (mut evidence, mut networks, mut nameless) = (Vec::new(), BTreeSet::new(), false);
    let mut foreign = 0;
    for server in &facts.now.ipvs.servers {
        let Some(owner) = facts.ownership.virtual_server(&server.service) else { continue };
        if owner.name == KUBE_PROXY {
            continue;
        }
        foreign += 1;
        let excluded = |ip| {
            let settings = facts.settings.as_ref();
            settings.is_some_and(|s| s.ipvs.exclude_cidrs.iter().any(|net| net.contains(&ip)))
        };
        match server.service {
            VirtualServerId::Address { address, .. } if excluded(address.ip()) => continue,
            VirtualServerId::Address { address, .. } => {
                networks.insert(IpNet::from(address.ip()));
            }
            VirtualServerId::Fwmark { .. } => nameless = true,
        }
        evidence.push(describe(server, owner.name));
    }
    if evidence.is_empty() {
        return match foreign {
            0 if facts.now.ipvs.servers.is_empty()
                && !facts.now.files.contains_key("ipvs.save") =>
            {
                Verdict::Ok("there is no virtual server".into())
            }
            0 => Verdict::Ok("every virtual server is kube-proxy's".into()),
            n => Verdict::Ok(format!("{n} of others, all of them in excludeCIDRs")),
        };
    }
    if facts.settings.is_none() {
        evidence.push("kube-proxy's configuration, with excludeCIDRs, is not known".into());
    }
    let mut all: Vec<IpNet> =
        facts.settings.iter().flat_map(|s| s.ipvs.exclude_cidrs.iter().copied()).collect();
    all.extend(networks);
    let list: Vec<String> = all.iter().map(ToString::to_string).collect();
    let mut remedy = Vec::new();
    if !list.is_empty() {
        let line = format!("ipvs: {{excludeCIDRs: [{}]}}", list.join(", "));
        remedy.push(setting(facts, &line, &format!("--ipvs-exclude-cidrs={}", list.join(","))));
    }
    if nameless {
        remedy.push(
            "give the virtual servers by mark an address: excludeCIDRs cannot name a mark".into(),
        );
    }
    Verdict::Found(Found {
        evidence,
        effect:
            "kube-proxy in ipvs mode deletes them at a sync, and what they serve is down until \
                 their owner makes them again"
                .into(),
        remedy,
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};

    const EVIDENCE: &str = "10.9.0.100:8443/tcp wlc with 2 real servers; owner: keepalived";

    #[test]
    fn found_while_ipvs_runs() {
        let state = node("ipvs-with-keepalived-1.20");
        let Verdict::Found(found) = verdict_of(&BESIDE, &state) else { panic!("not found") };
        assert_eq!(found.evidence, [EVIDENCE]);
        assert!(found.remedy[0].starts_with("ipvs: {excludeCIDRs: [10.9.0.100/32]}"), "{found:?}");
        let excluded = given(&state).facts(|facts| {
            let settings = facts.settings.as_mut().expect("settings");
            settings.ipvs.exclude_cidrs.push("10.9.0.0/24".parse().expect("a network"));
            evaluate(facts)
        });
        assert_eq!(excluded, Verdict::Ok("1 of others, all of them in excludeCIDRs".into()));
        assert!(matches!(verdict_of(&BESIDE, &node("half-migrated-ipvs-1.20")), Verdict::Ok(_)));
    }

    #[test]
    fn unknown_where_ipvs_runs_and_no_virtual_server_is_known() {
        let mut state = node("ipvs-with-keepalived-1.20");
        let mode = given(&state).facts(|facts| facts.running.mode);
        state.ipvs.servers.clear();
        let verdict = given(&state).facts(|facts| {
            facts.running.mode = mode;
            evaluate(facts)
        });
        assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
    }

    #[test]
    fn a_switch_is_stopped() {
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(given(&state).to(Mode::Ipvs).verdict(&BEFORE), Verdict::Ok(_)));
        let foreign = node("ipvs-with-keepalived-1.20").ipvs;
        let foreign =
            foreign.servers.into_iter().filter(|s| s.service.to_string().contains(":8443"));
        state.ipvs.servers.extend(foreign);
        let Verdict::Found(found) = given(&state).to(Mode::Ipvs).verdict(&BEFORE) else {
            panic!("not found")
        };
        assert!(found.evidence[0].starts_with("10.9.0.100:8443/tcp wlc"), "{found:?}");
    }

    #[test]
    fn the_flush_of_nftables_mode_is_stopped() {
        let at = |name: &str, version: &str| {
            let state = Node::captured(name).kube_proxy_version(version).state();
            given(&state).to(Mode::Nftables).verdict(&FLUSHED)
        };
        let Verdict::Found(found) = at("ipvs-with-keepalived-1.20", "v1.34.2") else {
            panic!("not found")
        };
        assert_eq!(found.evidence, [EVIDENCE]);
        assert!(found.remedy[1].starts_with("systemctl restart keepalived"), "{found:?}");
        assert!(matches!(at("ipvs-with-keepalived-1.20", "v1.28.9"), Verdict::Ok(_)));
        assert!(matches!(at("half-migrated-ipvs-1.20", "v1.34.2"), Verdict::Ok(_)));
        assert!(matches!(at("iptables-1.37", "v1.37.2"), Verdict::Ok(_)));
    }

    #[test]
    fn the_strict_reading_without_a_configuration() {
        let state = Node::captured("ipvs-with-keepalived-1.20")
            .remove("files/var/lib/kube-proxy/config.conf")
            .state();
        let Verdict::Found(found) = verdict_of(&BESIDE, &state) else { panic!("not found") };
        assert!(found.evidence[1].contains("is not known"), "{found:?}");
    }
}
