//! kube-proxy's tables in both address families. One that somebody has deleted comes back when a
//! Service of its family changes, or at a full sync, an hour apart.

use super::is_here;
use crate::checks::kube_proxy::node_name;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::kube_proxy::running::served_by_others;
use crate::state::Family;

pub(super) const CHECK: Check = Check {
    id: "nftables.tables",
    title: "kube-proxy's table of each address family that has Services",
    severity: Severity::Warn,
    when: "nftables mode runs, or is configured where none runs",
    applies: is_here,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/blob/v1.33.0/pkg/proxy/nftables/README.md",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(mode) = mode::all().find(|mode| mode.has_own_tables()) else {
        return Verdict::Unknown("no mode has tables of its own".into());
    };
    let missing = |family: &Family| mode.missing_objects(facts.now, *family).is_some();
    let (missing, there): (Vec<Family>, Vec<Family>) = Family::ALL.into_iter().partition(missing);
    if there.is_empty() {
        // The check kube-proxy.mode judges a kube-proxy that serves nothing at all.
        return Verdict::Unknown("neither family has a table of kube-proxy's".into());
    }
    if missing.is_empty() {
        return Verdict::Ok("both families have their table".into());
    }
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown(format!(
            "{} has none, and which families the cluster has is not known",
            names(&missing)
        ));
    };
    // The check kube-proxy.mode names families that another mode still serves.
    let others = served_by_others(facts.now, mode.mode());
    let has_pods = |family: &&Family| {
        let mut pods = settings.cluster_cidrs.iter();
        pods.any(|net| net.addr().is_ipv6() == (**family == Family::Ipv6))
    };
    let lost: Vec<Family> =
        missing.iter().filter(|f| !others.contains_key(f)).filter(has_pods).copied().collect();
    if lost.is_empty() {
        return Verdict::Ok(format!("{} alone has one, and alone has pods", names(&there)));
    }
    let evidence = lost.iter().filter_map(|family| mode.missing_objects(facts.now, *family));
    let networks: Vec<String> = settings.cluster_cidrs.iter().map(ToString::to_string).collect();
    Verdict::Found(Found {
        evidence: evidence
            .chain([format!("the cluster has pods of {}: {}", names(&lost), networks.join(", "))])
            .collect(),
        effect:
            "no service of that family is reached from this node, until one of them changes or \
                 kube-proxy writes all of its rules again, an hour apart"
                .into(),
        remedy: vec![
            facts.proxy.delivery(facts.now).restart(node_name(facts)),
            "nft monitor   # who deletes it, if it goes again".into(),
        ],
        fix: Vec::new(),
    })
}

fn names(families: &[Family]) -> String {
    families.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::NodeState;

    const CONFIG: &str = "files/var/lib/kube-proxy/config.conf";
    const POD_NETWORK: &str = "clusterCIDR: 192.168.64.0/20";

    fn without(family: &str, node: &Node) -> NodeState {
        let mut state = node.state();
        state.nft.tables.retain(|table| table.family != family);
        state
    }

    #[test]
    fn a_family_that_has_pods_and_no_table_is_found() {
        let node = Node::captured("nftables-1.37");
        let dual =
            node.clone().replace(CONFIG, POD_NETWORK, &format!("{POD_NETWORK},fd00:60::/44"));
        let Verdict::Found(found) = given(&without("ip6", &dual)).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(found.evidence[0], "ipv6: there is no table ip6 kube-proxy");
        let Verdict::Found(found) = given(&without("ip", &node)).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(found.evidence[0], "ipv4: there is no table ip kube-proxy");
        let alone = given(&without("ip6", &node)).verdict(&CHECK);
        assert!(matches!(alone, Verdict::Ok(_)), "{alone:?}");
        let unset = without("ip6", &node.remove(CONFIG));
        let verdict = given(&unset).verdict(&CHECK);
        assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
    }

    #[test]
    fn healthy_nodes_have_both() {
        for name in ["nftables-1.34", "nftables-1.37"] {
            assert!(matches!(given(&node(name)).verdict(&CHECK), Verdict::Ok(_)), "{name}");
        }
        given(&node("iptables-1.37")).facts(|facts| assert!(!(CHECK.applies)(facts)));
    }
}
