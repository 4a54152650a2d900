//! In ipvs mode, traffic to services passes chain INPUT. In the other modes, this traffic passes
//! chain FORWARD.

use serde_json::Value;

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "ipvs.host-firewall",
    title: "a host firewall that closes INPUT, where ipvs serves",
    severity: Severity::Warn,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/98465",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() && facts.now.nft.tables.is_empty() {
        return Verdict::Unknown("no rules are in this state".into());
    }
    let mut evidence = Vec::new();
    let mut tools = Vec::new();
    for (id, ruleset) in &facts.now.rulesets {
        let Some(input) = ruleset.table("filter").and_then(|t| t.chain("INPUT")) else { continue };
        let policy = input.policy.as_deref().unwrap_or_default();
        let last = input.rules.last().filter(|rule| {
            let closes = matches!(rule.target.as_deref(), Some("DROP" | "REJECT"));
            closes && ruleset.words(rule).text().starts_with("-j ")
        });
        if policy == "DROP" {
            evidence.push(format!("{id} filter: the policy of INPUT is {policy}"));
        } else if let Some(rule) = last {
            evidence.push(format!("{id} filter, last rule: {}", ruleset.rule_text(rule)));
        } else {
            continue;
        }
        tools.push(format!("{}-{}", id.family.tool(), id.backend));
    }
    for table in facts.now.native_tables() {
        let text = |c: &serde_json::Map<String, Value>, key: &str| {
            c.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        for chain in table.of_kind("chain") {
            if text(chain, "hook") == "input" && text(chain, "policy") == "drop" {
                let family = &table.family;
                let name = &table.name;
                let chain = text(chain, "name");
                evidence.push(format!("nft table {family} {name}: the policy of {chain} is drop"));
            }
        }
    }
    let mut processes = facts.now.processes.iter().flatten();
    let firewalld = processes.find(|p| p.name == "firewalld");
    evidence.extend(firewalld.map(|p| format!("firewalld runs (process {})", p.pid)));
    if evidence.is_empty() {
        return Verdict::Ok("INPUT is open, and no firewalld runs".into());
    }
    let pods: Vec<String> =
        facts.settings.iter().flat_map(|s| &s.cluster_cidrs).map(ToString::to_string).collect();
    let pods = if pods.is_empty() { vec!["POD-NETWORK".to_owned()] } else { pods };
    let mut remedy = Vec::new();
    for pods in &pods {
        if firewalld.is_some() {
            remedy.push(format!("firewall-cmd --permanent --zone=trusted --add-source={pods}"));
        }
        let of = |tool: &&String| tool.starts_with("ip6") == pods.contains(':');
        remedy.extend(tools.iter().filter(of).map(|t| format!("{t} -I INPUT -s {pods} -j ACCEPT")));
    }
    if firewalld.is_some() {
        remedy
            .push("firewall-cmd --reload   # rewrites its rules: not while services matter".into());
    }
    if remedy.is_empty() {
        remedy.push(format!("accept new connections from {} in that chain", pods.join(", ")));
    }
    Verdict::Found(Found {
        evidence,
        effect: "in ipvs mode a pod's connection to a service passes INPUT: what is not accepted \
                 there is dropped, though it worked in iptables mode"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::NodeState;

    const TO: Option<Mode> = Some(Mode::Ipvs);

    fn changed(from: &str, to: &str) -> NodeState {
        Node::captured("docker-iptables-1.30").replace("iptables-nft.save", from, to).state()
    }

    #[test]
    fn all_three_outcomes() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(given(&state).to(TO).verdict(&CHECK), Verdict::Ok(_)));
        let filter = "*filter\n:INPUT ACCEPT";
        let closed = changed(filter, "*filter\n:INPUT DROP");
        let Verdict::Found(found) = given(&closed).to(TO).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(found.evidence, ["iptables-nft filter: the policy of INPUT is DROP"]);
        assert_eq!(found.remedy, ["iptables-nft -I INPUT -s 192.168.64.0/20 -j ACCEPT"]);

        let rule = "-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load";
        let last = format!("-A INPUT -j REJECT --reject-with icmp-host-prohibited\n[0:0] {rule}");
        let Verdict::Found(found) = given(&changed(rule, &last)).to(TO).verdict(&CHECK) else {
            panic!("not found")
        };
        assert!(found.evidence[0].contains("last rule: -A INPUT -j REJECT"), "{found:?}");

        let node = Node::captured("docker-iptables-1.30").process(7, "firewalld", &[]);
        let mut state = node.state();
        assert!(matches!(given(&state).to(TO).verdict(&CHECK), Verdict::Found(_)));
        state.rulesets.clear();
        state.nft.tables.clear();
        assert!(matches!(given(&state).to(TO).verdict(&CHECK), Verdict::Unknown(_)));
    }
}
