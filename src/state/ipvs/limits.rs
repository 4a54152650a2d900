//! `ipvsadm -L -n --thresholds`: the connection limits of real servers, which `ipvsadm -S` omits.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::listing::server;
use super::{VirtualServerId, VirtualServers};
use crate::error::Result;
use crate::state::lines;

/// The upper and lower connection limit of each real server that has one; a limit of 0 means no
/// limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionLimits(HashMap<(VirtualServerId, SocketAddr), [u32; 2]>);

impl ConnectionLimits {
    /// Parses the output of `ipvsadm -L -n --thresholds`. Errors name `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<ConnectionLimits> {
        let mut limits = HashMap::new();
        let mut of = None;
        // The first three lines are headings.
        for (number, line) in lines::numbered(file, text)?.into_iter().skip(3) {
            let error = || lines::error(file, number, format!("`{line}` tells no limits"));
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["->", address, upper, lower, _, _] = &words[..] else {
                of = Some(server(&words).ok_or_else(error)?.service);
                continue;
            };
            let both = || Some([upper.parse().ok()?, lower.parse().ok()?]);
            let (service, both) = of.zip(both()).ok_or_else(error)?;
            if both != [0, 0] {
                limits.insert((service, address.parse().map_err(|_| error())?), both);
            }
        }
        Ok(ConnectionLimits(limits))
    }

    /// Whether no real server has a limit.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the limits of the real servers in `ipvs`. Real servers that are only in `ipvs` or only
    /// in these limits are skipped.
    pub fn put(&self, ipvs: &mut VirtualServers) {
        let some = |limit: u32| (limit > 0).then_some(limit);
        for server in &mut ipvs.servers {
            for real in &mut server.reals {
                if let Some([upper, lower]) = self.0.get(&(server.service, real.address)) {
                    (real.upper, real.lower) = (some(*upper), some(*lower));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // `SAVE` and `LISTED` are outputs of ipvsadm 1.31 on Linux 6.1.
    const SAVE: &str = "-A -t 10.0.0.1:80 -s rr -p 300\n\
        -a -t 10.0.0.1:80 -r 10.1.1.1:80 -m -w 1\n\
        -a -t 10.0.0.1:80 -r 10.1.1.2:80 -m -w 1\n\
        -A -t [fd00::1]:80 -s rr\n\
        -a -t [fd00::1]:80 -r [fd00::2]:80 -m -w 1\n\
        -A -f 7 -s rr\n";
    const LISTED: &str = "IP Virtual Server version 1.2.1 (size=4096)\n\
        Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn \n\
        \x20 -> RemoteAddress:Port\n\
        TCP  10.0.0.1:80 rr persistent 300\n\
        \x20 -> 10.1.1.1:80                  100        50         0          0         \n\
        \x20 -> 10.1.1.2:80                  0          0          0          0         \n\
        TCP  [fd00::1]:80 rr\n\
        \x20 -> [fd00::2]:80                 7          0          0          0         \n\
        FWM  7 rr\n";

    #[test]
    fn limits_are_in_what_ipvsadm_restores() {
        let limits = ConnectionLimits::parse("ipvsadm", LISTED).unwrap();
        let mut ipvs = VirtualServers::parse("ipvs.save", SAVE).unwrap();
        limits.put(&mut ipvs);
        let wanted = SAVE
            .replace("10.1.1.1:80 -m -w 1", "10.1.1.1:80 -m -w 1 -x 100 -y 50")
            .replace("[fd00::2]:80 -m -w 1", "[fd00::2]:80 -m -w 1 -x 7");
        assert_eq!(ipvs.render(), wanted);
        assert_eq!(VirtualServers::parse("ipvs.save", &wanted).unwrap(), ipvs);
        // A real server with a limit was removed between the listing and the save.
        let without = SAVE.replace("-a -t 10.0.0.1:80 -r 10.1.1.1:80 -m -w 1\n", "");
        let mut ipvs = VirtualServers::parse("ipvs.save", &without).unwrap();
        limits.put(&mut ipvs);
        assert_eq!(ipvs.render().matches("-x").count(), 1);
    }

    #[test]
    fn without_limits_nothing_is_added() {
        let none = LISTED.replace("100        50", "0          0").replace(" 7          0", " 0 0");
        assert!(ConnectionLimits::parse("ipvsadm", &none).unwrap().is_empty());
        assert!(!ConnectionLimits::parse("ipvsadm", LISTED).unwrap().is_empty());
    }

    #[test]
    fn errors_name_the_line() {
        for (from, to) in [("100 ", "x "), ("10.1.1.1:80 ", "nowhere "), ("FWM  7 rr", "FWM")] {
            let error = ConnectionLimits::parse("ipvsadm", &LISTED.replace(from, to)).unwrap_err();
            let line = if from.starts_with('F') { 9 } else { 5 };
            assert!(error.to_string().starts_with(&format!("ipvsadm:{line}: ")), "{error}");
        }
    }
}
