//! How kube-proxy is on a node: one process, a part of another program, down, gone.

use crate::owners::liveness::kubelet;
use crate::state::NodeState;
use crate::state::kube_proxy::delivery::HostProgram;
use crate::state::kube_proxy::{Delivery, Instances};
use crate::state::tools::{Process, Version};

/// How kube-proxy is on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyState<'a> {
    /// One process serves, as it should be.
    One(&'a Process),
    /// It is a part of this program.
    PartOf(HostProgram, &'a Process),
    /// Several processes serve, and undo each other's writes.
    Many(Vec<&'a Process>),
    /// It does not run, although the kubelet, or rke2's supervisor, does: this is that process.
    Down(&'a Process),
    /// It does not run, and this program, which can serve in its place, does. Whether kube-proxy was
    /// removed for it or is down beside it, the node does not show.
    Replaced(&'a Process),
    /// It does not run, and nothing else of Kubernetes that would need it does.
    Gone,
    /// Whether it runs is not known. The string says why.
    Unknown(String),
}

/// Programs that can serve services in place of kube-proxy: Antrea with proxyAll, Cilium with
/// kubeProxyReplacement, kube-router with --run-service-proxy, OVN-Kubernetes.
const REPLACEMENTS: [&str; 5] =
    ["antrea-agent", "cilium-agent", "kube-router", "ovnkube", "ovnkube-node"];

/// The link that Calico's eBPF data plane has, which serves in place of kube-proxy.
const CALICO_EBPF: &str = "bpfin.cali";

impl<'a> ProxyState<'a> {
    /// Decides from the processes of a node, from those that do not count, and from its links.
    pub fn of(state: &'a NodeState) -> ProxyState<'a> {
        let Some(all) = state.processes.as_deref() else {
            return ProxyState::Unknown("the processes are not in this state".into());
        };
        match Instances::of(all) {
            Instances::One(process) => return ProxyState::One(process),
            Instances::Many(processes) => return ProxyState::Many(processes),
            Instances::None => {}
        }
        if let Some((host, process)) = all.iter().find_map(|p| Some((HostProgram::of(p)?, p))) {
            return ProxyState::PartOf(host, process);
        }
        // A process whose arguments or rights cannot be read may be kube-proxy.
        let may_be = ["kube-proxy", "hyperkube", ""];
        if let Some(other) = state.lookalikes.iter().find(|l| may_be.contains(&l.name.as_str())) {
            return ProxyState::Unknown(format!("process {other} does not count: {}", other.doubt));
        }
        let named = |names: &[&str]| all.iter().find(|p| names.contains(&p.name.as_str()));
        let ebpf = state.links.iter().any(|link| link.name == CALICO_EBPF);
        let calico = || named(&["calico-node", "calico-felix", "felix"]).filter(|_| ebpf);
        if let Some(other) = named(&REPLACEMENTS).or_else(calico) {
            return ProxyState::Replaced(other);
        }
        kubelet(all).map_or(ProxyState::Gone, ProxyState::Down)
    }

    /// The version of kube-proxy; none if it is not known, or if several run.
    pub fn version(&self) -> Option<Version> {
        match self {
            ProxyState::One(process) | ProxyState::PartOf(_, process) => {
                release(process.version.as_deref()?)
            }
            _ => None,
        }
    }

    /// How kube-proxy is delivered to the node; `state` is the state of that node.
    pub fn delivery(&self, state: &NodeState) -> Delivery {
        let all = state.processes.as_deref().unwrap_or_default();
        match self {
            ProxyState::One(process) => {
                let kubelet = all.iter().find(|p| p.name == "kubelet");
                Delivery::of(process, kubelet.and_then(|p| p.version.as_deref()))
            }
            ProxyState::PartOf(host, _) => Delivery::PartOf(*host),
            ProxyState::Many(_) | ProxyState::Unknown(_) => Delivery::Unknown,
            ProxyState::Down(_) | ProxyState::Replaced(_) | ProxyState::Gone => {
                Delivery::of_node(all)
            }
        }
    }

    /// Whether a kube-proxy serves, in whatever form.
    pub fn runs(&self) -> bool {
        matches!(self, ProxyState::One(_) | ProxyState::PartOf(..) | ProxyState::Many(_))
    }

    /// Why nobody keeps kube-proxy's rules up to date, as a phrase; none where a kube-proxy does,
    /// or may.
    pub fn absence(&self) -> Option<String> {
        match self {
            ProxyState::Down(kubelet) => Some(format!(
                "no kube-proxy runs here, although {} ({}) does",
                kubelet.name, kubelet.pid
            )),
            ProxyState::Replaced(other) => Some(format!(
                "no kube-proxy runs here, and {} ({}), which can serve in its place, does",
                other.name, other.pid
            )),
            ProxyState::Gone => Some("neither kube-proxy nor the kubelet runs here".into()),
            _ => None,
        }
    }
}

/// The version in what a program reports. A mark of a distribution (`+rke2r1`, `-eks-a737599`) takes
/// nothing from it. An alpha has only a part of what its version will have, so it tells none.
fn release(text: &str) -> Option<Version> {
    Version::find(text).filter(|_| !text.contains("-alpha"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::links::Link;
    use crate::state::lookalikes::{Doubt, Lookalike};

    fn node(lines: &[&str]) -> NodeState {
        let process = |(pid, line): (u32, &&str)| {
            let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
            Process { pid, name: args[0].clone(), args, ..Process::default() }
        };
        let processes = Some((1..).zip(lines).map(process).collect());
        NodeState { processes, ..NodeState::default() }
    }

    /// The variant that the state of a node with these processes is.
    fn variant(lines: &[&str]) -> &'static str {
        word(&ProxyState::of(&node(lines)))
    }

    fn word(state: &ProxyState<'_>) -> &'static str {
        match state {
            ProxyState::One(_) => "one",
            ProxyState::PartOf(..) => "part",
            ProxyState::Many(_) => "many",
            ProxyState::Down(_) => "down",
            ProxyState::Replaced(_) => "replaced",
            ProxyState::Gone => "gone",
            ProxyState::Unknown(_) => "unknown",
        }
    }

    #[test]
    fn the_processes_decide() {
        for (lines, expected) in [
            (&["kubelet", "kube-proxy --v=2"][..], "one"),
            (&["k3s server", "kube-proxy"], "one"),
            (&["kube-proxy", "kube-proxy --v=2"], "many"),
            (&["k3s server"], "part"),
            (&["kubelite", "calico-node"], "part"),
            (&["k3s server --disable-kube-proxy"], "down"),
            (&["k3s server --disable-kube-proxy", "cilium-agent"], "replaced"),
            (&["rke2 server", "kubelet"], "down"),
            (&["kubelet", "kube-proxy --cleanup"], "down"),
            (&["kubelet", "calico-node"], "down"),
            (&["kubelet", "antrea-agent"], "replaced"),
            (&["dockerd"], "gone"),
            (&[], "gone"),
        ] {
            assert_eq!(variant(lines), expected, "{lines:?}");
        }
        assert_eq!(word(&ProxyState::of(&NodeState::default())), "unknown");
    }

    #[test]
    fn links_and_lookalikes_have_a_say() {
        let mut state = node(&["kubelet", "calico-node"]);
        state.links = vec![Link { name: CALICO_EBPF.into(), ..Link::default() }];
        assert_eq!(word(&ProxyState::of(&state)), "replaced");
        state.lookalikes =
            vec![Lookalike { pid: 9, name: "kube-proxy".into(), uid: 1000, doubt: Doubt::User }];
        assert_eq!(word(&ProxyState::of(&state)), "unknown");
    }

    #[test]
    fn a_distributions_mark_takes_nothing_from_a_version() {
        let of = |version: &str| release(version).map(|v| v.to_string());
        for (version, expected) in [
            ("v1.34.2+rke2r1", Some("1.34.2")),
            ("v1.30.4-eks-a737599", Some("1.30.4")),
            ("v1.30.5-gke.1014001", Some("1.30.5")),
            ("v1.31.0+k0s", Some("1.31.0")),
            ("v1.32.0-rc.0", Some("1.32.0")),
            ("v1.32.0-beta.1+k3s1", Some("1.32.0")),
            ("v1.32.0-alpha.1", None),
        ] {
            assert_eq!(of(version).as_deref(), expected, "{version}");
        }
    }
}
