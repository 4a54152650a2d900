#!/usr/bin/python
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The documentation of a module that is a binary: it lies beside this file, and is what runs."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
---
module: proxyshift
short_description: Moves kube-proxy between modes, cleans up after it, and brings the node back
description:
  - Takes a Kubernetes node's kube-proxy from one mode to another, or removes what kube-proxy and CNI
    plugins left behind, without touching a rule that is somebody else's.
  - Nothing is changed before a snapshot of the node is proven to restore. What is to be confirmed is
    undone by a process on the node when nobody confirms it in time.
  - The module is one static binary. The node needs no Python for it.
version_added: 1.0.0
author:
  - proxyshift (@proxyshift)
options:
  state:
    description:
      - V(checked) judges the node, fails if something must be mended first, and never changes anything.
      - V(snapshotted) takes a snapshot, unless the latest one still tells what the node is.
      - V(cleaned) removes leftovers, and nothing else.
      - V(migrated) takes kube-proxy to the mode O(to).
      - V(confirmed) keeps the run that waits for it; fails if that has been rolled back meanwhile.
      - V(rolled_back) undoes the run in hand, or else the last one if it is not undone yet.
      - V(guarded) has the exceptions for INVALID packets of O(for) stand. Where systemd runs the node, the
        unit C(proxyshift-guard.service) keeps them, and starts a copy of the program in O(store); elsewhere
        they are set right once. C(systemctl disable --now proxyshift-guard) ends it.
    type: str
    required: true
    choices: [checked, snapshotted, cleaned, migrated, confirmed, rolled_back, guarded]
  to:
    description:
      - The mode to go to, needed with O(state=migrated).
      - With O(state=checked), adds the checks that matter on the way there.
    type: str
    choices: [iptables, ipvs, nftables]
  confirm_within:
    description:
      - Undo it all unless O(state=confirmed) comes within this time, as C(90s), C(5m) or C(1h). For
        O(state=migrated), in place of the playbook's time; for O(state=cleaned), no confirmation is
        needed without it.
    type: str
  snapshot:
    description:
      - With O(state=checked), judge this snapshot of the node's store instead of the node. An id, a
        prefix of one, C(latest), or a directory, with a C(/) in its name.
      - With O(state=rolled_back), undo every run since this snapshot, the last first.
    type: str
  owners:
    description:
      - With O(state=cleaned), only leftovers of these owners.
    type: list
    elements: str
  ignore:
    description:
      - Checks that are left out, or whose findings do not stop a migration.
    type: list
    elements: str
  playbook:
    description:
      - With O(state=migrated), a playbook of proxyshift's in place of the built-in one; a file on the node.
    type: path
  for:
    description:
      - With O(state=guarded), the networks and interfaces whose INVALID packets are let through.
    type: list
    elements: str
  store:
    description:
      - Where snapshots, runs and journals are kept on the node.
    type: path
    default: /var/lib/proxyshift
  lock_wait:
    description:
      - How many seconds to wait for the node's lock and for the xtables lock.
    type: int
    default: 10
attributes:
  check_mode:
    description: Says what would be changed, and writes nothing.
    support: full
  diff_mode:
    description: Shows the rules concerned before and after.
    support: full
"""

EXAMPLES = r"""
- name: Fail where something must be mended first
  proxyshift.node.proxyshift:
    state: checked
    to: ipvs

- name: Take kube-proxy to ipvs, back again in five minutes
  proxyshift.node.proxyshift:
    state: migrated
    to: ipvs
    confirm_within: 5m

- name: Keep it
  proxyshift.node.proxyshift:
    state: confirmed
"""

RETURN = r"""
msg:
  description: What was done, or why it failed and what to do next.
  type: str
  returned: always
code:
  description: >-
    0 done, 1 unexpected error, 2 wrong options, 3 stopped before any change, 4 failed and rolled back,
    5 failed and not fully rolled back, 6 a run is pending.
  type: int
  returned: always
findings:
  description: What the checks found, or could not know, with evidence and remedy.
  type: list
  elements: dict
  returned: always
run:
  description: The run that was made, or that the answer is about.
  type: str
  returned: always
log:
  description: The steps, one line each.
  type: list
  elements: str
  returned: on failure, or with -v
ansible_facts:
  description: Facts of the node.
  type: dict
  returned: always
  contains:
    proxyshift:
      description: >-
        version, node, mode, leftovers (how many), pending (the run in hand), last_run, snapshot (the
        latest); null where not known.
      type: dict
      returned: always
"""

from ansible.module_utils.basic import AnsibleModule


def main():
    """Says what is missing: where the binary is, Ansible runs that and not this file."""
    module = AnsibleModule(argument_spec={}, bypass_checks=True, supports_check_mode=True)
    module.fail_json(
        msg="plugins/modules/proxyshift is missing: this collection was packed without the program; "
            "`make dist` puts it there"
    )


if __name__ == "__main__":
    main()
