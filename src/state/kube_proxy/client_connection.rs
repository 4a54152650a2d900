//! Where kube-proxy's kubeconfig is. A capture keeps no word of it.

use std::path::PathBuf;

use serde::Deserialize;

use crate::error::Result;
use crate::yaml;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionDocument {
    client_connection: Option<ClientConnection>,
}

#[derive(Deserialize)]
struct ClientConnection {
    kubeconfig: Option<PathBuf>,
}

/// The path of the kubeconfig that a `KubeProxyConfiguration` names; none if kube-proxy uses the
/// service account of its pod.
///
/// # Errors
/// [`crate::error::Kind::Parse`], naming `file`, for what is no such configuration.
pub fn kubeconfig_of_file(file: &str, text: &str) -> Result<Option<PathBuf>> {
    let document: ConnectionDocument = yaml::parse(file, text)?;
    let named = document.client_connection.and_then(|connection| connection.kubeconfig);
    Ok(named.filter(|path| !path.as_os_str().is_empty()))
}

/// The path of the kubeconfig that kube-proxy's flags name. Of several, the last one counts.
pub fn kubeconfig_of_flags(args: &[String]) -> Option<PathBuf> {
    let mut flags = args.iter().enumerate().filter_map(|(at, arg)| match arg.split_once('=') {
        Some(("--kubeconfig", value)) => Some(value),
        None if arg == "--kubeconfig" => args.get(at + 1).map(String::as_str),
        _ => None,
    });
    flags.next_back().filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubeconfig_is_named_in_the_file_or_by_a_flag() {
        let of_file = |text: &str| kubeconfig_of_file("config.conf", text).unwrap();
        assert_eq!(of_file("clientConnection: {kubeconfig: /k, qps: 5}\n"), Some("/k".into()));
        for none in
            ["mode: ipvs\n", "clientConnection: null\n", "clientConnection: {kubeconfig: ''}\n"]
        {
            assert_eq!(of_file(none), None, "{none}");
        }
        let of_flags = |line: &str| {
            let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
            kubeconfig_of_flags(&args)
        };
        assert_eq!(of_flags("kube-proxy --kubeconfig=/a --v=2 --kubeconfig /b"), Some("/b".into()));
        for none in ["kube-proxy", "kube-proxy --kubeconfig", "kube-proxy --kubeconfig= --master=x"]
        {
            assert_eq!(of_flags(none), None, "{none}");
        }
    }
}
