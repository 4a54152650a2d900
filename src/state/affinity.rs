//! Which clients stay with which endpoint by session affinity, where the kernel keeps that outside of
//! rules and tables: the lists of `xt_recent`, and the persistence templates of ipvs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::ipvs::PersistenceTemplate;
use super::lines;
use crate::error::Result;

/// The frequencies at which kernels count jiffies, in Hz.
const FREQUENCIES: [u64; 5] = [100, 250, 300, 1000, 1024];

/// How long before its first wrap in 32 bits the counter of jiffies begins, in seconds: INITIAL_JIFFIES
/// of `include/linux/jiffies.h`.
const BEFORE_WRAP: u64 = 300;

/// What the kernel knows of clients that stay with their endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AffinityLists {
    /// The lists of `xt_recent`, by name.
    pub recent: BTreeMap<String, Vec<RecentClient>>,
    /// The templates of ipvs.
    pub templates: Vec<PersistenceTemplate>,
}

/// A client in a list of `xt_recent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecentClient {
    /// Its address.
    pub address: IpAddr,
    /// How long ago a rule has set it.
    pub idle: Duration,
}

/// The clock by which the kernel stamps entries of `xt_recent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jiffies {
    now: u64,
    frequency: u64,
}

impl Jiffies {
    /// Reads the clock from `/proc/timer_list`, which has it beside the time since boot: from both
    /// follows how often in a second it counts.
    ///
    /// # Errors
    /// [`Kind::Parse`](crate::error::Kind::Parse), naming `file`, for a text without either.
    pub fn parse(file: &str, text: &str) -> Result<Jiffies> {
        let value = |key: &str, unit: &str| {
            let mut lines = text.lines();
            let rest = lines.find_map(|line| line.strip_prefix(key)?.strip_suffix(unit))?;
            rest.parse::<u64>().ok()
        };
        let (Some(since_boot), Some(now)) = (value("now at ", " nsecs"), value("jiffies: ", ""))
        else {
            return Err(lines::error(file, 1, "no `now at … nsecs`, or no `jiffies: …`"));
        };
        let first = 1_u64 << 32;
        let expected = |frequency: u64| {
            let counted = u128::from(since_boot) * u128::from(frequency) / 1_000_000_000;
            first.wrapping_add(u64::try_from(counted).unwrap_or(0)) - BEFORE_WRAP * frequency
        };
        let nearest = FREQUENCIES.into_iter().min_by_key(|f| expected(*f).abs_diff(now));
        Ok(Jiffies { now, frequency: nearest.unwrap_or(FREQUENCIES[0]) })
    }

    /// How long ago a stamp was made. One that was made after the clock was read is new.
    fn since(self, stamp: u64) -> Duration {
        Duration::from_millis(self.now.saturating_sub(stamp) * 1000 / self.frequency)
    }
}

/// Parses a list of `/proc/net/xt_recent`: `src=10.0.0.9 ttl: 64 last_seen: 4299253850 oldest_pkt: 1
/// 4299253850`, a line a client.
///
/// # Errors
/// [`Kind::Parse`](crate::error::Kind::Parse), naming `file` and the line.
pub fn recent_clients(file: &str, text: &str, clock: Jiffies) -> Result<Vec<RecentClient>> {
    let mut clients = Vec::new();
    for (number, line) in lines::numbered(file, text)? {
        let mut words = line.split_whitespace();
        let address = words.next().and_then(|word| word.strip_prefix("src=")?.parse().ok());
        let stamp = words.skip_while(|word| *word != "last_seen:").nth(1);
        let stamp = stamp.and_then(|stamp| stamp.parse().ok());
        let (Some(address), Some(stamp)) = (address, stamp) else {
            return Err(lines::error(file, number, format!("`{line}` is no client")));
        };
        clients.push(RecentClient { address, idle: clock.since(stamp) });
    }
    Ok(clients)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 writes it, without what is left out here.
    const TIMERS: &str = "Timer List Version: v0.10\nHRTIMER_MAX_CLOCK_BASES: 8\n\
        now at 17446379570771 nsecs\n\ncpu: 0\n  .last_jiffies   : 4299253850\n\
        jiffies: 4299253854\n";

    #[test]
    fn clients_are_as_old_as_their_stamps_say() {
        let clock = Jiffies::parse("timer_list", TIMERS).unwrap();
        assert_eq!(clock, Jiffies { now: 4_299_253_854, frequency: 250 });
        let text = "src=10.244.78.1 ttl: 64 last_seen: 4299253854 oldest_pkt: 1 4299253854\n\
            src=fd00:0244:0000:0078:0000:0000:0000:0001 ttl: 64 last_seen: 4299251354 \
            oldest_pkt: 2 4299250000, 4299251354\n";
        let clients = recent_clients("KUBE-SEP-X", text, clock).unwrap();
        let clients: Vec<_> = clients.iter().map(|c| (c.address.to_string(), c.idle)).collect();
        assert_eq!(
            clients,
            [
                ("10.244.78.1".to_owned(), Duration::ZERO),
                ("fd00:244:0:78::1".to_owned(), Duration::from_secs(10))
            ]
        );
        assert_eq!(recent_clients("KUBE-SEP-X", "", clock).unwrap(), []);
        assert!(recent_clients("KUBE-SEP-X", "src=10.244.78.1 ttl: 64\n", clock).is_err());
        assert!(Jiffies::parse("timer_list", "Timer List Version: v0.10\n").is_err());
    }

    #[test]
    fn the_frequency_is_the_only_one_that_fits() {
        for frequency in FREQUENCIES.into_iter().take(4) {
            for seconds in [30, 3600, 100 * 86_400] {
                let jiffies = (1_u64 << 32) - 300 * frequency + seconds * frequency;
                let nanoseconds = seconds * 1_000_000_000;
                let text = format!("now at {nanoseconds} nsecs\njiffies: {jiffies}\n");
                assert_eq!(Jiffies::parse("timer_list", &text).unwrap().frequency, frequency);
            }
        }
    }
}
