//! The arguments, with the help that teaches them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::run::guard::Exception;
use crate::run::inside::Job;
use crate::state::kube_proxy::Mode;
use crate::ui::{Output, Progress};

/// Finds what kube-proxy and CNI plugins left behind on a Kubernetes node, removes just that, and
/// brings the node back when something goes wrong.
///
/// Nothing is changed before a snapshot of the node is proven to restore. What is not known to be a
/// leftover stays. Without a verb, on a terminal, it leads through the job question by question.
#[derive(Debug, Parser)]
#[command(
    name = "proxyshift",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, or nothing to do · 1 unexpected error · 2 usage · 3 stopped \
before any change · 4 failed and rolled back, the node is as before · 5 failed and not fully rolled \
back, a person is needed · 6 a run is pending · 130 interrupted, nothing changed"
)]
pub struct Args {
    /// Where snapshots, runs and journals are kept [default: /var/lib/proxyshift].
    #[arg(long, global = true, help_heading = "Global options", value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The form of the result on standard output.
    #[arg(short, long, global = true, help_heading = "Global options", value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// The form of progress on standard error.
    #[arg(long, global = true, help_heading = "Global options", value_enum, default_value_t = Progress::Auto)]
    pub progress: Progress,
    /// Answer every question with yes.
    #[arg(long, short = 'y', global = true, help_heading = "Global options")]
    pub yes: bool,
    /// No colours, even on a terminal; NO_COLOR does the same.
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_color: bool,
    /// Say more: what stays, and the reason for each object.
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub verbose: bool,
    /// How many seconds to wait for the node's lock and for the xtables lock.
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub lock_wait: u64,
    /// What to do; on a terminal it asks if this is left out.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Judges the node before a change: what is wrong, the evidence, what it does to traffic, and
    /// the remedy. Changes nothing without --fix. Exit code 3 when something must be mended first.
    #[command(alias = "preflight")]
    Check(Check),
    /// Captures of the node's netfilter state: take, look at, check, compare, move.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Shows what a clean-up would remove, and why. Changes nothing.
    Plan(Plan),
    /// Cleans up and rolls back on a private copy of the node, and proves both.
    ///
    /// The node's rules are loaded into a network namespace of their own on this kernel. Packets
    /// from behind each docker bridge must still leave with the node's address, before, after
    /// cleaning, and after rolling back. The node itself is not touched.
    Rehearse(Rehearse),
    /// Takes kube-proxy to another mode, stage by stage, and back if anything fails or nobody
    /// confirms.
    ///
    /// The new mode serves before anything of the old one goes. From the first change on, a process
    /// of its own stands by and undoes the run when its deadline passes, or when this process dies
    /// and nobody resumes it. Off a terminal the run returns once its stages are done, and waits for
    /// `proxyshift confirm`.
    Migrate(Migrate),
    /// Removes leftovers, and nothing else: snapshot, rehearsal, edits, proof.
    Cleanup(Cleanup),
    /// Keeps the run that waits for it. Without this, it is undone at its deadline.
    Confirm,
    /// Gives the run that waits to be confirmed more time, from now.
    Extend {
        /// How long: `10m`, `90s`.
        #[arg(value_name = "T", value_parser = duration)]
        time: Duration,
    },
    /// Goes on with a run that was cut off.
    Resume,
    /// Undoes the run in hand, or else the last one.
    ///
    /// What others have changed since stays as it is; each rule goes back between the neighbours it
    /// had.
    Rollback,
    /// Says whether a run is pending (exit code 6), and lists the last ones.
    Status,
    /// Keeps an exception for INVALID packets of the networks or interfaces named, where it must stand:
    /// in filter FORWARD, before what drops them.
    ///
    /// Puts its rules back when they vanish or fall behind, says so each time, and takes them away
    /// when it ends. Its packets pass by the policies behind it, which it names.
    Guard(Guard),
    /// Undoes a run when nobody else does; proxyshift calls this itself.
    #[command(hide = true)]
    StandBy {
        /// The run.
        run: String,
    },
    /// Works inside a private namespace; proxyshift calls this itself.
    #[command(hide = true)]
    Inside {
        /// What to do there.
        job: Job,
        /// The state to load.
        dir: PathBuf,
    },
}

/// The verbs of `snapshot`.
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Takes a snapshot and proves that it restores.
    Create {
        /// Why it is taken; kept in its manifest.
        #[arg(long, default_value = "by hand")]
        why: String,
    },
    /// Lists the snapshots in the store.
    List,
    /// Shows what a snapshot holds, counted by owner.
    Show {
        /// An id, a unique prefix of one, `latest`, or a directory.
        #[arg(default_value = "latest")]
        snapshot: String,
    },
    /// Checks that a snapshot is whole: checksums, formats, and that each file parses and renders to
    /// the same bytes.
    Verify {
        /// An id, a unique prefix of one, `latest`, or a directory.
        #[arg(default_value = "latest")]
        snapshot: String,
    },
    /// Shows how two states differ in meaning: counters, order of sets and spelling aside.
    Diff {
        /// The earlier one: an id, a prefix, `latest`, or a directory.
        from: String,
        /// The later one; the live node if left out.
        to: Option<String>,
    },
    /// Removes old snapshots that no run needs.
    Prune {
        /// How many to keep.
        #[arg(long, default_value_t = crate::run::cleanup::KEEP)]
        keep: usize,
    },
    /// Writes a snapshot as one `.tar.gz`.
    Export {
        /// An id, a unique prefix of one, or `latest`.
        snapshot: String,
        /// The file to write.
        file: PathBuf,
    },
    /// Reads a snapshot from a `.tar.gz`, checks it, and keeps it in the store.
    Import {
        /// The file to read.
        file: PathBuf,
    },
}

/// The options of `check`.
#[derive(Debug, Default, clap::Args)]
pub struct Check {
    /// The mode that kube-proxy is to go to; adds the checks that matter on the way there.
    #[arg(long, value_name = "MODE")]
    pub to: Option<Mode>,
    /// Judge this state instead of the live node: an id, a prefix, `latest`, or a directory.
    #[arg(long, value_name = "S")]
    pub snapshot: Option<String>,
    /// Only these checks.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub only: Vec<String>,
    /// All but these checks.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub ignore: Vec<String>,
    /// List all checks, with what they are about.
    #[arg(long)]
    pub list: bool,
    /// Look twice, so many seconds apart, and judge what rises or changes in between.
    #[arg(long, value_name = "SECONDS")]
    pub watch: Option<u64>,
    /// Apply the remedies that are safe, each shown first, and judge again. `rollback` undoes them.
    #[arg(long)]
    pub fix: bool,
    /// Instead of judging: write a configuration file that means the same as the flags that
    /// kube-proxy was started with. A file that is there already stays as it is.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["to", "only", "ignore", "list", "watch", "fix"])]
    pub write_config: Option<PathBuf>,
}

/// The options of `plan`.
#[derive(Debug, clap::Args)]
pub struct Plan {
    /// Plan for this state instead of the live node: an id, a prefix, `latest`, or a directory.
    #[arg(long, value_name = "S")]
    pub snapshot: Option<String>,
}

/// The options of `rehearse`.
#[derive(Debug, clap::Args)]
pub struct Rehearse {
    /// Rehearse on this state instead of the live node's: an id, a prefix, `latest`, or a directory.
    #[arg(long, value_name = "S")]
    pub snapshot: Option<String>,
}

/// The options of `migrate`.
#[derive(Debug, clap::Args)]
pub struct Migrate {
    /// The mode to go to: iptables or ipvs.
    #[arg(long, value_name = "MODE")]
    pub to: Mode,
    /// A playbook in place of the built-in one.
    #[arg(long, value_name = "FILE")]
    pub playbook: Option<PathBuf>,
    /// Undo it all unless `proxyshift confirm` comes within this time [default: 5m, as the playbook
    /// says].
    #[arg(long, value_name = "T", value_parser = duration)]
    pub confirm_within: Option<Duration>,
    /// Need no confirmation: the run is done when its stages are.
    #[arg(long, conflicts_with = "confirm_within")]
    pub no_confirm: bool,
    /// Go on although these checks found something.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub ignore: Vec<String>,
}

/// The options of `cleanup`.
#[derive(Debug, clap::Args)]
pub struct Cleanup {
    /// Only leftovers of these owners.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub owner: Vec<String>,
    /// Show the plan and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Undo it all unless `proxyshift confirm` comes within this time: `5m`, `90s`.
    #[arg(long, value_name = "T", value_parser = duration)]
    pub confirm_within: Option<Duration>,
}

/// The options of `guard`.
#[derive(Debug, clap::Args)]
pub struct Guard {
    /// Whose packets: networks and interfaces, never everything. Rules of an earlier guard for others
    /// go.
    #[arg(long = "for", value_name = "CIDR|INTERFACE", required = true, num_args = 1.., value_delimiter = ',')]
    pub exceptions: Vec<Exception>,
    /// Set it right once, leave it there, and end: for cron and Ansible.
    #[arg(long, conflicts_with_all = ["leave", "interval"])]
    pub once: bool,
    /// Leave the rules there at the end.
    #[arg(long)]
    pub leave: bool,
    /// Stand before the jump of a living Calico too, past every network policy; it comes back above.
    #[arg(long)]
    pub contest: bool,
    /// How often to look.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    pub interval: Duration,
}

/// From a second to a day.
fn duration(text: &str) -> Result<Duration, String> {
    let time: jiff::SignedDuration =
        text.parse().map_err(|_| "not a time: write it as `90s`, `5m` or `1h`")?;
    let time = Duration::try_from(time).unwrap_or_default();
    if !(1..=86400).contains(&time.as_secs()) {
        return Err("between 1s and 24h".into());
    }
    Ok(time)
}

/// From 10 ms to an hour.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if !(0.01..=3600.0).contains(&seconds) {
        return Err("between 0.01 and 3600 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}
