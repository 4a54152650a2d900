//! The reason to remove or keep an object, as a code for decisions and as a sentence for people.

use std::fmt;

use ipnet::IpNet;

use crate::state::Family;
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// Why a plan removes, keeps or suspects an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The object is of a mode that does not run, which is the first payload; but the running mode,
    /// which is the second, serves nothing in the family.
    StillServes(Mode, Mode, Family),
    /// Only modes that do not run use the object. The payload is those modes, and the running mode.
    OtherModes(Vec<Mode>, Mode),
    /// Only modes that do not serve use the object. The payload is those modes, and the mode that
    /// serves although no kube-proxy runs.
    OtherModesOfAbsent(Vec<Mode>, Mode),
    /// kube-proxy's running version, which is the payload, has no such chain.
    NotInVersion(Version),
    /// A chain of a later version replaces this chain. The string names the later chain.
    Replaced(String),
    /// The running mode, which is the payload, uses the object.
    InUse(Mode),
    /// The mode in the payload uses the object, but no kube-proxy runs. The string says how that is
    /// known.
    Unattended(Mode, String),
    /// Both iptables mode and ipvs mode use the object.
    SharedByModes,
    /// The running mode is not clear. The string says why.
    ModeUnknown(String),
    /// The kubelet may use it. The string is the evidence.
    KubeletMayUse(String),
    /// The chain is the kubelet's.
    Kubelets,
    /// The catalogue says to keep the object. The string is the catalogue's reason.
    Catalogue(String),
    /// The running mode does not write this jump, although it uses the chain that the jump leads
    /// to. The payload is the running mode and the chain.
    NoJumpInMode(Mode, String),
    /// The running version of kube-proxy is later than the last that writes this jump.
    NoJumpInVersion,
    /// The virtual server has an address of kube-proxy's, but does not forward by masquerading,
    /// although kube-proxy's own virtual servers do.
    DoesNotMasquerade,
    /// The native table could not be put back after a removal. The string says why.
    CannotBeRestored(String),
    /// The object is foreign. The string is the evidence for its owner.
    Foreign(String),
    /// The rule jumps to a chain that is removed. The string names the chain.
    LeadsToRemoved(String),
    /// The rule jumps to a chain that is kept.
    LeadsToKept,
    /// The rule jumps to a chain without rules. The string names the chain.
    LeadsToEmpty(String),
    /// The object is a chain without rules.
    Empty,
    /// A rule that is kept refers to the object. The string is that rule.
    ReferencedBy(String),
    /// The ipset is a member of an ipset that is kept. The string names the kept ipset.
    MemberOf(String),
    /// The chain holds a rule of another owner.
    HoldsForeignRule {
        /// The owner of that rule; `None` if it is not known.
        owner: Option<String>,
        /// The text of that rule.
        rule: String,
    },
    /// The native table holds a part that its owner does not write. The string names the part.
    HoldsForeignPart(String),
    /// The object's owner is gone. The strings are the owner and the evidence.
    OwnerGone(String, String),
    /// Like [`Reason::OwnerGone`], but nothing in the object itself proves that this owner made the
    /// object.
    OwnerGoneUnsigned(String, String),
    /// The object's owner seems to be gone. The strings are the owner and the evidence.
    OwnerSeemsGone(String, String),
    /// The object's owner is alive. The strings are the owner and the evidence.
    OwnerAlive(String, String),
    /// The object's owner is alive, but seems to have left the object for another backend. The
    /// strings are the owner and the evidence.
    OwnerLeftBackend(String, String),
    /// Whether the object's owner is alive is unknown. The strings are the owner and the missing
    /// evidence.
    OwnerUnknown(String, String),
    /// The object's owner never writes it again. The string is the owner.
    NeverRewritten(String),
    /// A chain of docker's that no rule jumps to.
    Unreachable,
    /// A rule of docker's that names a link which does not exist. The string names the link.
    NoSuchLink(String),
    /// A rule of flannel's, or a rule of the same shape.
    Flannel(FlannelReason),
    /// A real server at weight 0, but the state does not have the ipvs connections.
    ConnectionsUnknown,
    /// A real server at weight 0 to which no flows go.
    NoFlows,
    /// A real server at weight 0 to which earlier flows still go.
    OldFlows {
        /// How many flows go there.
        flows: u64,
        /// True if these flows end only once they pause.
        until_they_pause: bool,
    },
    /// The object is a leftover for the inner reason, but is kept, because a clean-up of its owner
    /// was not requested.
    OwnerOutOfScope(Box<Reason>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::StillServes(mode, running, family) => write!(
                f,
                "of {mode} mode, which alone serves {family}; kube-proxy runs in {running} mode"
            ),
            Reason::OtherModes(modes, running) => {
                let modes: Vec<&str> = modes.iter().map(|m| m.name()).collect();
                write!(f, "of {} mode; kube-proxy runs in {running} mode", modes.join(" and "))
            }
            Reason::OtherModesOfAbsent(modes, serving) => {
                let modes: Vec<&str> = modes.iter().map(|m| m.name()).collect();
                let modes = modes.join(" and ");
                write!(f, "of {modes} mode; {serving} mode serves, though no kube-proxy runs")
            }
            Reason::NotInVersion(version) => write!(f, "kube-proxy {version} has no such chain"),
            Reason::Replaced(by) => write!(f, "{by} stands in its place, so a later version runs"),
            Reason::InUse(mode) => write!(f, "kube-proxy runs in {mode} mode and uses it"),
            Reason::Unattended(mode, absence) => {
                write!(f, "kube-proxy left it in {mode} mode, and may come back for it: {absence}")
            }
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
            Reason::CannotBeRestored(cause) => {
                write!(f, "a leftover that could not be put back: {cause}")
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
            Reason::HoldsForeignPart(part) => {
                write!(f, "a leftover by its name, but it holds what is not kube-proxy's: {part}")
            }
            Reason::OwnerGone(owner, evidence) => write!(f, "{owner} is gone: {evidence}"),
            Reason::OwnerGoneUnsigned(owner, evidence) => {
                write!(f, "{owner} is gone: {evidence}, but nothing proves the rule its own")
            }
            Reason::OwnerSeemsGone(owner, evidence) => {
                write!(f, "{owner} seems gone: {evidence}")
            }
            Reason::OwnerAlive(owner, evidence) => write!(f, "{owner}'s, which lives: {evidence}"),
            Reason::OwnerLeftBackend(owner, evidence) => {
                write!(f, "{owner} lives, but seems to have left this backend: {evidence}")
            }
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

/// The reason to remove or keep a rule of flannel's, or a rule of the same shape.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlannelReason {
    /// An equal rule comes before this rule in its chain.
    SecondCopy,
    /// flannel before 0.20 wrote the rule. Later versions write such rules in chains of their own.
    BeforeOwnChains,
    /// The rule is for flannel's current network and lease.
    OfLease,
    /// The rule is for the network in the payload, which is neither flannel's network nor its
    /// lease.
    NotOfLease(IpNet),
    /// The rule is for an earlier lease of flannel's. The payload is that lease, and the current
    /// leases.
    OfEarlierLease(IpNet, Vec<IpNet>),
    /// The rule has the shape that flannel's rule for the network in the payload would have. The
    /// string says why it may not be flannel's.
    LooksLike(IpNet, String),
    /// The rule would be a leftover for the inner reason if flannel's lease were certain. The
    /// string says why the lease is not certain.
    LeaseUncertain(Box<FlannelReason>, String),
    /// flannel's lease is unknown. The string says why.
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
