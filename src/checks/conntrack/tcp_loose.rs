//! Without `tcp_loose`, a connection that is not known from its first packet is INVALID.

use super::super::{Check, Facts, Found, Severity, Verdict, always};
use super::value;

pub(in crate::checks) const CHECK: Check = Check {
    id: "conntrack.tcp-loose",
    title: "tcp_loose, where packets in state INVALID are dropped",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    judge,
    reference: "https://docs.kernel.org/networking/nf_conntrack-sysctl.html",
};

const NAME: &str = "net.netfilter.nf_conntrack_tcp_loose";

fn judge(facts: &Facts<'_>) -> Verdict {
    let is = match value(facts.now, "nf_conntrack_tcp_loose") {
        Ok(is) => is,
        Err(why) => return Verdict::Unknown(why),
    };
    if is != 0 {
        return Verdict::Ok(format!("{NAME} = {is}"));
    }
    let Some(rule) = invalid_drop(facts) else {
        return Verdict::Ok(format!("{NAME} = 0, but no rule of kube-proxy drops INVALID"));
    };
    let mut evidence = vec![format!("{NAME} = 0"), rule];
    if facts.settings.as_ref().is_some_and(|s| s.conntrack.tcp_be_liberal) {
        evidence.push("conntrack.tcpBeLiberal: true does not help: it is for known ones".into());
    }
    Verdict::Found(Found {
        evidence,
        effect: "a TCP connection whose entry was lost, or that comes in by another way than it \
                 goes out, is dropped in its midst"
            .into(),
        remedy: vec![
            format!("sysctl -w {NAME}=1"),
            format!("echo '{NAME} = 1' > /etc/sysctl.d/90-tcp-loose.conf"),
        ],
        fix: Vec::new(),
    })
}

/// kube-proxy's rule against INVALID, with its file and line.
fn invalid_drop(facts: &Facts<'_>) -> Option<String> {
    facts.now.rulesets.iter().find_map(|(id, ruleset)| {
        let rules = &ruleset.table("filter")?.chain("KUBE-FORWARD")?.rules;
        let rule = rules.iter().find(|rule| {
            let state = ruleset.words(rule).value("--ctstate");
            let invalid =
                state.is_some_and(|(not, s)| !not && s.split(',').any(|s| s == "INVALID"));
            rule.target.as_deref() == Some("DROP") && invalid
        })?;
        Some(format!("{}:{}: {}", id.file(), rule.line, ruleset.rule_text(rule)))
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, node};
    use super::super::testing::with;
    use super::*;

    #[test]
    fn found_on_the_node_of_the_incident() {
        let Verdict::Found(found) = judged(&CHECK, &node("canal-stale-flannel-1.20")) else {
            panic!("not found");
        };
        assert!(
            found.evidence[1].contains("-A KUBE-FORWARD") && found.evidence[1].contains("DROP")
        );
    }

    #[test]
    fn ok_where_it_is_on_or_nothing_drops_and_unknown_without_it() {
        let name = "nf_conntrack_tcp_loose";
        assert!(matches!(judged(&CHECK, &with(name, Some("1"))), Verdict::Ok(_)));
        assert!(matches!(judged(&CHECK, &with(name, None)), Verdict::Unknown(_)));
        let mut state = with(name, Some("0"));
        assert!(matches!(judged(&CHECK, &state), Verdict::Found(_)));
        state.rulesets.clear();
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
    }
}
