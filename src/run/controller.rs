//! What runs kube-proxy on this node, and where kube-proxy reads its mode.

use std::net::IpAddr;
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::kube_proxy::mode;
use crate::kube_proxy::proxy_state::ProxyState;
use crate::kube_proxy::services::Location;
use crate::node::kube_proxy_controller::{api_server, config_source, detect, must_own};
use crate::plan::playbook::ControllerChoice;
use crate::state::NodeState;
use crate::state::kube_proxy::{ConfigSource, Controller};
use crate::state::tools::Process;

/// kube-proxy's controller (the one that the playbook names, or the detected one), and the source
/// of kube-proxy's configuration.
///
/// # Errors
/// [`Kind::Blocked`] unless exactly one kube-proxy runs; [`Kind::UnknownController`] where the
/// controller cannot be detected, or the named one does not run that kube-proxy; [`Kind::Contested`] where something beyond this node manages the
/// configuration, such as a DaemonSet.
pub(super) fn find(
    choice: &ControllerChoice,
    now: &NodeState,
) -> Result<(Controller, ConfigSource)> {
    let process = only_process(now)?;
    let controller = match choice {
        ControllerChoice::Auto => detect(process, Path::new("/"))?,
        ControllerChoice::Named(controller) => {
            must_own(controller, process, Path::new("/"))?;
            controller.clone()
        }
    };
    if let Some(server) = api_server(&controller)? {
        must_not_serve(server, now)?;
    }
    let source = config_source(&controller, process)?;
    Ok((controller, source))
}

/// Refuses an API server that is reached by the kube-proxy that is about to move: once that serves
/// nothing, nobody brings it back.
fn must_not_serve(server: IpAddr, now: &NodeState) -> Result<()> {
    let location = Location::Address(server);
    if !mode::all().any(|mode| mode.services(now).keys().any(|key| key.location == location)) {
        return Ok(());
    }
    let cause = "is reached by a Service address, which the kube-proxy of this node serves";
    Err(Error::new(Kind::Blocked, format!("the API server at {server}"), cause)
        .hint("give the kubelet's kubeconfig an address of the API server's own"))
}

/// The process of kube-proxy on this node, which must be the only one.
///
/// # Errors
/// [`Kind::Contested`] when kube-proxy is a part of another program. [`Kind::Blocked`] when no
/// kube-proxy runs, or more than one, or when that is not known.
pub(super) fn only_process(now: &NodeState) -> Result<&Process> {
    let blocked = |cause: String| Error::new(Kind::Blocked, "kube-proxy", cause);
    let state = ProxyState::of(now);
    let error = match &state {
        ProxyState::One(process) => return Ok(process),
        ProxyState::Many(all) => {
            let pids: Vec<String> = all.iter().map(|p| p.pid.to_string()).collect();
            let cause = format!("runs {} times here: pid {}", all.len(), pids.join(", "));
            blocked(cause).hint("end all but one")
        }
        ProxyState::Down(_) | ProxyState::Replaced(_) => {
            blocked(state.absence().unwrap_or_default())
                .hint("`proxyshift check --only kube-proxy.absent` says more")
        }
        ProxyState::Unknown(why) => blocked(format!("whether it runs is not known: {why}")),
        ProxyState::PartOf(..) | ProxyState::Gone => blocked("does not run here".into())
            .hint("start it; without kube-proxy, `proxyshift cleanup` removes leftovers alone"),
    };
    let refusal = state.delivery(now).refusal().filter(|_| state.runs());
    Err(refusal.unwrap_or(error))
}
