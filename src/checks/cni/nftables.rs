//! Pod networks that must follow kube-proxy to nftables mode, or that serve in its place.

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::owners::liveness::{self, Liveness};
use crate::state::tools::Version;

pub(super) const CHECK: Check = Check {
    id: "cni.nftables",
    title: "whether the pod network can live with nftables mode",
    severity: Severity::Warn,
    when: "nftables mode is the target, and Calico, Cilium or kube-router may run",
    applies: |facts| {
        facts.to.is_some_and(|to| mode::of(to).has_own_tables())
            && NETWORKS.iter().any(|network| !liveness_of(facts, network).is_gone())
    },
    evaluate,
    reference: "https://github.com/projectcalico/calico/issues/8025",
};

/// The pod networks that are judged, by their names in the catalogue.
const NETWORKS: [&str; 3] = ["calico", "cilium", "kube-router"];

/// The first Calico with a data plane of nftables. An earlier felix panics or fails beside kube-proxy
/// in nftables mode.
const CALICO_READY: Version = Version { major: 3, minor: 29, patch: 0 };

fn liveness_of(facts: &Facts<'_>, network: &str) -> Liveness {
    match facts.catalogue.component(network) {
        Some(component) => liveness::liveness(component, facts.now),
        None => Liveness::Gone(format!("{network} is not in the catalogue")),
    }
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let mut fine = Vec::new();
    let mut unknown = Vec::new();
    for network in NETWORKS {
        let evidence = match liveness_of(facts, network) {
            Liveness::Gone(_) => continue,
            Liveness::Alive(evidence) => evidence,
            Liveness::SeemsGone(missing) | Liveness::Unknown(missing) => {
                unknown.push(format!("whether {network} runs: {missing}"));
                continue;
            }
        };
        let verdict = match network {
            "calico" => calico(facts, evidence),
            "kube-router" => kube_router(facts, evidence),
            _ => cilium(facts, evidence),
        };
        match verdict {
            Verdict::Found(found) => return Verdict::Found(found),
            Verdict::Unknown(why) => unknown.push(why),
            Verdict::Ok(shown) => fine.push(shown),
        }
    }
    match &unknown[..] {
        [] => Verdict::Ok(fine.join("; ")),
        unknown => Verdict::Unknown(unknown.join("; ")),
    }
}

/// Calico's felix writes by iptables or by nftables. From 3.29 on it can do the latter; a later one can
/// also follow the kube-proxy of its node (`Auto`).
fn calico(facts: &Facts<'_>, evidence: String) -> Verdict {
    let owns = |(family, name): (&str, &str)| {
        let owner = facts.ownership.table(family, name);
        owner.is_some_and(|owner| owner.name == "calico")
    };
    let tables = facts.now.native_tables();
    if let Some(table) = tables.iter().find(|t| owns((&t.family, &t.name))) {
        return Verdict::Ok(format!("felix writes table {} {}", table.family, table.name));
    }
    let names = ["calico-node", "calico-felix", "felix"];
    let mut processes = facts.now.processes.iter().flatten();
    let felix = processes.find(|p| names.contains(&p.name.as_str()));
    let version = felix.and_then(|process| Version::find(process.version.as_deref()?));
    match version {
        Some(version) if version < CALICO_READY => Verdict::Found(Found {
            evidence: vec![format!("{evidence}, of version {version}: older than {CALICO_READY}")],
            effect:
                "felix before 3.29 writes by iptables alone, and panics or drops the traffic of \
                     services beside kube-proxy in nftables mode"
                    .into(),
            remedy: vec![
                format!("upgrade Calico to {CALICO_READY} or later before the move"),
                SWITCH.into(),
            ],
            fix: Vec::new(),
        }),
        _ => Verdict::Unknown(format!(
            "{evidence}; whether felix is of 3.29 or later, with NFTablesMode (FELIX_NFTABLESMODE) \
             Auto or Enabled, this node does not show; it has no table of nftables now"
        )),
    }
}

/// The command that lets felix write by nftables.
const SWITCH: &str = "kubectl patch felixconfiguration default --type=merge \
                      -p '{\"spec\": {\"nftablesMode\": \"Enabled\"}}'   # Auto, where felix has it";

fn kube_router(facts: &Facts<'_>, evidence: String) -> Verdict {
    const FLAG: &str = "--run-service-proxy";
    let mut processes = facts.now.processes.iter().flatten();
    let Some(process) = processes.find(|p| p.name == "kube-router") else {
        return Verdict::Unknown(format!("{evidence}; its arguments are not known"));
    };
    if process.hides_arguments() {
        return Verdict::Unknown(format!("{evidence}; its arguments are not known"));
    }
    let flags: Vec<&String> = process.args.iter().filter(|arg| arg.starts_with(FLAG)).collect();
    // Its own proxy is on unless a flag says otherwise.
    if flags.iter().any(|flag| flag.ends_with("=false")) {
        return Verdict::Ok(format!("{evidence}, with {FLAG}=false"));
    }
    Verdict::Found(Found {
        evidence: vec![format!("{evidence}, without {FLAG}=false")],
        effect: "kube-router serves services itself, by ipvs, whose virtual servers kube-proxy \
                 flushes as it starts in nftables mode: the two undo each other's work"
            .into(),
        remedy: vec![format!("start kube-router with {FLAG}=false, or run no kube-proxy")],
        fix: Vec::new(),
    })
}

fn cilium(facts: &Facts<'_>, evidence: String) -> Verdict {
    if facts.proxy.runs() {
        return Verdict::Unknown(format!(
            "{evidence}; with kubeProxyReplacement it serves in place of kube-proxy, and whether it \
             is set this node does not show"
        ));
    }
    Verdict::Ok(format!("{evidence}, and no kube-proxy runs that could move"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::kube_proxy::Mode;

    fn before(node: &Node) -> Verdict {
        given(&node.state()).to(Mode::Nftables).verdict(&CHECK)
    }

    fn calico(version: &str) -> Node {
        let node = Node::captured("canal-stale-flannel-1.20");
        let from = "\"name\": \"calico-node\",";
        node.replace("processes.json", from, &format!("{from} \"version\": \"{version}\","))
    }

    #[test]
    fn calico_is_known_by_its_version_or_its_tables() {
        for version in ["v3.28.2", "v3.20.0"] {
            assert!(matches!(before(&calico(version)), Verdict::Found(_)), "{version}");
        }
        for node in [calico("v3.29.1"), Node::captured("canal-stale-flannel-1.20")] {
            assert!(matches!(before(&node), Verdict::Unknown(_)));
        }
        let table = r#"{"nftables": [{"table": {"family": "ip", "name": "calico"}}]}"#;
        let verdict = before(&calico("v3.30.0").put("nft.json", table));
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
    }

    #[test]
    fn kube_router_and_cilium_are_known_by_what_they_serve() {
        let with = |name: &str, args: &[&str]| {
            before(&Node::captured("iptables-1.37").process(7, name, args))
        };
        let router = |flag: &str| with("kube-router", &["kube-router", "--run-router=true", flag]);
        assert!(matches!(router("--run-service-proxy=true"), Verdict::Found(_)));
        assert!(matches!(router("--run-firewall=true"), Verdict::Found(_)));
        assert!(matches!(router("--run-service-proxy=false"), Verdict::Ok(_)));
        assert!(matches!(with("cilium-agent", &["cilium-agent"]), Verdict::Unknown(_)));
    }

    #[test]
    fn it_does_not_apply_without_one_of_them() {
        given(&node("iptables-1.37")).to(Mode::Nftables).facts(|facts| {
            assert!(!(CHECK.applies)(facts));
        });
        given(&node("canal-stale-flannel-1.20")).to(Mode::Ipvs).facts(|facts| {
            assert!(!(CHECK.applies)(facts));
        });
    }
}
