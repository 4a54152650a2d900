//! The texts at the end of each help page: examples, and the exit codes.

pub(super) const PROXYSHIFT: &str = "\
Start with (none of these changes anything):
  proxyshift check        what is wrong with this node, and the remedy
  proxyshift plan         what a clean-up would remove, and why
  proxyshift rehearse     the clean-up and its way back, on a private copy

Exit codes:
  0    done, or nothing to do
  1    unexpected error
  2    usage
  3    stopped before any change
  4    failed and rolled back, the node is as before
  5    failed and not fully rolled back, a person is needed
  6    a run is pending
  130  interrupted, nothing changed";

pub(super) const CHECK: &str = "\
Examples:
  proxyshift check
  proxyshift check --to ipvs               is the node ready for ipvs?
  proxyshift check --only invalid.drops --watch 30
                                           what rises within half a minute?
  proxyshift check --snapshot ./DIR        a node captured elsewhere
  proxyshift check --snapshot ./FILE       or that a bundle holds
  proxyshift check --fix                   mend what can be mended safely
  proxyshift check --list                  all checks, and when each applies";

pub(super) const PLAN: &str = "\
Examples:
  proxyshift plan
  proxyshift plan -v                       and what stays, with the reason
  proxyshift plan --snapshot latest -o json";

pub(super) const MIGRATE: &str = "\
Examples:
  proxyshift check --to ipvs               first: what stands in the way?
  proxyshift migrate --to ipvs             asks, goes, and waits for a word
  proxyshift confirm                       keeps it
  proxyshift rollback                      or undoes it now
  proxyshift migrate --to ipvs --yes --confirm-within 10m
                                           from a script: returns when its
                                           stages are done";

pub(super) const CLEANUP: &str = "\
Examples:
  proxyshift cleanup --dry-run             what would go; changes nothing
  proxyshift cleanup                       shows it, asks, and removes it
  proxyshift cleanup --owner flannel --yes
  proxyshift cleanup --yes --confirm-within 5m
                                           undone unless confirmed in time
  proxyshift rollback                      puts it all back";

pub(super) const ROLLBACK: &str = "\
Examples:
  proxyshift status                        is a run pending, and which?
  proxyshift rollback
  proxyshift report                        what came of it

Without proxyshift: sh /var/lib/proxyshift/snapshots/ID/restore.sh --dry-run";

pub(super) const SNAPSHOT: &str = "\
Examples:
  proxyshift snapshot create --why 'before the upgrade'
  proxyshift snapshot diff latest          what changed on the node since
  proxyshift snapshot export latest node.tar.gz
                                           to look at it on another machine
  proxyshift snapshot import node.tar.gz

A snapshot is named by its id, a unique prefix of it, `latest` (which is never
an imported one), or a directory or archive, whose name must have a `/`:
`./latest`, `./node.tar.gz`.";

pub(super) const REPORT: &str = "\
Examples:
  proxyshift report > report.md
  proxyshift report 20261121T20 -o json
  proxyshift report --bundle node1.tar.gz
  proxyshift check --snapshot ./node1.tar.gz

What a bundle holds: rules, sets, virtual servers, links, routes, sysctls and
modules as they are, and who began the last run. So names of hosts, users, links
and services, comments of rules, and addresses are in it: look through it before
you send it (`tar xzf FILE`).
What it does not hold: environments, credentials and kubeconfigs, keys, tokens
and passwords. Of arguments and configuration files only what proxyshift uses
is kept, and of hooks and other commands of yours only the program.
A bundle is only read: nothing is rolled back to it, and it is not imported.";

pub(super) const COMPLETIONS: &str = "\
Examples:
  proxyshift completions bash > /etc/bash_completion.d/proxyshift
  proxyshift completions zsh > /usr/local/share/zsh/site-functions/_proxyshift
  proxyshift completions fish > /etc/fish/completions/proxyshift.fish";

pub(super) const CLUSTER_PREPARE: &str = "\
Examples:
  proxyshift cluster prepare --to nftables --dry-run
                                           what would be written, tried by the
                                           server; changes nothing
  proxyshift cluster prepare --to nftables
                                           shows it, asks, and writes it
  proxyshift cluster prepare --to nftables --render ./kube-proxy
                                           as manifests, for GitOps

Then, on each node: proxyshift migrate --to nftables";

pub(super) const CLUSTER_STATUS: &str = "\
Examples:
  proxyshift cluster status
  proxyshift cluster status -o json --kubeconfig /etc/kubernetes/admin.conf";
