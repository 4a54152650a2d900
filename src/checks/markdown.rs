//! The page of the documentation that lists all checks.

use std::collections::BTreeMap;

use super::{Check, Severity, all};

/// The text of `docs/checks.md`: every check with its severity, when it applies, and where to read
/// more.
pub fn markdown() -> String {
    let mut areas: BTreeMap<&str, Vec<&Check>> = BTreeMap::new();
    for check in all() {
        let area = check.id.split_once('.').map_or(check.id, |(area, _)| area);
        areas.entry(area).or_default().push(check);
    }
    let mut text = format!(
        "# Checks\n\n\
         `proxyshift check` judges a node, live or captured, with these {} checks and changes \
         nothing. Each says *ok*, *found* with evidence, effect and remedy, or *unknown* with what \
         was missing. A *block* that is found stops a run before its first change (exit code 3); \
         *warn* and *info* stop nothing, but where a playbook has them under `block`. `--only` and `--ignore` take ids.\n\n\
         This page is made from the registry: `UPDATE_DOCS=1 cargo test --test checks_docs`.\n",
        all().count()
    );
    for (area, mut checks) in areas {
        checks.sort_by_key(|check| check.id);
        text += &format!(
            "\n## {area}\n\n| check | severity | about | applies | see |\n|---|---|---|---|---|\n"
        );
        for check in checks {
            let severity = match check.severity {
                Severity::Block => "block",
                Severity::Warn => "warn",
                Severity::Info => "info",
            };
            let Check { id, title, when, reference, .. } = check;
            let cell = |text: &str| text.replace('|', "\\|");
            let (title, when) = (cell(title), cell(when));
            text += &format!("| `{id}` | {severity} | {title} | {when} | <{reference}> |\n");
        }
    }
    text
}
