//! A node, or a nodelocaldns, whose only resolver is the cluster's DNS, and a node whose resolver is a
//! nodelocaldns that is gone.

use std::net::IpAddr;

use super::corefile::directives;
use super::gone;
use super::node_local::untracked;
use super::{cluster_addresses, dns_addresses, node_local_addresses};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

const FILE: &str = "/etc/resolv.conf";
const EFFECT: &str = "while the service cannot be reached, as between two modes, the node itself, \
                      or what asks its nodelocaldns, resolves nothing: no image, no API server by \
                      name";

pub(super) const CHECK: Check = Check {
    id: "dns.resolver",
    title: "a node that resolves names by one address of the cluster's DNS",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://kubernetes.io/docs/tasks/administer-cluster/dns-debugging-resolution/",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let services = dns_addresses(facts);
    let alone = directives(facts).into_iter().find_map(|directive| {
        let address = directive.only_upstream().filter(|a| services.contains(a))?;
        Some((
            directive.shown,
            format!("{address} is the cluster's: nodelocaldns asks nobody else"),
        ))
    });
    let verdict = host(facts);
    let verdict = with_untracked(facts, verdict);
    let Some((line, why)) = alone else { return verdict };
    let mut found = match verdict {
        Verdict::Found(found) => found,
        _ => Found { effect: EFFECT.into(), ..Found::default() },
    };
    found.evidence.extend([line, why]);
    found.remedy.push(
        "forward . /etc/resolv.conf   # for zone . in nodelocaldns' Corefile, where that names a \
         resolver outside of the cluster"
            .into(),
    );
    Verdict::Found(found)
}

/// The verdict, with the rules of a nodelocaldns that is gone which keep queries to the cluster's DNS
/// from its Service.
fn with_untracked(facts: &Facts<'_>, verdict: Verdict) -> Verdict {
    if facts.now.links.is_empty() || !node_local_addresses(facts).is_empty() {
        return verdict;
    }
    let rules = untracked(facts);
    if rules.is_empty() {
        return verdict;
    }
    let mut found = match verdict {
        Verdict::Found(found) => found,
        _ => Found::default(),
    };
    found.evidence.extend(rules);
    found.evidence.push("no link nodelocaldns is there: untracked queries meet no Service".into());
    if found.effect.is_empty() {
        found.effect = "what asks the cluster's DNS from this node gets no answer".into();
    }
    found.remedy.push("proxyshift plan -v   # which rules of nodelocaldns are left".into());
    found.remedy.dedup();
    Verdict::Found(found)
}

/// The verdict on the node's own `resolv.conf`.
fn host(facts: &Facts<'_>) -> Verdict {
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
    let dead: Vec<_> =
        servers.iter().filter(|(.., a)| a.is_some_and(|a| gone::is_gone(facts, a))).collect();
    if !dead.is_empty() {
        let lines = dead.iter().map(|(number, line, _)| format!("{FILE}:{number}: {line}"));
        let mut evidence: Vec<String> = lines.collect();
        for address in dead.iter().filter_map(|(.., address)| *address) {
            evidence.push(format!("no link of this node has {address}: nothing answers there"));
            evidence.extend(gone::rules(facts, address));
        }
        let effect = if dead.len() == servers.len() {
            "the node and its pods in the host's network resolve nothing: no image, no API server \
             by name"
        } else {
            "names that are asked of that server wait until it is given up"
        };
        return Verdict::Found(Found {
            evidence,
            effect: effect.into(),
            remedy: vec![
                format!(
                    "nameserver ADDRESS   # in {FILE}, in its place: a resolver that answers, or \
                     bring nodelocaldns back"
                ),
                "proxyshift plan -v   # which rules of nodelocaldns are left".into(),
            ],
            fix: Vec::new(),
        });
    }
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
    let whose = if cluster.contains(address) {
        "the cluster's DNS"
    } else if node_local_addresses(facts).contains(address) {
        "nodelocaldns"
    } else if cluster.is_empty() {
        return Verdict::Unknown("the address of the cluster's DNS is not known".into());
    } else {
        return Verdict::Ok(format!("{address} is not the cluster's"));
    };
    Verdict::Found(Found {
        evidence: vec![format!("{FILE}:{number}: {line}"), format!("{address} is {whose}")],
        effect: EFFECT.into(),
        remedy: vec![format!(
            "nameserver ADDRESS   # in {FILE}, as the second: a resolver outside of the cluster"
        )],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::corefile::tests::{USUAL, configured};
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    #[test]
    fn nodelocaldns_with_the_cluster_as_its_only_upstream_is_found() {
        let alone = "cluster.local {\n forward . 10.96.0.10\n}\n. {\n forward . 10.96.0.10\n}\n";
        let beside = "nameserver 9.9.9.9\n";
        let evaluate =
            |text: &str| verdict_of(&CHECK, &configured(text).put_file(FILE, beside).state());
        let Verdict::Found(found) = evaluate(alone) else { panic!("not found") };
        assert_eq!(found.evidence[0], "/etc/Corefile:5: forward . 10.96.0.10");
        for text in [USUAL, &alone.replace("\n. {\n forward .", "\n. {\n forward . 9.9.9.9")] {
            assert!(matches!(evaluate(text), Verdict::Ok(_)), "{text}");
        }
        let state = configured(alone).put_file(FILE, "nameserver 10.96.0.10\n").state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert_eq!((found.evidence.len(), found.remedy.len()), (4, 2), "{found:?}");
    }

    fn with(text: &str) -> Verdict {
        verdict_of(&CHECK, &Node::captured("docker-iptables-1.30").put_file(FILE, text).state())
    }

    #[test]
    fn found_on_each_captured_node_that_has_the_file() {
        for name in ["canal-stale-flannel-1.20", "half-migrated-ipvs-1.20"] {
            let Verdict::Found(found) = verdict_of(&CHECK, &node(name)) else { panic!("{name}") };
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
        let verdict = verdict_of(&CHECK, &node("nftables-leftovers-1.30"));
        assert!(matches!(verdict, Verdict::Unknown(_)));
        for text in ["nameserver 127.0.0.53\n", "search x\n", "nameserver nowhere\n"] {
            assert!(matches!(with(text), Verdict::Unknown(_)), "{text}");
        }
    }
}
