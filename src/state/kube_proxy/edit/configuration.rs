//! The editor of a `KubeProxyConfiguration` file: changes the lines of the edited fields, and no
//! other byte.
//!
//! Understands only simple YAML. The edited text is parsed again, and refused unless it differs
//! from the old text in exactly the requested edit.

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::config_edit::ConfigEdit;
use super::line::{indent, is_content, key, put, quoted_like, refused, value};
use crate::error::Result;
use crate::state::kube_proxy::KubeProxyConfig;
use crate::yaml;

/// The text of the file after the edit; errors call the file `file`.
///
/// # Errors
/// [`crate::error::Kind::Parse`], with file and line, for YAML in an unsupported form.
pub(super) fn edit(file: &str, text: &str, change: &ConfigEdit) -> Result<String> {
    let before = KubeProxyConfig::parse(file, text);
    let missing = |before: &KubeProxyConfig| change.missing(&before.ipvs.exclude_cidrs);
    if before.as_ref().is_ok_and(|b| b.mode == Some(change.mode) && missing(b).is_empty()) {
        return Ok(text.to_owned());
    }
    check_form(file, text)?;
    let before = before?;
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let mut at = None;
    if before.mode != Some(change.mode) {
        at = Some(set_mode(file, &mut lines, change.mode.name())?);
    }
    let missing = missing(&before);
    if !missing.is_empty() {
        let list = exclude(file, &mut lines, &missing)?;
        at = at.or(Some(list));
    }
    let edited = lines.join("\n");
    let expected = yaml::parse(file, text).ok().and_then(|old| requested(old, change, &missing));
    if expected.is_none() || yaml::parse(file, &edited).ok() != expected {
        let cause = "changed here, the file would not mean what was asked";
        return Err(refused(file, at.unwrap_or(0), cause));
    }
    Ok(edited)
}

/// Refuses YAML in which fields cannot be recognised line by line.
fn check_form(file: &str, text: &str) -> Result<()> {
    let mut begun = false;
    for (at, line) in text.split('\n').enumerate().filter(|(_, line)| is_content(line)) {
        let is_end = line == "..." || line.starts_with("... ");
        let is_start = line == "---" || line.starts_with("--- ");
        let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
        let cause = if line.contains('\r') {
            "a carriage return: the file was rewritten on its way"
        } else if line.split('#').next().is_some_and(|code| code.contains('\t')) {
            "a tab, which may mean any indentation"
        } else if is_end || (is_start && begun) {
            "the end of a document: a file of several is not understood"
        } else if !begun && line.starts_with(['{', '[']) {
            "the whole is in flow style (JSON)"
        } else if !begun && line.starts_with(' ') {
            "its keys are indented"
        } else if words.any(|word| word.starts_with(['&', '*']) || word == "<<:") {
            "an anchor or an alias"
        } else {
            begun = true;
            continue;
        };
        return Err(refused(file, at, cause));
    }
    Ok(())
}

/// The line of the document's top-level field `name`, and the index after its colon.
fn field(lines: &[String], name: &str) -> Option<(usize, usize)> {
    lines.iter().enumerate().find_map(|(at, line)| match key(line, 0) {
        Some((found, start)) if found == name && is_content(line) => Some((at, start)),
        _ => None,
    })
}

/// Sets the field `mode`, and returns the index of its line.
fn set_mode(file: &str, lines: &mut Vec<String>, mode: &str) -> Result<usize> {
    let Some((at, start)) = field(lines, "mode") else {
        return Ok(append(lines, vec![format!("mode: {mode}")]));
    };
    let range = value(&lines[at], start)
        .filter(|range| !lines[at][range.clone()].starts_with(['[', '{']))
        .ok_or_else(|| refused(file, at, "the mode is in a form that is not understood"))?;
    let old = match &lines[at][range.clone()] {
        // A null has no quotes, because quotes would make it a text. So the mode that replaces the
        // null gets no quotes either.
        "~" | "null" => "",
        old => old,
    };
    let new = quoted_like(old, mode);
    put(&mut lines[at], range, &new);
    Ok(at)
}

/// Adds networks to `excludeCIDRs`, and returns the index of the changed line.
fn exclude(file: &str, lines: &mut Vec<String>, networks: &[IpNet]) -> Result<usize> {
    let list = quoted(networks).join(", ");
    let Some((section, start)) = field(lines, "ipvs") else {
        let new = vec!["ipvs:".to_owned(), format!("  excludeCIDRs: [{list}]")];
        return Ok(append(lines, new));
    };
    let range = value(&lines[section], start)
        .filter(|range| matches!(&lines[section][range.clone()], "" | "null" | "~" | "{}"))
        .ok_or_else(|| refused(file, section, "the section ipvs is in flow style, on one line"))?;
    if !range.is_empty() {
        put(&mut lines[section], range, &format!("{{excludeCIDRs: [{list}]}}"));
        return Ok(section);
    }
    let inside = |line: &&String| !is_content(line) || line.starts_with(' ');
    let end = section + 1 + lines[section + 1..].iter().take_while(inside).count();
    let mut content = (section + 1..end).filter(|at| is_content(&lines[*at]));
    let depth = content.next().map_or(2, |at| indent(&lines[at]));
    let found = (section + 1..end).find_map(|at| match key(&lines[at], depth) {
        Some(("excludeCIDRs", start)) if indent(&lines[at]) == depth => Some((at, start)),
        _ => None,
    });
    match found {
        Some((at, start)) => extend(file, lines, at, start, end, networks),
        None => {
            lines.insert(section + 1, format!("{:depth$}excludeCIDRs: [{list}]", ""));
            Ok(section + 1)
        }
    }
}

/// Adds networks to the list `excludeCIDRs`, whose key is in line `at`, in a section that ends
/// before line `end`. Returns the index of the changed line.
fn extend(
    file: &str,
    lines: &mut Vec<String>,
    at: usize,
    start: usize,
    end: usize,
    networks: &[IpNet],
) -> Result<usize> {
    let strange = |at| refused(file, at, "the list is in a form that is not understood");
    let new = quoted(networks);
    let range = value(&lines[at], start).ok_or_else(|| strange(at))?;
    let old = &lines[at][range.clone()];
    let inner = old.strip_prefix('[').and_then(|o| o.strip_suffix(']')).map(str::trim);
    match (old, inner) {
        ("", _) => {
            if let Some(last) = last_item(file, lines, at, end)? {
                // The new item has the indent and the dash of the item above it.
                let dash = indent(&lines[last]) + 1;
                let value = value(&lines[last], dash).ok_or_else(|| strange(last))?;
                let before = lines[last][..value.start].to_owned();
                let items = new.iter().map(|item| format!("{before}{item}"));
                lines.splice(last + 1..last + 1, items);
                return Ok(last + 1);
            }
            put(&mut lines[at], range, &format!("[{}]", new.join(", ")));
        }
        ("null" | "~", _) | (_, Some("")) => {
            put(&mut lines[at], range, &format!("[{}]", new.join(", ")));
        }
        (_, Some(items)) if !items.ends_with(',') => {
            let behind = range.start + old.trim_end_matches(']').trim_end().len();
            lines[at].insert_str(behind, &format!(", {}", new.join(", ")));
        }
        _ => return Err(strange(at)),
    }
    Ok(at)
}

/// The index of the last item (`- …`) of the list whose key is in line `at`; none if the list has
/// no items.
fn last_item(file: &str, lines: &[String], at: usize, end: usize) -> Result<Option<usize>> {
    let is_item = |line: &str| line.trim_start().starts_with("- ");
    let mut last = None;
    for next in (at + 1..end).filter(|next| is_content(&lines[*next])) {
        let line = &lines[next];
        let depth = last.map_or(indent(line), |last: usize| indent(&lines[last]));
        if !is_item(line) || indent(line) != depth || depth < indent(&lines[at]) {
            break;
        }
        if value(line, depth + 1).is_none() {
            return Err(refused(file, next, "the item is in a form that is not understood"));
        }
        last = Some(next);
    }
    Ok(last)
}

/// Adds fields at the end of the document, but before the unindented comments that end it. Indented
/// comments belong to the section above them, so the fields are added after those. Returns the
/// index of the first new line.
fn append(lines: &mut Vec<String>, new: Vec<String>) -> usize {
    let belongs = |line: &String| is_content(line) || line.trim_start().len() < line.len();
    let at = lines.iter().rposition(belongs).map_or(0, |last| last + 1);
    lines.splice(at..at, new);
    if lines.last().is_some_and(|last| !last.is_empty()) {
        lines.push(String::new());
    }
    at
}

/// Networks as list items, in quotes because IPv6 networks have colons.
fn quoted(networks: &[IpNet]) -> Vec<String> {
    networks.iter().map(|network| format!("\"{network}\"")).collect()
}

/// The document with the requested edit applied; none if the document, its `ipvs` or its
/// `excludeCIDRs` is not of the type that the edit needs.
fn requested(mut document: Value, change: &ConfigEdit, missing: &[IpNet]) -> Option<Value> {
    let fields = document.as_object_mut()?;
    fields.insert("mode".into(), change.mode.name().into());
    if !missing.is_empty() {
        let section = fields.entry("ipvs").or_insert(Value::Null);
        if section.is_null() {
            *section = Map::new().into();
        }
        let list = section.as_object_mut()?.entry("excludeCIDRs").or_insert(Value::Null);
        if list.is_null() {
            *list = Value::Array(Vec::new());
        }
        list.as_array_mut()?.extend(missing.iter().map(|network| network.to_string().into()));
    }
    Some(document)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;
    use crate::state::kube_proxy::Mode;

    fn change(networks: &[&str]) -> ConfigEdit {
        let exclude = networks.iter().map(|n| n.parse().unwrap()).collect();
        ConfigEdit { mode: Mode::Ipvs, exclude }
    }

    const HEAD: &str =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn only_the_mode_of_its_line_changes() {
        for (old, new) in [
            ("mode: iptables\nb: 1\n", "mode: ipvs\nb: 1\n"),
            ("mode:   \"iptables\"  # why\n", "mode:   \"ipvs\"  # why\n"),
            ("'mode' : ''\n", "'mode' : 'ipvs'\n"),
            ("mode:\nb: 1\n", "mode: ipvs\nb: 1\n"),
            ("mode: # none\n", "mode: ipvs # none\n"),
            ("mode: null\n", "mode: ipvs\n"),
            ("b: 1\n# the end\n", "b: 1\nmode: ipvs\n# the end\n"),
            ("b: {mode: x}\nc:\n  mode: y", "b: {mode: x}\nc:\n  mode: y\nmode: ipvs\n"),
            ("# mode: x\nmode: ipvs", "# mode: x\nmode: ipvs"),
            ("a: &m 1\nmode: ipvs\n", "a: &m 1\nmode: ipvs\n"),
        ] {
            let edited = edit("f", &format!("---\n{HEAD}{old}"), &change(&[])).unwrap();
            assert_eq!(edited, format!("---\n{HEAD}{new}"));
        }
    }

    #[test]
    fn networks_join_the_list_in_its_own_style() {
        let both = ["10.9.0.0/24", "fd00::/64"];
        let list = "[\"10.9.0.0/24\", \"fd00::/64\"]";
        let with = |list: &str| format!("ipvs:\n  excludeCIDRs: {list}\n");
        for (old, new) in [
            (String::new(), with(list)),
            ("ipvs: {}\n".into(), format!("ipvs: {{excludeCIDRs: {list}}}\n")),
            ("ipvs: null # c\n".into(), format!("ipvs: {{excludeCIDRs: {list}}} # c\n")),
            ("ipvs:\nb: 1\n".into(), format!("ipvs:\n  excludeCIDRs: {list}\nb: 1\n")),
            (
                "ipvs: # c\n\n    # d\n    strictARP: true\nb: 1\n".into(),
                format!(
                    "ipvs: # c\n    excludeCIDRs: {list}\n\n    # d\n    strictARP: true\nb: 1\n"
                ),
            ),
            (with("null"), with(list)),
            (with("[ ] # c"), with(&format!("{list} # c"))),
            (
                with("[10.1.0.0/16 ] # c"),
                with("[10.1.0.0/16, \"10.9.0.0/24\", \"fd00::/64\" ] # c"),
            ),
            (
                with(
                    "\n  # own\n  -  10.1.0.0/16 # a\n\n  # b\n  -  '10.2.0.0/16'\n  # c\n  \
                     scheduler: rr",
                ),
                with(
                    "\n  # own\n  -  10.1.0.0/16 # a\n\n  # b\n  -  '10.2.0.0/16'\n  \
                     -  \"10.9.0.0/24\"\n  -  \"fd00::/64\"\n  # c\n  scheduler: rr",
                ),
            ),
            (
                with("\n    - 10.1.0.0/16"),
                with("\n    - 10.1.0.0/16\n    - \"10.9.0.0/24\"\n    - \"fd00::/64\""),
            ),
            (with("[10.0.0.0/8, 'fd00::/16']"), with("[10.0.0.0/8, 'fd00::/16']")),
        ] {
            let edited = edit("f", &format!("{HEAD}mode: ipvs\n{old}"), &change(&both)).unwrap();
            assert_eq!(edited, format!("{HEAD}mode: ipvs\n{new}"));
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_file_and_line() {
        for (text, expected) in [
            ("{\"mode\": \"iptables\"}\n", "f:1: the whole is in flow style"),
            (" kind: KubeProxyConfiguration\n mode: iptables\n", "f:1: its keys are indented"),
            ("mode: &m iptables\n", "f:1: an anchor"),
            ("a: &m {b: 1}\nc: *m\nmode: iptables\n", "f:1: an anchor"),
            ("a: 1\n<<: {mode: iptables}\n", "f:2: an anchor"),
            ("a: 1\n---\nmode: iptables\n", "f:2: the end of a document"),
            ("mode: iptables\n...\n", "f:2: the end of a document"),
            ("a:\n\tb: 1\nmode: iptables\n", "f:2: a tab"),
            ("mode: iptables\r\n", "f:1: a carriage return"),
            ("mode: !!str iptables\n", "f:1: the mode is in a form"),
            ("mode: >-\n  iptables\n", "f:1: the mode is in a form"),
            ("a: 1\nmode:\n  iptables\n", "f:2: changed here"),
            ("ipvs: {strictARP: true}\n", "f:1: the section ipvs is in flow style"),
            ("ipvs:\n  excludeCIDRs: 10.0.0.0/16\n", "f:2: the list is in a form"),
            ("ipvs:\n  excludeCIDRs: [\n  10.1.0.0/16]\n", "f:2: the list is in a form"),
            ("ipvs:\n  excludeCIDRs: [10.1.0.0/16,]\n", "f:2: the list is in a form"),
            ("ipvs:\n  excludeCIDRs:\n  - !!str 10.1.0.0/16\n", "f:3: the item is in a form"),
            ("kind: Pod\n", "f: a Pod, not"),
            ("mode: iptables\nmode: ipvs\n", "f: duplicate"),
        ] {
            let error = edit("f", text, &change(&["10.9.0.0/24"])).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{text:?}: {error}");
            assert_eq!(error.kind, Kind::Parse);
        }
    }

    #[test]
    fn captured_configurations_are_edited_in_one_line() {
        let mut count = 0;
        for node in std::fs::read_dir("snapshots").unwrap() {
            let path = node.unwrap().path().join("files/var/lib/kube-proxy/config.conf");
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let edited = edit("f", &text, &change(&[])).unwrap();
            let differ = text.lines().zip(edited.lines()).filter(|(a, b)| a != b).count();
            assert_eq!(text.lines().count(), edited.lines().count());
            assert!(differ <= 1, "{edited}");
            assert_eq!(KubeProxyConfig::parse("f", &edited).unwrap().mode, Some(Mode::Ipvs));
            count += 1;
        }
        assert!(count >= 7);
    }

    /// One part of a generated configuration file, in various spellings.
    fn part() -> impl Strategy<Value = String> {
        prop_oneof![
            "# [a-z: '\"-]{0,20}",
            Just(String::new()),
            Just("clientConnection: {kubeconfig: /k, qps: 5}".to_owned()),
            Just("conntrack:\n  # of the kernel\n  min: null\n  maxPerCore: 0 # off".to_owned()),
            Just("nodePortAddresses:\n- 10.0.0.0/8\n# more\n- primary".to_owned()),
            Just("note: |\n  mode: iptables\n  ipvs:\n    # kept".to_owned()),
            Just("iptables:\n    masqueradeBit: 14\n\n    masqueradeAll: false".to_owned()),
        ]
    }

    fn mode_line() -> impl Strategy<Value = String> {
        let value = prop_oneof![
            Just("iptables"),
            Just("\"iptables\""),
            Just("''"),
            Just("null"),
            Just(""),
            Just("nftables")
        ];
        (value, "( +# [a-z ]{0,8})?").prop_map(|(value, comment)| format!("mode: {value}{comment}"))
    }

    fn ipvs_section() -> impl Strategy<Value = String> {
        let list = prop_oneof![
            Just(""),
            Just("  excludeCIDRs: null # n\n"),
            Just("  excludeCIDRs: [10.1.0.0/16]   # l\n"),
            Just("  excludeCIDRs:\n  # i\n  - 10.1.0.0/16 # j\n"),
        ];
        (list, any::<bool>()).prop_map(|(list, first)| {
            if first {
                format!("ipvs: # s\n{list}  strictARP: true # t")
            } else {
                format!("ipvs: # s\n  strictARP: true # t\n{list}  # last")
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn only_the_lines_concerned_differ(
            parts in proptest::collection::vec(part(), 0..5),
            mode in proptest::option::of(mode_line()),
            ipvs in proptest::option::of(ipvs_section()),
            seed in any::<proptest::sample::Index>(),
        ) {
            let mut parts = parts;
            // YAML allows each key only once.
            let mut known = std::collections::BTreeSet::new();
            parts.retain(|p| p.starts_with('#') || known.insert(p.clone()));
            for extra in [mode, ipvs].into_iter().flatten() {
                parts.insert(seed.index(parts.len() + 1), extra);
            }
            let text = format!("{HEAD}{}\n", parts.join("\n"));
            let edited = edit("f", &text, &change(&["10.9.0.0/24"])).unwrap();
            let config = KubeProxyConfig::parse("f", &edited).unwrap();
            prop_assert_eq!(config.mode, Some(Mode::Ipvs));
            prop_assert!(config.ipvs.exclude_cidrs.contains(&"10.9.0.0/24".parse().unwrap()));
            // Every line but `mode:` and `excludeCIDRs:` is kept, in order, and at most three lines
            // are new.
            let concerned =
                |l: &str| l.starts_with("mode:") || l.trim().starts_with("excludeCIDRs:");
            let mut rest = edited.lines();
            for line in text.lines().filter(|l| !concerned(l)) {
                prop_assert!(rest.any(|l| l == line), "{line:?} is gone from\n{edited}");
            }
            prop_assert!(edited.lines().count() <= text.lines().count() + 3, "{edited}");
            // Comments at the end of the edited lines are kept too.
            let comments = |t: &str| -> Vec<String> {
                t.lines().filter_map(|l| Some(l[l.find('#')?..].to_owned())).collect()
            };
            prop_assert_eq!(comments(&text), comments(&edited));
            // Applying the same edit again changes nothing.
            prop_assert_eq!(edit("f", &edited, &change(&["10.9.0.0/24"])).unwrap(), edited);
        }
    }
}
