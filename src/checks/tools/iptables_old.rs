//! iptables before 1.8.4 that does write its rules, but reads those of newer ones wrongly.

use super::super::{Check, Facts, Found, Severity, Verdict};
use super::iptables::{NEEDED, applies, is_nf_tables};
use super::seen;

pub(in crate::checks) const CHECK: Check = Check {
    id: "tools.iptables-old",
    title: "an iptables that is older than what the images of kube-proxy ask for",
    severity: Severity::Warn,
    when: "any mode but nftables runs, or is the target",
    applies,
    judge,
    reference: "https://github.com/kubernetes-sigs/iptables-wrappers",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let seen = match seen(facts, "iptables") {
        Err(why) => return Verdict::Unknown(why),
        Ok(seen) => seen,
    };
    match seen.tool.version() {
        // That it is missing, or of an early nf_tables, is tools.iptables' to say.
        _ if seen.tool.path.is_none() => Verdict::Ok("there is none".into()),
        None => {
            Verdict::Unknown(format!("{} is there, but its version is not known", seen.shown()))
        }
        Some(version) if version < NEEDED && !is_nf_tables(seen.tool) => Verdict::Found(Found {
            evidence: vec![format!("{}: older than {NEEDED}", seen.shown())],
            effect: "rules that a newer iptables wrote, such as that in kube-proxy's image, are \
                     saved without what this one does not know: restored, they match more traffic"
                .into(),
            remedy: vec![seen.install("iptables=1.8.4 or later")],
            fix: Vec::new(),
        }),
        Some(_) => Verdict::Ok(seen.shown()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, node};
    use super::*;
    use crate::state::tools::Tool;

    #[test]
    fn found_for_old_legacy_ok_for_new_and_unknown_without_a_version() {
        let mut state = node("docker-legacy-iptables-1.20-no-conntrack");
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
        let mut with = |text: &str| {
            let tool = Tool::found("iptables", "/sbin/iptables", text);
            state.tools.as_mut().unwrap().tools = vec![tool];
            judged(&CHECK, &state)
        };
        assert!(matches!(with("iptables v1.6.1"), Verdict::Found(_)));
        assert!(matches!(with("iptables v1.8.3 (legacy)"), Verdict::Found(_)));
        assert!(matches!(with("iptables v1.8.3 (nf_tables)"), Verdict::Ok(_)));
        assert!(matches!(with(""), Verdict::Unknown(_)));
    }
}
