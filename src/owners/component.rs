//! One component, as its catalogue file describes it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::owners::signs::Alive;
use crate::owners::template::Fields;
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// kube-proxy's name in the catalogue.
pub const KUBE_PROXY: &str = "kube-proxy";

/// One component, with everything that its catalogue file says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// The component's name: the name of the catalogue file without `.yaml`.
    #[serde(rename = "component")]
    pub name: String,
    /// A description of the component, in one line.
    pub about: String,
    /// Where the facts in this catalogue file come from.
    pub source: String,
    /// How soon the component restores an object that something removed: `5s`, `never`, `on
    /// restart`.
    pub heals: String,
    /// Components that come after this component in precedence, because their name patterns overlap
    /// with this component's.
    #[serde(default)]
    pub before: Vec<String>,
    /// True if the component is a pod network. A plan lists even the objects of a pod network that
    /// it keeps.
    #[serde(default)]
    pub cni: bool,
    /// True if a jump target, ipset or link of the component is not enough evidence that a rule in
    /// a built-in chain is the component's.
    #[serde(default)]
    pub strict: bool,
    /// What becomes of the component's objects once it is gone. What a pod network that does not
    /// say it has left is suspected; nothing is said of what another component has left.
    #[serde(default)]
    pub when_gone: Option<WhenGone>,
    /// True if the component creates ipvs virtual servers.
    #[serde(default)]
    pub virtual_servers: bool,
    /// The signs that the component is alive.
    #[serde(default)]
    pub alive: Alive,
    /// The forms of the component's rules in its own chains, keyed by the name that `content` in
    /// `chains` refers to.
    #[serde(default)]
    pub(crate) contents: BTreeMap<String, RawContent>,
    /// Comments that the component's rules may have in its own chains.
    #[serde(default)]
    pub(crate) content_comments: Vec<String>,
    /// The component's chains.
    #[serde(default)]
    pub chains: Vec<ChainEntry>,
    /// The component's rules in built-in chains that jump to its own chains.
    #[serde(default)]
    pub hooks: Vec<HookRule>,
    /// How the component is told to write by iptables, if it can also write by nftables, and then into
    /// the tables of iptables-nft.
    #[serde(default)]
    pub by_iptables: Option<String>,
    /// How the component is told to let packets pass that conntrack calls INVALID, if its native tables
    /// drop them otherwise.
    #[serde(default)]
    pub accepts_invalid: Option<String>,
    /// Patterns of comments that no other component writes.
    #[serde(default)]
    pub comments: Vec<String>,
    /// Name patterns of the component's ipsets.
    #[serde(default)]
    pub sets: Vec<String>,
    /// Name patterns of the component's links.
    #[serde(default)]
    pub links: Vec<String>,
    /// Patterns for the component's native nf_tables tables, which are matched as `family name`.
    #[serde(default)]
    pub nft_tables: Vec<String>,
    /// What these tables consist of; anything if it is not listed.
    #[serde(default)]
    pub(crate) nft_content: Option<RawNativeContent>,
    /// The packet marks that the component uses. For information only.
    #[serde(default)]
    pub marks: Vec<String>,
    /// The regular expressions of template fields, keyed by field name.
    #[serde(default)]
    pub(crate) fields: Fields,
    /// The component's rules in built-in chains, recognised by shape.
    #[serde(default)]
    pub rules: Vec<Shape>,
}

impl Component {
    /// True if plans and checks look for what the component leaves.
    pub fn is_watched(&self) -> bool {
        self.cni || self.when_gone.is_some()
    }
}

/// What becomes of the objects of a component that is certainly gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenGone {
    /// They are removed if they prove that the component made them, else suspected.
    Remove,
    /// They are suspected, because other programs write the same.
    Suspect,
}

/// The parts of a component's native tables, as its catalogue file lists them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNativeContent {
    /// The chains.
    pub(super) chains: Vec<RawNativeChain>,
    /// Name patterns of the nft sets and maps.
    pub(super) sets: Vec<String>,
}

/// A kind of chain of a native table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNativeChain {
    /// The name pattern of the chains.
    pub(super) name: String,
    /// The statements of their rules, by nft's names.
    pub(super) statements: Vec<String>,
}

/// A kind of chain that a component makes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainEntry {
    /// The name pattern of the chains.
    pub name: String,
    /// The tables that have the chains; every table if none is listed.
    #[serde(default)]
    pub tables: Vec<String>,
    /// kube-proxy's modes that use the chains. Only in kube-proxy's file.
    #[serde(default)]
    pub modes: Vec<Mode>,
    /// The first version of kube-proxy that has the chains. Only in kube-proxy's file.
    #[serde(default)]
    pub since: Option<Minor>,
    /// The last version of kube-proxy that has the chains. Only in kube-proxy's file.
    #[serde(default)]
    pub until: Option<Minor>,
    /// The name pattern of chains that later versions write in place of this entry's chains. If
    /// such a chain exists, this entry's chains are out of use. Only in kube-proxy's file.
    #[serde(default)]
    pub replaced_by: Option<String>,
    /// Another component that writes the chains too.
    #[serde(default)]
    pub shared_with: Option<String>,
    /// Why a plan always keeps the chains.
    #[serde(default)]
    pub keep: Option<String>,
    /// True if there is one such chain for each service, pod or workload: too many to list in
    /// plans.
    #[serde(default)]
    pub many: bool,
    /// True if the component does not write the chains while it has native nf_tables tables of its
    /// own.
    #[serde(default)]
    pub unless_native: bool,
    /// The key in `contents` under which the forms of the rules in these chains are listed. Without
    /// a key, every rule in these chains is the component's.
    #[serde(default)]
    pub content: Option<String>,
}

/// The forms that rules in one kind of chain may have, as the catalogue file has them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawContent {
    /// `operator`, if rules of any other form in these chains are the operator's.
    #[serde(default)]
    pub(crate) by: Option<String>,
    /// Comments that rules of these forms may have in addition to the component's
    /// `content_comments`.
    #[serde(default)]
    pub(crate) comments: Vec<String>,
    /// Templates for a rule's text with its comments removed. Without templates, only the comments
    /// must match.
    #[serde(default)]
    pub(crate) forms: Option<Vec<String>>,
}

/// A rule in a built-in chain that jumps to a chain of the component.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookRule {
    /// The table that holds the rule.
    pub table: String,
    /// The built-in chains that may hold the rule.
    pub chains: Vec<String>,
    /// The chain of the component that the rule jumps to.
    pub to: String,
    /// A regular expression for the rule's comment.
    pub comment: String,
    /// kube-proxy's modes that write the rule. Only in kube-proxy's file.
    #[serde(default)]
    pub modes: Vec<Mode>,
    /// The last version of kube-proxy that writes the rule. Only in kube-proxy's file.
    #[serde(default)]
    pub until: Option<Minor>,
}

/// A rule in a built-in chain, recognised by the form of its options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// The shape's name, unique within the component.
    pub id: String,
    /// The table that holds the rule; any table if none is given.
    #[serde(default)]
    pub table: Option<String>,
    /// The built-in chains that may hold the rule; any built-in chain if none is given.
    #[serde(default)]
    pub chains: Vec<String>,
    /// The template that the rule must match.
    pub rule: String,
    /// True if other components write rules of this shape too.
    #[serde(default)]
    pub weak: bool,
    /// True if the shape shows the component only where something else does: a sign of life, a link,
    /// a chain or a native table. Operators write rules of this shape too.
    #[serde(default)]
    pub not_alone: bool,
    /// Another rule that must exist beside this one and have the same field values. If there is no
    /// such rule, the shape does not match.
    #[serde(default)]
    pub beside: Option<Beside>,
}

/// The second rule that a shape requires.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beside {
    /// The table of the second rule.
    pub table: String,
    /// The built-in chain of the second rule.
    pub chain: String,
    /// The `id` of the second rule's shape.
    pub rule: String,
}

impl Shape {
    /// True if that built-in chain may hold the rule.
    pub(crate) fn allows_chain(&self, table: &str, chain: &str) -> bool {
        self.table.as_ref().is_none_or(|t| t == table)
            && (self.chains.is_empty() || self.chains.iter().any(|c| c == chain))
    }
}

impl ChainEntry {
    /// True if the entry names a mode, a version or a successor (`replaced_by`).
    pub(crate) fn is_versioned(&self) -> bool {
        let bounds = [self.since, self.until];
        !self.modes.is_empty() || bounds.iter().any(Option::is_some) || self.replaced_by.is_some()
    }

    /// False if kube-proxy of that version does not have the chain.
    pub fn in_version(&self, version: Version) -> bool {
        let minor = Minor::of(version);
        self.since.is_none_or(|since| minor >= since)
            && self.until.is_none_or(|until| minor <= until)
    }
}

impl HookRule {
    /// True if the hook names a mode or a version.
    pub(crate) fn is_versioned(&self) -> bool {
        !self.modes.is_empty() || self.until.is_some()
    }

    /// False if kube-proxy of that version does not write the rule.
    pub fn in_version(&self, version: Version) -> bool {
        self.until.is_none_or(|until| Minor::of(version) <= until)
    }
}

/// A Kubernetes minor version, such as `1.24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Minor {
    major: u32,
    minor: u32,
}

impl Minor {
    /// The minor version of a full version: `1.24` of `1.24.3`.
    pub fn of(version: Version) -> Minor {
        Minor { major: version.major, minor: version.minor }
    }
}

impl TryFrom<String> for Minor {
    type Error = String;

    fn try_from(text: String) -> Result<Minor, String> {
        let numbers = || {
            let (major, minor) = text.split_once('.')?;
            Some(Minor { major: major.parse().ok()?, minor: minor.parse().ok()? })
        };
        numbers().ok_or_else(|| format!("`{text}` is no minor version, as 1.24"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_of_a_version_are_inside() {
        let chain: ChainEntry =
            crate::yaml::parse("t", "{name: '^A$', since: '1.9', until: '1.24'}").unwrap();
        for (version, inside) in
            [("1.8.15", false), ("1.9.0", true), ("1.24.17", true), ("1.25.0", false)]
        {
            assert_eq!(chain.in_version(Version::find(version).unwrap()), inside, "{version}");
        }
    }
}
