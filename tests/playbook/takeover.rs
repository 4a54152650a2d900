//! What a migration will remove, predicted on the captured nodes.

use std::borrow::Cow;
use std::collections::BTreeSet;

use proxyshift::kube_proxy::takeover::predict_takeover;
use proxyshift::owners::catalogue::Catalogue;
use proxyshift::owners::matcher::Ownership;
use proxyshift::plan::Plan;
use proxyshift::plan::leftovers::{leftovers, leftovers_after};
use proxyshift::state::NodeState;
use proxyshift::state::kube_proxy::Mode;
use proxyshift::state::object::ObjectKind;

use crate::nodes;

fn predict(state: &NodeState, to: Mode) -> (NodeState, Plan) {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let after = predict_takeover(&catalogue, state, to).expect("a state");
    let plan = leftovers_after(&catalogue, &after, to);
    (after, plan)
}

/// The chains of kube-proxy that a plan removes, as `nat chain KUBE-NODEPORTS`, without hashes.
fn chains(plan: &Plan) -> BTreeSet<String> {
    let removed = plan.removals().filter(|o| o.owner == "kube-proxy");
    let chains = removed.filter(|o| o.kind() == ObjectKind::Chain);
    let name = |name: &str| match name.rsplit_once('-') {
        Some((family, hash)) if hash.len() == 16 => family.to_owned(),
        _ => name.to_owned(),
    };
    chains
        .map(|o| format!("{} {}", o.id.table().map_or("", |t| &t.name), name(&o.id.name())))
        .collect()
}

/// Two captures of the same cluster, before a migration and in the middle of it: the prediction on
/// the first is what the second has.
#[test]
fn what_will_be_left_is_what_is_left_on_a_node_that_went_that_way() {
    let before = nodes::state(&nodes::files("docker-legacy-iptables-1.20-no-conntrack"));
    let (_, plan) = predict(&before, Mode::Ipvs);
    let half = nodes::state(&nodes::files("half-migrated-ipvs-1.20"));
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let found = leftovers(&catalogue, &half, &Ownership::of(&catalogue, &half));
    assert_eq!(chains(&plan), chains(&found));
    // While iptables mode still served, none of these chains was a leftover.
    let now = leftovers(&catalogue, &before, &Ownership::of(&catalogue, &before));
    assert!(chains(&now).is_empty());
}

#[test]
fn ipvs_mode_leaves_its_own_and_nothing_of_anybody_else() {
    let state = nodes::state(&nodes::files("ipvs-with-keepalived-1.20"));
    let (after, plan) = predict(&state, Mode::Iptables);
    let names = |kind| -> BTreeSet<Cow<'_, str>> {
        plan.removals().filter(|o| o.kind() == kind).map(|o| o.id.name()).collect()
    };
    assert_eq!(names(ObjectKind::Link), BTreeSet::from(["kube-ipvs0".into()]));
    let servers = names(ObjectKind::VirtualServer);
    assert_eq!(servers.len() + 1, state.ipvs.servers.len());
    assert!(!servers.contains("10.9.0.100:8443/tcp"), "keepalived's");
    let own = state.ipsets.sets.iter().filter(|s| s.name.starts_with("KUBE-")).count();
    assert_eq!(names(ObjectKind::Set).len(), own, "no rule that stays matches one");
    assert!(names(ObjectKind::Chain).contains("KUBE-LOAD-BALANCER"));
    // The prediction removes only rules of kube-proxy that jump to a removed chain.
    for (id, ruleset) in &state.rulesets {
        let lines = |r: &proxyshift::state::ruleset::Ruleset| -> BTreeSet<String> {
            r.lines().map(str::to_owned).collect()
        };
        let (before, after) = (lines(ruleset), lines(&after.rulesets[id]));
        assert!(before.is_superset(&after));
        for gone in before.difference(&after) {
            assert!(gone.contains("-A KUBE-") && gone.contains("KUBE-"), "{gone}");
            assert!(
                gone.contains("--match-set KUBE-")
                    || gone.contains("-j KUBE-NODE-PORT")
                    || gone.contains("-j KUBE-LOAD-BALANCER"),
                "{gone}"
            );
        }
    }
}
