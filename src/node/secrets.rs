//! What is kept of arguments, and what is masked.
//!
//! A snapshot may leave the node. Which values are secrets cannot be told by their names, so a
//! snapshot keeps only what a parser uses, and masks all else.

use serde_json::Value;

use crate::owners::files::known_signs;
use crate::owners::signs::ProcessSign;
use crate::state::kube_proxy::is_flag;
use crate::state::tools::MASK;

/// Words in the name of a flag that make its value a secret, unless the value is a path.
const SECRETS: &[&str] =
    &["token", "password", "passwd", "secret", "authkey", "auth-key", "api-key", "apikey"];

/// Flags of other programs than kube-proxy that are used, without their dashes.
const USED: &[(&str, &[&str])] = &[
    ("dockerd", &["iptables", "ip-masq"]),
    ("node-cache", &["conf", "localip"]),
    ("k3s", &["disable-kube-proxy"]),
    ("k3s-server", &["disable-kube-proxy"]),
    ("k3s-agent", &["disable-kube-proxy"]),
];

/// The arguments of the program `name` that a snapshot keeps, in their places. The first is the
/// program; each other one that no parser uses is masked.
pub fn kept_arguments(name: &str, args: &[String]) -> Vec<String> {
    // `k3s kubectl` is another program, whose `-c` is anything.
    let is_of = |sign: &ProcessSign| {
        let runs = |word: &String| sign.words.contains(word);
        sign.names.iter().any(|n| n == name)
            && (sign.words.is_empty() || args.iter().skip(1).any(runs))
    };
    let signs: Vec<&ProcessSign> = known_signs()
        .map_or(Vec::new(), |known| known.programs.iter().filter(|sign| is_of(sign)).collect());
    let names_settings = |flag: &str| signs.iter().any(|sign| sign.names_settings(flag));
    let is_kept = |flag: &str, value: &str| !names_settings(flag) || is_path(value);
    let used = |flag: &str| match name {
        "kube-proxy" => is_flag(flag),
        _ => {
            USED.iter().any(|(program, flags)| *program == name && flags.contains(&flag))
                || signs.iter().any(|sign| sign.uses_flag(flag))
        }
    };
    let mut awaited: Option<String> = None;
    let kept = args.iter().enumerate().map(|(at, arg)| {
        let of_flag = awaited.take().filter(|_| !arg.starts_with('-'));
        if at == 0 || of_flag.as_ref().is_some_and(|flag| is_kept(flag, arg)) {
            return mask_address(arg);
        }
        let (flag, value) = arg.split_once('=').map_or((arg.as_str(), None), |(f, v)| (f, Some(v)));
        let bare = flag.strip_prefix("--").or_else(|| flag.strip_prefix('-')).unwrap_or_default();
        let bare = bare.replace('_', "-");
        match value {
            Some(value) if used(&bare) && is_kept(&bare, value) => mask_address(arg),
            None if used(&bare) => {
                awaited = Some(bare);
                arg.clone()
            }
            // Which flags kube-proxy has is judged by their names alone.
            Some(_) if name == "kube-proxy" && is_name(flag) => format!("{flag}={MASK}"),
            None if name == "kube-proxy" && is_name(flag) => flag.to_owned(),
            None if signs.iter().any(|sign| sign.uses_word(arg)) => arg.clone(),
            _ => MASK.to_owned(),
        }
    });
    kept.collect()
}

/// Whether a text looks like the path of a file, and not like a command.
fn is_path(text: &str) -> bool {
    let of_path = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    text.starts_with('/') && text.chars().all(of_path)
}

/// Whether a text looks like a flag's name, and not like a secret: words of small letters.
fn is_name(flag: &str) -> bool {
    let name = flag.strip_prefix("--").unwrap_or_default();
    let of_name = |c: char| c.is_ascii_lowercase() || "-_".contains(c);
    name.len() < 50
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(of_name)
}

/// Masks the secrets in a line that contains command lines.
pub fn masked(line: &str) -> String {
    mask(line.split(' ').map(str::to_owned).collect()).join(" ")
}

/// Masks the secrets in each text of a JSON value, line by line.
pub fn mask_texts(value: &mut Value) {
    match value {
        Value::String(text) => *text = masked_lines(text),
        Value::Array(values) => values.iter_mut().for_each(mask_texts),
        Value::Object(fields) => fields.values_mut().for_each(mask_texts),
        _ => {}
    }
}

/// Masks the secrets in each line of a text.
pub fn masked_lines(text: &str) -> String {
    text.split('\n').map(masked).collect::<Vec<_>>().join("\n")
}

/// Masks the secrets in arguments: the values of flags that take a secret, and passwords in
/// addresses.
fn mask(args: Vec<String>) -> Vec<String> {
    let mut value_is_secret = false;
    args.into_iter()
        .map(|arg| {
            // A password may hold what would be taken for the end of a name.
            let arg = mask_address(&arg);
            let (flag, value) =
                arg.split_once('=').map_or((arg.as_str(), None), |(f, v)| (f, Some(v)));
            let secret = is_secret(flag);
            let is_value = std::mem::replace(
                &mut value_is_secret,
                secret && value.is_none() && flag.starts_with('-'),
            );
            match value {
                _ if is_value && !arg.starts_with('-') => MASK.to_owned(),
                Some(value) if secret && !value.is_empty() => format!("{flag}={MASK}"),
                _ => arg,
            }
        })
        .collect()
}

/// True for a flag or variable whose value is a secret, and not the path of a file with the secret.
fn is_secret(flag: &str) -> bool {
    let flag = flag.to_ascii_lowercase().replace('_', "-");
    let path = ["-file", "-path", "-dir"].iter().any(|end| flag.ends_with(end));
    !path && SECRETS.iter().any(|word| flag.contains(word))
}

/// Masks the password in an address like `scheme://user:password@host`.
fn mask_address(arg: &str) -> String {
    let masked = || {
        let (scheme, rest) = arg.split_once("://")?;
        let host = rest.find('/').unwrap_or(rest.len());
        let at = rest[..host].rfind('@')?;
        let colon = rest[..at].find(':')?;
        Some(format!("{scheme}://{}:{MASK}{}", &rest[..colon], &rest[at..]))
    };
    masked().unwrap_or_else(|| arg.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(args: &[&str]) -> Vec<String> {
        args.iter().map(|&a| a.to_owned()).collect()
    }

    #[test]
    fn secrets_are_masked_and_paths_are_not() {
        let args = strings(&[
            "x",
            "--token=abc",
            "--auth-key",
            "tskey",
            "-etcd-password=p",
            "K3S_TOKEN=t",
            "--token-auth-file=/a",
            "--kubeconfig=/k",
            "--etcd=https://u:p@h:1/x",
            "--secret",
            "--v=2",
        ]);
        let masked = strings(&[
            "x",
            "--token=<masked>",
            "--auth-key",
            "<masked>",
            "-etcd-password=<masked>",
            "K3S_TOKEN=<masked>",
            "--token-auth-file=/a",
            "--kubeconfig=/k",
            "--etcd=https://u:<masked>@h:1/x",
            "--secret",
            "--v=2",
        ]);
        assert_eq!(mask(args), masked);
    }

    #[test]
    fn a_password_with_an_equals_sign_hides_no_secret_behind_it() {
        for (line, kept) in [
            ("s://u:a=b@h/TOKEN=c", "s://u:*@h/TOKEN=*"),
            ("s://token=a:b@h", "s://token=*"),
            ("TOKEN=s://u:a@h", "TOKEN=*"),
        ] {
            let once = masked(line);
            assert_eq!(once.replace(MASK, "*"), kept);
            assert_eq!(masked(&once), once);
        }
    }

    #[test]
    fn what_no_parser_uses_is_masked() {
        for (name, line, kept) in [
            ("k3s", "/bin/k3s agent -t abc --token=abc", "/bin/k3s agent * * *"),
            (
                "k3s",
                "k3s server --flannel-backend none -c /c.yaml --token server --disable-network-policy -x",
                "k3s server --flannel-backend none -c /c.yaml * server --disable-network-policy *",
            ),
            ("k3s", "k3s server -c /etc/c.yaml --token=abc", "k3s server -c /etc/c.yaml *"),
            ("k3s", "k3s server -c PGPASSWORD=x --config=s3", "k3s server -c * *"),
            ("k3s", "k3s kubectl exec db -- sh -c PGPASSWORD=x", "k3s * * * * * * *"),
            ("k3s", "k3s kubectl exec server -- sh -c /a;b=x", "k3s * * server * * -c *"),
            ("netbird", "netbird up --setup-key -ABC-1", "netbird * * *"),
            ("tailscaled", "tailscaled --vpn-auth joinKey=x,y=z", "tailscaled * *"),
            ("flanneld", "flanneld -etcd=u:p@h/x?password=y", "flanneld *"),
            ("dockerd", "dockerd --iptables=false -H x", "dockerd --iptables=false * *"),
            (
                "node-cache",
                "/node-cache -localip 169.254.20.10 -conf /etc/Corefile -x s",
                "/node-cache -localip 169.254.20.10 -conf /etc/Corefile * *",
            ),
            (
                "kube-proxy",
                "kube-proxy --config=/c --proxy_mode ipvs --jwt eyJ --psk=x --v=2 -v 3 -x",
                "kube-proxy --config=/c --proxy_mode ipvs --jwt * --psk=* --v=2 -v 3 *",
            ),
            (
                "kube-proxy",
                "kube-proxy --x9secret --master https://u:p@h/",
                "kube-proxy * --master https://u:*@h/",
            ),
            ("kube-proxy", "kube-proxy --cleanup-iptables=true", "kube-proxy --cleanup-iptables=*"),
        ] {
            let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let found = kept_arguments(name, &args).join(" ").replace(MASK, "*");
            assert_eq!(found, kept, "{line}");
        }
    }
}
