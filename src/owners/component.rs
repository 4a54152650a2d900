//! What one file of the catalogue says of one component.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::owners::template::Fields;
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// One component.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its name, which is the file's.
    #[serde(rename = "component")]
    pub name: String,
    /// What it is, in one line.
    pub about: String,
    /// Where the facts were read.
    pub source: String,
    /// How soon it writes again what was removed: `5s`, `never`, `on restart`.
    pub heals: String,
    /// True for what makes pod networks: plans list what they keep of it.
    #[serde(default)]
    pub cni: bool,
    /// True if nothing in a built-in chain is its own by target, set or link alone.
    #[serde(default)]
    pub strict: bool,
    /// True if everything of it that it signed may go once it is known to be gone.
    #[serde(default)]
    pub removed_when_gone: bool,
    /// True if it makes ipvs virtual servers of its own.
    #[serde(default)]
    pub virtual_servers: bool,
    /// What shows that it lives.
    #[serde(default)]
    pub alive: Alive,
    /// What its rules look like in its own chains, by a name that `chains` refer to.
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
    pub hooks: Vec<Hook>,
    /// Comments that no one else writes.
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
    /// The packet marks it uses, for people.
    #[serde(default)]
    pub marks: Vec<String>,
    /// What the fields of templates may hold.
    #[serde(default)]
    pub(crate) fields: Fields,
    /// Its rules in built-in chains, by shape.
    #[serde(default)]
    pub rules: Vec<Shape>,
}

/// Evidence of life; any one suffices.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alive {
    /// Names of processes.
    #[serde(default)]
    pub processes: Vec<String>,
    /// Paths of files, of which a snapshot holds some.
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
    /// The tables; none listed means all.
    #[serde(default)]
    pub tables: Vec<String>,
    /// kube-proxy's modes that use them; none listed means all.
    #[serde(default)]
    pub modes: Vec<Mode>,
    /// The first version that has them (`1.24`).
    #[serde(default)]
    pub since: Option<String>,
    /// The last version that has them.
    #[serde(default)]
    pub until: Option<String>,
    /// What stands in their place in later versions: proof that they are out of use.
    #[serde(default)]
    pub replaced_by: Option<String>,
    /// The other component that writes them.
    #[serde(default)]
    pub shared_with: Option<String>,
    /// Why they stay, for the plan.
    #[serde(default)]
    pub keep: Option<String>,
    /// True if there is one a service, pod or workload: too many to list in plans.
    #[serde(default)]
    pub many: bool,
    /// Which of `contents` they hold; without one, every rule in them is the component's.
    #[serde(default)]
    pub content: Option<String>,
}

/// What rules of a component look like in its own chains.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawContent {
    /// `operator`, if what does not look like that is the operator's.
    #[serde(default)]
    pub(crate) by: Option<String>,
    /// Comments, besides the component's `content_comments`.
    #[serde(default)]
    pub(crate) comments: Vec<String>,
    /// Templates of the rule without its comment.
    #[serde(default)]
    pub(crate) forms: Option<Vec<String>>,
}

/// A rule in a built-in chain that leads into a chain of the component's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Its table.
    pub table: String,
    /// The built-in chains it stands in.
    pub chains: Vec<String>,
    /// The chain it jumps to.
    pub to: String,
    /// Its comment, as an expression.
    pub comment: String,
    /// kube-proxy's modes that write it.
    pub modes: Vec<Mode>,
    /// The last version that writes it.
    #[serde(default)]
    pub until: Option<String>,
}

/// A rule in a built-in chain, known by its shape.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Its name in the component.
    pub id: String,
    /// Its table; any if none.
    #[serde(default)]
    pub table: Option<String>,
    /// The built-in chains it stands in; any if none.
    #[serde(default)]
    pub chains: Vec<String>,
    /// The template.
    pub rule: String,
    /// True if others write such rules too.
    #[serde(default)]
    pub weak: bool,
    /// It counts only beside that rule, with the same fields.
    #[serde(default)]
    pub beside: Option<Beside>,
}

/// Where a rule must stand that a shape needs.
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
    /// False if that version of the component is known not to have the chain.
    pub fn in_version(&self, version: Version) -> bool {
        let minor = (version.major, version.minor);
        let bound = |text: &Option<String>| text.as_deref().and_then(minor_version);
        bound(&self.since).is_none_or(|since| minor >= since)
            && bound(&self.until).is_none_or(|until| minor <= until)
    }
}

/// `1.24` as numbers.
pub(crate) fn minor_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
