//! `tcp_be_liberal` as kube-proxy is told, and as it is.

use super::super::{Check, Facts, Found, Severity, Verdict, always};
use super::value;
use crate::state::tools::Version;

/// The first version that knows the setting (kubernetes PR 120412).
const FIRST: Version = Version { major: 1, minor: 29, patch: 0 };

pub(in crate::checks) const CHECK: Check = Check {
    id: "conntrack.be-liberal",
    title: "tcp_be_liberal, as kube-proxy is told and as it is",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    judge,
    reference: "https://github.com/kubernetes/kubernetes/pull/120412",
};

const NAME: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown("what kube-proxy is told is not in this state".into());
    };
    let told = settings.conntrack.tcp_be_liberal;
    let is = match value(facts.now, "nf_conntrack_tcp_be_liberal") {
        Ok(is) => is,
        Err(why) => return Verdict::Unknown(why),
    };
    let shown = format!("conntrack.tcpBeLiberal: {told}, {NAME} = {is}");
    if !told || is != 0 {
        return Verdict::Ok(shown);
    }
    let old = facts.running.version.filter(|v| *v < FIRST);
    let why = match old {
        Some(version) => format!("kube-proxy {version} does not know the setting; 1.29 does"),
        None => "kube-proxy sets it when it starts; something has reset it since, or it could not"
            .into(),
    };
    let mut remedy = vec![
        format!("sysctl -w {NAME}=1"),
        format!("echo '{NAME} = 1' > /etc/sysctl.d/90-kube-proxy.conf"),
    ];
    if old.is_none() {
        remedy.push("then restart kube-proxy: it reads it once, when it starts".into());
    }
    Verdict::Found(Found {
        evidence: vec![shown, why],
        effect:
            "packets outside the TCP window are INVALID and dropped, against what was asked for"
                .into(),
        remedy,
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::judged;
    use super::super::testing::with;
    use super::*;
    use crate::state::NodeState;

    fn told(mut state: NodeState, liberal: bool) -> NodeState {
        let config = format!("conntrack: {{tcpBeLiberal: {liberal}}}\n");
        state.files.insert("files/var/lib/kube-proxy/config.conf".into(), config.into());
        state
    }

    #[test]
    fn found_ok_and_unknown() {
        let name = "nf_conntrack_tcp_be_liberal";
        let Verdict::Found(found) = judged(&CHECK, &told(with(name, Some("0")), true)) else {
            panic!("not found");
        };
        assert!(found.evidence[0].starts_with("conntrack.tcpBeLiberal: true"), "{found:?}");
        for state in [told(with(name, Some("1")), true), told(with(name, Some("1")), false)] {
            assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
        }
        let mut untold = with(name, Some("0"));
        untold.files.remove("files/var/lib/kube-proxy/config.conf");
        for state in [told(with(name, None), true), untold] {
            assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
        }
    }
}
