//! The kube-proxy processes of a node.

use super::CommandLine;
use crate::state::kube_proxy::controller::PROGRAM;
use crate::state::tools::Process;

/// The kube-proxy processes of a network namespace that serve. A kube-proxy with `--cleanup` does
/// not count, because it only removes rules and exits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instances<'a> {
    /// kube-proxy does not run as a process of its own. k3s and others embed it in another program.
    None,
    /// Exactly one kube-proxy runs, as it should be.
    One(&'a Process),
    /// Several kube-proxies run, and undo each other's writes. Which of them counts is unknown.
    Many(Vec<&'a Process>),
}

impl<'a> Instances<'a> {
    /// Selects the serving kube-proxies from `processes`, all processes of a network namespace.
    pub fn of(processes: &'a [Process]) -> Instances<'a> {
        let serving: Vec<&Process> =
            processes.iter().filter(|p| p.name == PROGRAM && serves(&p.args)).collect();
        match serving[..] {
            [] => Instances::None,
            [one] => Instances::One(one),
            _ => Instances::Many(serving),
        }
    }

    /// The kube-proxy process, if exactly one runs.
    pub fn one(&self) -> Option<&'a Process> {
        match self {
            Instances::One(process) => Some(process),
            Instances::None | Instances::Many(_) => None,
        }
    }

    /// Every serving kube-proxy, in the order of the node's processes.
    pub fn all(&self) -> &[&'a Process] {
        match self {
            Instances::None => &[],
            Instances::One(process) => std::slice::from_ref(process),
            Instances::Many(processes) => processes,
        }
    }
}

/// Whether a kube-proxy with these arguments serves: true unless they have `--cleanup`. The first
/// argument is the program.
pub fn serves(args: &[impl AsRef<str>]) -> bool {
    !CommandLine::parse(args).is_ok_and(|line| line.cleanup)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, line: &str) -> Process {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Process { pid, name: args[0].clone(), args, ..Process::default() }
    }

    #[test]
    fn a_clean_up_is_no_instance() {
        let all = [
            process(1, "kubelet"),
            process(2, "kube-proxy --cleanup"),
            process(3, "kube-proxy --config=/c"),
            process(4, "kube-proxy --config=/c --cleanup=true"),
        ];
        assert_eq!(Instances::of(&all), Instances::One(&all[2]));
        assert_eq!(Instances::of(&all[..2]), Instances::None);
        assert_eq!(Instances::of(&all[..2]).all(), [] as [&Process; 0]);
    }

    #[test]
    fn two_that_serve_are_many() {
        let all = [process(2, "kube-proxy --v=2"), process(3, "kube-proxy --cleanup=false")];
        let instances = Instances::of(&all);
        assert_eq!(instances, Instances::Many(vec![&all[0], &all[1]]));
        assert_eq!((instances.one(), instances.all().len()), (None, 2));
    }

    /// A kube-proxy counts as serving if its command line cannot be parsed, because it may serve.
    #[test]
    fn a_line_that_cannot_be_read_serves() {
        assert!(serves(&["kube-proxy", "--cleanup", "--cleanup=maybe"]));
    }
}
