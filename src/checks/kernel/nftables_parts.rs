//! The parts of nf_tables that the rules of nftables mode use. Distributions ship them as modules of
//! their own, some of them in a package that is not installed, or leave one out of their kernel.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Presence, install, presence};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::Backend;
use crate::state::kube_proxy::Mode;
use crate::state::nft::NftTable;

pub(super) const CHECK: Check = Check {
    id: "kernel.nftables-parts",
    title: "the parts of nf_tables that nftables mode uses (nft_fib, nft_ct and others)",
    severity: Severity::Block,
    when: "nftables mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Nftables),
    evaluate,
    reference: "https://github.com/siderolabs/pkgs/issues/951",
};

/// The kernel modules, each with the expressions that kube-proxy 1.29 to 1.37 writes and that need
/// it.
const PARTS: [(&str, &str); 12] = [
    ("nf_tables", "every table"),
    ("nft_chain_nat", "chains of type nat"),
    ("nft_ct", "`ct state new`"),
    ("nft_fib", "`fib daddr type local`"),
    ("nft_fib_ipv4", "`fib daddr type local`"),
    ("nft_fib_ipv6", "`fib daddr type local`"),
    ("nft_masq", "`masquerade fully-random`"),
    ("nft_nat", "`dnat to`"),
    ("nft_numgen", "`numgen random`"),
    ("nft_reject", "`reject`"),
    ("nft_reject_ipv4", "`reject`"),
    ("nft_reject_ipv6", "`reject`"),
];

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let mut used = used(&facts.now.native_tables());
    used.extend(used_by_iptables(facts));
    let has_ipv6 = facts.now.links.iter().flat_map(|l| &l.addresses).any(|a| a.addr().is_ipv6());
    let (mut missing, mut names, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for (name, expression) in PARTS {
        if used.contains(name) {
            continue;
        }
        match presence(facts, name) {
            Presence::Present(_) | Presence::Loadable(_) => {}
            // Where the kernel has no IPv6, kube-proxy serves IPv4 alone.
            Presence::Missing(_) if name.ends_with("_ipv6") && !has_ipv6 => {}
            Presence::Missing(evidence) => {
                missing.push(format!("{evidence}; {expression} needs it"));
                names.push(name);
            }
            Presence::Unknown(_) => unknown.push(name),
        }
    }
    if !missing.is_empty() {
        return Verdict::Found(Found {
            evidence: missing,
            effect: "every sync of kube-proxy fails with \"No such file or directory\", after it \
                     has removed the rules of the mode before: no service is translated"
                .into(),
            remedy: vec![install(facts, &names.join(", "))],
            fix: Vec::new(),
        });
    }
    match &unknown[..] {
        [] => Verdict::Ok(format!("the kernel has all {} of them", PARTS.len())),
        names => Verdict::Unknown(format!(
            "not seen in use, and a live node alone can say whether its kernel has them: {}",
            names.join(", ")
        )),
    }
}

/// The parts that rules and chains of native tables show to be in the kernel.
fn used(tables: &[&NftTable]) -> BTreeSet<&'static str> {
    let mut used = BTreeSet::new();
    for table in tables {
        used.insert("nf_tables");
        let by_family = |ipv4, ipv6| match table.family.as_str() {
            "ip" => Some(ipv4),
            "ip6" => Some(ipv6),
            _ => None,
        };
        if table.of_kind("chain").any(|c| c.get("type").is_some_and(|kind| kind == "nat")) {
            used.insert("nft_chain_nat");
        }
        let mut keys = BTreeSet::new();
        table.of_kind("rule").filter_map(|r| r.get("expr")).for_each(|e| collect(e, &mut keys));
        for key in keys {
            match key {
                "ct" => used.extend(["nft_ct"]),
                "fib" => {
                    used.extend(["nft_fib"]);
                    used.extend(by_family("nft_fib_ipv4", "nft_fib_ipv6"));
                }
                "masquerade" => used.extend(["nft_masq"]),
                "dnat" => used.extend(["nft_nat"]),
                "numgen" => used.extend(["nft_numgen"]),
                "reject" => {
                    used.extend(["nft_reject"]);
                    used.extend(by_family("nft_reject_ipv4", "nft_reject_ipv6"));
                }
                _ => {}
            }
        }
    }
    used
}

/// The parts that iptables-nft uses: its matches and targets are those of xtables, its chains are not.
fn used_by_iptables(facts: &Facts<'_>) -> Vec<&'static str> {
    let rulesets = facts.now.rulesets.iter().filter(|(id, _)| id.backend == Backend::Nft);
    let tables: Vec<_> = rulesets.flat_map(|(_, ruleset)| &ruleset.tables).collect();
    let has_nat = tables.iter().any(|table| &*table.name == "nat");
    let parts = [("nf_tables", !tables.is_empty()), ("nft_chain_nat", has_nat)];
    parts.into_iter().filter(|(_, used)| *used).map(|(name, _)| name).collect()
}

/// Collects the names of the fields of a value, at any depth.
fn collect<'a>(value: &'a Value, keys: &mut BTreeSet<&'a str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, keys)),
        Value::Object(fields) => {
            for (key, value) in fields {
                keys.insert(key);
                collect(value, keys);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::modules;
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};

    fn all_but(missing: &[&str]) -> Vec<&'static str> {
        PARTS.iter().map(|(name, _)| *name).filter(|name| !missing.contains(name)).collect()
    }

    fn used_by_iptables_of(state: &crate::state::NodeState) -> Vec<&'static str> {
        given(state).facts(|facts| used_by_iptables(facts))
    }

    #[test]
    fn each_part_that_is_missing_is_found() {
        let mut state = node("docker-legacy-iptables-1.20-no-conntrack");
        let shown = used_by_iptables_of(&state);
        for (name, expression) in PARTS.into_iter().filter(|(name, _)| !shown.contains(name)) {
            let live = modules(&all_but(&[name]), &[]);
            let verdict = given(&state).to(Mode::Nftables).live(&live).verdict(&CHECK);
            let Verdict::Found(found) = verdict else { panic!("{name}: {verdict:?}") };
            assert!(found.evidence[0].starts_with(&format!("{name}: not in")), "{found:?}");
            assert!(found.evidence[0].contains(expression), "{found:?}");
            assert!(found.remedy[0].contains(name), "{found:?}");
        }
        let live = modules(&all_but(&["nft_fib_ipv6", "nft_reject_ipv6"]), &[]);
        state.links.iter_mut().for_each(|l| l.addresses.retain(|a| a.addr().is_ipv4()));
        let verdict = given(&state).to(Mode::Nftables).live(&live).verdict(&CHECK);
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
    }

    #[test]
    fn ok_with_all_of_them_and_unknown_in_a_snapshot() {
        let state = node("iptables-1.37");
        let live = modules(&all_but(&[]), &[]);
        let verdict = given(&state).to(Mode::Nftables).live(&live).verdict(&CHECK);
        assert_eq!(verdict, Verdict::Ok("the kernel has all 12 of them".into()));
        let Verdict::Unknown(missing) = given(&state).to(Mode::Nftables).verdict(&CHECK) else {
            panic!("known")
        };
        assert!(missing.contains("kernel has them: nft_ct, nft_fib, nft_fib_ipv4"), "{missing}");
        assert_eq!(used_by_iptables_of(&state), ["nf_tables", "nft_chain_nat"]);
    }

    #[test]
    fn rules_in_the_kernel_show_its_parts() {
        assert!(matches!(verdict_of(&CHECK, &node("nftables-1.37")), Verdict::Ok(_)));
        // Its NodePorts answer on named addresses, and no Service of IPv6 has the policy Local.
        let Verdict::Unknown(missing) = verdict_of(&CHECK, &node("nftables-1.34")) else {
            panic!("known")
        };
        assert!(missing.ends_with(": nft_fib_ipv6"), "{missing}");
    }
}
