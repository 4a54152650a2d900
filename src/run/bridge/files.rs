//! The files of a run's folder from which its bridge is loaded again, and followed.

use serde::{Deserialize, Serialize};

use crate::api::access::ApiAccess;
use crate::error::{Error, Kind, Result};
use crate::kube_proxy::bridge::{Bridge, LoadedBridges};
use crate::kube_proxy::running::configured;
use crate::node::api_access::{self, ApiSource};
use crate::plan::playbook::ControllerChoice;
use crate::run::Context;
use crate::run::controller::find;
use crate::state::{Family, NodeState};
use crate::store::run::{ConfiguredBy, Run};

/// The file that has the bridges as they were loaded first.
const LOADED: &str = "bridge.json";

/// The file that tells how the API server is reached, without any credential.
const API: &str = "api.json";

/// How the API server is reached.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::run) struct FollowedApi {
    /// The name that this node has there.
    pub(in crate::run) node: String,
    /// Where the credentials are; none if that was not found as the run began.
    source: Option<ApiSource>,
    /// What configures kube-proxy.
    configured: Option<ConfiguredBy>,
}

impl FollowedApi {
    /// How kube-proxy reaches the API server, by the node state `now` and what configures it.
    fn of(now: &NodeState, configured_by: Option<&ConfiguredBy>) -> FollowedApi {
        let named = configured(now).and_then(|config| config.hostname_override);
        let own = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        // As kube-proxy makes it of either (GetHostname of k8s.io/component-helpers).
        let node = named.unwrap_or_else(own).trim().to_lowercase();
        let source = configured_by.and_then(|by| api_access::find(&by.controller, &by.source).ok());
        FollowedApi { node, source, configured: configured_by.cloned() }
    }

    /// The address and the credentials as they are now.
    ///
    /// # Errors
    /// When they cannot be found or read, or are not supported.
    pub(in crate::run) fn access(&self) -> Result<ApiAccess> {
        match (&self.source, &self.configured) {
            (Some(source), _) => api_access::read(source),
            (None, Some(by)) => api_access::read(&api_access::find(&by.controller, &by.source)?),
            (None, None) => Err(unknown()),
        }
    }
}

/// It is not known how the API server is reached.
pub(in crate::run) fn unknown() -> Error {
    Error::new(Kind::NotFound, "kube-proxy's kubeconfig", "is not known")
}

/// The name of the file that has the script of a family's bridge.
pub(in crate::run) fn script_file(family: Family) -> String {
    format!("bridge.{family}.nft")
}

/// Writes bridges that are about to be loaded.
///
/// # Errors
/// When the store cannot be written.
pub(in crate::run) fn write(context: &Context<'_>, run: &Run, bridges: &[Bridge]) -> Result<()> {
    let folder = context.store.folder(&run.id);
    for bridge in bridges {
        folder.write(&script_file(bridge.family), &bridge.script())?;
    }
    folder.write(LOADED, &as_text(LOADED, &LoadedBridges(bridges.to_vec()))?)
}

/// Writes how the API server is reached, by the node state `base` before the run.
///
/// # Errors
/// When the store cannot be written.
pub(in crate::run) fn write_api(context: &Context<'_>, run: &Run, base: &NodeState) -> Result<()> {
    let by_run = run.migration().and_then(|migration| migration.kube_proxy.clone());
    // An upgrade configures nothing, and so has not looked.
    let detected = || find(&ControllerChoice::Auto, base).ok();
    let configured = by_run
        .or_else(|| detected().map(|(controller, source)| ConfiguredBy { controller, source }));
    let api = FollowedApi::of(base, configured.as_ref());
    context.store.folder(&run.id).write(API, &as_text(API, &api)?)
}

/// The bridges of the run as they were loaded first; none in a run without a bridge.
///
/// # Errors
/// When the file is there and cannot be read.
pub(in crate::run) fn first_loaded(
    context: &Context<'_>,
    run: &Run,
) -> Result<Option<LoadedBridges>> {
    let folder = context.store.folder(&run.id);
    if !folder.contains(LOADED) {
        return Ok(None);
    }
    parse(LOADED, &folder.read(LOADED)?).map(Some)
}

/// How the API server is reached; none in a run that has not noted it, as a clean-up.
///
/// # Errors
/// When that cannot be read.
pub(in crate::run) fn followed_api(
    context: &Context<'_>,
    run: &Run,
) -> Result<Option<FollowedApi>> {
    let folder = context.store.folder(&run.id);
    folder.contains(API).then(|| parse(API, &folder.read(API)?)).transpose()
}

fn as_text(file: &str, value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::new(Kind::Unexpected, file, e))
}

fn parse<T: for<'de> Deserialize<'de>>(file: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::new(Kind::Parse, file, e))
}
