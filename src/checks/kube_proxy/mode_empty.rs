//! `mode: ""` in kube-proxy's configuration. A later version of kube-proxy changes which mode this
//! means.

use super::{config_file, setting};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.mode-empty",
    title: "a mode that is left to kube-proxy's default",
    severity: Severity::Info,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://kep.k8s.io/5343",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown("what kube-proxy was told is not known".into());
    };
    if let Some(mode) = settings.mode {
        return Verdict::Ok(format!("it is told {mode}"));
    }
    let evidence = match config_file(facts) {
        Some(path) => {
            let text = facts.now.file(&path).unwrap_or_default();
            let line = text.lines().enumerate().find(|(_, l)| l.starts_with("mode:"));
            match line {
                Some((at, line)) => format!("{path}:{}: {line}", at + 1),
                None => format!("{path} has no line `mode:`"),
            }
        }
        None => "kube-proxy has no --proxy-mode".into(),
    };
    let mode = facts.running.mode.unwrap_or_default();
    Verdict::Found(Found {
        evidence: vec![evidence],
        effect: "today that is iptables; 1.37 warns of it, and from 1.40, as planned, it is \
                 nftables: an upgrade would change the mode without anyone asking"
            .into(),
        remedy: vec![setting(facts, &format!("mode: {mode}"), &format!("--proxy-mode={mode}"))],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, verdict_of};

    #[test]
    fn all_three_outcomes() {
        let node = || Node::captured("docker-iptables-1.30");
        assert_eq!(verdict_of(&CHECK, &node().state()), Verdict::Ok("it is told iptables".into()));
        let path = "files/var/lib/kube-proxy/config.conf";
        let state = node().replace(path, "mode: iptables", "mode: \"\"").state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert_eq!(found.evidence, ["/var/lib/kube-proxy/config.conf:7: mode: \"\""]);
        assert!(found.remedy[0].starts_with("mode: iptables   # in /var/lib"), "{found:?}");
        let flags = node().kube_proxy_args(&["kube-proxy"]).state();
        let Verdict::Found(found) = verdict_of(&CHECK, &flags) else { panic!("not found") };
        assert!(found.remedy[0].starts_with("--proxy-mode=iptables   # on"), "{found:?}");
        let state = node().remove(path).state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
