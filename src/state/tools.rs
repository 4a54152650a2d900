//! `tools.txt` (which programs the node has) and `processes.json` (which components run).

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};

use super::lines;
use crate::error::{Error, Kind, Result};

/// The kernel and the programs of a node, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// The kernel's release: `6.1.0-40-amd64`.
    pub kernel: String,
    /// The programs that were looked for.
    pub tools: Vec<Tool>,
}

/// A program that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Its name: `conntrack`.
    pub name: String,
    /// Where it is; none if it is missing.
    pub path: Option<String>,
    /// What it said of its version: one line, perhaps an error message, perhaps nothing.
    pub text: String,
}

/// A version; parts that were not written are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl Tools {
    /// Reads `kernel RELEASE`, then lines of `NAME PATH TEXT` or `NAME missing`; errors name
    /// `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<Tools> {
        let mut lines = lines::numbered(file, text)?.into_iter();
        let kernel = match lines.next().and_then(|(_, line)| line.strip_prefix("kernel ")) {
            Some(kernel) if !kernel.is_empty() => kernel.to_owned(),
            _ => return Err(lines::error(file, 1, "the first line is not `kernel RELEASE`")),
        };
        let tool = |(number, line): (usize, &str)| {
            let mut words = line.splitn(3, ' ');
            let (name, place, text) = (words.next(), words.next(), words.next());
            match (name, place, text) {
                (Some(name), Some("missing"), None) => Ok(Tool::missing(name)),
                (Some(name), Some(path), text) if path.starts_with('/') && text != Some("") => {
                    Ok(Tool::found(name, path, text.unwrap_or_default()))
                }
                _ => {
                    let cause = format!("`{line}` is neither `NAME PATH TEXT` nor `NAME missing`");
                    Err(lines::error(file, number, cause))
                }
            }
        };
        Ok(Tools { kernel, tools: lines.map(tool).collect::<Result<_>>()? })
    }

    /// The text that was parsed, to the byte.
    pub fn render(&self) -> String {
        let mut text = format!("kernel {}\n", self.kernel);
        for tool in &self.tools {
            let place = tool.path.as_deref().unwrap_or("missing");
            let blank = if tool.text.is_empty() { "" } else { " " };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {place}{blank}{}", tool.name, tool.text);
        }
        text
    }

    /// The program `name`, if it was looked for; it may still be missing.
    pub fn get(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// The kernel's version.
    pub fn kernel_version(&self) -> Option<Version> {
        Version::find(&self.kernel)
    }
}

impl Tool {
    /// A program that is not installed.
    pub fn missing(name: &str) -> Tool {
        Tool { name: name.to_owned(), path: None, text: String::new() }
    }

    /// A program at `path` that said `text` of its version.
    pub fn found(name: &str, path: &str, text: &str) -> Tool {
        Tool { name: name.to_owned(), path: Some(path.to_owned()), text: text.to_owned() }
    }

    /// The version in its text; an error message has none.
    pub fn version(&self) -> Option<Version> {
        Version::find(&self.text)
    }
}

impl Version {
    /// The first `1.2` or `1.2.3` in `text`, in front of whatever follows it.
    pub fn find(text: &str) -> Option<Version> {
        let runs = text.split(|c: char| !c.is_ascii_digit() && c != '.');
        let version = |run: &str| {
            let mut parts = run.split('.').map(str::parse);
            let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
            let patch = parts.next().and_then(|part| part.ok()).unwrap_or(0);
            Some(Version { major, minor, patch })
        };
        runs.filter_map(version).next()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A running component that owns rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its name: `kube-proxy`.
    pub name: String,
    /// Its arguments, the program first; secrets are masked.
    pub args: Vec<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How the version was learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_source: Option<String>,
}

/// Reads `processes.json`; errors name `file` and the line.
pub fn parse_processes(file: &str, text: &str) -> Result<Vec<Process>> {
    serde_json::from_str(text).map_err(|e| Error::new(Kind::Parse, file, e))
}

/// The text of `processes.json`.
pub fn render_processes(processes: &[Process]) -> Result<String> {
    let failed = |e: &dyn fmt::Display| Error::new(Kind::Unexpected, "processes.json", e);
    let mut text = Vec::new();
    let mut out = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b" "));
    processes.serialize(&mut out).map_err(|e| failed(&e))?;
    text.push(b'\n');
    String::from_utf8(text).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_survive_and_versions_are_found() {
        let text = "kernel 6.1.0-40-amd64\n\
            iptables /usr/sbin/iptables iptables v1.8.9 (nf_tables)\n\
            ipset /usr/sbin/ipset ipset v7.17, protocol version: 7\n\
            ipvsadm /usr/sbin/ipvsadm Can't initialize ipvs: Protocol not available\n\
            ip /usr/sbin/ip ip utility, iproute2-6.1.0, libbpf 1.1.0\n\
            docker /usr/bin/docker Docker version 20.10.24+dfsg1, build 297e128\n\
            quiet /bin/quiet\n\
            conntrack missing\n";
        let tools = Tools::parse("tools.txt", text).unwrap();
        assert_eq!(tools.render(), text);
        let version = |name: &str| Some(tools.get(name)?.version()?.to_string());
        assert_eq!(version("iptables").as_deref(), Some("1.8.9"));
        assert_eq!(version("ipset").as_deref(), Some("7.17.0"));
        assert_eq!(version("ip").as_deref(), Some("6.1.0"));
        assert_eq!(version("docker").as_deref(), Some("20.10.24"));
        assert_eq!((version("ipvsadm"), version("quiet")), (None, None));
        assert!(tools.get("ipvsadm").unwrap().path.is_some());
        assert_eq!(tools.get("conntrack"), Some(&Tool::missing("conntrack")));
        assert_eq!(tools.get("nft"), None);
        assert_eq!(tools.kernel_version(), Version::find("v6.1"));
        assert!(Version::find("1.10").unwrap() > Version::find("1.9.9").unwrap());
    }

    #[test]
    fn errors_name_file_line_and_cause() {
        for (text, expected) in [
            ("", "tools.txt:1: the first line is not"),
            ("nft missing\n", "tools.txt:1: the first line is not"),
            ("kernel 6.1\nnft\n", "tools.txt:2: `nft` is neither"),
            ("kernel 6.1\nnft gone\n", "tools.txt:2: `nft gone` is neither"),
            ("kernel 6.1\nnft /usr/sbin/nft", "tools.txt:2: the last line is cut off"),
        ] {
            let error = Tools::parse("tools.txt", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn an_unknown_version_is_left_out() {
        let text = r#"[{"pid": 7, "name": "kube-proxy", "args": ["kube-proxy"], "later": 1},
            {"pid": 8, "name": "x", "args": [], "version": "1.20.2", "version_source": "log"}]"#;
        let processes = parse_processes("processes.json", text).unwrap();
        assert_eq!((processes[0].version.as_deref(), processes[1].pid), (None, 8));
        let text = render_processes(&processes).unwrap();
        assert_eq!(text.matches("version_source").count(), 1);
        // As in the captured nodes.
        assert!(text.starts_with("[\n {\n  \"pid\": 7,\n  \"name\": \"kube-proxy\",\n"), "{text}");
        assert_eq!(parse_processes("processes.json", &text).unwrap(), processes);
        let error = parse_processes("processes.json", "[{\"pid\":\n").unwrap_err().to_string();
        assert!(error.starts_with("processes.json: EOF") && error.contains("line 2"), "{error}");
    }
}
