//! Sends packets, and reads from conntrack what became of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::cases::{Case, Client, EntryPoint, Surroundings, Way};
use super::wire::Senders;
use crate::error::Result;
use crate::node::conntrack::ConntrackSocket;
use crate::state::conntrack::ConntrackEntry;
use crate::state::ipvs::Protocol;

/// How long it may take until the links carry packets.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long to wait before a packet that was not found is sent again.
const AGAIN: Duration = Duration::from_millis(2);

/// The first port of clients. Each connection of a case has a port of its own, in all rounds: what is
/// begun twice is translated as it was the first time.
const FIRST_PORT: u16 = 2000;

/// A connection before it is translated.
type Flow = (Protocol, SocketAddr, SocketAddr);

/// What was found of a case.
#[derive(Debug, Clone, Default)]
pub(super) struct CaseWays {
    pub(super) ways: BTreeSet<Way>,
    /// The endpoints that each client got.
    by_client: BTreeMap<IpAddr, BTreeSet<SocketAddr>>,
}

impl CaseWays {
    /// Whether each client got one endpoint.
    pub(super) fn stays(&self) -> bool {
        self.by_client.values().all(|endpoints| endpoints.len() == 1)
    }

    fn add(&mut self, entry: &ConntrackEntry) {
        let ConntrackEntry { client, destination, leads_to, arrives_as, .. } = entry;
        let masqueraded = arrives_as.ip() != client.ip();
        if leads_to == destination && !masqueraded {
            return;
        }
        self.ways.insert(Way { endpoint: *leads_to, masqueraded });
        self.by_client.entry(client.ip()).or_default().insert(*leads_to);
    }
}

/// Example: `10.244.0.5:8080 masqueraded or 10.244.1.7:8080 masqueraded`; `nowhere`.
impl fmt::Display for CaseWays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ways.is_empty() {
            return f.write_str("nowhere");
        }
        let ways: Vec<String> = self.ways.iter().map(Way::to_string).collect();
        f.write_str(&ways.join(" or "))
    }
}

/// Sends packets in the namespace of this thread, and reads its conntrack.
pub(super) struct CaseObserver<'a> {
    senders: Senders,
    around: &'a [Surroundings],
    conntrack: ConntrackSocket,
    /// The next port of each case.
    ports: Vec<u16>,
    /// The next port of connections that no rule is for.
    plain_port: u16,
}

impl CaseObserver<'_> {
    /// An observer of so many cases.
    pub(super) fn new(
        senders: Senders,
        around: &[Surroundings],
        cases: usize,
    ) -> Result<CaseObserver<'_>> {
        let conntrack = ConntrackSocket::open()?;
        let ports = vec![FIRST_PORT; cases];
        Ok(CaseObserver { senders, around, conntrack, ports, plain_port: FIRST_PORT })
    }

    /// Why no packet can be observed; `None` if all links carry packets.
    pub(super) fn cannot_be(&mut self) -> Option<String> {
        match self.settle() {
            Ok(true) => None,
            Ok(false) => Some("packets do not pass through a private namespace".into()),
            Err(e) => Some(e.to_string()),
        }
    }

    /// What becomes of connections of each case. They are sent until all ways were found that are
    /// expected, or so many that a way which was not found does not exist.
    pub(super) fn all(
        &mut self,
        cases: &[Case],
        expected: &[BTreeSet<Way>],
    ) -> Result<Vec<CaseWays>> {
        let mut found = vec![CaseWays::default(); cases.len()];
        let mut sent = vec![0; cases.len()];
        let mut flows = HashMap::new();
        loop {
            let mut round = Vec::new();
            for (at, case) in cases.iter().enumerate() {
                let ways = expected[at].len().max(case.expected.len());
                let is_complete =
                    sent[at] > 1 && !expected[at].is_empty() && found[at].ways == expected[at];
                let enough = Case::enough(ways);
                if is_complete || sent[at] >= enough {
                    continue;
                }
                let next = (2 * ways.max(1)).min(enough - sent[at]);
                round.extend((sent[at]..sent[at] + next).map(|number| (at, number)));
                sent[at] += next;
            }
            if round.is_empty() {
                return Ok(found);
            }
            self.send(cases, &round, &mut flows)?;
            self.read(&flows, &mut found)?;
        }
    }

    /// Sends `count` connections of each case.
    pub(super) fn some(&mut self, cases: &[Case], count: impl Fn(usize) -> usize) -> Result<()> {
        let of_case = |at: usize| (0..count(at)).map(move |number| (at, number));
        let round: Vec<(usize, usize)> = (0..cases.len()).flat_map(of_case).collect();
        self.send(cases, &round, &mut HashMap::new())
    }

    /// Sends connections, each the one of a case with a number, and adds them to `flows`.
    fn send(
        &mut self,
        cases: &[Case],
        round: &[(usize, usize)],
        flows: &mut HashMap<Flow, usize>,
    ) -> Result<()> {
        for (at, number) in round {
            let case = &cases[*at];
            let Some(source) = case.source(*number) else { continue };
            let to = SocketAddr::new(case.frontend.address, case.frontend.port);
            let from = SocketAddr::new(source, next(&mut self.ports[*at]));
            self.senders.send(case.client.entry_point(), case.frontend.protocol, from, to);
            flows.insert((case.frontend.protocol, from, to), *at);
        }
        self.settle().map(drop)
    }

    /// Adds what conntrack has of `flows` to what was found of their cases.
    fn read(&mut self, flows: &HashMap<Flow, usize>, found: &mut [CaseWays]) -> Result<()> {
        let of = |entry: &ConntrackEntry| (entry.protocol, entry.client, entry.destination);
        for entry in self.conntrack.entries(|entry| flows.contains_key(&of(entry)))? {
            found[flows[&of(&entry)]].add(&entry);
        }
        Ok(())
    }

    /// Sends a connection that no rule is for by each link, until conntrack has all of them: then it
    /// has what was sent before. Returns false if it never has.
    fn settle(&mut self) -> Result<bool> {
        let until = Instant::now() + DEADLINE;
        let clients = [Client::Node, Client::Outside, Client::Pod];
        let ports = clients.map(|client| (client, next(&mut self.plain_port)));
        let mut waited_for: BTreeMap<SocketAddr, (EntryPoint, SocketAddr)> = BTreeMap::new();
        for around in self.around {
            for (client, port) in ports {
                let source = match client {
                    Client::Node => Some(around.masquerade),
                    _ => around.hosts().next(),
                };
                let Some(source) = source else { continue };
                let to = SocketAddr::new(around.plain, port);
                waited_for.insert(SocketAddr::new(source, port), (client.entry_point(), to));
            }
        }
        while !waited_for.is_empty() {
            if Instant::now() > until {
                return Ok(false);
            }
            for (from, (entry_point, to)) in &waited_for {
                self.senders.send(*entry_point, Protocol::Tcp, *from, *to);
            }
            for entry in self.conntrack.entries(|entry| waited_for.contains_key(&entry.client))? {
                waited_for.remove(&entry.client);
            }
            if !waited_for.is_empty() {
                std::thread::sleep(AGAIN);
            }
        }
        Ok(true)
    }
}

fn next(port: &mut u16) -> u16 {
    *port = port.checked_add(1).unwrap_or(FIRST_PORT);
    *port
}
