//! Makes what rules name and the kernel must hold before it takes them.

use std::collections::BTreeSet;

use crate::apply::{Kernel, sets};
use crate::error::{Error, Kind, Result};
use crate::node::nfnetlink::accounting::{accounting_objects, create_accounting_object};
use crate::node::nfnetlink::timeout_policies::{create_timeout_policy, timeout_policies};
use crate::node::subsystems;
use crate::node::tools::Tool;
use crate::plan::change::{Direction, SetDump};
use crate::state::NodeState;
use crate::state::accounting::AccountingObject;
use crate::state::ipset::{IpSet, IpSets};
use crate::state::prerequisite::{Prerequisite, PrerequisiteKind};
use crate::state::timeout_policy::TimeoutPolicy;

/// What prerequisites are: of the state whose rules are loaded or put back.
#[derive(Debug, Clone, Copy)]
pub struct Definitions<'a> {
    /// The ipsets.
    pub sets: &'a IpSets,
    /// The accounting objects.
    pub accounting: &'a [AccountingObject],
    /// The timeout policies.
    pub timeout_policies: &'a [TimeoutPolicy],
}

impl<'a> Definitions<'a> {
    /// What `state` has of them.
    pub fn of(state: &'a NodeState) -> Definitions<'a> {
        let NodeState { ipsets: sets, accounting, timeout_policies, .. } = state;
        Definitions { sets, accounting, timeout_policies }
    }
}

/// What was done about prerequisites.
#[derive(Debug, Default)]
pub struct Prepared {
    /// What was made.
    pub made: Vec<Prerequisite>,
    /// What is not there and could not be made, with the reason. The kernel refuses each rule that
    /// names one of these.
    pub missing: Vec<(Prerequisite, Error)>,
}

/// The names of the objects of one kind that are there.
type Present = Result<BTreeSet<String>>;

impl Kernel<'_> {
    /// Makes those of `needed` that this network namespace lacks, as `definitions` has them. Leaves
    /// those that are there as they are. Estimators are passed over: their rules make them.
    pub fn prepare(
        &self,
        needed: &BTreeSet<Prerequisite>,
        definitions: Definitions<'_>,
    ) -> Prepared {
        let mut prepared = Prepared::default();
        self.prepare_sets(needed, definitions.sets, &mut prepared);
        let present = || Ok(accounting_objects()?.into_iter().map(|object| object.name).collect());
        let kind = PrerequisiteKind::Accounting;
        prepare_kind(needed, kind, present, &mut prepared, |name| {
            let known = definitions.accounting.iter().find(|object| object.name == name);
            create_accounting_object(known.ok_or_else(|| unknown(name, "`nfacct add`"))?)
        });
        let present = || Ok(timeout_policies()?.into_iter().map(|policy| policy.name).collect());
        let kind = PrerequisiteKind::TimeoutPolicy;
        prepare_kind(needed, kind, present, &mut prepared, |name| {
            let known = definitions.timeout_policies.iter().find(|policy| policy.name == name);
            create_timeout_policy(known.ok_or_else(|| unknown(name, "`nfct add timeout`"))?)
        });
        prepared
    }

    fn prepare_sets(
        &self,
        needed: &BTreeSet<Prerequisite>,
        known: &IpSets,
        prepared: &mut Prepared,
    ) {
        let of_kind = |one: &&Prerequisite| one.kind == PrerequisiteKind::Set;
        let mut wanted: BTreeSet<Prerequisite> = needed.iter().filter(of_kind).cloned().collect();
        if wanted.is_empty() {
            return;
        }
        let present = self.set_names();
        // A list comes after its members, and may need them.
        for list in known.sets.iter().rev().filter(|set| set.kind == "list:set") {
            let set =
                |name: &str| Prerequisite { kind: PrerequisiteKind::Set, name: name.to_owned() };
            let is_there = present.as_ref().is_ok_and(|names| names.contains(&list.name));
            if wanted.contains(&set(&list.name)) && !is_there {
                let members = list.entries.iter().filter_map(|entry| entry.split(' ').next());
                wanted.extend(members.map(set));
            }
        }
        // In the order of the save, so that members come first; then those of which nothing is known.
        let order = |one: &Prerequisite| known.sets.iter().position(|set| set.name == one.name);
        let mut wanted = Vec::from_iter(wanted);
        wanted.sort_by_key(|one| order(one).unwrap_or(usize::MAX));
        prepare_all(
            wanted.iter(),
            || present,
            prepared,
            |name| {
                let set = known.get(name).ok_or_else(|| unknown(name, "`ipset create`"))?;
                sets::apply(self, Direction::Add, &dump(set))
            },
        );
    }

    /// The names of the ipsets that are there. None are asked for where ip_set is not loaded, because
    /// to ask loads it.
    fn set_names(&self) -> Present {
        if !subsystems::ip_set() {
            return Ok(BTreeSet::new());
        }
        let names = self.tools.command(Tool::Ipset)?.args(["list", "-n"]).run()?.stdout;
        Ok(names.lines().map(str::to_owned).collect())
    }
}

fn prepare_kind(
    needed: &BTreeSet<Prerequisite>,
    kind: PrerequisiteKind,
    present: impl FnOnce() -> Present,
    prepared: &mut Prepared,
    make: impl FnMut(&str) -> Result<()>,
) {
    prepare_all(needed.iter().filter(|one| one.kind == kind), present, prepared, make);
}

fn prepare_all<'a>(
    needed: impl Iterator<Item = &'a Prerequisite>,
    present: impl FnOnce() -> Present,
    prepared: &mut Prepared,
    mut make: impl FnMut(&str) -> Result<()>,
) {
    let mut needed = needed.peekable();
    if needed.peek().is_none() {
        return;
    }
    match present() {
        Ok(present) => {
            for one in needed.filter(|one| !present.contains(&one.name)) {
                match make(&one.name) {
                    Ok(()) => prepared.made.push(one.clone()),
                    Err(e) => prepared.missing.push((one.clone(), e)),
                }
            }
        }
        Err(e) => prepared.missing.extend(needed.map(|one| (one.clone(), e.clone()))),
    }
}

fn dump(set: &IpSet) -> SetDump {
    let lines = set.render().lines().map(str::to_owned).collect();
    SetDump { family: set.family, name: set.name.clone(), lines }
}

/// The error of an object that is missing and of which no state says what it was.
fn unknown(name: &str, by_hand: &str) -> Error {
    Error::new(Kind::Kernel, name, "is not there, and the snapshot does not say what it was")
        .hint(format!("make it by hand ({by_hand}) as its rules need it"))
}
