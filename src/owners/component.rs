//! One component, as its catalogue file describes it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::owners::template::Fields;
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// One component.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its name, equal to the name of its file.
    #[serde(rename = "component")]
    pub name: String,
    /// What it is, in one line.
    pub about: String,
    /// The source of the facts.
    pub source: String,
    /// How soon it writes a removed object again: `5s`, `never`, `on restart`.
    pub heals: String,
    /// Components with overlapping names that this one precedes.
    #[serde(default)]
    pub before: Vec<String>,
    /// True for a pod network: plans list the objects that they keep of it.
    #[serde(default)]
    pub cni: bool,
    /// True if a target, set or link alone is not enough evidence for a rule in a built-in chain.
    #[serde(default)]
    pub strict: bool,
    /// True if every object with its comment may be removed once the component is gone.
    #[serde(default)]
    pub removed_when_gone: bool,
    /// True if it creates ipvs virtual servers.
    #[serde(default)]
    pub virtual_servers: bool,
    /// The evidence that it is alive.
    #[serde(default)]
    pub alive: Alive,
    /// The forms of its rules in its own chains, by the names in `chains`.
    #[serde(default)]
    pub(crate) contents: BTreeMap<String, RawContent>,
    /// The comments of its rules in its own chains.
    #[serde(default)]
    pub(crate) content_comments: Vec<String>,
    /// Its chains.
    #[serde(default)]
    pub chains: Vec<ChainEntry>,
    /// Its rules in built-in chains that lead into its own.
    #[serde(default)]
    pub hooks: Vec<HookRule>,
    /// Comments that no other component writes.
    #[serde(default)]
    pub comments: Vec<String>,
    /// Its ipsets.
    #[serde(default)]
    pub sets: Vec<String>,
    /// Its links.
    #[serde(default)]
    pub links: Vec<String>,
    /// Its native nf_tables tables, as `family name`.
    #[serde(default)]
    pub nft_tables: Vec<String>,
    /// The packet marks that it uses. For information only.
    #[serde(default)]
    pub marks: Vec<String>,
    /// The expressions of the fields of templates.
    #[serde(default)]
    pub(crate) fields: Fields,
    /// Its rules in built-in chains, by shape.
    #[serde(default)]
    pub rules: Vec<Shape>,
}

/// Evidence of life. One piece is enough.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alive {
    /// Names of processes.
    #[serde(default)]
    pub processes: Vec<String>,
    /// Paths of files or folders that a snapshot may hold.
    #[serde(default)]
    pub files: Vec<String>,
    /// Names of links, as expressions.
    #[serde(default)]
    pub links: Vec<String>,
}

/// Chains of a component.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainEntry {
    /// Their name, as an expression.
    pub name: String,
    /// The tables; all if none is listed.
    #[serde(default)]
    pub tables: Vec<String>,
    /// kube-proxy's modes that use them; for kube-proxy alone.
    #[serde(default)]
    pub modes: Vec<Mode>,
    /// The first version that has them; for kube-proxy alone.
    #[serde(default)]
    pub since: Option<Minor>,
    /// The last version that has them; for kube-proxy alone.
    #[serde(default)]
    pub until: Option<Minor>,
    /// The chains of later versions that replace them, as an expression: evidence that they are out
    /// of use. For kube-proxy alone.
    #[serde(default)]
    pub replaced_by: Option<String>,
    /// Another component that writes them too.
    #[serde(default)]
    pub shared_with: Option<String>,
    /// Why a plan keeps them.
    #[serde(default)]
    pub keep: Option<String>,
    /// True for one chain a service, pod or workload: too many to list in plans.
    #[serde(default)]
    pub many: bool,
    /// Their entry in `contents`; without one, every rule in them is the component's.
    #[serde(default)]
    pub content: Option<String>,
}

/// The forms of rules in a component's chains.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawContent {
    /// `operator`, if every rule of another form is the operator's.
    #[serde(default)]
    pub(crate) by: Option<String>,
    /// Comments, besides the component's `content_comments`.
    #[serde(default)]
    pub(crate) comments: Vec<String>,
    /// Templates of the rule without its comment.
    #[serde(default)]
    pub(crate) forms: Option<Vec<String>>,
}

/// A rule in a built-in chain that jumps to a chain of the component.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookRule {
    /// Its table.
    pub table: String,
    /// Its built-in chains.
    pub chains: Vec<String>,
    /// The chain it jumps to.
    pub to: String,
    /// Its comment, as an expression.
    pub comment: String,
    /// kube-proxy's modes that write it; for kube-proxy alone.
    #[serde(default)]
    pub modes: Vec<Mode>,
    /// The last version that writes it; for kube-proxy alone.
    #[serde(default)]
    pub until: Option<Minor>,
}

/// A rule in a built-in chain, known by its shape.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Its name within the component.
    pub id: String,
    /// Its table; every table if none is given.
    #[serde(default)]
    pub table: Option<String>,
    /// Its built-in chains; every one if none is given.
    #[serde(default)]
    pub chains: Vec<String>,
    /// The template.
    pub rule: String,
    /// True if other components write rules of that shape too.
    #[serde(default)]
    pub weak: bool,
    /// Another rule that must exist, with the same fields.
    #[serde(default)]
    pub beside: Option<Beside>,
}

/// A rule that a shape requires beside it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beside {
    /// Its table.
    pub table: String,
    /// Its built-in chain.
    pub chain: String,
    /// The `id` of its shape.
    pub rule: String,
}

impl ChainEntry {
    /// True if it has a mode, a version or a successor.
    pub(crate) fn is_versioned(&self) -> bool {
        let bounds = [self.since, self.until];
        !self.modes.is_empty() || bounds.iter().any(Option::is_some) || self.replaced_by.is_some()
    }

    /// False if that version of the component does not have the chain.
    pub fn in_version(&self, version: Version) -> bool {
        let minor = Minor::of(version);
        self.since.is_none_or(|since| minor >= since)
            && self.until.is_none_or(|until| minor <= until)
    }
}

impl HookRule {
    /// True if it has a mode or a version.
    pub(crate) fn is_versioned(&self) -> bool {
        !self.modes.is_empty() || self.until.is_some()
    }

    /// False if that version of the component does not write the rule.
    pub fn in_version(&self, version: Version) -> bool {
        self.until.is_none_or(|until| Minor::of(version) <= until)
    }
}

/// A minor version, as `1.24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Minor {
    major: u32,
    minor: u32,
}

impl Minor {
    /// The minor version of a version.
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
