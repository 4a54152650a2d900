//! Parsers of `tools.txt` (the node's programs) and `processes.json` (its running components).

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};

use super::lines;
use crate::error::{Error, Kind, Result};

/// The kernel and the programs of a node, as in `tools.txt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolList {
    /// The kernel's release: `6.1.0-40-amd64`.
    pub kernel: String,
    /// The programs that were searched for, in the order of the file; some may be missing.
    pub tools: Vec<InstalledTool>,
}

/// A program that was searched for: either found or missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledTool {
    /// The program's name: `conntrack`.
    pub name: String,
    /// The path at which the program was found; none if the program is missing.
    pub path: Option<String>,
    /// What the program printed for its version: one line, which may be an error message or empty.
    pub text: String,
}

/// A version of up to three numbers; a number that is not given is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number; 0 if it is not given.
    pub patch: u32,
}

impl ToolList {
    /// Parses `kernel RELEASE`, then lines of `NAME PATH TEXT` or `NAME missing`. Errors name
    /// `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<ToolList> {
        let mut lines = lines::numbered(file, text)?.into_iter();
        let kernel = match lines.next().and_then(|(_, line)| line.strip_prefix("kernel ")) {
            Some(kernel) if !kernel.is_empty() => kernel.to_owned(),
            _ => return Err(lines::error(file, 1, "the first line is not `kernel RELEASE`")),
        };
        let tool = |(number, line): (usize, &str)| {
            let mut words = line.splitn(3, ' ');
            let (name, path, text) = (words.next(), words.next(), words.next());
            match (name, path, text) {
                (Some(name), Some("missing"), None) => Ok(InstalledTool::missing(name)),
                (Some(name), Some(path), text) if path.starts_with('/') && text != Some("") => {
                    Ok(InstalledTool::found(name, path, text.unwrap_or_default()))
                }
                _ => {
                    let cause = format!("`{line}` is neither `NAME PATH TEXT` nor `NAME missing`");
                    Err(lines::error(file, number, cause))
                }
            }
        };
        Ok(ToolList { kernel, tools: lines.map(tool).collect::<Result<_>>()? })
    }

    /// Renders the text that was parsed, to the byte.
    pub fn render(&self) -> String {
        let mut text = format!("kernel {}\n", self.kernel);
        for tool in &self.tools {
            let path = tool.path.as_deref().unwrap_or("missing");
            let blank = if tool.text.is_empty() { "" } else { " " };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {path}{blank}{}", tool.name, tool.text);
        }
        text
    }

    /// The program `name`, found or missing; none if it was not searched for.
    pub fn get(&self, name: &str) -> Option<&InstalledTool> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// The version in the kernel's release; none if the release has none.
    pub fn kernel_version(&self) -> Option<Version> {
        Version::find(&self.kernel)
    }
}

impl InstalledTool {
    /// A program that was searched for and is not installed.
    pub fn missing(name: &str) -> InstalledTool {
        InstalledTool { name: name.to_owned(), path: None, text: String::new() }
    }

    /// A program that was found at `path`; `text` is what it printed for its version.
    pub fn found(name: &str, path: &str, text: &str) -> InstalledTool {
        InstalledTool { name: name.to_owned(), path: Some(path.to_owned()), text: text.to_owned() }
    }

    /// The version in the program's output; none if the output is an error message.
    pub fn version(&self) -> Option<Version> {
        Version::find(&self.text)
    }
}

impl Version {
    /// The first `1.2` or `1.2.3` in `text`, whatever follows it.
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

/// What stands in place of a text that a capture does not keep.
pub const MASK: &str = "<masked>";

/// The process of a component that owns rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The PID.
    pub pid: u32,
    /// The process's name: `kube-proxy`.
    pub name: String,
    /// The arguments, beginning with the program. Secrets are masked.
    pub args: Vec<String>,
    /// The version of the program, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where the version comes from, such as `kube-proxy --version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_source: Option<String>,
    /// The paths of its control groups, which show who runs it; empty if they were not captured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<String>,
}

impl Process {
    /// Whether the arguments are not known: none was kept, or the program has set its title, which
    /// replaces them.
    pub fn hides_arguments(&self) -> bool {
        match &self.args[..] {
            [] => true,
            [title] => title.contains(' '),
            [_, rest @ ..] => rest.iter().all(|arg| arg == MASK),
        }
    }
}

/// The text of `processes.json` where nobody could see the node's processes.
pub const NOT_KNOWN: &str = "null\n";

/// Parses `processes.json`. Errors name `file` and the line.
pub fn parse_processes(file: &str, text: &str) -> Result<Vec<Process>> {
    serde_json::from_str(text).map_err(|e| Error::new(Kind::Parse, file, e))
}

/// Renders the text of `processes.json`.
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
        let tools = ToolList::parse("tools.txt", text).unwrap();
        assert_eq!(tools.render(), text);
        let version = |name: &str| Some(tools.get(name)?.version()?.to_string());
        assert_eq!(version("iptables").as_deref(), Some("1.8.9"));
        assert_eq!(version("ipset").as_deref(), Some("7.17.0"));
        assert_eq!(version("ip").as_deref(), Some("6.1.0"));
        assert_eq!(version("docker").as_deref(), Some("20.10.24"));
        assert_eq!((version("ipvsadm"), version("quiet")), (None, None));
        assert!(tools.get("ipvsadm").unwrap().path.is_some());
        assert_eq!(tools.get("conntrack"), Some(&InstalledTool::missing("conntrack")));
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
            let error = ToolList::parse("tools.txt", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn an_unknown_version_is_omitted() {
        let text = r#"[{"pid": 7, "name": "kube-proxy", "args": ["kube-proxy"], "later": 1},
            {"pid": 8, "name": "x", "args": [], "version": "1.20.2", "version_source": "log"}]"#;
        let processes = parse_processes("processes.json", text).unwrap();
        assert_eq!((processes[0].version.as_deref(), processes[1].pid), (None, 8));
        let text = render_processes(&processes).unwrap();
        assert_eq!(text.matches("version_source").count(), 1);
        // The format of the captured nodes.
        assert!(text.starts_with("[\n {\n  \"pid\": 7,\n  \"name\": \"kube-proxy\",\n"), "{text}");
        assert_eq!(parse_processes("processes.json", &text).unwrap(), processes);
        let error = parse_processes("processes.json", "[{\"pid\":\n").unwrap_err().to_string();
        assert!(error.starts_with("processes.json: EOF") && error.contains("line 2"), "{error}");
    }
}
