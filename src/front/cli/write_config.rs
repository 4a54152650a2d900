//! `check --write-config FILE`: writes kube-proxy's flags as a configuration file.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::front::cli::command::Invocation;
use crate::kube_proxy::proxy_state::ProxyState;
use crate::state::NodeState;
use crate::state::kube_proxy::flags_to_config;
use crate::state::tools::Process;
use crate::ui::page::Page;

pub(super) fn run(command: &Invocation<'_>, snapshot: Option<&str>, file: &Path) -> Result<u8> {
    let state = command.state(snapshot)?;
    let process = only(&state)?;
    let written = flags_to_config(&process.args)?;
    create(file, &written.text)?;
    let path = file.display().to_string();
    let program = process.args.first().map_or("kube-proxy", String::as_str);
    let mut line = vec![program.to_owned(), format!("--config={path}")];
    line.extend(written.remaining_flags.iter().cloned());
    let document = json!({
        "schema": "proxyshift.write-config", "version": 1, "pid": process.pid, "file": path,
        "command": line,
    });
    let mut text = Page::from(format!(
        "{path} says what the flags of process {} say. Start kube-proxy so:",
        process.pid
    ));
    text.indented("", &line.join(" "));
    if ProxyState::of(&state).delivery(&state).in_container() {
        text.line(format!(
            "kube-proxy runs in a container: mount {path} there, on every node that has its manifest."
        ));
    }
    command.answer(&document, text);
    Ok(0)
}

/// The process of kube-proxy on this node, which must be the only one.
fn only(state: &NodeState) -> Result<&Process> {
    let proxy = ProxyState::of(state);
    match &proxy {
        ProxyState::One(process) => Ok(process),
        ProxyState::Many(_) => {
            Err(Error::new(Kind::Usage, "kube-proxy", "more than one runs here")
                .hint("`proxyshift check --only kube-proxy.instances` names them"))
        }
        _ => {
            let missing = || Error::new(Kind::NotFound, "kube-proxy", "no such process runs here");
            Err(proxy.delivery(state).refusal().filter(|_| proxy.runs()).unwrap_or_else(missing))
        }
    }
}

/// Writes a new file. If the file exists, that is an error.
fn create(file: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).open(file);
    let mut out = opened.map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => {
            Error::new(Kind::Usage, file.display().to_string(), "it is there already")
                .hint("name a new file; nothing is overwritten")
        }
        _ => Error::io(file, &e),
    })?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(|e| Error::io(file, &e))
}
