//! The catalogue of components, read from `playbooks/owners/*.yaml`.
//!
//! One file describes one component: the names, comments and shapes of the objects that the
//! component makes, and the evidence that the component is alive. Names of objects are regular
//! expressions anchored at the start. Shapes are templates (see [`crate::owners::template`]).

use std::sync::Arc;

use crate::error::Result;
use crate::owners::component::{ChainEntry, Component, Shape};
use crate::owners::content::Content;
use crate::owners::expression::Expression;
use crate::owners::files::{builtin, components};
pub(crate) use crate::owners::names::EntryId;
use crate::owners::names::{Names, anchored, refused};
use crate::owners::native_content::NativeContent;
use crate::owners::template::Template;
use crate::state::nft::NftTable;

/// All components, with their name patterns and templates ready for use.
#[derive(Debug)]
pub struct Catalogue {
    pub(crate) components: Arc<[Component]>,
    pub(crate) chains: Names,
    pub(crate) comments: Names,
    pub(crate) sets: Names,
    pub(crate) links: Names,
    pub(crate) nft_tables: Names,
    /// What each component's native tables consist of: `native_contents[component]`.
    native_contents: Vec<Option<NativeContent>>,
    /// The rule forms of each chain entry: `contents[component][chain entry]`.
    contents: Vec<Vec<Option<Content>>>,
    /// The templates of the shapes: `shapes[component][shape]`.
    shapes: Vec<Vec<Template>>,
    /// For each hook, the expression that the comment of its rule must match:
    /// `hooks[component][hook]`.
    hooks: Vec<Vec<Expression>>,
}

impl Catalogue {
    /// The catalogue that is built into the program.
    ///
    /// # Errors
    /// As [`Catalogue::parse`]. A test shows that the built-in files give no error.
    pub fn builtin() -> Result<Catalogue> {
        Catalogue::of(builtin()?)
    }

    /// Reads components from the texts of catalogue files, given as pairs of file name and text.
    ///
    /// # Errors
    /// [`Parse`](crate::error::Kind::Parse) for a text that is not YAML or has unknown keys.
    /// [`Usage`](crate::error::Kind::Usage), with file and field, for an expression that is
    /// malformed or not anchored, a component name that differs from the file's name, an invalid
    /// template or reference, and a key without effect in that file.
    pub fn parse(files: &[(&str, &str)]) -> Result<Catalogue> {
        Catalogue::of(components(files)?)
    }

    fn of(components: Arc<[Component]>) -> Result<Catalogue> {
        let names = |field, list: fn(&Component) -> Vec<&str>| Names::new(&components, field, list);
        Ok(Catalogue {
            chains: names("chains", |c| c.chains.iter().map(|e| e.name.as_str()).collect())?,
            comments: names("comments", |c| strs(&c.comments))?,
            sets: names("sets", |c| strs(&c.sets))?,
            links: names("links", |c| strs(&c.links))?,
            nft_tables: names("nft_tables", |c| strs(&c.nft_tables))?,
            native_contents: components
                .iter()
                .map(NativeContent::compile)
                .collect::<Result<_>>()?,
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

    /// True if `component` owns rules with this comment.
    pub fn writes_comment(&self, component: &Component, comment: &str) -> bool {
        self.comments.first(comment).is_some_and(|e| self.at(e).name == component.name)
    }

    /// True if `component` writes rules of this form into that built-in chain, and no other
    /// component does.
    pub(crate) fn writes_rule(
        &self,
        component: &Component,
        table: &str,
        chain: &str,
        body: &str,
    ) -> bool {
        self.shapes().any(|(entry, shape, template)| {
            self.at(entry).name == component.name
                && !shape.weak
                && shape.beside.is_none()
                && shape.allows_chain(table, chain)
                && template.captures(body).is_some()
        })
    }

    /// The component that owns a chain, and the chain's entry in the catalogue.
    pub fn chain(&self, table: &str, name: &str) -> Option<(&Component, &ChainEntry)> {
        let entry = self.chain_entry(table, name)?;
        let component = self.at(entry);
        Some((component, &component.chains[usize::from(entry.item)]))
    }

    pub(crate) fn chain_entry(&self, table: &str, name: &str) -> Option<EntryId> {
        self.chains.all(name).find(|e| {
            let tables = &self.at(*e).chains[usize::from(e.item)].tables;
            tables.is_empty() || tables.iter().any(|t| t == table)
        })
    }

    /// The component that makes chains of this name in the table `table` of iptables.
    pub(crate) fn owner_of_chain(&self, table: &str, chain: &str) -> Option<&Component> {
        self.chain_entry(table, chain).map(|entry| self.at(entry))
    }

    pub(crate) fn at(&self, entry: EntryId) -> &Component {
        &self.components[usize::from(entry.component)]
    }

    /// The forms that rules in the chains of this entry may have, if the catalogue lists such
    /// forms.
    pub(crate) fn content(&self, chain: EntryId) -> Option<&Content> {
        self.contents[usize::from(chain.component)][usize::from(chain.item)].as_ref()
    }

    /// The component that has tables of this name, and the first part of the table that it does not
    /// write.
    pub(crate) fn native_table(&self, table: &NftTable) -> Option<(EntryId, Option<String>)> {
        let entry = self.nft_tables.first(&format!("{} {}", table.family, table.name))?;
        let content = self.native_contents[usize::from(entry.component)].as_ref();
        Some((entry, content.and_then(|content| content.unexpected_part(table))))
    }

    /// Whether the catalogue lists what the native tables of this entry's component consist of, so that
    /// a table without an unexpected part is the component's.
    pub(crate) fn lists_native_content(&self, entry: EntryId) -> bool {
        self.native_contents[usize::from(entry.component)].is_some()
    }

    /// Every shape and its compiled template, in order of precedence.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (EntryId, &Shape, &Template)> {
        self.components.iter().enumerate().flat_map(|(c, component)| {
            component
                .rules
                .iter()
                .zip(&self.shapes[c])
                .enumerate()
                .map(move |(i, (shape, t))| (EntryId::new(c, i), shape, t))
        })
    }

    /// The shape of `component` that has this `id`, and its compiled template.
    pub(crate) fn shape(&self, component: &str, id: &str) -> Option<(&Shape, &Template)> {
        let found =
            |(e, s, _): &(EntryId, &Shape, &Template)| self.at(*e).name == component && s.id == id;
        self.shapes().find(found).map(|(_, shape, template)| (shape, template))
    }

    /// The hook whose table, chain, target and comment match a rule.
    pub(crate) fn hook<C: AsRef<str>>(
        &self,
        table: &str,
        chain: &str,
        target: &str,
        comments: &[C],
    ) -> Option<EntryId> {
        for (c, component) in self.components.iter().enumerate() {
            for (i, hook) in component.hooks.iter().enumerate() {
                let expression = &self.hooks[c][i];
                if hook.to == target
                    && hook.table == table
                    && hook.chains.iter().any(|h| h == chain)
                    && comments.iter().any(|comment| expression.is_match(comment.as_ref()))
                {
                    return Some(EntryId::new(c, i));
                }
            }
        }
        None
    }
}

fn strs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

fn contents(component: &Component) -> Result<Vec<Option<Content>>> {
    let mut used: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for chain in &component.chains {
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
    use crate::owners::files::FILES;
    use crate::owners::signs::Alive;

    #[test]
    fn every_file_compiles() {
        let catalogue = Catalogue::builtin().unwrap();
        assert_eq!(catalogue.components().len(), FILES.len());
        let empty =
            |c: &&Component| c.about.is_empty() || c.source.is_empty() || c.heals.is_empty();
        assert_eq!(catalogue.components().iter().filter(empty).count(), 0);
        // Every expression is matched once here, because an expression is compiled only when it is
        // first used.
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
            let Alive { links, pods, outlived_by, .. } = &component.alive;
            let signs = links.iter().chain(pods).chain(&outlived_by.links);
            for pattern in signs.chain(replaced) {
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
            ("chains: [{name: '^A$', since: new}]\n", "`new` is no minor version, as 1.24"),
            ("chains: [{name: '^A$', since: '1.24'}]\n", "chains: `^A$` has `modes`, `since`"),
            ("chains: [{name: '^A$', until: '1.24'}]\n", "chains: `^A$` has `modes`, `since`"),
            ("chains: [{name: '^A$', replaced_by: '^B$'}]\n", "chains: `^A$` has `modes`, `since`"),
            ("chains: [{name: '^A$', modes: [ipvs]}]\n", "chains: `^A$` has `modes`, `since`"),
            (
                "hooks: [{table: t, chains: [], to: A, comment: '^c', until: '1.2'}]\n",
                "hooks: `A` has",
            ),
            ("before: [z]\n", "before: no component is called `z`"),
            ("before: [x]\n", "before: two components are before each other"),
            ("chains: [{name: '^A$', modes: [ebpf]}]\n", "unknown variant `ebpf`"),
        ] {
            let error = error(body);
            assert!(error.contains(expected), "{error}");
        }
        let other = Catalogue::parse(&[("y", "component: x\nabout: a\nsource: s\nheals: 5s\n")]);
        assert!(other.unwrap_err().to_string().contains("not the file's name"));
    }
}
