//! The Corefile of nodelocaldns: the addresses that nodelocaldns binds, and its upstreams.

use std::net::IpAddr;

use crate::checks::Facts;

/// A line inside a server block of a Corefile.
pub(super) struct Directive<'a> {
    /// The file, the line number and the line, as evidence.
    pub(super) shown: String,
    /// The zones of the server block that holds the line: `.`, `cluster.local`.
    zones: Vec<&'a str>,
    words: Vec<&'a str>,
}

impl Directive<'_> {
    /// The addresses of a `bind` line; none for any other line.
    pub(super) fn binds(&self) -> Vec<IpAddr> {
        match &self.words[..] {
            ["bind", to @ ..] => to.iter().filter_map(|word| word.parse().ok()).collect(),
            _ => Vec::new(),
        }
    }

    /// The upstream of a `forward` line that covers every zone and names only one upstream.
    pub(super) fn only_upstream(&self) -> Option<IpAddr> {
        match &self.words[..] {
            ["forward", ".", to] if self.zones.contains(&".") => address(to),
            _ => None,
        }
    }
}

/// The address in `10.96.0.10`, `10.96.0.10:53`, `dns://10.96.0.10` or `[fd00::a]:53`.
fn address(to: &str) -> Option<IpAddr> {
    let host = to.rsplit_once("//").map_or(to, |(_, host)| host);
    let bare = host.trim_start_matches('[').split(']').next()?;
    bare.parse().ok().or_else(|| bare.rsplit_once(':')?.0.parse().ok())
}

/// The lines of nodelocaldns's Corefile; none if the Corefile is not in this state.
pub(super) fn directives<'a>(facts: &Facts<'a>) -> Vec<Directive<'a>> {
    let processes = facts.now.processes.iter().flatten().filter(|p| p.name == "node-cache");
    let mut paths = processes.filter_map(|p| conf(&p.args));
    let file = paths.next().and_then(|path| Some((path, facts.now.file(path)?)));
    file.map_or_else(Vec::new, |(path, text)| parsed(path, text))
}

/// The path that the option `-conf` names.
fn conf(args: &[String]) -> Option<&str> {
    let is_flag = |arg: &str| matches!(arg, "-conf" | "--conf");
    args.iter().enumerate().find_map(|(at, arg)| match arg.split_once('=') {
        Some((flag, path)) if is_flag(flag) => Some(path),
        None if is_flag(arg) => args.get(at + 1).map(String::as_str),
        _ => None,
    })
}

fn parsed<'a>(path: &str, text: &'a str) -> Vec<Directive<'a>> {
    let mut found = Vec::new();
    let (mut depth, mut zones) = (0_usize, Vec::new());
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = Vec::new();
        for word in line.split_whitespace() {
            match (word, depth) {
                ("{", _) => depth += 1,
                ("}", _) => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        zones.clear();
                    }
                }
                (zone, 0) => zones.push(zone_of(zone)),
                (word, 1) => words.push(word),
                _ => {}
            }
        }
        if !words.is_empty() {
            let shown = format!("{path}:{}: {}", at + 1, line.trim());
            found.push(Directive { shown, zones: zones.clone(), words });
        }
    }
    found
}

/// The zone in the head of a server block: `cluster.local` of `dns://cluster.local:53,`.
fn zone_of(key: &str) -> &str {
    let key = key.trim_end_matches(',');
    let key = key.rsplit_once("//").map_or(key, |(_, zone)| zone);
    key.split(':').next().unwrap_or(key)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::checks::testing::Node;

    pub(in crate::checks::dns) const USUAL: &str = "cluster.local:53 {\n    errors\n    cache {\n\
        \x20       success 9984 30\n    }\n    bind 169.254.20.10 10.96.0.10\n    forward . 10.103.1.1 {\n\
        \x20       force_tcp\n    }\n}\n.:53 {\n    bind 169.254.20.10 # not here: bind 10.96.0.10\n\
        \x20   forward . /etc/resolv.conf\n}\n";

    /// A captured node on which nodelocaldns runs with a Corefile that holds `text`.
    pub(in crate::checks::dns) fn configured(text: &str) -> Node {
        let args = ["/node-cache", "-localip", "169.254.20.10", "-conf", "/etc/Corefile"];
        Node::captured("docker-iptables-1.30")
            .process(77, "node-cache", &args)
            .put_file("/etc/Corefile", text)
    }

    #[test]
    fn blocks_and_their_lines_are_separate() {
        let found = parsed("/c", USUAL);
        let binds: Vec<_> = found.iter().filter(|d| !d.binds().is_empty()).collect();
        assert_eq!(binds.len(), 2);
        assert_eq!(binds[0].shown, "/c:6: bind 169.254.20.10 10.96.0.10");
        assert_eq!(binds[1].binds(), ["169.254.20.10".parse::<IpAddr>().unwrap()]);
        assert!(!found.iter().any(|d| d.words[0] == "success" || d.words[0] == "force_tcp"));
        assert!(found.iter().all(|d| d.only_upstream().is_none()), "of its own zone, or by a file");
    }

    #[test]
    fn the_only_server_for_every_zone_is_found_however_it_is_written() {
        for (text, upstream) in [
            ("dns://.:53 {\n forward . 10.96.0.10:53\n}\n", Some("10.96.0.10")),
            ("cluster.local, . {\n forward . dns://10.96.0.10 {\n}\n}\n", Some("10.96.0.10")),
            (".\n{\n forward . [fd00::a]:53\n}\n", Some("fd00::a")),
            (". {\n forward . fd00::a\n}\n", Some("fd00::a")),
            (". {\n forward . 10.96.0.10 9.9.9.9\n}\n", None),
            (". {\n}\nx {\n forward . 10.96.0.10\n}\n", None),
        ] {
            let found = parsed("/c", text).iter().find_map(Directive::only_upstream);
            assert_eq!(found, upstream.map(|a| a.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn its_file_is_named_in_three_ways() {
        let of = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            conf(&args).map(str::to_owned)
        };
        assert_eq!(of(&["x", "-conf", "/a"]).as_deref(), Some("/a"));
        assert_eq!(of(&["x", "--conf=/b"]).as_deref(), Some("/b"));
        assert_eq!(of(&["x", "-config", "/c"]), None);
        assert_eq!(of(&["x", "-conf"]), None);
    }
}
