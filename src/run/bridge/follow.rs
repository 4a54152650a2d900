//! Follows the API server while the bridge serves: the bridge gets the endpoints that the API has.
//!
//! Threads read the API server. The bridge is written by the run's own thread, in its waits.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::api::ApiReader;
use crate::apply;
use crate::apply::conntrack::clear_stale;
use crate::error::{Error, Kind, Result};
use crate::kube_proxy::api_services::ApiServices;
use crate::kube_proxy::bridge::{Bridge, Frontend, LoadedBridges};
use crate::kube_proxy::mode;
use crate::kube_proxy::stale_entries::ServiceDestinations;
use crate::node;
use crate::run::Context;
use crate::run::bridge::files::{first_loaded, followed_api, script_file, unknown};
use crate::run::named;
use crate::state::kube_proxy::{IPVS_LINK, Mode};
use crate::state::{Family, NodeState};
use crate::store::run::Run;

/// How long what was followed may not be followed before that is said: a server that restarts is away
/// for moments.
const AWAY: Duration = Duration::from_secs(3);

/// The pause before a bridge that the kernel refused is loaded again.
const RETRY: Duration = Duration::from_secs(10);

/// What follows the API server for one run: its bridge gets the endpoints that the API has, and who waits
/// for kube-proxy waits for no service that the API has no more.
pub(in crate::run) struct EndpointFollower {
    /// Reads the API server; none where it is not known how.
    reader: Option<ApiReader>,
    node: String,
    /// The bridges as they were loaded first; without a bridge, those that the run would have had.
    first: LoadedBridges,
    has_bridge: bool,
    /// The bridges as they are loaded, as far as this process knows.
    current: BTreeMap<Family, Bridge>,
    /// What the API has; none until it has answered.
    services: Option<ApiServices>,
    /// How many changes of the API `services` has.
    known: u64,
    /// Whether the bridges may not be as the API has them.
    is_due: bool,
    /// Until when a bridge that the kernel refused is not loaded again.
    refused: Option<Instant>,
    /// Whether it was said that the API is away.
    is_away: bool,
    /// Whether it was said that the API is another cluster's.
    is_of_others: bool,
}

impl EndpointFollower {
    /// Begins to follow for a run; none where it has neither a bridge nor noted how the API server is
    /// reached. `base` is the node state before the run, `is_new` whether this process has just loaded
    /// the bridge. Says why, where the API server cannot be followed for a bridge.
    pub(in crate::run) fn start(
        context: &Context<'_>,
        run: &Run,
        base: &NodeState,
        is_new: bool,
    ) -> Option<EndpointFollower> {
        let loaded = match first_loaded(context, run) {
            Ok(loaded) => loaded,
            Err(e) => {
                say_away(context, &e);
                return None;
            }
        };
        let api = followed_api(context, run).transpose();
        if loaded.is_none() && api.is_none() {
            return None;
        }
        let has_bridge = loaded.is_some();
        let first = match loaded {
            Some(first) => first,
            None => LoadedBridges(Bridge::of(base, run.modes()?.from)),
        };
        let of_family = |bridge: &Bridge| (bridge.family, bridge.clone());
        let current =
            if is_new { first.0.iter().map(of_family).collect() } else { BTreeMap::new() };
        let mut follower = EndpointFollower {
            reader: None,
            node: String::new(),
            current,
            first,
            has_bridge,
            services: None,
            known: 0,
            is_due: false,
            refused: None,
            is_away: false,
            is_of_others: false,
        };
        let read = api.unwrap_or_else(|| Err(unknown())).and_then(|api| {
            follower.node.clone_from(&api.node);
            ApiReader::start(move || api.access())
                .map_err(|e| Error::new(Kind::Unexpected, "what follows the API server", e))
        });
        match read {
            Ok(reader) => follower.reader = Some(reader),
            Err(e) => follower.away(context, &e),
        }
        Some(follower)
    }

    /// What the API has; none until it has answered.
    pub(in crate::run) fn services(&self) -> Option<&ApiServices> {
        self.services.as_ref()
    }

    /// Says that endpoints were not followed, unless they were, or that was said.
    pub(in crate::run) fn say_if_silent(&mut self, context: &Context<'_>) {
        if self.services.is_none() && !self.is_away && !self.is_of_others {
            self.away(context, &"the API server has not answered in time");
        }
    }

    /// Loads the bridge with what the API has by now, if that has changed; says when the API is away,
    /// and when it is back. Never fails: nothing that waits for kube-proxy must end because of it.
    pub(in crate::run) fn follow(&mut self, context: &Context<'_>, run: &Run, base: &NodeState) {
        self.read(context);
        let may_load = self.refused.is_none_or(|until| Instant::now() >= until);
        if self.has_bridge && self.is_due && may_load {
            self.load_if_known(context, run, base);
        }
    }

    /// Reads what the API has by now, and says when it is away, and when it is back. Changes nothing.
    pub(in crate::run) fn read(&mut self, context: &Context<'_>) {
        let Some(reader) = &self.reader else { return };
        let (node, failure) = (&self.node, reader.failure());
        let read = reader.read(self.known, |objects| {
            ApiServices::of(objects.services(), objects.slices(), node)
        });
        if let Some((known, services)) = read {
            self.known = known;
            // Of another cluster's, nothing counts.
            let is_own = self.first.are_known_to(&services);
            if self.has_bridge && !is_own && !self.is_of_others {
                say_away(context, &"the API server has none of this node's services");
            }
            self.is_of_others = !is_own;
            if is_own {
                self.is_due |= self.services.as_ref() != Some(&services);
                self.services = Some(services);
            }
        }
        let is_new = self.services.is_none();
        match failure {
            Some((since, failure)) if !self.is_away && (is_new || since.elapsed() >= AWAY) => {
                self.away(context, &failure);
            }
            None if self.is_away && !is_new => {
                self.is_away = false;
                if self.has_bridge {
                    context.sink.note("endpoints are followed again");
                }
            }
            _ => {}
        }
    }

    /// Loads those bridges that are not as the API has them.
    fn load_if_known(&mut self, context: &Context<'_>, run: &Run, base: &NodeState) {
        let Some(services) = &self.services else { return };
        self.is_due = false;
        let wanted = self.first.following(services);
        for bridge in wanted {
            let family = bridge.family;
            if self.current.get(&family) == Some(&bridge) {
                continue;
            }
            match self.load(context, run, base, bridge) {
                Ok(()) => self.refused = None,
                Err(e) => {
                    self.is_due = true;
                    let before = self.refused.replace(Instant::now() + RETRY);
                    if before.is_none() {
                        say_away(context, &format!("the bridge cannot be loaded anew: {e}"));
                    }
                    return;
                }
            }
        }
    }

    /// Takes out of the bridge what the mode `to` does not serve `now`, in the families that it has
    /// written already: without the API, that alone tells of a service that was deleted or scaled to 0
    /// meanwhile. A mode that writes a family's services one by one tells nothing.
    pub(in crate::run) fn drop_unserved(
        &mut self,
        context: &Context<'_>,
        run: &Run,
        base: &NodeState,
        now: &NodeState,
        to: Mode,
    ) {
        // An API that has not been said to be away may answer yet.
        let is_without_api =
            self.has_bridge && self.services.is_none() && (self.is_away || self.is_of_others);
        if !is_without_api || !mode::of(to).writes_family_at_once() {
            return;
        }
        let (before, now) = (Bridge::of(base, to), Bridge::of(now, to));
        for family in self.first.0.iter().map(|bridge| bridge.family).collect::<Vec<_>>() {
            // What another kube-proxy has left there tells nothing.
            let had_any = of_family(&before, family)
                .is_some_and(|bridge| bridge.frontends.values().any(|b| b.has_endpoints()));
            let loaded = self.current.get(&family).or_else(|| of_family(&self.first.0, family));
            let Some(loaded) = loaded.filter(|_| !had_any) else { continue };
            let kept = loaded.without_unserved(of_family(&now, family));
            if kept == *loaded {
                continue;
            }
            let is_dropped = |frontend: &&Frontend| !kept.frontends.contains_key(frontend);
            let dropped: Vec<Frontend> =
                loaded.frontends.keys().filter(is_dropped).copied().collect();
            match self.load(context, run, base, kept) {
                Ok(()) => context.sink.note(format!(
                    "the bridge answers no more where {to} mode does not: {}",
                    named(&dropped)
                )),
                Err(e) => context.sink.warning(format!("the bridge still answers: {e}")),
            }
        }
    }

    /// Loads `bridge` in place of the one that is loaded, whose counter it continues, and writes it to
    /// the run's folder: an undo, or who loads it again, is to have the newest. Deletes the entries of
    /// conntrack that lead to an endpoint that is gone.
    ///
    /// # Errors
    /// When the kernel refuses it, or conntrack cannot be read.
    fn load(
        &mut self,
        context: &Context<'_>,
        run: &Run,
        base: &NodeState,
        bridge: Bridge,
    ) -> Result<()> {
        // A bridge that somebody has deleted counts from nothing.
        let counted = node::bridge::translated(context.tools, bridge.family).unwrap_or_default();
        let script = bridge.script_after(counted);
        apply::bridge::load(context.tools, &script)?;
        // On a disk that fails, the script of before is all there is.
        let written = context.store.folder(&run.id).write(&script_file(bridge.family), &script);
        if let Err(e) = written {
            context.sink.warning(format!("an undo has the endpoints of before: {e}"));
        }
        let links = base.links.iter().filter(|link| link.name != IPVS_LINK);
        let of_node = links.flat_map(|link| &link.addresses).map(IpNet::addr).collect();
        let services = bridge.services(&of_node);
        self.current.insert(bridge.family, bridge);
        clear_stale(&ServiceDestinations::new(&services, &base.links, &base.ipvs)).map(drop)
    }

    /// Notes that the API is away, and says so where a bridge keeps the endpoints of before.
    fn away(&mut self, context: &Context<'_>, why: &dyn Display) {
        self.is_away = true;
        if self.has_bridge {
            say_away(context, why);
        }
    }
}

/// The bridge of a family among `bridges`.
fn of_family(bridges: &[Bridge], family: Family) -> Option<&Bridge> {
    bridges.iter().find(|bridge| bridge.family == family)
}

fn say_away(context: &Context<'_>, why: &dyn Display) {
    context.sink.warning(format!("endpoints are not followed: {why}"));
}
