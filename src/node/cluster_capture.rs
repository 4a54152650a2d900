//! Captures what the API server says of a kube-proxy that is a pod of a DaemonSet, by the kubelet's own
//! credentials, and where this node's kubeconfigs have the server.
//!
//! A server that is away costs a capture [`LIMIT`] once, and fails none.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::foreign::{Allowance, Root};
use super::kube_proxy_controller::difference;
use super::kubelet;
use super::processes::RunningComponent;
use crate::api::kubeconfig::server_of;
use crate::api::{ApiClient, ApiFailure, read};
use crate::state::cgroup::{self, PodSign};
use crate::state::cluster_facts::{
    ClusterAnswer, ClusterFacts, NamedUid, ProxyConfigMap, ProxyDaemonSet, ProxyObjects, ProxyPod,
    ServerInUse, UnreadObject,
};
use crate::state::kube_proxy::controller::PROGRAM;
use crate::state::kube_proxy::{
    CommandLine, KubeProxyConfig, Mode, kubeconfig_of_file, kubeconfig_of_flags, serves,
};
use crate::state::kubernetes::{
    ApiKind, ClusterNode, ClusterPod, ConfigMapObject, DaemonSet, MODE_LABEL, ObjectMeta,
    ObjectRef, PodSpec, manager, mode_of_terms, name_for_mode, pod_of_process,
};
use crate::state::tools::Process;

/// How long the API server may take for all that is asked.
const LIMIT: Duration = Duration::from_secs(3);

/// How long a server that has not answered is not asked again. A run captures the node several times.
const LEFT_ALONE: Duration = Duration::from_secs(60);

/// The size up to which a kubeconfig or a configuration is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// Captures the facts; none on a node that has neither a kubeconfig nor a kube-proxy of a DaemonSet.
pub(super) fn capture(components: &[RunningComponent]) -> Option<ClusterFacts> {
    let is_own = |component: &&RunningComponent| {
        component.process.name == PROGRAM && serves(&component.process.args)
    };
    let own: Vec<&RunningComponent> = components.iter().filter(is_own).collect();
    let has_kubelet = components.iter().any(|component| component.process.name == "kubelet");
    if own.is_empty() && !has_kubelet {
        return None;
    }
    let kubeconfig = kubelet::kubeconfig(Path::new("/")).ok().flatten();
    let mut servers = Vec::new();
    if let (Some(path), Ok(root)) = (&kubeconfig, Root::ours()) {
        servers.extend(server_in("kubelet", &root, &path.to_string_lossy()));
    }
    servers.extend(own.iter().filter_map(|component| server_of_kube_proxy(component)));
    // Of two kube-proxies of one form, once is enough.
    servers.dedup();
    let processes: Vec<&Process> = own.iter().map(|component| &component.process).collect();
    let kube_proxy = of_pods(&processes, kubeconfig.as_deref());
    let facts = ClusterFacts { servers, kube_proxy };
    (facts != ClusterFacts::default()).then_some(facts)
}

/// The server in the kubeconfig at `path` of a root.
fn server_in(program: &str, root: &Root, path: &str) -> Option<ServerInUse> {
    let text = root.text(path, LARGEST, &mut Allowance::of_a_capture()).ok()??;
    let (program, kubeconfig) = (program.to_owned(), path.to_owned());
    Some(ServerInUse { program, kubeconfig, server: server_of(&text)? })
}

/// The server that the kubeconfig of a kube-proxy names, in its container if it is in one.
fn server_of_kube_proxy(component: &RunningComponent) -> Option<ServerInUse> {
    let args = &component.process.args;
    let root = Root::of(&component.pinned).ok()?;
    let named = match CommandLine::parse(args).ok()?.config {
        Some(config) => {
            let text = root.text(&config, LARGEST, &mut Allowance::of_a_capture()).ok()??;
            kubeconfig_of_file(&config, &text).ok()?
        }
        None => kubeconfig_of_flags(args),
    };
    server_in(PROGRAM, &root, named?.to_str()?)
}

/// What the API server says of these processes of kube-proxy; none if they are in no pods that it may
/// know.
fn of_pods(processes: &[&Process], kubeconfig: Option<&Path>) -> Option<ClusterAnswer> {
    let own = processes.iter().copied().filter(|process| may_be_of_daemon_set(process));
    let processes: Vec<&Process> = own.collect();
    if processes.is_empty() {
        return None;
    }
    let Some(kubeconfig) = kubeconfig else {
        return Some(ClusterAnswer::Unanswered("no kubeconfig of the kubelet is known".into()));
    };
    let config = processes.iter().find_map(|p| CommandLine::parse(&p.args).ok()?.config);
    let key = config.as_deref().and_then(|path| Path::new(path).file_name());
    let key = key.map_or_else(|| "config.conf".into(), |name| name.to_string_lossy().into_owned());
    match answer_of(kubeconfig, &processes, key) {
        Ok(found) => found.map(|objects| ClusterAnswer::Objects(Box::new(objects))),
        Err(why) => Some(ClusterAnswer::Unanswered(why)),
    }
}

/// Whether a process may be in a pod that a DaemonSet made. Where the control groups are named as usual, the
/// uid in them of a static pod has another form.
fn may_be_of_daemon_set(process: &Process) -> bool {
    let mut signs = cgroup::of_the_system(&process.cgroups).flat_map(cgroup::pod_signs);
    match cgroup::is_pod(&process.cgroups) {
        true => signs.any(|sign| matches!(sign, PodSign::Uid(_))),
        false => signs.next().is_some(),
    }
}

/// When a server has not answered, and why.
static SILENCE: Mutex<Option<(Instant, String)>> = Mutex::new(None);

/// What the API server has of the pods of these processes; none if no DaemonSet made them.
///
/// # Errors
/// Why it is not known.
fn answer_of(
    kubeconfig: &Path,
    processes: &[&Process],
    key: String,
) -> Result<Option<ProxyObjects>, String> {
    let mut silence = SILENCE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, why)) = silence.as_ref().filter(|(at, _)| at.elapsed() < LEFT_ALONE) {
        return Err(why.clone());
    }
    let node = kubelet::node_name(kubeconfig).map_err(|e| e.to_string())?;
    let found = kubelet::client_until(kubeconfig, Instant::now() + LIMIT).and_then(|client| {
        ProxyReader { client, key, found: ProxyObjects::default(), texts: BTreeMap::new() }
            .read(&node, processes)
    });
    found.map_err(|failure| {
        let why = failure.to_string();
        if failure.may_pass() {
            *silence = Some((Instant::now(), why.clone()));
        }
        why
    })
}

/// Reads the objects of kube-proxy one by one.
struct ProxyReader {
    client: ApiClient,
    /// The key of kube-proxy's configuration in a ConfigMap.
    key: String,
    found: ProxyObjects,
    /// The configurations, by the names of their ConfigMaps.
    texts: BTreeMap<String, String>,
}

impl ProxyReader {
    fn read(
        mut self,
        node: &str,
        processes: &[&Process],
    ) -> Result<Option<ProxyObjects>, ApiFailure> {
        let selector = format!("spec.nodeName={node}");
        let selectors = [("fieldSelector", selector.as_str())];
        let all: Vec<ClusterPod> =
            read::list_of_kind(&self.client, ApiKind::Pod, None, &selectors)?;
        let mut own: Vec<(ClusterPod, NamedUid)> = Vec::new();
        let runs_one = |pod: &&ClusterPod| {
            let of = |process: &&Process| pod_of_process(&all, &process.cgroups);
            processes.iter().filter_map(of).any(|own| own.metadata.uid == pod.metadata.uid)
        };
        for pod in all.iter().filter(runs_one) {
            let owner = pod.metadata.controller().filter(|owner| owner.kind == "DaemonSet");
            let Some(owner) = owner else { continue };
            let made_by = NamedUid { name: owner.name.clone(), uid: owner.uid.clone() };
            own.push((pod.clone(), made_by));
        }
        let Some((first, made_by)) = own.first() else { return Ok(None) };
        self.found.namespace.clone_from(&first.metadata.namespace);
        let made_by = made_by.name.clone();
        let named = ObjectRef::of_cluster(ApiKind::Node, node);
        let node: ClusterNode = read::read(&self.client, &named)?;
        self.found.label = node.metadata.labels.get(MODE_LABEL).cloned();
        self.found.node = id(&node.metadata);
        for (pod, made_by) in own {
            let config_map = self.config_map_of(&pod.spec)?;
            self.found.pods.push(ProxyPod {
                id: id(&pod.metadata),
                daemon_set: made_by,
                image: image_of(&pod.spec),
                config_map,
                is_ready: pod.is_ready(),
            });
        }
        self.daemon_sets(&made_by)?;
        Ok(Some(self.found))
    }

    /// Reads the DaemonSet `name`, which made the pod, and the other.
    fn daemon_sets(&mut self, name: &str) -> Result<(), ApiFailure> {
        self.daemon_set(name, true)?;
        let keeps_to = self.found.daemon_set(name).and_then(|set| set.keeps_to.clone());
        let mode = keeps_to.or_else(|| self.found.label.clone()).unwrap_or_default();
        let original = name.strip_suffix(&format!("-{mode}")).unwrap_or(name).to_owned();
        if original != name {
            self.daemon_set(&original, true)?;
        }
        self.found.original.clone_from(&original);
        let passed_over = |found: &ProxyObjects| -> Option<Mode> {
            found.daemon_set(&original)?.passes_over.as_ref()?.parse().ok()
        };
        let wanted = passed_over(&self.found);
        if wanted.is_none() && self.found.daemon_set(&original).is_none() {
            // A node that may not read the original may read no other.
            return self.compare(&original);
        }
        for mode in Mode::ALL {
            let other = name_for_mode(&original, mode);
            let is_meant = wanted == Some(mode);
            if other != name && (is_meant || wanted.is_none()) {
                self.daemon_set(&other, is_meant)?;
            }
        }
        self.compare(&original)
    }

    /// Reads a DaemonSet. That it cannot be read is kept if it `is_meant` to be there.
    fn daemon_set(&mut self, name: &str, is_meant: bool) -> Result<(), ApiFailure> {
        let named = ObjectRef::new(ApiKind::DaemonSet, &self.found.namespace, name);
        let Some(set) = self.object::<DaemonSet>(&named, is_meant)? else { return Ok(()) };
        let spec = set.pod_spec();
        let config_map = self.config_map_of(&spec)?;
        let of_terms =
            |operator| mode_of_terms(&set.spec.template["spec"], operator).map(str::to_owned);
        self.found.daemon_sets.push(ProxyDaemonSet {
            id: id(&set.metadata),
            image: image_of(&spec),
            passes_over: of_terms("NotIn"),
            keeps_to: of_terms("In"),
            is_on_delete: set.is_on_delete(),
            config_map,
            managed_by: manager(&set.metadata),
        });
        Ok(())
    }

    /// The name of the ConfigMap that has the configuration of pods of this spec, which is read.
    fn config_map_of(&mut self, spec: &PodSpec) -> Result<Option<String>, ApiFailure> {
        let pod = ClusterPod { spec: spec.clone(), ..ClusterPod::default() };
        for name in pod.config_maps() {
            if self.texts.contains_key(name) {
                return Ok(Some(name.to_owned()));
            }
            let named = ObjectRef::new(ApiKind::ConfigMap, &self.found.namespace, name);
            let Some(map) = self.object::<ConfigMapObject>(&named, true)? else { continue };
            let Some(text) = map.data.get(&self.key) else { continue };
            self.found.config_maps.push(ProxyConfigMap {
                id: id(&map.metadata),
                key: self.key.clone(),
                mode: KubeProxyConfig::parse(name, text).ok().map(|config| config.mode()),
                managed_by: manager(&map.metadata),
            });
            self.texts.insert(name.to_owned(), text.clone());
            return Ok(Some(name.to_owned()));
        }
        Ok(None)
    }

    /// Compares the configurations of the original and of the other.
    fn compare(&mut self, original: &str) -> Result<(), ApiFailure> {
        let text = |set: Option<&ProxyDaemonSet>| self.texts.get(set?.config_map.as_ref()?);
        let other = self.found.of_modes().next().map(|(_, set)| set);
        if let (Some(a), Some(b)) = (text(self.found.daemon_set(original)), text(other)) {
            // What is not YAML has no mode either.
            self.found.differ_by = difference(a, b, &["mode"]).ok().flatten();
        }
        Ok(())
    }

    /// An object; none if it cannot be read, which is kept if it `is_meant` to be there.
    ///
    /// # Errors
    /// When the server does not answer.
    fn object<T: DeserializeOwned>(
        &mut self,
        named: &ObjectRef,
        is_meant: bool,
    ) -> Result<Option<T>, ApiFailure> {
        match read::read(&self.client, named) {
            Ok(object) => Ok(Some(object)),
            Err(failure) if failure.may_pass() => Err(failure),
            Err(failure) => {
                let unread = UnreadObject { object: named.to_string(), why: failure.to_string() };
                if is_meant && !self.found.unread.contains(&unread) {
                    self.found.unread.push(unread);
                }
                Ok(None)
            }
        }
    }
}

fn id(metadata: &ObjectMeta) -> NamedUid {
    NamedUid { name: metadata.name.clone(), uid: metadata.uid.clone() }
}

/// The image of the container that runs kube-proxy: the one of that name, or the only one.
fn image_of(spec: &PodSpec) -> Option<String> {
    let named = spec.containers.iter().find(|container| container.name == PROGRAM);
    let only = || match &spec.containers[..] {
        [one] => Some(one),
        _ => None,
    };
    named.or_else(only).map(|container| container.image.clone())
}
