//! The audit log of the API server: who wrote what, and what each node read.

use std::collections::BTreeSet;
use std::fs;

use serde::Deserialize;

use crate::control_plane::DIR;

/// What is logged: each write, and what nodes read; of neither the content.
const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, verbs: [create, update, patch, delete, deletecollection]}
- {level: Metadata, userGroups: ['system:nodes']}
- {level: None}
";

/// The name of the file with the log, which is below DIR.
const LOG: &str = "audit.jsonl";

/// Writes the policy. Returns the arguments by which the API server follows it.
pub fn arguments() -> String {
    let policy = format!("{DIR}/audit-policy.yaml");
    fs::write(&policy, POLICY).expect("a file");
    format!("--audit-policy-file={policy} --audit-log-path={DIR}/{LOG}")
}

/// A request that the API server has answered.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audited {
    pub verb: String,
    pub user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    pub object_ref: Object,
    #[serde(default)]
    response_status: Status,
    stage: String,
}

#[derive(Debug, Deserialize)]
pub struct User {
    pub username: String,
}

/// The object of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Object {
    pub resource: String,
    pub name: String,
    pub subresource: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
}

impl Audited {
    /// Whether the program under test has sent it.
    pub fn is_of_proxyshift(&self) -> bool {
        self.user_agent == "proxyshift"
    }

    /// Whether it changes something, and was not refused.
    pub fn is_write(&self) -> bool {
        let reads = ["get", "list", "watch"];
        !reads.contains(&self.verb.as_str()) && self.response_status.code < 400
    }

    /// The verb and what it is done to: `patch nodes`.
    pub fn right(&self) -> String {
        let Object { resource, subresource, .. } = &self.object_ref;
        let separator = if subresource.is_empty() { "" } else { "/" };
        format!("{} {resource}{separator}{subresource}", self.verb)
    }
}

/// How much has been logged until now, in bytes.
pub fn now() -> u64 {
    fs::metadata(format!("{DIR}/{LOG}")).map_or(0, |meta| meta.len())
}

/// What has been logged since.
pub fn since(begin: u64) -> Vec<Audited> {
    let all = fs::read(format!("{DIR}/{LOG}")).expect("a log");
    let text = String::from_utf8_lossy(&all[usize::try_from(begin).expect("a length")..]);
    let lines = text.lines().filter(|line| !line.is_empty());
    let parsed =
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")));
    // A watch is logged at its begin too.
    let ended = |request: &Audited| request.stage != "ResponseStarted";
    parsed.filter(ended).collect()
}

/// The rights of a node that moves, as docs/cluster.md lists them: `patch nodes`.
pub fn documented() -> BTreeSet<String> {
    let text = include_str!("../../docs/cluster.md");
    let rows = text.lines().skip_while(|line| !line.starts_with("| a node may |")).skip(2);
    let cells = rows.take_while(|line| line.starts_with('|')).map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (cells[1].to_owned(), cells[2].to_owned())
    });
    let rights = cells.flat_map(|(verbs, resource)| {
        let verbs: Vec<String> = verbs.split(", ").map(str::to_owned).collect();
        verbs.into_iter().map(move |verb| format!("{verb} {}", resource.trim_matches('`')))
    });
    rights.collect()
}
