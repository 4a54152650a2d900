//! The reason to remove or keep an object: a code for decisions, and a sentence for people.

use std::fmt;

use ipnet::IpNet;

use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// Why a plan removes, keeps or suspects an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Only modes that do not run use it; those modes, and the running one.
    OtherModes(Vec<Mode>, Mode),
    /// The running version of kube-proxy has no such chain.
    NotInVersion(Version),
    /// A chain of a later version replaces it; that chain.
    Replaced(String),
    /// The running mode uses it.
    InUse(Mode),
    /// Both iptables and ipvs mode use it.
    SharedByModes,
    /// The running mode is not clear; why.
    ModeUnknown(String),
    /// The kubelet may use it; the evidence.
    KubeletMayUse(String),
    /// It is the kubelet's.
    Kubelets,
    /// The catalogue has the reason to keep it.
    Catalogue(String),
    /// The running mode jumps to that chain in another way.
    NoJumpInMode(Mode, String),
    /// A later version of kube-proxy has no such jump.
    NoJumpInVersion,
    /// A virtual server at kube-proxy's address that does not forward as kube-proxy's do.
    DoesNotMasquerade,
    /// It is foreign; the evidence.
    Foreign(String),
    /// It jumps to a removed chain.
    LeadsToRemoved(String),
    /// It jumps to a kept chain.
    LeadsToKept,
    /// It jumps to a chain without rules.
    LeadsToEmpty(String),
    /// It is a chain without rules.
    Empty,
    /// A kept rule refers to it.
    ReferencedBy(String),
    /// It is a member of a kept set.
    MemberOf(String),
    /// It holds a rule of another owner.
    HoldsForeignRule {
        /// That owner; `None` if it is not known.
        owner: Option<String>,
        /// The rule.
        rule: String,
    },
    /// Its owner is gone; the owner, and the evidence.
    OwnerGone(String, String),
    /// As [`Reason::OwnerGone`], but the object has no evidence of its own for that owner.
    OwnerGoneUnsigned(String, String),
    /// Its owner seems to be gone; the owner, and the evidence.
    OwnerSeemsGone(String, String),
    /// Its owner is alive; the owner, and the evidence.
    OwnerAlive(String, String),
    /// The liveness of its owner is unknown; the owner, and the missing evidence.
    OwnerUnknown(String, String),
    /// Its owner never writes it again; the owner.
    NeverRewritten(String),
    /// An object of docker; no rule leads to it.
    Unreachable,
    /// An object of docker; it names a missing link.
    NoSuchLink(String),
    /// A rule of flannel, or one of the same shape.
    Flannel(FlannelReason),
    /// At weight 0; the state has no connections.
    ConnectionsUnknown,
    /// At weight 0, and unused.
    NoFlows,
    /// At weight 0, and earlier flows still go there.
    OldFlows {
        /// Their number.
        flows: u64,
        /// True if they end only after a pause.
        until_they_pause: bool,
    },
    /// A leftover for that reason, but its owner was not requested.
    OwnerOutOfScope(Box<Reason>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::OtherModes(modes, running) => {
                let modes: Vec<&str> = modes.iter().map(|m| m.name()).collect();
                write!(f, "of {} mode; kube-proxy runs in {running} mode", modes.join(" and "))
            }
            Reason::NotInVersion(version) => write!(f, "kube-proxy {version} has no such chain"),
            Reason::Replaced(by) => write!(f, "{by} stands in its place, so a later version runs"),
            Reason::InUse(mode) => write!(f, "kube-proxy runs in {mode} mode and uses it"),
            Reason::SharedByModes => f.write_str("shared by iptables and ipvs mode"),
            Reason::ModeUnknown(evidence) => {
                write!(f, "which mode of kube-proxy runs is not clear: {evidence}")
            }
            Reason::KubeletMayUse(evidence) => {
                write!(f, "the kubelet up to 1.26 writes it too, and {evidence}")
            }
            Reason::Kubelets => f.write_str("the kubelet's"),
            Reason::Catalogue(reason) | Reason::Foreign(reason) => f.write_str(reason),
            Reason::NoJumpInMode(mode, to) => write!(f, "{mode} mode does not jump to {to} so"),
            Reason::NoJumpInVersion => {
                f.write_str("a later version of kube-proxy runs, which has no such jump")
            }
            Reason::DoesNotMasquerade => {
                f.write_str("kube-proxy's by its address, but it does not masquerade")
            }
            Reason::LeadsToRemoved(chain) => write!(f, "leads to {chain}, which goes"),
            Reason::LeadsToKept => f.write_str("leads to a chain that stays"),
            Reason::LeadsToEmpty(chain) => write!(f, "leads to {chain}, which holds no rule"),
            Reason::Empty => f.write_str("holds no rule, so its jumps lead nowhere"),
            Reason::ReferencedBy(rule) => write!(f, "still referenced by `{rule}`"),
            Reason::MemberOf(set) => write!(f, "a member of the set {set}"),
            Reason::HoldsForeignRule { owner, rule } => {
                let owner = owner.as_deref().unwrap_or("unknown owner");
                write!(f, "holds a rule of {owner}: `{rule}`")
            }
            Reason::OwnerGone(owner, evidence) => write!(f, "{owner} is gone: {evidence}"),
            Reason::OwnerGoneUnsigned(owner, evidence) => {
                write!(f, "{owner} is gone: {evidence}, but nothing proves the rule its own")
            }
            Reason::OwnerSeemsGone(owner, evidence) => {
                write!(f, "{owner} seems gone: {evidence}")
            }
            Reason::OwnerAlive(owner, evidence) => write!(f, "{owner}'s, which lives: {evidence}"),
            Reason::OwnerUnknown(owner, missing) => {
                write!(f, "{owner}'s; whether it lives is not known: {missing}")
            }
            Reason::NeverRewritten(owner) => {
                write!(f, "{owner}'s, which never writes it again by itself")
            }
            Reason::Unreachable => f.write_str("no rule leads to it"),
            Reason::NoSuchLink(link) => write!(f, "there is no link {link}"),
            Reason::Flannel(reason) => reason.fmt(f),
            Reason::ConnectionsUnknown => f.write_str("its connections are not in this state"),
            Reason::NoFlows => f.write_str("at weight 0, and nobody is sent there any more"),
            Reason::OldFlows { flows, until_they_pause } => {
                write!(f, "at weight 0, and {flows} UDP flows of before still go there")?;
                if !until_they_pause {
                    return Ok(());
                }
                f.write_str(
                    "; net.ipv4.vs.expire_nodest_conn is 0, so they end only once they pause",
                )
            }
            Reason::OwnerOutOfScope(reason) => {
                write!(f, "a leftover, but of an owner not asked for: {reason}")
            }
        }
    }
}

/// The reason to remove or keep a rule of flannel, or one of the same shape.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlannelReason {
    /// An equal rule precedes it.
    SecondCopy,
    /// flannel before 0.20 wrote it; later versions have their own chains.
    BeforeOwnChains,
    /// It belongs to flannel's network and lease.
    OfLease,
    /// It belongs to neither flannel's network nor its lease; its network.
    NotOfLease(IpNet),
    /// It belongs to an earlier lease of flannel; that lease, and the current ones.
    OfEarlierLease(IpNet, Vec<IpNet>),
    /// It has the shape of flannel's rule for that network; why it may not be flannel's.
    LooksLike(IpNet, String),
    /// A leftover for that reason if the lease were certain; why it is not.
    LeaseUncertain(Box<FlannelReason>, String),
    /// The lease is unknown; why.
    LeaseUnknown(String),
}

impl fmt::Display for FlannelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlannelReason::SecondCopy => f.write_str("a second copy of a rule of flannel's"),
            FlannelReason::BeforeOwnChains => {
                f.write_str("of flannel before 0.20; FLANNEL-POSTRTG holds the rules now")
            }
            FlannelReason::OfLease => f.write_str("flannel's, of its network and lease"),
            FlannelReason::NotOfLease(net) => {
                write!(f, "of {net}, which is neither flannel's network nor its lease")
            }
            FlannelReason::OfEarlierLease(net, now) => {
                let now: Vec<String> = now.iter().map(IpNet::to_string).collect();
                write!(f, "left of its lease {net}; its lease is now {}", now.join(", "))
            }
            FlannelReason::LooksLike(net, doubt) => write!(
                f,
                "shaped like a rule of flannel's, of {net}, which is not its own; {doubt}"
            ),
            FlannelReason::LeaseUncertain(reason, doubt) => write!(f, "{reason}; but {doubt}"),
            FlannelReason::LeaseUnknown(doubt) => write!(f, "flannel's; {doubt}"),
        }
    }
}
