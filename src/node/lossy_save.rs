//! Recognises lossy saves by their text: those that lack something that the kernel has.
//!
//! `iptables-save` exits with 0 even when its output is lossy. An older build omits a match that it
//! does not know; without its `-m mark`, for example, a rule in KUBE-FIREWALL drops every packet. So does one that the
//! kernel holds like that: which of the two it is, the kernel's own rules show ([`suspect_rules`]). A
//! build of the nft backend omits tables that it cannot express. Restoring such a save would break
//! the node.

use std::collections::BTreeMap;

use crate::error::{Error, Kind};
use crate::state::lost_match::ConditionalRule;

/// Why a save is lossy, if it is. `file` names the save, `text` is its output, and `stderr` is what
/// its program wrote to standard error.
///
/// An empty output is no fault, because it means that there are no tables.
pub fn lossy(file: &str, text: &str, stderr: &str) -> Option<Error> {
    complaint(stderr)
        .or_else(|| text.lines().find_map(bad_line))
        .or_else(|| shape(text))
        .map(|fault| Error::new(Kind::LossyCapture, file, fault.cause).hint(fault.hint))
}

/// Whether the error of [`lossy`] is that a table is left out for rules that `nft` wrote.
pub(super) fn is_of_native_rules(error: &Error) -> bool {
    error.hint.as_deref() == Some(BY_NFT)
}

struct SaveFault {
    cause: String,
    hint: &'static str,
}

const OTHER_BUILD: &str =
    "save with the iptables build that wrote the rules (kube-proxy's image has its own)";
const BY_NFT: &str = "move the rules that nft wrote into a table of their own (`nft list table …`)";
const AGAIN: &str = "run the program by hand and see what it prints";

/// Any line on standard error is a fault, except two remarks: that the other backend has tables too,
/// and that there is no file with names of connection labels, which are numbers then.
fn complaint(stderr: &str) -> Option<SaveFault> {
    let line = stderr.lines().map(str::trim).find(|line| {
        let both_backends =
            line.starts_with("# Warning: ") && line.contains(" tables present, use ");
        let no_labels = line.starts_with("Warning: cannot open /")
            && line.ends_with("/connlabel.conf: No such file or directory");
        !line.is_empty() && !both_backends && !no_labels
    })?;
    Some(SaveFault { cause: format!("its program warned: {line}"), hint: AGAIN })
}

fn bad_line(line: &str) -> Option<SaveFault> {
    if line.contains("[unsupported revision]") {
        let cause = format!("its iptables is older than the one that wrote this rule: {line}");
        return Some(SaveFault { cause, hint: OTHER_BUILD });
    }
    let unsupported = line.starts_with('#')
        && (line.contains(" is incompatible, use 'nft' tool")
            || line.contains(" incompatible base-chains"));
    if unsupported {
        let cause = format!("a table is left out: {}", line.trim_start_matches(['#', ' ']));
        return Some(SaveFault { cause, hint: BY_NFT });
    }
    None
}

/// A rule in a save that has no condition although it always has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuspectRule<'a> {
    /// The rule's table.
    pub table: &'a str,
    /// The rule's chain.
    pub chain: &'static str,
    /// The rule's position in its chain, from 0.
    pub position: usize,
    line: &'a str,
    effect: &'static str,
}

impl SuspectRule<'_> {
    /// The error that the save `file` is lossy, for a rule that has a condition in the kernel.
    pub fn error(&self, file: &str) -> Error {
        let cause = format!("a match was lost, so that this rule {}: {}", self.effect, self.line);
        Error::new(Kind::LossyCapture, file, cause).hint(OTHER_BUILD)
    }
}

/// The rules of a save that may have lost their match in it. The kernel decides: it may hold them like
/// that.
pub fn suspect_rules(save: &str) -> Vec<SuspectRule<'_>> {
    let (mut table, mut found, mut positions) = ("", Vec::new(), BTreeMap::new());
    for line in save.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
            positions.clear();
        }
        // A rule may have its counters in front: `[3:180] -A …`.
        let text =
            if line.starts_with('[') { line.split_once(' ').map(|(_, text)| text) } else { None };
        let text = text.unwrap_or(line);
        let chain = text.strip_prefix("-A ").and_then(|rest| rest.split(' ').next());
        let Some(chain) = chain.filter(|name| ConditionalRule::chains().any(|c| c == *name)) else {
            continue;
        };
        let next: &mut usize = positions.entry(chain).or_default();
        let position = std::mem::replace(next, *next + 1);
        if let Some(rule) = ConditionalRule::lost_by(text) {
            let ConditionalRule { chain, effect, .. } = rule;
            found.push(SuspectRule { table, chain, position, line, effect });
        }
    }
    found
}

/// The fault, if any, in the sequence of table headers (`*nat`) and `COMMIT` lines.
fn shape(text: &str) -> Option<SaveFault> {
    if text.is_empty() {
        return None;
    }
    let fault = |cause: String| Some(SaveFault { cause, hint: AGAIN });
    let (mut open, mut tables) = (None, 0);
    for (number, line) in (1..).zip(text.lines()) {
        match (line.strip_prefix('*'), open) {
            (Some(name), None) => open = Some(name),
            (Some(name), Some(before)) => {
                return fault(format!("line {number}: table {name} begins inside {before}"));
            }
            (None, Some(_)) if line == "COMMIT" => {
                open = None;
                tables += 1;
            }
            (None, None) if !line.is_empty() && !line.starts_with('#') => {
                return fault(format!("line {number} is outside of any table: {line}"));
            }
            _ => {}
        }
    }
    if let Some(name) = open {
        return fault(format!("table {name} has no end: the text was cut off"));
    }
    if tables == 0 {
        return fault("there is no table in it".into());
    }
    if !text.ends_with('\n') {
        return fault("the last line has no end: the text was cut off".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# Generated by x\n*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n\
        [0:0] -A KUBE-FIREWALL -m comment --comment \"a --mark\" -m mark --mark 0x8000/0x8000 -j DROP\n\
        COMMIT\n# Completed\n*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";

    fn cause(text: &str, stderr: &str) -> String {
        let e = lossy("iptables-nft.save", text, stderr).expect("refused");
        assert_eq!((e.kind, e.object.as_str()), (Kind::LossyCapture, "iptables-nft.save"));
        assert!(e.hint.is_some());
        e.cause
    }

    fn with_rule(rule: &str) -> String {
        format!("*filter\n:INPUT ACCEPT [0:0]\n{rule}\nCOMMIT\n")
    }

    #[test]
    fn a_whole_save_is_let_through() {
        assert!(lossy("f", GOOD, "").is_none());
        assert!(lossy("f", "", "").is_none());
    }

    #[test]
    fn every_captured_node_is_let_through() {
        let mut count = 0;
        for entry in std::fs::read_dir("snapshots").unwrap() {
            let Ok(files) = std::fs::read_dir(entry.unwrap().path()) else { continue };
            for file in files {
                let path = file.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if name.contains("tables") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    assert!(lossy(&name, &text, "").is_none(), "{}", path.display());
                    count += 1;
                }
            }
        }
        assert!(count >= 7);
    }

    #[test]
    fn two_remarks_are_let_through_and_nothing_else() {
        let remark = "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n\
             Warning: cannot open /etc/xtables/connlabel.conf: No such file or directory\n";
        assert!(lossy("f", GOOD, remark).is_none());
        let unread = remark.replace("No such file or directory", "Permission denied");
        assert!(cause(GOOD, &unread).contains("Permission denied"));
        let message = cause(GOOD, &format!("{remark}iptables-save: something failed\n"));
        assert!(message.contains("something failed"), "{message}");
    }

    #[test]
    fn an_unsupported_revision_is_refused() {
        let message = cause(&with_rule("-A INPUT -m set [unsupported revision] -j DROP"), "");
        assert!(message.contains("-A INPUT -m set"), "{message}");
    }

    #[test]
    fn missing_tables_are_refused() {
        for line in [
            "# Table `filter' is incompatible, use 'nft' tool.",
            "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.",
        ] {
            assert!(cause(&format!("{line}\n{GOOD}"), "").contains("Table `filter'"));
        }
    }

    #[test]
    fn rules_without_their_condition_are_suspect_at_their_place() {
        assert_eq!(suspect_rules(GOOD), []);
        let save = "*filter\n:INPUT ACCEPT [0:0]\n\
            [0:0] -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\n\
            [3:180] -A KUBE-FIREWALL -m comment --comment \"x -A KUBE-FORWARD\" -j DROP\n\
            -A KUBE-FORWARD -j ACCEPT\nCOMMIT\n*nat\n-A KUBE-POSTROUTING -j RETURN\n\
            -A OTHER -m comment --comment \"-A KUBE-FIREWALL -j DROP\" -j DROP\nCOMMIT\n";
        let found = suspect_rules(save);
        let positions: Vec<_> = found.iter().map(|r| (r.table, r.chain, r.position)).collect();
        assert_eq!(
            positions,
            [
                ("filter", "KUBE-FIREWALL", 1),
                ("filter", "KUBE-FORWARD", 0),
                ("nat", "KUBE-POSTROUTING", 0)
            ]
        );
        let error = found[0].error("iptables-nft.save");
        assert_eq!(error.kind, Kind::LossyCapture);
        assert!(error.cause.contains("drops everything"), "{}", error.cause);
    }

    #[test]
    fn text_that_is_cut_or_has_no_table_is_refused() {
        assert!(cause("# Generated by x\n", "").contains("no table"));
        assert!(cause("*filter\n:INPUT ACCEPT [0:0]\n", "").contains("cut off"));
        assert!(cause("*filter\nCOMMIT", "").contains("last line"));
        assert!(cause("*filter\n*nat\nCOMMIT\n", "").contains("inside filter"));
        assert!(cause("*filter\nCOMMIT\nCOMMIT\n", "").contains("outside"));
        assert!(cause("Segmentation fault\n", "").contains("outside"));
    }

    #[test]
    fn every_cut_of_a_save_inside_a_table_is_refused() {
        let end = GOOD.rfind("COMMIT\n").unwrap();
        let start = GOOD.rfind("*nat").unwrap() + 1;
        for cut in start..end + 6 {
            assert!(lossy("f", &GOOD[..cut], "").is_some(), "{:?}", &GOOD[..cut]);
        }
    }
}
