//! The running mode of kube-proxy. What the kernel holds decides it; the configuration is the
//! second source (`reference/kube-proxy.md`, 1.5).

use std::collections::BTreeMap;

use crate::kube_proxy::mode;
use crate::kube_proxy::proxy_state::ProxyState;
use crate::kube_proxy::services::{Location, ServiceKey};
use crate::owners::matcher::Ownership;
use crate::state::kube_proxy::{CommandLine, KubeProxyConfig, Mode};
use crate::state::tools::Version;
use crate::state::{Family, NodeState};

/// The newest minor version of Kubernetes 1 whose kube-proxy is known here: its objects, flags and
/// gates. A newer version is judged as this one, and the check `kube-proxy.version` names it.
pub const NEWEST_KNOWN: u32 = 37;

/// The mode in which kube-proxy runs on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningMode {
    /// The mode that serves; `None` if this is not clear, for example during a change of mode.
    pub mode: Option<Mode>,
    /// The modes whose services the kernel holds.
    pub serving: Vec<Mode>,
    /// The evidence for `mode`, or why the mode is not clear.
    pub evidence: String,
    /// The version of kube-proxy; `None` if it is not known or several kube-proxies run.
    pub version: Option<Version>,
    /// Why no kube-proxy keeps up what the kernel holds; `None` if one does, or may.
    pub absence: Option<String>,
}

/// The configuration file of a kubeadm node. It is read if no kube-proxy process runs.
const CONFIG: &str = "/var/lib/kube-proxy/config.conf";

impl RunningMode {
    /// Judges the running mode from what the kernel holds.
    pub fn of(state: &NodeState, ownership: &Ownership<'_>) -> RunningMode {
        let kernel: BTreeMap<Mode, String> = mode::all()
            .filter_map(|mode| Some((mode.mode(), mode.evidence(state, ownership)?)))
            .collect();
        let (mode, evidence) = decide(&kernel, configured(state).map(|config| config.mode()));
        let (serving, proxy) = (kernel.into_keys().collect(), ProxyState::of(state));
        let (version, absence) = (proxy.version(), proxy.absence());
        RunningMode { mode, serving, evidence, version, absence }
    }

    /// Whether the kernel holds the services of any mode at all.
    pub fn serves(&self) -> bool {
        !self.serving.is_empty()
    }
}

/// kube-proxy's configuration, from its command line and the file that the command line names;
/// `None` if the configuration is not known.
pub fn configured(state: &NodeState) -> Option<KubeProxyConfig> {
    let file = |path: &str| KubeProxyConfig::parse(path, state.file(path)?).ok();
    match ProxyState::of(state) {
        ProxyState::One(process) => {
            let line = CommandLine::parse(&process.args).ok()?;
            let config = line.config.as_deref().and_then(file);
            line.settings(config.as_ref())
        }
        // A host program has settings of its own, which are not captured.
        ProxyState::PartOf(..) | ProxyState::Many(_) => None,
        _ => file(CONFIG),
    }
}

/// The families in which the mode `running` serves nothing while another mode still serves services
/// with endpoints; with that other mode.
///
/// kube-proxy 1.37.2 in nftables mode makes each family's table anew only when a service of that
/// family changes, if somebody deleted it: until then, rules of another mode are all that serves.
pub fn served_by_others(state: &NodeState, running: Mode) -> BTreeMap<Family, Mode> {
    let serves = |mode: Mode, family: Family| {
        let of_family = |key: &ServiceKey, _: Option<&str>| match key.location {
            Location::Address(address) => address.is_ipv6() == (family == Family::Ipv6),
            Location::Node(node) => node == family,
        };
        mode::of(mode).missing_objects(state, family).is_none()
            && mode::of(mode)
                .services_where(state, &of_family)
                .values()
                .any(|service| !service.backends.is_empty())
    };
    let other = |family: Family| {
        mode::of(running).missing_objects(state, family)?;
        let other = Mode::ALL.into_iter().find(|m| *m != running && serves(*m, family))?;
        Some((family, other))
    };
    Family::ALL.into_iter().filter_map(other).collect()
}

/// The mode that serves, and the evidence. `kernel` has the modes whose services the kernel holds,
/// each with its evidence.
fn decide(kernel: &BTreeMap<Mode, String>, configured: Option<Mode>) -> (Option<Mode>, String) {
    let serving: Vec<(Mode, &str)> = kernel.iter().map(|(m, e)| (*m, e.as_str())).collect();
    let all = || kernel.values().map(String::as_str).collect::<Vec<_>>().join("; ");
    match (&serving[..], configured) {
        ([], _) => (None, "the kernel holds the services of no mode".into()),
        ([(mode, evidence)], Some(configured)) if *mode != configured => {
            (None, format!("the configuration says {configured}, but {evidence}"))
        }
        ([(mode, evidence)], _) => (Some(*mode), (*evidence).to_owned()),
        // Two modes serve: one by its nf_tables tables, the other by rules that built-in chains
        // still jump to.
        ([(one, _), (other, _)], Some(configured))
            if [*one, *other].contains(&configured)
                && [*one, *other].into_iter().any(|m| mode::of(m).has_own_tables()) =>
        {
            (Some(configured), format!("the configuration says {configured}; {}", all()))
        }
        _ => (None, format!("more than one mode serves: {}", all())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::catalogue::Catalogue;
    use crate::state::tools::Process;

    fn evidence_of(modes: &[Mode]) -> BTreeMap<Mode, String> {
        modes.iter().map(|m| (*m, m.to_string())).collect()
    }

    #[test]
    fn one_mode_that_the_configuration_does_not_deny() {
        use Mode::{Iptables, Ipvs, Nftables};
        for (kernel, configured, expected) in [
            (vec![], Some(Ipvs), None),
            (vec![Ipvs], Some(Ipvs), Some(Ipvs)),
            (vec![Ipvs], None, Some(Ipvs)),
            // ipvs is configured and kube-proxy was restarted, but the rules are not rewritten yet.
            (vec![Iptables], Some(Ipvs), None),
            (vec![Iptables, Ipvs], Some(Ipvs), None),
            (vec![Iptables, Nftables], Some(Nftables), Some(Nftables)),
            (vec![Iptables, Nftables], Some(Iptables), Some(Iptables)),
            (vec![Iptables, Nftables], Some(Ipvs), None),
            (vec![Iptables, Nftables], None, None),
            (vec![Ipvs, Nftables], Some(Nftables), Some(Nftables)),
            (vec![Iptables, Ipvs, Nftables], Some(Nftables), None),
        ] {
            assert_eq!(
                decide(&evidence_of(&kernel), configured).0,
                expected,
                "{kernel:?} {configured:?}"
            );
        }
    }

    fn process(pid: u32, args: &[&str], version: &str) -> Process {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let name = "kube-proxy".into();
        let version = Some(version.to_owned());
        Process { pid, name, args, version, ..Process::default() }
    }

    #[test]
    fn a_clean_up_has_no_say_in_mode_or_version() {
        let catalogue = Catalogue::builtin().unwrap();
        let of = |processes: Vec<Process>| {
            let state = NodeState { processes: Some(processes), ..NodeState::default() };
            let running = RunningMode::of(&state, &Ownership::of(&catalogue, &state));
            (configured(&state).map(|c| c.mode()), running.version.map(|v| v.to_string()))
        };
        let serving = process(9, &["kube-proxy", "--proxy-mode=ipvs"], "v1.30.5");
        let cleaning = process(7, &["kube-proxy", "--cleanup"], "v1.20.2");
        let expected = (Some(Mode::Ipvs), Some("1.30.5".to_owned()));
        assert_eq!(of(vec![cleaning.clone(), serving.clone()]), expected);
        assert_eq!(of(vec![cleaning]), (None, None));
        let other = process(11, &["kube-proxy", "--proxy-mode=iptables"], "v1.31.2");
        assert_eq!(of(vec![serving, other]), (None, None), "which one counts is not known");
    }
}
