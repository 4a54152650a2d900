//! Sysctls with which ipvs lets go of real servers that are gone.

use super::sysctls;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;

/// What kube-proxy sets, and what goes wrong without it.
const WANTED: [(&str, &str); 3] = [
    ("net.ipv4.vs.conntrack", "masquerading does not see the connections of ipvs"),
    ("net.ipv4.vs.expire_nodest_conn", "packets to a real server that is gone are dropped"),
    (
        "net.ipv4.vs.expire_quiescent_template",
        "affinity keeps clients with a real server at weight 0",
    ),
];

pub(crate) const CHECK: Check = Check {
    id: "ipvs.expiry",
    title: "sysctls with which ipvs lets go of real servers that are gone",
    severity: Severity::Warn,
    when: "ipvs mode runs",
    applies: |facts| facts.running.mode == Some(Mode::Ipvs),
    judge,
    reference: "https://github.com/kubernetes/kubernetes/pull/71834",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(sysctls) = sysctls(facts) else {
        return Verdict::Unknown("sysctl.txt is not in this state".into());
    };
    let values = WANTED.map(|(name, trouble)| (name, trouble, sysctls.get(name)));
    if let Some((name, ..)) = values.iter().find(|(.., value)| value.is_none()) {
        return Verdict::Unknown(format!("{name} is not in this state"));
    }
    let wrong: Vec<_> = values
        .into_iter()
        .filter_map(|(name, trouble, value)| Some((name, trouble, value?)))
        .filter(|(.., value)| *value == "0")
        .collect();
    if wrong.is_empty() {
        return Verdict::Ok("all three are 1".into());
    }
    let troubles: Vec<&str> = wrong.iter().map(|(_, trouble, _)| *trouble).collect();
    Verdict::Found(Found {
        evidence: wrong.iter().map(|(name, _, value)| format!("{name} = {value}")).collect(),
        effect: troubles.join("; "),
        remedy: wrong.iter().map(|(name, ..)| format!("sysctl -w {name}=1")).collect(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{judged, node};

    #[test]
    fn all_three_outcomes() {
        let mut state = node("half-migrated-ipvs-1.20");
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
        let text =
            state.files["sysctl.txt"].replace("expire_nodest_conn = 1", "expire_nodest_conn = 0");
        state.files.insert("sysctl.txt".into(), text.into());
        let Verdict::Found(found) = judged(&CHECK, &state) else { panic!("not found") };
        assert_eq!(found.evidence, ["net.ipv4.vs.expire_nodest_conn = 0"]);
        assert_eq!(found.remedy, ["sysctl -w net.ipv4.vs.expire_nodest_conn=1"]);
        state.files.remove("sysctl.txt");
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
