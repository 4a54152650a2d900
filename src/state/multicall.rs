//! Programs that are several programs in one. Which of them a process is, its arguments say.

/// A program, the words that its arguments begin with, and the name of the program that it then is.
const PARTS: &[(&str, &[&str], &str)] = &[
    // All of Kubernetes in one program, up to 1.18.
    ("hyperkube", &["proxy"], "kube-proxy"),
    ("hyperkube", &["kube-proxy"], "kube-proxy"),
    ("hyperkube", &["kubelet"], "kubelet"),
    // All of Calico in one program, from 2026 on.
    ("calico", &["component", "felix"], "calico-felix"),
];

/// The name of the program that a process of `program` is. `args` are its arguments, beginning with
/// the program. They select the part by their first words, flags left out, or by the file name
/// under which the program was started. The result is `program` if they select none.
pub fn name_of<'a>(program: &'a str, args: &[impl AsRef<str>]) -> &'a str {
    let mut args = args.iter().map(AsRef::as_ref);
    let started_as = args.next().map(|first| first.rsplit('/').next().unwrap_or(first));
    let started_as = started_as.filter(|name| *name != program);
    let rest: Vec<&str> = args.filter(|arg| !arg.starts_with('-')).collect();
    let is_part =
        |words: &[&str]| started_as.is_some_and(|name| words == [name]) || rest.starts_with(words);
    let part = PARTS.iter().find(|(name, words, _)| *name == program && is_part(words));
    part.map_or(program, |(.., part)| part)
}

/// The names of the parts of `program`; none for a program that is one alone.
pub fn parts(program: &str) -> impl Iterator<Item = &'static str> {
    PARTS.iter().filter(move |(name, ..)| *name == program).map(|(.., part)| *part)
}

/// The programs that have one of these parts.
pub fn programs(is_part: impl Fn(&str) -> bool) -> impl Iterator<Item = &'static str> {
    PARTS.iter().filter(move |(.., part)| is_part(part)).map(|(program, ..)| *program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_or_the_name_of_the_start_select_a_part() {
        for (line, expected) in [
            ("/hyperkube proxy --config=/c", "kube-proxy"),
            ("/hyperkube kube-proxy", "kube-proxy"),
            ("hyperkube --v=2 proxy", "kube-proxy"),
            ("/usr/local/bin/kube-proxy --config=/c", "kube-proxy"),
            ("/hyperkube kubelet --x", "kubelet"),
            ("/hyperkube apiserver --proxy", "hyperkube"),
            ("/hyperkube apiserver proxy", "hyperkube"),
            ("/hyperkube", "hyperkube"),
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            assert_eq!(name_of("hyperkube", &args), expected, "{line}");
        }
        for (line, expected) in [
            ("/usr/bin/calico --x=y component felix --z", "calico-felix"),
            ("calico component confd", "calico"),
            ("calico felix component", "calico"),
            ("/opt/cni/bin/calico", "calico"),
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            assert_eq!(name_of("calico", &args), expected, "{line}");
        }
        assert_eq!(name_of("hyperkube", &[] as &[&str]), "hyperkube");
        assert_eq!(name_of("kubelet", &["kubelet", "proxy"]), "kubelet");
    }

    #[test]
    fn programs_and_their_parts() {
        assert_eq!(parts("hyperkube").filter(|part| *part == "kubelet").count(), 1);
        assert_eq!(parts("kubelet").count(), 0);
        assert!(programs(|part| part == "kubelet").eq(["hyperkube"]));
    }
}
