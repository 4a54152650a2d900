//! How kube-proxy is delivered to a node: what starts it, where its settings are, where it logs.

use std::fmt;

use super::CommandLine;
use crate::error::{Error, Kind};
use crate::state::cgroup;
use crate::state::tools::Process;

/// A program that kube-proxy can be a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostProgram {
    /// k3s, as a server or an agent.
    K3s,
    /// kubelite, the one program of MicroK8s.
    Kubelite,
    /// The node program of OpenShift's former pod network.
    OpenshiftSdn,
}

/// The ConfigMap with the settings of a DaemonSet's kube-proxy, by who writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigMap {
    /// kubeadm, once; also kubespray, kind and Cluster API.
    Kubeadm,
    /// The kube-proxy add-on of EKS.
    Eks,
    /// k0s, again and again.
    K0s,
}

/// A cloud that writes kube-proxy's manifest itself, and undoes what others write into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Azure's AKS: a DaemonSet without a configuration file.
    Aks,
    /// Google's GKE: a static pod.
    Gke,
}

/// How kube-proxy is delivered to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// As a part of another program.
    PartOf(HostProgram),
    /// As a static pod whose manifest rke2 writes at each start.
    Rke2,
    /// As a pod of a DaemonSet.
    DaemonSet(ConfigMap),
    /// As a pod of a cloud's own, whose settings are not the cluster's.
    Managed(Cloud),
    /// As a pod, static or not.
    Pod,
    /// As a container without a pod.
    Container,
    /// As a systemd unit.
    Unit(String),
    /// Not known.
    Unknown,
}

/// The file in which kubeadm's DaemonSet, and k0s', mounts the settings.
const KUBEADM: &str = "/var/lib/kube-proxy/config.conf";

/// The same of EKS.
const EKS: &str = "/var/lib/kube-proxy-config/";

/// Arguments that AKS alone gives to kube-proxy, as `ps` on its nodes and reports of them show.
const AKS: [&str; 2] = ["--kubeconfig=/var/lib/kubelet/kubeconfig", "--pod-interface-name-prefix="];

/// The folder of everything that rke2 writes.
const RKE2: &str = "/var/lib/rancher/rke2/";

impl HostProgram {
    /// The host program that a process is; none if kube-proxy is switched off in it, or if it is
    /// another program.
    pub fn of(process: &Process) -> Option<HostProgram> {
        let host = match process.name.as_str() {
            "k3s" | "k3s-server" | "k3s-agent" => HostProgram::K3s,
            "kubelite" => HostProgram::Kubelite,
            "openshift-sdn-node" | "openshift-sdn" => HostProgram::OpenshiftSdn,
            _ => return None,
        };
        let off = |arg: &String| {
            ["--disable-kube-proxy", "--disable-kube-proxy=true"].contains(&arg.as_str())
        };
        // `k3s kubectl` and the like are no node. The capture masks words that it does not know.
        let word = process.args.get(1).map_or("", |arg| arg.as_str());
        let other = host == HostProgram::K3s
            && word.starts_with(|c: char| c.is_ascii_lowercase())
            && !["server", "agent"].contains(&word);
        (!other && !process.args.iter().any(off)).then_some(host)
    }
}

impl fmt::Display for HostProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HostProgram::K3s => "k3s",
            HostProgram::Kubelite => "kubelite (MicroK8s)",
            HostProgram::OpenshiftSdn => "openshift-sdn-node",
        })
    }
}

impl ConfigMap {
    fn name(self) -> &'static str {
        match self {
            ConfigMap::Kubeadm | ConfigMap::K0s => "kube-system/kube-proxy",
            ConfigMap::Eks => "kube-system/kube-proxy-config",
        }
    }

    /// Where its author takes it from, if its text does not stay as it is edited.
    fn origin(self) -> &'static str {
        match self {
            ConfigMap::Kubeadm => "",
            ConfigMap::Eks => " (with the managed add-on: in its configuration values)",
            ConfigMap::K0s => {
                " (which k0s writes anew from spec.network.kubeProxy of its k0s.yaml)"
            }
        }
    }
}

impl Delivery {
    /// How the kube-proxy `process` is delivered. `kubelet` is the version of the node's kubelet,
    /// which some distributions mark.
    pub fn of(process: &Process, kubelet: Option<&str>) -> Delivery {
        let version = process.version.as_deref().unwrap_or_default();
        let config = CommandLine::parse(&process.args).ok().and_then(|line| line.config);
        let config = config.unwrap_or_default();
        let contained = is_contained(process);
        let in_pod = contained.unwrap_or(process.version.is_some());
        if contained == Some(false) {
            return match cgroup::unit(&process.cgroups) {
                Some(unit) => Delivery::Unit(unit.to_owned()),
                None => Delivery::Unknown,
            };
        }
        let marked =
            |mark: &str| version.contains(mark) || kubelet.unwrap_or_default().contains(mark);
        if marked("+rke2") || process.args.iter().any(|arg| arg.contains(RKE2)) {
            Delivery::Rke2
        } else if config.starts_with(EKS) || marked("-eks-") && in_pod {
            Delivery::DaemonSet(ConfigMap::Eks)
        } else if marked("-gke.") && in_pod {
            Delivery::Managed(Cloud::Gke)
        } else if in_pod && process.args.iter().any(|arg| AKS.contains(&arg.as_str())) {
            Delivery::Managed(Cloud::Aks)
        } else if marked("+k0s") && in_pod {
            Delivery::DaemonSet(ConfigMap::K0s)
        } else if config == KUBEADM && in_pod {
            Delivery::DaemonSet(ConfigMap::Kubeadm)
        } else if contained == Some(true) {
            let no_pod = !process.cgroups.is_empty() && !cgroup::is_pod(&process.cgroups);
            if no_pod { Delivery::Container } else { Delivery::Pod }
        } else {
            Delivery::Unknown
        }
    }

    /// How kube-proxy is delivered to a node on which it does not run, as far as the other
    /// processes show it.
    pub fn of_node(processes: &[Process]) -> Delivery {
        let marked = |mark: &str| {
            processes.iter().any(|p| p.version.as_deref().is_some_and(|v| v.contains(mark)))
        };
        if processes.iter().any(|p| p.name == "rke2") || marked("+rke2") {
            Delivery::Rke2
        } else if marked("-eks-") {
            Delivery::DaemonSet(ConfigMap::Eks)
        } else if marked("+k0s") {
            Delivery::DaemonSet(ConfigMap::K0s)
        } else if marked("-gke.") {
            Delivery::Managed(Cloud::Gke)
        } else {
            Delivery::Unknown
        }
    }

    /// Whether kube-proxy's programs and files are those of its container, not the host's.
    pub fn in_container(&self) -> bool {
        match self {
            Delivery::Rke2
            | Delivery::DaemonSet(_)
            | Delivery::Managed(_)
            | Delivery::Pod
            | Delivery::Container => true,
            Delivery::PartOf(_) | Delivery::Unit(_) | Delivery::Unknown => false,
        }
    }

    /// Why no file of this host decides kube-proxy's mode, and how its mode is changed; none where
    /// a file does, or may.
    pub fn refusal(&self) -> Option<Error> {
        let contested = |cause: String, hint: String| {
            Some(Error::new(Kind::Contested, "kube-proxy", cause).hint(hint))
        };
        let then = "then run `proxyshift cleanup`";
        match self {
            Delivery::PartOf(host) => contested(
                format!("it is a part of {host}"),
                format!("set {}, {then}", host_settings(*host)),
            ),
            Delivery::Rke2 => contested(
                "rke2 writes the manifest of its static pod anew at each start".into(),
                format!(
                    "set kube-proxy-arg: [\"proxy-mode=MODE\"] in /etc/rancher/rke2/config.yaml and \
                     restart rke2, {then}"
                ),
            ),
            Delivery::DaemonSet(map) => contested(
                format!(
                    "it is a pod of a DaemonSet, whose settings are in the ConfigMap {}{}, the same \
                     for every node: nothing on this host is edited",
                    map.name(),
                    map.origin()
                ),
                "such a node moves by the node's label: `proxyshift cluster prepare --to MODE`, once \
                 for the cluster, and then `migrate` on the node itself, where the kubelet's \
                 kubeconfig is"
                    .into(),
            ),
            Delivery::Managed(Cloud::Aks) => contested(
                "AKS writes its DaemonSet, and undoes every edit".into(),
                format!("set the mode by `az aks update --kube-proxy-config FILE`, {then}"),
            ),
            Delivery::Managed(Cloud::Gke) => contested(
                "GKE writes the manifest of its static pod at each boot".into(),
                "GKE alone decides the mode of its nodes".into(),
            ),
            Delivery::Pod | Delivery::Container | Delivery::Unit(_) | Delivery::Unknown => None,
        }
    }

    /// The remedy that changes a setting: `line` in the configuration file `file`, if kube-proxy
    /// has one, or else `flag` on its command line; then a restart.
    pub fn setting(&self, file: Option<&str>, line: &str, flag: &str, node: &str) -> String {
        let restart = self.restart(node);
        let rancher = |of: &str| {
            let arg = flag.trim_start_matches('-').replace(" --", "\", \"");
            format!(
                "kube-proxy-arg: [\"{arg}\"]   # in /etc/rancher/{of}/config.yaml; then: {restart}"
            )
        };
        match (self, file) {
            (Delivery::PartOf(HostProgram::K3s), _) => rancher("k3s"),
            (Delivery::Rke2, _) => rancher("rke2"),
            (Delivery::PartOf(HostProgram::Kubelite), _) => {
                format!(
                    "{flag}   # a line of /var/snap/microk8s/current/args/kube-proxy; then: {restart}"
                )
            }
            (Delivery::PartOf(HostProgram::OpenshiftSdn), _) => {
                format!("{flag}   # in spec.kubeProxyConfig: oc edit network.operator cluster")
            }
            (Delivery::DaemonSet(map), _) => format!(
                "{line}   # in the ConfigMap {}{}, of every node; then: {restart}",
                map.name(),
                map.origin()
            ),
            (Delivery::Managed(Cloud::Aks), _) => format!(
                "{flag}   # AKS writes its DaemonSet itself, and takes the mode and the times of ipvs \
                 alone: az aks update --kube-proxy-config FILE"
            ),
            (Delivery::Managed(Cloud::Gke), _) => format!(
                "{flag}   # GKE writes the manifest of its static pod at each boot, and takes no such \
                 setting"
            ),
            (Delivery::Pod | Delivery::Container, Some(file)) => format!(
                "{line}   # in {file} of its container, so in the ConfigMap or the host's file that \
                 is mounted there; then: {restart}"
            ),
            (Delivery::Pod, None) => {
                format!(
                    "{flag}   # in the command of its manifest; the kubelet restarts a static pod"
                )
            }
            (Delivery::Container, None) => {
                format!("{flag}   # on the command line of its container, which is made anew")
            }
            (Delivery::Unit(_), Some(file)) => format!("{line}   # in {file}; then: {restart}"),
            (Delivery::Unit(unit), None) => {
                format!("{flag}   # in ExecStart: systemctl edit --full {unit}; then: {restart}")
            }
            (Delivery::Unknown, Some(file)) if file == KUBEADM => format!(
                "{line}   # in {file} (with kubeadm: in the ConfigMap kube-system/kube-proxy); then \
                 restart kube-proxy"
            ),
            (Delivery::Unknown, Some(file)) => {
                format!("{line}   # in {file}; then restart kube-proxy")
            }
            (Delivery::Unknown, None) => {
                format!("{flag}   # on kube-proxy's command line; then restart it")
            }
        }
    }

    /// The command that restarts kube-proxy on the node `node`.
    pub fn restart(&self, node: &str) -> String {
        match self {
            Delivery::PartOf(HostProgram::K3s) => {
                "systemctl restart k3s   # on an agent: k3s-agent".into()
            }
            Delivery::PartOf(HostProgram::Kubelite) => {
                "snap restart microk8s.daemon-kubelite".into()
            }
            Delivery::PartOf(HostProgram::OpenshiftSdn) => {
                format!(
                    "oc -n openshift-sdn delete pod -l app=sdn --field-selector spec.nodeName={node}"
                )
            }
            Delivery::Rke2 => "systemctl restart rke2-agent   # on a server: rke2-server".into(),
            Delivery::Managed(Cloud::Aks) => format!(
                "kubectl -n kube-system delete pod -l component=kube-proxy --field-selector \
                 spec.nodeName={node}"
            ),
            Delivery::Pod | Delivery::Managed(Cloud::Gke) => {
                "crictl stop $(crictl ps --name kube-proxy -q)   # the kubelet starts it again"
                    .into()
            }
            Delivery::Container => {
                "docker restart kube-proxy   # or by the engine that runs it".into()
            }
            Delivery::Unit(unit) => format!("systemctl restart {unit}"),
            Delivery::DaemonSet(_) | Delivery::Unknown => format!(
                "kubectl -n kube-system delete pod -l k8s-app=kube-proxy --field-selector \
                 spec.nodeName={node}"
            ),
        }
    }

    /// The commands that show the end of kube-proxy's log.
    pub fn logs(&self) -> Vec<String> {
        let pod = "crictl logs --tail=20 $(crictl ps -a --name kube-proxy -q | head -1)";
        let unit = |unit: &str| format!("journalctl -u {unit} -n 50 --no-pager");
        match self {
            Delivery::PartOf(HostProgram::K3s) => vec![unit("k3s") + "   # on an agent: k3s-agent"],
            Delivery::PartOf(HostProgram::Kubelite) => vec![unit("snap.microk8s.daemon-kubelite")],
            Delivery::PartOf(HostProgram::OpenshiftSdn)
            | Delivery::DaemonSet(_)
            | Delivery::Managed(_)
            | Delivery::Pod => {
                vec![pod.into()]
            }
            Delivery::Rke2 => vec![
                "export CRI_CONFIG_FILE=/var/lib/rancher/rke2/agent/etc/crictl.yaml \
                 PATH=$PATH:/var/lib/rancher/rke2/bin"
                    .into(),
                pod.into(),
            ],
            Delivery::Container => vec!["docker logs --tail=20 kube-proxy".into()],
            Delivery::Unit(name) => vec![unit(name)],
            Delivery::Unknown => {
                vec![format!("{pod}   # of a pod"), format!("{}   # of a unit", unit("kube-proxy"))]
            }
        }
    }
}

/// Where a host program's settings of kube-proxy are, and how it takes them.
fn host_settings(host: HostProgram) -> &'static str {
    match host {
        HostProgram::K3s => {
            "kube-proxy-arg: [\"proxy-mode=MODE\"] in /etc/rancher/k3s/config.yaml and restart k3s"
        }
        HostProgram::Kubelite => {
            "--proxy-mode=MODE in /var/snap/microk8s/current/args/kube-proxy and restart MicroK8s"
        }
        HostProgram::OpenshiftSdn => "the mode by `oc edit network.operator cluster`",
    }
}

/// Whether a process runs in a container; none if the capture does not tell. Up to 0.1.0 the
/// version of a program that was not the host's own came from its metrics, and that of the host's
/// from the program itself.
fn is_contained(process: &Process) -> Option<bool> {
    if !process.cgroups.is_empty() {
        return Some(cgroup::is_container(&process.cgroups));
    }
    let source = process.version_source.as_deref()?;
    if source.starts_with("http") {
        return Some(true);
    }
    source.contains("--version").then_some(false)
}

#[cfg(test)]
mod tests;
