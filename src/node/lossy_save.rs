//! Recognises lossy saves by their text: those that lack something that the kernel has.
//!
//! `iptables-save` exits with 0 even when its output is lossy. An older build omits a match that it
//! does not know; without its `-m mark`, for example, a rule in KUBE-FIREWALL drops every packet. A
//! build of the nft backend omits tables that it cannot express. Restoring such a save would break
//! the node.

use crate::error::{Error, Kind};

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
    if drops_everything(line) {
        let cause = format!("a match was lost, this rule drops every packet: {line}");
        return Some(SaveFault { cause, hint: OTHER_BUILD });
    }
    None
}

/// True for a DROP in KUBE-FIREWALL without a condition. Both DROP rules that the kubelet really
/// makes have one: a mark, or addresses and a connection state.
fn drops_everything(line: &str) -> bool {
    if !line.contains("-A KUBE-FIREWALL ") {
        return false;
    }
    let words = outside_quotes(line);
    let words: Vec<_> = words.split_whitespace().collect();
    let has = |wanted: &[&str]| words.iter().any(|w| wanted.contains(w));
    let pair = |a: &str, b: &str| words.windows(2).any(|w| w == [a, b]);
    pair("-A", "KUBE-FIREWALL")
        && pair("-j", "DROP")
        && !has(&["--mark", "-s", "--source", "-d", "--destination", "--ctstate"])
}

/// The line without its double-quoted parts, in which a backslash escapes the character after it.
fn outside_quotes(line: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    line.chars()
        .filter(|&c| {
            let kept = !quoted && c != '"';
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ => {}
            }
            kept
        })
        .collect()
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
    fn a_kube_firewall_that_drops_everything_is_refused() {
        let comment = r#"-m comment --comment "dropping \" --mark -s marked packets""#;
        for rule in [
            format!("-A KUBE-FIREWALL {comment} -j DROP"),
            format!("[3:180] -A KUBE-FIREWALL {comment} -j DROP"),
            "-A KUBE-FIREWALL -j DROP".into(),
        ] {
            assert!(cause(&with_rule(&rule), "").contains("every packet"));
        }
    }

    #[test]
    fn other_drops_are_let_through() {
        for rule in [
            "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
            "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
            "-A KUBE-FIREWALL -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
            "-A KUBE-FIREWALL -j KUBE-MARK-DROP",
            "-A OTHER -j DROP",
            r#"-A OTHER -m comment --comment "-A KUBE-FIREWALL -j DROP" -j DROP"#,
        ] {
            assert!(lossy("f", &with_rule(rule), "").is_none(), "{rule}");
        }
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
