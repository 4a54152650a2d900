//! A node that resolves names through the cluster alone.

use std::net::IpAddr;

use super::{cluster_addresses, node_local_addresses};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

const FILE: &str = "/etc/resolv.conf";

pub(crate) const CHECK: Check = Check {
    id: "dns.resolver",
    title: "a node that resolves names by one address of the cluster's DNS",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    judge,
    reference: "https://kubernetes.io/docs/tasks/administer-cluster/dns-debugging-resolution/",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(text) = facts.now.file(FILE) else {
        return Verdict::Unknown(format!("{FILE} is not in this state"));
    };
    let servers: Vec<(usize, &str, Option<IpAddr>)> = text
        .lines()
        .enumerate()
        .filter_map(|(at, line)| {
            let mut words = line.split_whitespace();
            let address = words.next().filter(|w| *w == "nameserver").and(words.next())?;
            Some((at + 1, line, address.parse().ok()))
        })
        .collect();
    let [(number, line, Some(address))] = &servers[..] else {
        return match &servers[..] {
            [] => Verdict::Unknown(format!("{FILE} names no server")),
            [_] => Verdict::Unknown(format!("the server in {FILE} cannot be read")),
            more => Verdict::Ok(format!("{} servers in {FILE}", more.len())),
        };
    };
    if address.is_loopback() {
        return Verdict::Unknown(format!(
            "{FILE} names {address}; where that resolver asks is not in this state"
        ));
    }
    let cluster = cluster_addresses(facts);
    let whose = match () {
        () if cluster.contains(address) => "the cluster's DNS",
        () if node_local_addresses(facts).contains(address) => "nodelocaldns",
        () if cluster.is_empty() => {
            return Verdict::Unknown("the address of the cluster's DNS is not known".into());
        }
        () => return Verdict::Ok(format!("{address} is not the cluster's")),
    };
    Verdict::Found(Found {
        evidence: vec![format!("{FILE}:{number}: {line}"), format!("{address} is {whose}")],
        effect:
            "while the service cannot be reached, as between two modes, the node itself resolves \
                 nothing: no image, no API server by name"
                .into(),
        remedy: vec![format!(
            "nameserver ADDRESS   # in {FILE}, as the second: a resolver outside of the cluster"
        )],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{judged, node};

    fn with(text: &str) -> Verdict {
        let mut state = node("docker-iptables-1.30");
        state.files.insert(format!("files{FILE}"), text.into());
        judged(&CHECK, &state)
    }

    #[test]
    fn found_on_each_captured_node_that_has_the_file() {
        for name in ["canal-stale-flannel-1.20", "half-migrated-ipvs-1.20"] {
            let Verdict::Found(found) = judged(&CHECK, &node(name)) else { panic!("{name}") };
            assert_eq!(found.evidence[0], "/etc/resolv.conf:1: nameserver 10.96.0.10", "{name}");
        }
    }

    #[test]
    fn ok_with_a_fallback_or_another_server() {
        for text in ["nameserver 10.96.0.10\nnameserver 9.9.9.9\n", "nameserver 9.9.9.9\n"] {
            assert!(matches!(with(text), Verdict::Ok(_)), "{text}");
        }
    }

    #[test]
    fn unknown_without_the_file_or_behind_a_local_resolver() {
        let verdict = judged(&CHECK, &node("nftables-leftovers-1.30"));
        assert!(matches!(verdict, Verdict::Unknown(_)));
        for text in ["nameserver 127.0.0.53\n", "search x\n", "nameserver nowhere\n"] {
            assert!(matches!(with(text), Verdict::Unknown(_)), "{text}");
        }
    }
}
