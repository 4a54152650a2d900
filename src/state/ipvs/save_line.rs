//! Parser of one line of `ipvsadm -S -n`.

use std::str::FromStr;

use super::{Forward, Protocol, RealServer, VirtualServer, VirtualServerId};
use crate::error::Result;
use crate::state::Family;

/// The words of one line of `ipvsadm -S -n` that are not parsed yet.
pub(super) struct SaveLine<'a>(std::str::Split<'a, char>);

impl<'a> SaveLine<'a> {
    /// Splits a line into its words, at each space.
    pub(super) fn new(line: &'a str) -> SaveLine<'a> {
        SaveLine(line.split(' '))
    }

    /// Takes the next word of the line.
    pub(super) fn next_word(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    /// Takes the next word of the line as the value of `option`.
    fn value<T: FromStr>(&mut self, option: &str) -> Result<T, String> {
        match self.0.next() {
            None | Some("") => Err(format!("{option} has no value: the line is cut off")),
            Some(word) => {
                word.parse().map_err(|_| format!("`{word}` is no value of {option} (with -n)"))
            }
        }
    }

    /// Takes the words that select a virtual server: `-t 10.0.0.1:80`, `-f 7 -6`.
    fn service(&mut self) -> Result<VirtualServerId, String> {
        let option = self.0.next().unwrap_or_default();
        let protocol = match option {
            "-t" => Protocol::Tcp,
            "-u" => Protocol::Udp,
            "--sctp-service" => Protocol::Sctp,
            "-f" => {
                let mark = self.value(option)?;
                let mut peeked = self.0.clone();
                let ipv6 = peeked.next() == Some("-6");
                if ipv6 {
                    self.0 = peeked;
                }
                let family = if ipv6 { Family::Ipv6 } else { Family::Ipv4 };
                return Ok(VirtualServerId::Fwmark { mark, family });
            }
            _ => return Err(format!("`{option}` names no kind of virtual server")),
        };
        Ok(VirtualServerId::Address { protocol, address: self.value(option)? })
    }

    /// Parses the words after `-A` as a virtual server without real servers.
    pub(super) fn server(&mut self) -> Result<VirtualServer, String> {
        let mut server = VirtualServer {
            service: self.service()?,
            scheduler: String::new(),
            persistent: None,
            mask: None,
            engine: None,
            one_packet: false,
            flags: None,
            other: vec![],
            reals: vec![],
        };
        while let Some(option) = self.0.next() {
            match option {
                "-s" => server.scheduler = self.value(option)?,
                "-p" => server.persistent = Some(self.value(option)?),
                "-M" => server.mask = Some(self.value(option)?),
                "--pe" => server.engine = Some(self.value(option)?),
                "-o" => server.one_packet = true,
                "-b" => server.flags = Some(self.value(option)?),
                _ => server.other.push(option.to_owned()),
            }
        }
        if server.scheduler.is_empty() {
            return Err(format!("{} has no scheduler: the line is cut off", server.service));
        }
        Ok(server)
    }

    /// Parses the words after `-a` as a real server and the identity of its virtual server.
    pub(super) fn real(&mut self) -> Result<(VirtualServerId, RealServer), String> {
        let service = self.service()?;
        let (mut address, mut forward, mut weight) = (None, None, None);
        let (mut upper, mut lower, mut other) = (None, None, vec![]);
        while let Some(option) = self.0.next() {
            match option {
                "-r" => address = Some(self.value(option)?),
                "-m" => forward = Some(Forward::Masq),
                "-g" => forward = Some(Forward::Route),
                "-i" => forward = Some(Forward::Tunnel),
                "-w" => weight = Some(self.value(option)?),
                "-x" => upper = Some(self.value(option)?),
                "-y" => lower = Some(self.value(option)?),
                _ => other.push(option.to_owned()),
            }
        }
        let (Some(address), Some(forward), Some(weight)) = (address, forward, weight) else {
            let cause = "lacks its address, way of forwarding or weight: the line is cut off";
            return Err(format!("a real server of {service} {cause}"));
        };
        Ok((service, RealServer { address, forward, weight, upper, lower, other }))
    }
}
