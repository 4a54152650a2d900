//! What a component's native nf_tables tables consist of. A table that holds anything else is not the
//! component's, whatever its name, because removing it would take what is somebody else's.

use serde_json::{Map, Value};

use crate::error::Result;
use crate::owners::component::{Component, RawNativeChain};
use crate::owners::expression::Expression;
use crate::owners::names::anchored;
use crate::state::nft::NftTable;

/// The parts of a component's native tables.
#[derive(Debug)]
pub(crate) struct NativeContent {
    chains: Vec<(Expression, Vec<String>)>,
    sets: Vec<Expression>,
}

impl NativeContent {
    /// The content that a component's catalogue file lists; `None` if it lists none.
    pub(crate) fn compile(component: &Component) -> Result<Option<NativeContent>> {
        let Some(raw) = &component.nft_content else { return Ok(None) };
        let compile = |pattern: &str| anchored(&component.name, "nft_content", pattern);
        let chain = |c: &RawNativeChain| Ok((compile(&c.name)?, c.statements.clone()));
        Ok(Some(NativeContent {
            chains: raw.chains.iter().map(chain).collect::<Result<_>>()?,
            sets: raw.sets.iter().map(|set| compile(set)).collect::<Result<_>>()?,
        }))
    }

    /// The first part of a table that the component does not write: `chain mine`, `counter in chain
    /// services`.
    pub(crate) fn unexpected_part(&self, table: &NftTable) -> Option<String> {
        table.objects.iter().find_map(|object| {
            let (kind, body) = object.as_object()?.iter().next()?;
            match (kind.as_str(), body.as_object()) {
                ("table" | "metainfo", _) => None,
                ("rule", Some(rule)) => self.unexpected_statement(rule),
                (kind, Some(body)) => {
                    let name = text(body, "name");
                    let is_known = match kind {
                        "chain" => self.statements(name).is_some(),
                        "set" | "map" => self.sets.iter().any(|set| set.is_match(name)),
                        _ => false,
                    };
                    (!is_known).then(|| format!("{kind} {name}"))
                }
                (kind, None) => Some(kind.to_owned()),
            }
        })
    }

    fn unexpected_statement(&self, rule: &Map<String, Value>) -> Option<String> {
        let chain = text(rule, "chain");
        let Some(known) = self.statements(chain) else { return Some(format!("chain {chain}")) };
        let all = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
        let mut names = all.map(|s| s.as_object().and_then(|s| s.keys().next()).map_or("", |k| k));
        let other = names.find(|name| !known.iter().any(|k| k == name))?;
        Some(format!("{other} in chain {chain}"))
    }

    /// The statements of the rules of a chain; `None` if the component has no such chain.
    fn statements(&self, chain: &str) -> Option<&[String]> {
        let entry = self.chains.iter().find(|(name, _)| name.is_match(chain))?;
        Some(&entry.1)
    }
}

fn text<'a>(body: &'a Map<String, Value>, field: &str) -> &'a str {
    body.get(field).and_then(Value::as_str).unwrap_or_default()
}
