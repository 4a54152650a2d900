//! What ipvs does when a client uses a port again: right and wrong change with kernel 5.9.

use super::sysctls;
use crate::checks::kube_proxy::at_least;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

const NAME: &str = "net.ipv4.vs.conn_reuse_mode";

/// From here on a port that is used again is balanced anew, and without a delay.
const MENDED: Version = Version { major: 5, minor: 9, patch: 0 };

pub(crate) const CHECK: Check = Check {
    id: "ipvs.conn-reuse-mode",
    title: "what ipvs does when a client uses a port again",
    severity: Severity::Warn,
    when: "ipvs mode runs, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    judge,
    reference: "https://github.com/kubernetes/kubernetes/issues/81775",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(kernel) = facts.now.tools.as_ref().and_then(|t| t.kernel_version()) else {
        return Verdict::Unknown("the kernel's version is not in this state".into());
    };
    let sysctls = sysctls(facts);
    let Some(value) = sysctls.as_ref().and_then(|s| s.get(NAME)) else {
        return Verdict::Unknown(format!("{NAME} is not there: ip_vs is not loaded"));
    };
    let evidence = vec![format!("{NAME} = {value}"), format!("kernel {kernel}")];
    match (kernel >= MENDED, value == "0") {
        (true, false) | (false, true) => Verdict::Ok(evidence.join(", ")),
        (true, true) => {
            let mut remedy = vec![format!("sysctl -w {NAME}=1")];
            if at_least(facts, 22) != Some(true) {
                remedy.push(
                    "upgrade kube-proxy to 1.22 or later: before, each start sets it to 0 again"
                        .into(),
                );
            }
            Verdict::Found(Found {
                evidence,
                effect: "a client that uses a port again is sent to the real server that it had, \
                         even at weight 0: a busy client hangs on to a pod that is going away"
                    .into(),
                remedy,
                fix: Vec::new(),
            })
        }
        (false, false) => Verdict::Found(Found {
            evidence,
            effect: "on a kernel before 5.9 a client that uses a port again waits for a second"
                .into(),
            remedy: vec![format!(
                "sysctl -w {NAME}=0   # what kube-proxy sets; better: kernel 5.9"
            )],
            fix: Vec::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{judged, judged_to, node};

    #[test]
    fn right_and_wrong_depend_on_the_kernel() {
        for (kernel, value, fine) in [
            ("6.1.0", "0", false),
            ("6.1.0", "1", true),
            ("5.4.0-42", "0", true),
            ("5.4.0-42", "1", false),
        ] {
            let mut state = node("half-migrated-ipvs-1.20");
            state.tools.as_mut().expect("tools").kernel = kernel.into();
            let text = state.files["sysctl.txt"]
                .replace("conn_reuse_mode = 0", &format!("conn_reuse_mode = {value}"));
            state.files.insert("sysctl.txt".into(), text.into());
            let verdict = judged(&CHECK, &state);
            assert_eq!(matches!(verdict, Verdict::Ok(_)), fine, "{kernel} {value}: {verdict:?}");
            assert_eq!(matches!(verdict, Verdict::Found(_)), !fine, "{kernel} {value}");
        }
    }

    #[test]
    fn unknown_while_ip_vs_is_not_loaded() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(judged_to(&CHECK, &state, Some(Mode::Ipvs)), Verdict::Unknown(_)));
    }
}
