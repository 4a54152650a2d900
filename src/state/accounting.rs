//! Accounting objects (nfacct(8)): counters by name, into which rules of the match `nfacct` count. An
//! object may have a quota; then the match says whether it is used up.
//!
//! In a node state they are a line each: counters, quota, name.
//!
//! ```text
//! [12:3400] - ct_state_invalid_dropped_pkts
//! [0:0] packet:1000 guests
//! ```

use std::fmt;

use super::lines;
use crate::error::Result;

/// An accounting object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountingObject {
    /// The object's name: any text in one line.
    pub name: String,
    /// How much may be counted until the match `nfacct` matches. Without a quota it always does.
    pub quota: Option<Quota>,
    /// The packets counted so far.
    pub packets: u64,
    /// The bytes counted so far.
    pub bytes: u64,
}

/// The quota of an accounting object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// This many packets.
    Packets(u64),
    /// This many bytes.
    Bytes(u64),
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quota::Packets(n) => write!(f, "packet:{n}"),
            Quota::Bytes(n) => write!(f, "byte:{n}"),
        }
    }
}

impl AccountingObject {
    /// An object without a quota, that has counted nothing: as kube-proxy makes its own.
    pub fn plain(name: &str) -> AccountingObject {
        AccountingObject { name: name.to_owned(), quota: None, packets: 0, bytes: 0 }
    }

    /// Parses the objects of a node state. Errors name `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<Vec<AccountingObject>> {
        let object = |(number, line)| {
            AccountingObject::of_line(line)
                .filter(|object| object.line() == line)
                .ok_or_else(|| lines::error(file, number, format!("`{line}` is no such object")))
        };
        lines::numbered(file, text)?.into_iter().map(object).collect()
    }

    fn of_line(line: &str) -> Option<AccountingObject> {
        let (counters, rest) = line.strip_prefix('[')?.split_once("] ")?;
        let (packets, bytes) = counters.split_once(':')?;
        let (quota, name) = rest.split_once(' ').filter(|(_, name)| !name.is_empty())?;
        let quota = match quota.split_once(':') {
            None if quota == "-" => None,
            Some(("packet", n)) => Some(Quota::Packets(n.parse().ok()?)),
            Some(("byte", n)) => Some(Quota::Bytes(n.parse().ok()?)),
            _ => return None,
        };
        let (packets, bytes) = (packets.parse().ok()?, bytes.parse().ok()?);
        Some(AccountingObject { name: name.to_owned(), quota, packets, bytes })
    }

    /// The lines of `objects`.
    pub fn render(objects: &[AccountingObject]) -> String {
        objects.iter().map(|object| object.line() + "\n").collect()
    }

    fn line(&self) -> String {
        let AccountingObject { name, packets, bytes, .. } = self;
        format!("[{packets}:{bytes}] {} {name}", self.quota_or_none())
    }

    fn quota_or_none(&self) -> String {
        self.quota.map_or_else(|| "-".to_owned(), |quota| quota.to_string())
    }

    /// What the objects are, without their counters.
    pub(super) fn facts(objects: &[AccountingObject]) -> Vec<String> {
        let fact = |object: &AccountingObject| {
            format!("nfacct {} quota {}", object.name, object.quota_or_none())
        };
        objects.iter().map(fact).collect()
    }

    /// The objects that are in both lists and have different quotas. One that is in one list alone
    /// is no difference: a node state has the objects that its rules name, so the rule is.
    pub fn differences(before: &[AccountingObject], after: &[AccountingObject]) -> Vec<String> {
        let changed = |object: &AccountingObject| {
            let now = after.iter().find(|other| other.name == object.name)?;
            let quotas = (object.quota_or_none(), now.quota_or_none());
            (object.quota != now.quota)
                .then(|| format!("~ {}: quota {} → {}", object.name, quotas.0, quotas.1))
        };
        before.iter().filter_map(changed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[12:3400] - ct_state_invalid_dropped_pkts\n[0:0] packet:1000 -a \"b  c\n\
                        [1:2] byte:18446744073709551615 packet:1 x\n";

    #[test]
    fn names_and_quotas_survive() {
        let objects = AccountingObject::parse("nfacct.save", TEXT).unwrap();
        assert_eq!(AccountingObject::render(&objects), TEXT);
        let names: Vec<&str> = objects.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(names, ["ct_state_invalid_dropped_pkts", "-a \"b  c", "packet:1 x"]);
        assert_eq!(objects[1].quota, Some(Quota::Packets(1000)));
    }

    #[test]
    fn counters_are_no_difference_and_quotas_are() {
        let parse = |text: &str| AccountingObject::parse("f", text).unwrap();
        let before = parse(TEXT);
        let counted = parse(&TEXT.replace("[12:3400]", "[13:3500]"));
        assert_eq!(AccountingObject::differences(&before, &counted), Vec::<String>::new());
        assert_eq!(AccountingObject::differences(&before, &[]), Vec::<String>::new());
        for quota in ["-", "packet:999", "byte:1000"] {
            let other = parse(&TEXT.replace("packet:1000", quota));
            let expected = [format!("~ -a \"b  c: quota packet:1000 → {quota}")];
            assert_eq!(AccountingObject::differences(&before, &other), expected);
        }
    }

    #[test]
    fn errors_name_file_line_and_text() {
        for bad in [
            "x",
            "[1:2] x",
            "[1:2] - ",
            "[1] - x",
            "[a:2] - x",
            "[1:2] packet:-1 x",
            "[1:2] week:1 x",
            "[1:2] 5 x",
            "[01:2] - x",
            "[1:2] byte:+5 x",
            "",
        ] {
            let error = AccountingObject::parse("f", &format!("[0:0] - a\n{bad}\n")).unwrap_err();
            assert_eq!(error.object, "f:2", "{bad}: {error}");
        }
    }
}
