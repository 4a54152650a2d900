//! The arguments, with the help that teaches them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::front::cli::cluster_args::ClusterVerb;
use crate::front::cli::help;
use crate::front::cli::target::target;
use crate::guard::Exception;
use crate::run::sandbox::SandboxTask;
use crate::run::watchdog::Role;
use crate::state::kube_proxy::Mode;
use crate::ui::{OutputFormat, Progress};

/// Moves kube-proxy on this node to another mode, removes what it and CNI plugins left behind, and
/// brings the node back when something goes wrong.
///
/// Nothing is changed before a snapshot of the node is proven to restore. What is not known to be a
/// leftover stays. Without a verb, on a terminal, it leads through the job question by question.
#[derive(Debug, Parser)]
#[command(
    name = "proxyshift",
    version,
    max_term_width = 80,
    after_help = help::PROXYSHIFT
)]
pub struct Args {
    /// Where snapshots, runs and journals are kept [default: /var/lib/proxyshift].
    #[arg(long, global = true, help_heading = "Global options", value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The form of the result: text for people, or one JSON document with a schema.
    #[arg(short, long, global = true, help_heading = "Global options", value_name = "text|json", value_enum, hide_possible_values = true, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// The form of progress on standard error: auto, live on a terminal; plain, a line an event; json,
    /// a JSON object an event; none.
    #[arg(long, global = true, help_heading = "Global options", value_name = "FORM", value_enum, hide_possible_values = true, default_value_t = Progress::Auto)]
    pub progress: Progress,
    /// Answer every question with yes. Off a terminal, and with JSON, nothing is asked: what would
    /// be, needs this.
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
    #[command(alias = "preflight", after_help = help::CHECK)]
    Check(CheckArgs),
    /// Captures of the node's netfilter state: take, look at, check, compare, move.
    #[command(subcommand, after_help = help::SNAPSHOT)]
    Snapshot(SnapshotVerb),
    /// Shows what a clean-up would remove, and why; with --to, what a migration would do. Changes
    /// nothing.
    #[command(after_help = help::PLAN)]
    Plan(PlanArgs),
    /// Cleans up and rolls back on a private copy of the node, and proves both.
    ///
    /// The node's rules are loaded into a network namespace of their own on this kernel. Packets
    /// from behind each docker bridge must still leave with the node's address, before, after
    /// cleaning, and after rolling back. The node itself is not touched.
    Rehearse(RehearseArgs),
    /// Takes kube-proxy to another mode, stage by stage, and back if anything fails or nobody
    /// confirms.
    ///
    /// The new mode serves before anything of the old one goes. From the first change on, a process
    /// of its own stands by and undoes the run when its deadline passes, or when this process dies
    /// and nobody resumes it. Off a terminal the run returns once its stages are done, and waits for
    /// `proxyshift confirm`.
    #[command(after_help = help::MIGRATE)]
    Migrate(MigrateArgs),
    /// Removes leftovers, and nothing else: snapshot, rehearsal, edits, proof.
    #[command(after_help = help::CLEANUP)]
    Cleanup(CleanupArgs),
    /// Keeps the run that waits for it. Without this, it is undone at its deadline.
    Confirm,
    /// Gives the run that waits to be confirmed more time, from now.
    Extend {
        /// How long: `10m`, `90s`.
        #[arg(value_name = "T", value_parser = duration)]
        time: Duration,
    },
    /// Goes on with a run that was cut off.
    ///
    /// From the stage it was in. Where only the way back is safe, it says so and changes nothing. A
    /// run that is to be confirmed is undone 30 s after its process died, unless resumed before.
    Resume,
    /// Undoes the run in hand, or else the last one.
    ///
    /// What others have changed since stays as it is; each rule goes back between the neighbours it
    /// had. With --to, every run since that snapshot is undone, the last first. The result is
    /// verified.
    #[command(after_help = help::ROLLBACK)]
    Rollback(RollbackArgs),
    /// Says whether a run is pending (exit code 6), and lists the last ones.
    Status,
    /// Writes what a run did as Markdown, to hand on or to attach to a ticket; with --bundle, one archive
    /// about the node, for a report of a bug.
    ///
    /// The node, what was found, what changed by owner, what was proven, how long it took, and how it
    /// ended. Told from the store alone: without --bundle the node is not asked.
    #[command(after_help = help::REPORT)]
    Report(ReportArgs),
    /// Prints what makes a shell complete proxyshift's words.
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// kubeadm's kube-proxy, of all nodes: arranges its DaemonSet so that they move one by one, and
    /// shows how far they are. With an administrator's kubeconfig, from anywhere, without root.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Keeps an exception for INVALID packets of the networks or interfaces named, where it must stand:
    /// in filter FORWARD, before what drops them.
    ///
    /// Puts its rules back when they vanish or fall behind, says so each time, and takes them away
    /// when it ends. Its packets pass by the policies behind it, which it names.
    ///
    /// A drop in another base chain is final: in a native table of kube-proxy's, Calico's, firewalld's
    /// or anybody's, in the tables mangle and security. It refuses beside one, and names the rule, whose
    /// it is and what its owner can set; it warns if one comes while it runs, and tells when it is gone.
    Guard(GuardArgs),
    /// Undoes a run when nobody else does; proxyshift calls this itself.
    #[command(hide = true)]
    Watchdog(WatchdogArgs),
    /// Works inside a private namespace; proxyshift calls this itself.
    #[command(hide = true)]
    Inside {
        /// What to do there.
        job: SandboxTask,
        /// The state to load.
        dir: PathBuf,
        /// The mode of kube-proxy that is gone to.
        to: Option<Mode>,
    },
}

/// The arguments of `watchdog`.
#[derive(Debug, clap::Args)]
pub struct WatchdogArgs {
    /// The run.
    pub run: String,
    /// What the process is.
    pub role: Role,
    /// The process that started this one.
    #[arg(long)]
    pub first: Option<u32>,
    /// Why the run is undone.
    #[arg(long, default_value = "")]
    pub why: String,
}

/// The verbs of `snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
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
        /// An id, a unique prefix of one, `latest`, a directory (`./DIR`) or an archive (`./FILE`).
        #[arg(default_value = "latest")]
        snapshot: String,
    },
    /// Checks that a snapshot is whole: checksums, formats, and that each file parses and renders to
    /// the same bytes.
    Verify {
        /// An id, a unique prefix of one, `latest`, a directory (`./DIR`) or an archive (`./FILE`).
        #[arg(default_value = "latest")]
        snapshot: String,
    },
    /// Shows how two states differ in meaning: counters, order of sets and spelling aside.
    Diff {
        /// The earlier one: an id, a prefix, `latest`, a directory (`./DIR`) or an archive (`./FILE`).
        from: String,
        /// The later one; the live node if left out.
        to: Option<String>,
    },
    /// Removes old snapshots that no run needs.
    Prune {
        /// How many to keep.
        #[arg(long, default_value_t = crate::store::KEEP)]
        keep: usize,
    },
    /// Writes a snapshot as one `.tar.gz`.
    Export {
        /// An id, a unique prefix of one, or `latest`.
        snapshot: String,
        /// The file to write.
        file: PathBuf,
    },
    /// Reads a snapshot from a `.tar.gz`, checks it, and keeps it in the store, marked as imported.
    ///
    /// It is never `latest`, is never pruned, and no rollback goes back to it unless it is named. Its
    /// restore.sh is written anew.
    Import {
        /// The file to read.
        file: PathBuf,
    },
}

/// The options of `check`.
#[derive(Debug, Default, clap::Args)]
pub struct CheckArgs {
    /// The mode that kube-proxy is to go to; adds the checks that matter on the way there.
    #[arg(long, value_name = "MODE", value_parser = target())]
    pub to: Option<Mode>,
    /// Judge this state instead of the live node: an id, a prefix, `latest`, a
    /// directory (`./DIR`) or an archive (`./FILE`).
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
pub struct PlanArgs {
    /// The mode that kube-proxy is to go to: shows the stages of that migration, and what it will
    /// remove.
    #[arg(long, value_name = "MODE", value_parser = target())]
    pub to: Option<Mode>,
    /// A playbook in place of the built-in one.
    #[arg(long, value_name = "FILE", requires = "to")]
    pub playbook: Option<PathBuf>,
    /// Plan for this state instead of the live node: an id, a prefix, `latest`, a
    /// directory (`./DIR`) or an archive (`./FILE`).
    #[arg(long, value_name = "S")]
    pub snapshot: Option<String>,
}

/// The options of `rehearse`.
#[derive(Debug, clap::Args)]
pub struct RehearseArgs {
    /// The mode that kube-proxy is to go to: rehearses the removal of what the mode that runs now
    /// will have left then.
    #[arg(long, value_name = "MODE", value_parser = target())]
    pub to: Option<Mode>,
    /// Rehearse on this state instead of the live node's: an id, a prefix, `latest`, a
    /// directory (`./DIR`) or an archive (`./FILE`).
    #[arg(long, value_name = "S")]
    pub snapshot: Option<String>,
}

/// The options of `migrate`.
#[derive(Debug, clap::Args)]
pub struct MigrateArgs {
    /// The mode to go to.
    #[arg(long, value_name = "MODE", value_parser = target())]
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
pub struct CleanupArgs {
    /// Only leftovers of these owners.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub owner: Vec<String>,
    /// kube-proxy's real servers of ipvs at weight 0 that UDP clients (DNS) are still sent to, too.
    #[arg(long)]
    pub black_holes: bool,
    /// Show the plan and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Undo it all unless `proxyshift confirm` comes within this time: `5m`, `90s`.
    #[arg(long, value_name = "T", value_parser = duration)]
    pub confirm_within: Option<Duration>,
}

/// The options of `rollback`.
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// Back to this snapshot, of this boot: an id, a prefix, `latest`, or a
    /// directory (`./DIR`).
    #[arg(long, value_name = "S")]
    pub to: Option<String>,
}

/// The options of `report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// The run: an id or a unique prefix of one; the last run if left out.
    pub run: Option<String>,
    /// Writes one .tar.gz with all that a report of a bug needs: what the node holds now, what `check` and
    /// `plan` say of it, what the last run did, and the versions. It changes nothing, and a part that
    /// cannot be had is named in it. A file that is there already stays as it is.
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
    /// The bundle is about this state instead of the live node: an id, a prefix, `latest`, a directory
    /// (`./DIR`) or an archive (`./FILE`).
    #[arg(long, value_name = "S", requires = "bundle")]
    pub snapshot: Option<String>,
}

/// The options of `guard`.
#[derive(Debug, clap::Args)]
pub struct GuardArgs {
    /// Whose packets: networks and interfaces, never everything. Rules of an earlier guard for others
    /// go.
    #[arg(long = "for", value_name = "CIDR|INTERFACE", required = true, num_args = 1.., value_delimiter = ',')]
    pub exceptions: Vec<Exception>,
    /// Set it right once, leave it there, and end: for cron.
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
pub(in crate::front) fn duration(text: &str) -> Result<Duration, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_verb_takes_a_node_to_userspace_mode() {
        for verb in ["check", "plan", "rehearse", "migrate"] {
            let parse = |mode| Args::try_parse_from(["proxyshift", verb, "--to", mode]);
            assert!(parse("ipvs").is_ok() && parse("nftables").is_ok(), "{verb}");
            let error = parse("userspace").unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::InvalidValue, "{verb}");
            assert_eq!(error.exit_code(), 2, "{verb}");
        }
    }
}
