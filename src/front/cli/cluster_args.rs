//! The arguments of `cluster`, whose verbs are an administrator's: from anywhere, without root.

use std::path::PathBuf;

use clap::Subcommand;

use crate::front::cli::help;
use crate::front::cli::target::target;
use crate::run::cluster::DaemonSetName;
use crate::state::kube_proxy::Mode;

/// The verbs of `cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Arranges kubeadm's DaemonSet so that nodes can move to another mode one by one. No pod restarts.
    ///
    /// A second DaemonSet in that mode stands beside the first; the label proxyshift.dev/mode says
    /// which of the two a node has, and no node has it yet. Shows what is to be written, has the API
    /// server try each write and one Pod, names what admission makes of them, asks, and writes.
    /// Whatever it ends at, the same command goes on there; twice is as once.
    #[command(after_help = help::CLUSTER_PREPARE)]
    Prepare(PrepareArgs),
    /// Lists the Linux nodes that run kube-proxy: label, pod, version, pending run (exit code 6), and
    /// what is not as it should be, with the remedy.
    #[command(after_help = help::CLUSTER_STATUS)]
    Status(ClusterArgs),
}

/// Which cluster, and which DaemonSet there.
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    /// The kubeconfig [default: that of KUBECONFIG, or ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Its context [default: its current one].
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// kube-proxy's DaemonSet [default: the one with the label k8s-app=kube-proxy].
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = daemonset)]
    pub daemonset: Option<DaemonSetName>,
}

/// The options of `cluster prepare`.
#[derive(Debug, clap::Args)]
pub struct PrepareArgs {
    /// The mode that nodes are to move to.
    #[arg(long, value_name = "MODE", value_parser = target())]
    pub to: Mode,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Show what is to be written, and have the server try it; write nothing.
    #[arg(long, conflicts_with = "render")]
    pub dry_run: bool,
    /// Write the manifests into this folder, and nothing into the cluster: for GitOps, or for who may
    /// not write there.
    #[arg(long, value_name = "DIR")]
    pub render: Option<PathBuf>,
}

fn daemonset(text: &str) -> Result<DaemonSetName, String> {
    let parts = text.split_once('/').filter(|(a, b)| !a.is_empty() && !b.is_empty());
    let (namespace, name) = parts.ok_or("write it as NAMESPACE/NAME: `kube-system/kube-proxy`")?;
    Ok(DaemonSetName { namespace: namespace.into(), name: name.into() })
}
