//! Rules that another version of iptables garbled, so that they now have another meaning.

use std::net::Ipv4Addr;

use super::lost_match::lost_matches;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::rule::Words;

pub(super) const CHECK: Check = Check {
    id: "backends.garbled",
    title: "rules that the save of another iptables version garbled",
    severity: Severity::Block,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/114537",
};

/// How many garbled rules the evidence shows at most.
const SHOWN: usize = 10;

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if let Some(error) = facts.unread {
        return Verdict::Found(Found {
            evidence: vec![format!("{}: {}", error.object, error.cause)],
            effect: "no rule can be read, judged or put back: nothing is changed on such a node"
                .into(),
            remedy: error.hint.iter().cloned().collect(),
            fix: Vec::new(),
        });
    }
    if facts.now.rulesets.is_empty() {
        return match &facts.now.tools {
            Some(_) => Verdict::Ok("there are no rules".into()),
            None => Verdict::Unknown("the rules are not in this state".into()),
        };
    }
    let links: Vec<&str> = facts.now.links.iter().map(|l| l.name.as_str()).collect();
    // One that the kernel has like that is found by the check backends.lost-match.
    let lost = lost_matches(facts).into_iter().filter(|lost| lost.in_kernel.is_none());
    let mut evidence: Vec<String> = lost
        .map(|lost| {
            let (file, effect) = (lost.id.file(), lost.rule.effect);
            format!("{file}:{}: it lost its match and {effect}: {}", lost.line, lost.text)
        })
        .collect();
    let mut count = evidence.len();
    for (id, ruleset) in &facts.now.rulesets {
        for (_, _, rule) in ruleset.tables.iter().flat_map(|t| t.rules()) {
            let suspect = rule.target.as_deref() == Some("DNAT");
            let text = ruleset.rule_text(rule);
            if !suspect && !text.contains("[unsupported revision]") {
                continue;
            }
            let Some(fault) = fault(text, &links) else { continue };
            count += 1;
            if evidence.len() < SHOWN {
                evidence.push(format!("{}:{}: {fault}: {text}", id.file(), rule.line));
            }
        }
    }
    if count == 0 {
        return Verdict::Ok("every DNAT has one address that makes sense".into());
    }
    if count > SHOWN {
        evidence.push(format!("and {} more", count - SHOWN));
    }
    Verdict::Found(Found {
        evidence,
        effect:
            "as far as this shows, the kernel still does what was meant, but the save does not \
                 say it: restored, services would lead nowhere or everything would be dropped"
                .into(),
        remedy: vec![
            "save with the iptables that wrote the rules, as in kube-proxy's image:".into(),
            "kubectl -n kube-system exec ds/kube-proxy -- iptables-save --version".into(),
            "then install that version, or a later one, on the host".into(),
        ],
        fix: Vec::new(),
    })
}

/// What is wrong with a rule's text; `None` if nothing is.
fn fault(text: &str, links: &[&str]) -> Option<String> {
    if text.contains("[unsupported revision]") {
        return Some("written by a newer iptables".into());
    }
    let words = Words::of_rule(text);
    let terms = words.terms();
    let target = words.target().map(|(target, _)| target);
    if target.as_deref() != Some("DNAT") {
        return None;
    }
    let to = |option: &str| option == "--to-destination" || option == "--to";
    let addresses: Vec<&str> =
        terms.iter().filter(|t| to(t.option)).map(|t| t.values.first().map_or("", |v| v)).collect();
    match addresses[..] {
        [] => Some("a DNAT without an address".into()),
        [""] => Some("a DNAT to an empty address".into()),
        [address] if address.starts_with(":0") => Some("a DNAT to port 0".into()),
        [address] => spells_a_link(address, links).map(|n| format!("its address spells `{n}`")),
        _ => Some(format!("a DNAT with {} addresses", addresses.len())),
    }
}

/// The four letters that the bytes of an address spell, if the name of a link begins with these
/// letters, or if `cilium_host` does. Such an address is a link's name that iptables-save read as
/// an address.
fn spells_a_link(address: &str, links: &[&str]) -> Option<String> {
    let ip: Ipv4Addr = address.split([':', '-']).next()?.parse().ok()?;
    let word = std::str::from_utf8(&ip.octets()).ok()?.to_owned();
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric());
    (plain && links.iter().chain(&["cilium_host"]).any(|l| l.starts_with(&word))).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, verdict_of};
    use crate::state::NodeState;

    #[test]
    fn each_form_is_reported() {
        let fault = |text: &str| fault(text, &["lo", "ens9f0"]).unwrap_or_default();
        for (text, expected) in [
            ("-A K -p tcp -j DNAT --to-destination 10.0.0.1:80", ""),
            ("-A K -p tcp -j DNAT --to-destination 10.0.0.1:80 --persistent", ""),
            ("-A K -j DNAT --to-destination 10.1.1.1 --to-destination 10.2.2.2", "2 addresses"),
            ("-A K -p tcp -j DNAT --to-destination", "an empty address"),
            ("-A K -p tcp -j DNAT", "without an address"),
            ("-A K -p tcp -j DNAT --to-destination :0 --persistent", "port 0"),
            ("-A K -p tcp -j DNAT --to-destination 101.110.115.57:80", "spells `ens9`"),
            ("-A K -p tcp -j DNAT --to-destination 99.105.108.105", "spells `cili`"),
            // The bytes of this address spell letters too, but the address is one of a real
            // network, and no link's name begins with those letters.
            ("-A K -p tcp -j DNAT --to-destination 100.100.100.100:80", ""),
            ("-A K -m comment [unsupported revision] -j ACCEPT", "a newer iptables"),
            ("-A K -j DROP", ""),
        ] {
            let found = fault(text);
            assert!(if expected.is_empty() { found.is_empty() } else { found.contains(expected) });
        }
    }

    #[test]
    fn found_with_file_and_line_ok_and_unknown() {
        let node = Node::captured("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &node.state()), Verdict::Ok(_)));
        let text =
            "*nat\n:K - [0:0]\n-A K -p tcp -j DNAT --to-destination :0 --persistent\nCOMMIT\n";
        let state = node.put("iptables-legacy.save", text).state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].starts_with("iptables-legacy.save:3: a DNAT to port 0: -A K"));
        assert!(matches!(verdict_of(&CHECK, &NodeState::default()), Verdict::Unknown(_)));
    }
}
