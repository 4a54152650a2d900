//! The timeouts after which ipvs forgets what is idle: by default 900 s for a TCP connection, 300 s for
//! a UDP flow.

use std::time::Duration;

use crate::checks::kube_proxy::{at_least, setting};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::{Mode, go_duration};

/// The kernel's timeout of an idle TCP connection in ipvs (`tcp_timeouts` of ip_vs_proto_tcp.c).
const TCP_DEFAULT: Duration = Duration::from_secs(900);

/// The first minor version of kube-proxy that sets timeouts of ipvs (kubernetes PR 85517).
const SETS_TIMEOUTS: u32 = 18;

pub(super) const TCP: Check = Check {
    id: "ipvs.tcp-timeout",
    title: "how long ipvs keeps an idle TCP connection",
    severity: Severity::Warn,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate: tcp,
    reference: "https://github.com/kubernetes/kubernetes/issues/80298",
};

pub(super) const UDP: Check = Check {
    id: "ipvs.udp-timeout",
    title: "how long ipvs keeps an idle UDP flow",
    severity: Severity::Info,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate: udp,
    reference: "https://github.com/kubernetes/kubernetes/issues/76664",
};

/// The configured timeout, if it is one: a duration of zero leaves the kernel's unchanged.
fn set(timeout: Option<&String>) -> Option<(&String, Duration)> {
    let text = timeout?;
    let duration = go_duration(text).filter(|duration| !duration.is_zero())?;
    Some((text, duration))
}

fn tcp(facts: &Facts<'_>) -> Verdict {
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown("what kube-proxy was told is not known".into());
    };
    let evidence = match set(settings.ipvs.tcp_timeout.as_ref()) {
        Some((text, timeout)) if timeout > TCP_DEFAULT => {
            return Verdict::Ok(format!("ipvs.tcpTimeout is {text}"));
        }
        Some((text, _)) => format!("ipvs.tcpTimeout is {text}"),
        None => "ipvs.tcpTimeout is not set: the kernel keeps an idle connection for 900 s".into(),
    };
    let now = "ipvsadm --set 86400 0 0   # now, and until the next boot; 0 leaves the others";
    let set = setting(facts, "ipvs: {tcpTimeout: 24h}", "--ipvs-tcp-timeout=24h");
    let mut remedy = if at_least(facts, SETS_TIMEOUTS) == Some(false) {
        vec![format!("{now}: kube-proxy before 1.{SETS_TIMEOUTS} sets no timeouts")]
    } else {
        vec![set]
    };
    remedy.push(
        "or keepalive below that in pods, for the programs that ask for it: \
         net.ipv4.tcp_keepalive_time=600 in securityContext.sysctls (Kubernetes 1.29 and later)"
            .into(),
    );
    Verdict::Found(Found {
        evidence: vec![evidence],
        effect:
            "a connection that is quiet for longer is forgotten, and its next packet is reset or \
                 hangs, as with pools of connections to databases; in the other modes conntrack \
                 keeps it for a day or more"
                .into(),
        remedy,
        fix: Vec::new(),
    })
}

fn udp(facts: &Facts<'_>) -> Verdict {
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown("what kube-proxy was told is not known".into());
    };
    if let Some((time, _)) = set(settings.ipvs.udp_timeout.as_ref()) {
        return Verdict::Ok(format!("ipvs.udpTimeout is {time}"));
    }
    Verdict::Found(Found {
        evidence: vec![
            "ipvs.udpTimeout is not set: the kernel keeps an idle flow for 300 s".into(),
        ],
        effect: "a client that asks DNS from one port keeps a real server for 5 minutes after its \
                 last packet, also one that takes no new flows"
            .into(),
        remedy: vec![setting(facts, "ipvs: {udpTimeout: 10s}", "--ipvs-udp-timeout=10s")],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};
    use crate::state::kube_proxy::KubeProxyConfig;

    #[test]
    fn all_three_outcomes() {
        let state = node("half-migrated-ipvs-1.20");
        let with = |check: &Check, set: &dyn Fn(&mut KubeProxyConfig)| {
            given(&state).facts(|facts| {
                set(facts.settings.as_mut().expect("settings"));
                (check.evaluate)(facts)
            })
        };
        let udp = |time: &str| with(&UDP, &|c| c.ipvs.udp_timeout = Some(time.into()));
        assert_eq!(udp("10s"), Verdict::Ok("ipvs.udpTimeout is 10s".into()));
        assert!(matches!(udp("0s"), Verdict::Found(_)));
        let tcp = |time: &str| with(&TCP, &|c| c.ipvs.tcp_timeout = Some(time.into()));
        assert_eq!(tcp("2h"), Verdict::Ok("ipvs.tcpTimeout is 2h".into()));
        for time in ["0s", "0", "15m", "900s"] {
            assert!(matches!(tcp(time), Verdict::Found(_)), "{time}");
        }
        for check in [&TCP, &UDP] {
            assert!(matches!(verdict_of(check, &state), Verdict::Found(_)));
            let state = Node::captured("half-migrated-ipvs-1.20")
                .remove("files/var/lib/kube-proxy/config.conf")
                .state();
            assert!(matches!(verdict_of(check, &state), Verdict::Unknown(_)));
        }
    }
}
