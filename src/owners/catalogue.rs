//! The catalogue of components, read from `playbooks/owners/*.yaml`.
//!
//! One file a component: what it writes, by name, comment and shape, and what shows that it lives.
//! Names are regular expressions anchored at the start; shapes are templates
//! (see [`crate::owners::template`]).

use crate::error::{Error, Kind, Result};
use crate::owners::component::{ChainEntry, Component, Shape, minor_version};
use crate::owners::content::Content;
use crate::owners::expression::{Expression, Expressions};
use crate::owners::template::Template;
use crate::yaml;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../playbooks/owners/", $name, ".yaml")))),*]
    };
}

/// Every file, in order of precedence: where two components' names overlap, the first wins
/// (`OVN-KUBE-*` before `OVN-*`).
const FILES: [(&str, &str); 44] = files![
    "kube-router",
    "kube-vip",
    "hostport",
    "kubelet",
    "kube-proxy",
    "calico",
    "flannel",
    "weave",
    "cilium",
    "antrea",
    "cni-portmap",
    "cni-firewall",
    "cni-masq",
    "aws-vpc-cni",
    "azure-cni",
    "azure-npm",
    "aks",
    "ip-masq-agent",
    "nodelocaldns",
    "docker",
    "podman",
    "nerdctl",
    "libvirt",
    "istio",
    "openshift-sdn",
    "ovn-kubernetes",
    "kube-ovn",
    "submariner",
    "fabedge",
    "multi-networkpolicy",
    "neutron",
    "tailscale",
    "netbird",
    "fail2ban",
    "proxyshift",
    "ufw",
    "firewalld",
    "rancher",
    "microk8s",
    "k3s",
    "keepalived",
    "metallb",
    "puppet",
    "firewall-files",
];

/// An entry of the catalogue: a component, and which of its entries of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) component: u16,
    pub(crate) item: u16,
}

/// Names of one kind, of all components, in order of precedence.
#[derive(Debug)]
pub(crate) struct Names {
    set: Expressions,
    entries: Vec<Entry>,
}

impl Names {
    /// Every entry that fits, best first.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = Entry> {
        self.set.matches(name).map(|i| self.entries[i])
    }

    /// The entry that fits.
    pub(crate) fn first(&self, name: &str) -> Option<Entry> {
        self.all(name).next()
    }
}

/// All components, compiled.
#[derive(Debug)]
pub struct Catalogue {
    pub(crate) components: Vec<Component>,
    pub(crate) chains: Names,
    pub(crate) comments: Names,
    pub(crate) sets: Names,
    pub(crate) links: Names,
    pub(crate) nft_tables: Names,
    /// By component, then by chain entry.
    contents: Vec<Vec<Option<Content>>>,
    /// By component, then by shape.
    shapes: Vec<Vec<Template>>,
    /// By component, then by hook.
    hooks: Vec<Vec<Expression>>,
}

impl Catalogue {
    /// The catalogue that is built in.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming file and field; a test makes sure that there is none.
    pub fn builtin() -> Result<Catalogue> {
        Catalogue::parse(&FILES)
    }

    /// Reads components from texts, each with its name, in order of precedence.
    ///
    /// # Errors
    /// [`Kind::Parse`] for what is not YAML or has unknown keys; [`Kind::Usage`], naming file and
    /// field, for an expression whose form is wrong or that is not anchored, a name that is not the
    /// file's, a template or a reference that cannot be.
    pub fn parse(files: &[(&str, &str)]) -> Result<Catalogue> {
        let mut components: Vec<Component> = Vec::new();
        for (name, text) in files {
            let file = format!("owners/{name}.yaml");
            let component: Component = yaml::parse(&file, text)?;
            if component.name != *name {
                let cause = format!("component: is `{}`, not the file's name", component.name);
                return Err(Error::new(Kind::Usage, file, cause));
            }
            for pattern in &component.alive.links {
                anchored(name, "alive.links", pattern)?;
            }
            components.push(component);
        }
        let names = |field, list: fn(&Component) -> Vec<&str>| names(&components, field, list);
        Ok(Catalogue {
            chains: names("chains", |c| c.chains.iter().map(|e| e.name.as_str()).collect())?,
            comments: names("comments", |c| strs(&c.comments))?,
            sets: names("sets", |c| strs(&c.sets))?,
            links: names("links", |c| strs(&c.links))?,
            nft_tables: names("nft_tables", |c| strs(&c.nft_tables))?,
            contents: components.iter().map(contents).collect::<Result<_>>()?,
            shapes: components.iter().map(shapes).collect::<Result<_>>()?,
            hooks: components.iter().map(hooks).collect::<Result<_>>()?,
            components,
        })
    }

    /// The components, in order of precedence.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// The component of that name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.name == name)
    }

    /// True if only that component writes that comment.
    pub fn writes_comment(&self, component: &Component, comment: &str) -> bool {
        self.comments.first(comment).is_some_and(|e| self.at(e).name == component.name)
    }

    /// Whose chain that is, and which entry says so.
    pub fn chain(&self, table: &str, name: &str) -> Option<(&Component, &ChainEntry)> {
        let entry = self.chain_entry(table, name)?;
        let component = self.at(entry);
        Some((component, &component.chains[usize::from(entry.item)]))
    }

    pub(crate) fn chain_entry(&self, table: &str, name: &str) -> Option<Entry> {
        self.chains.all(name).find(|e| {
            let tables = &self.at(*e).chains[usize::from(e.item)].tables;
            tables.is_empty() || tables.iter().any(|t| t == table)
        })
    }

    pub(crate) fn at(&self, entry: Entry) -> &Component {
        &self.components[usize::from(entry.component)]
    }

    /// What the rules of a chain look like, if the catalogue says.
    pub(crate) fn content(&self, chain: Entry) -> Option<&Content> {
        self.contents[usize::from(chain.component)][usize::from(chain.item)].as_ref()
    }

    /// Every shape with its template, best first.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (Entry, &Shape, &Template)> {
        self.components.iter().enumerate().flat_map(|(c, component)| {
            component
                .rules
                .iter()
                .zip(&self.shapes[c])
                .enumerate()
                .map(move |(i, (shape, t))| (entry(c, i), shape, t))
        })
    }

    /// The shape called `id` of a component, with its template.
    pub(crate) fn shape(&self, component: &str, id: &str) -> Option<(&Shape, &Template)> {
        let found =
            |(e, s, _): &(Entry, &Shape, &Template)| self.at(*e).name == component && s.id == id;
        self.shapes().find(found).map(|(_, shape, template)| (shape, template))
    }

    /// The hook that a rule is, by where it stands, where it leads, and its comments.
    pub(crate) fn hook<C: AsRef<str>>(
        &self,
        table: &str,
        chain: &str,
        target: &str,
        comments: &[C],
    ) -> Option<Entry> {
        for (c, component) in self.components.iter().enumerate() {
            for (i, hook) in component.hooks.iter().enumerate() {
                let expression = &self.hooks[c][i];
                if hook.to == target
                    && hook.table == table
                    && hook.chains.iter().any(|h| h == chain)
                    && comments.iter().any(|comment| expression.is_match(comment.as_ref()))
                {
                    return Some(entry(c, i));
                }
            }
        }
        None
    }
}

/// Catalogues are small: `parse` runs on a few dozen files, so the numbers fit.
#[expect(clippy::cast_possible_truncation)]
fn entry(component: usize, item: usize) -> Entry {
    Entry { component: component as u16, item: item as u16 }
}

fn strs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// An error about one field of a component's file.
pub(crate) fn refused(component: &str, field: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::Usage, format!("owners/{component}.yaml"), format!("{field}: {cause}"))
}

fn names(
    components: &[Component],
    field: &str,
    list: fn(&Component) -> Vec<&str>,
) -> Result<Names> {
    let (mut patterns, mut entries) = (Vec::new(), Vec::new());
    for (c, component) in components.iter().enumerate() {
        for (i, pattern) in list(component).into_iter().enumerate() {
            is_anchored(&component.name, field, pattern)?;
            patterns.push(pattern);
            entries.push(entry(c, i));
        }
    }
    let set = Expressions::new(&patterns).map_err(|e| {
        // The set does not say in which.
        let mut each = components.iter().flat_map(|c| list(c).into_iter().map(|p| (&c.name, p)));
        let bad = each.find_map(|(component, pattern)| anchored(component, field, pattern).err());
        bad.unwrap_or_else(|| Error::new(Kind::Usage, field, e))
    })?;
    Ok(Names { set, entries })
}

/// Refuses an expression that does not begin at the start, in each of its alternatives.
pub(crate) fn is_anchored(component: &str, field: &str, pattern: &str) -> Result<()> {
    if pattern.starts_with('^') && !has_loose_alternative(pattern) {
        return Ok(());
    }
    let cause = "is not anchored at the start (`^`, alternatives in brackets)";
    Err(refused(component, field, format!("`{pattern}` {cause}")))
}

/// Compiles an expression that [`is_anchored`].
fn anchored(component: &str, field: &str, pattern: &str) -> Result<Expression> {
    is_anchored(component, field, pattern)?;
    Expression::new(pattern).map_err(|e| refused(component, field, format!("`{pattern}` {e}")))
}

/// True with a `|` outside of every bracket.
fn has_loose_alternative(pattern: &str) -> bool {
    let (mut depth, mut class, mut escaped) = (0, false, false);
    for c in pattern.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => class = true,
            ']' => class = false,
            '(' if !class => depth += 1,
            ')' if !class => depth -= 1,
            '|' if !class && depth == 0 => return true,
            _ => {}
        }
    }
    false
}

fn contents(component: &Component) -> Result<Vec<Option<Content>>> {
    let mut used: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for chain in &component.chains {
        for bound in [&chain.since, &chain.until].into_iter().flatten() {
            if minor_version(bound).is_none() {
                return Err(refused(&component.name, "chains", format!("`{bound}` is no 1.24")));
            }
        }
        if let Some(pattern) = &chain.replaced_by {
            anchored(&component.name, "replaced_by", pattern)?;
        }
        found.push(match &chain.content {
            None => None,
            Some(name) => {
                used.push(name);
                let raw = component.contents.get(name).ok_or_else(|| {
                    refused(&component.name, "content", format!("`{name}` is not in contents"))
                })?;
                Some(Content::compile(component, name, raw)?)
            }
        });
    }
    match component.contents.keys().find(|name| !used.contains(&name.as_str())) {
        Some(name) => Err(refused(&component.name, "contents", format!("no chain has `{name}`"))),
        None => Ok(found),
    }
}

fn shapes(component: &Component) -> Result<Vec<Template>> {
    let compile = |shape: &Shape| {
        if let Some(beside) = &shape.beside
            && !component.rules.iter().any(|s| s.id == beside.rule)
        {
            let cause = format!("no rule is called `{}`", beside.rule);
            return Err(refused(&component.name, "beside", cause));
        }
        Template::compile(&shape.rule, &component.fields)
            .map_err(|cause| refused(&component.name, &format!("rules.{}", shape.id), cause))
    };
    component.rules.iter().map(compile).collect()
}

fn hooks(component: &Component) -> Result<Vec<Expression>> {
    component.hooks.iter().map(|h| anchored(&component.name, "hooks", &h.comment)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::content::Reading;

    #[test]
    fn the_list_is_the_directory() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/playbooks/owners");
        let name = |e: std::fs::DirEntry| e.file_name().to_string_lossy().into_owned();
        let mut there: Vec<String> =
            std::fs::read_dir(path).unwrap().map(|e| name(e.unwrap())).collect();
        let mut listed: Vec<String> = FILES.iter().map(|(n, _)| format!("{n}.yaml")).collect();
        there.sort();
        listed.sort();
        assert_eq!(there, listed);
    }

    #[test]
    fn every_file_compiles() {
        let catalogue = Catalogue::builtin().unwrap();
        assert_eq!(catalogue.components().len(), FILES.len());
        let empty =
            |c: &&Component| c.about.is_empty() || c.source.is_empty() || c.heals.is_empty();
        assert_eq!(catalogue.components().iter().filter(empty).count(), 0);
        // Asked for the first time, an expression is compiled.
        let Catalogue {
            chains, comments, sets, links, nft_tables, contents, shapes, hooks, ..
        } = &catalogue;
        for names in [chains, comments, sets, links, nft_tables] {
            names.first("");
        }
        let rule = Reading { comments: vec!["".into()], ..Reading::default() };
        for content in contents.iter().flatten().flatten() {
            content.fits(&rule);
        }
        for shape in shapes.iter().flatten() {
            shape.captures("");
        }
        for hook in hooks.iter().flatten() {
            hook.is_match("");
        }
        for component in catalogue.components() {
            let replaced = component.chains.iter().filter_map(|c| c.replaced_by.as_ref());
            for pattern in component.alive.links.iter().chain(replaced) {
                Expression::new(pattern).unwrap().is_match("");
            }
        }
    }

    #[test]
    fn a_chain_has_one_owner() {
        let catalogue = Catalogue::builtin().unwrap();
        let owner = |table, name| catalogue.chain(table, name).map(|(c, _)| c.name.as_str());
        for (table, chain, expected) in [
            ("filter", "KUBE-ROUTER-INPUT", Some("kube-router")),
            ("mangle", "KUBE-VIP-EGRESS", Some("kube-vip")),
            ("nat", "KUBE-HP-ABCDEFGHIJKLMNOP", Some("hostport")),
            ("filter", "KUBE-FIREWALL", Some("kubelet")),
            ("nat", "KUBE-FIREWALL", Some("kube-proxy")),
            ("nat", "KUBE-SVC-ABCDEFGHIJKLMNOP", Some("kube-proxy")),
            ("nat", "KUBE-SVC-mine", None),
            ("filter", "KUBE-SVC-ABCDEFGHIJKLMNOP", None),
            ("mangle", "OVN-KUBE-EGRESS-IP-Multi-NIC", Some("ovn-kubernetes")),
            ("nat", "OVN-NAT", Some("kube-ovn")),
            ("filter", "calico-dhcp-1", Some("neutron")),
            ("nat", "CNI-DN-0123456789abcdef01234", Some("cni-portmap")),
            ("nat", "CNI-0123456789abcdef01234567", Some("cni-masq")),
            ("filter", "LOGGING", None),
        ] {
            assert_eq!(owner(table, chain), expected, "{table} {chain}");
        }
    }

    #[test]
    fn a_bad_file_is_refused_by_file_and_field() {
        let error = |body: &str| {
            let text = format!("component: x\nabout: a\nsource: s\nheals: never\n{body}");
            Catalogue::parse(&[("x", &text)]).unwrap_err().to_string()
        };
        for (body, expected) in [
            ("chain: []\n", "owners/x.yaml: unknown field `chain`"),
            ("sets: ['a']\n", "owners/x.yaml: sets: `a` is not anchored"),
            ("sets: ['^a|b']\n", "owners/x.yaml: sets: `^a|b` is not anchored"),
            ("sets: ['^(a']\n", "owners/x.yaml: sets: `^(a` regex parse error"),
            ("chains: [{name: '^A$', content: c}]\n", "content: `c` is not in contents"),
            ("contents: {c: {}}\n", "contents: no chain has `c`"),
            ("rules: [{id: r, rule: '-s {a}'}]\n", "rules.r: no field is called `a`"),
            ("chains: [{name: '^A$', since: new}]\n", "chains: `new` is no 1.24"),
            ("chains: [{name: '^A$', modes: [ebpf]}]\n", "unknown variant `ebpf`"),
        ] {
            let error = error(body);
            assert!(error.contains(expected), "{error}");
        }
        let other = Catalogue::parse(&[("y", "component: x\nabout: a\nsource: s\nheals: 5s\n")]);
        assert!(other.unwrap_err().to_string().contains("not the file's name"));
    }
}
