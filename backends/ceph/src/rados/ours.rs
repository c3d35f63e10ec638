//! Which volumes this process itself has or has left behind, and by which addresses the cluster knows it: who blocklists an
//! address of a connection that lives takes every disk of that connection away from their guests.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::cluster::Cluster;

static OURS: Mutex<Ours> = Mutex::new(Ours { addresses: Vec::new(), owners: Vec::new() });

struct Ours {
    addresses: Vec<(String, Weak<Cluster>)>,
    owners: Vec<Entry>,
}

struct Entry {
    /// As the header has it.
    name: String,
    cluster: Weak<Cluster>,
    open: bool,
}

/// What this process has to do with an owner that a header names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// Nothing.
    None,
    /// It has the volume open.
    Open,
    /// The same connection had it, could not give it back, and has nothing of it on the way.
    Left,
    /// Another of its connections has the address, and lives.
    Living,
}

fn ours() -> MutexGuard<'static, Ours> {
    let mut ours = OURS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // What was is the cluster's business once its connection is gone.
    ours.addresses.retain(|(_, cluster)| cluster.strong_count() > 0);
    ours.owners.retain(|owner| owner.cluster.strong_count() > 0);
    ours
}

/// The address in an owner's name.
pub(super) fn address(name: &str) -> &str {
    name.split(' ').next().unwrap_or_default()
}

/// The same without the protocol, which does not tell clients apart.
pub(super) fn bare(address: &str) -> &str {
    address.strip_prefix("v1:").or_else(|| address.strip_prefix("v2:")).unwrap_or(address)
}

/// Before the header says so.
pub(super) fn begin(cluster: &Arc<Cluster>, name: &str) {
    let (mut ours, cluster) = (ours(), Arc::downgrade(cluster));
    let address = bare(address(name));
    if !ours.addresses.iter().any(|(other, of)| other == address && of.ptr_eq(&cluster)) {
        ours.addresses.push((address.to_owned(), cluster.clone()));
    }
    ours.owners.push(Entry { name: name.to_owned(), cluster, open: true });
}

/// Nothing is on the way any more, whatever the header says.
pub(super) fn leave(name: &str) {
    ours().owners.iter_mut().filter(|owner| owner.name == name).for_each(|owner| owner.open = false);
}

/// The header says it no more.
pub(super) fn end(name: &str) {
    ours().owners.retain(|owner| owner.name != name);
}

pub(super) fn relation(cluster: &Arc<Cluster>, name: &str) -> Relation {
    let (ours, cluster) = (ours(), Arc::downgrade(cluster));
    let address = bare(address(name));
    match ours.owners.iter().find(|owner| owner.name == name) {
        Some(owner) if owner.open => Relation::Open,
        Some(owner) if owner.cluster.ptr_eq(&cluster) => Relation::Left,
        _ if ours.addresses.iter().any(|(other, _)| other == address) => Relation::Living,
        _ => Relation::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_clients() {
        for name in ["1.2.3.4:0/5 abc", "v1:1.2.3.4:0/5 abc", "v2:1.2.3.4:0/5"] {
            assert_eq!(bare(address(name)), "1.2.3.4:0/5");
        }
        assert_eq!(address(" x"), "");
    }
}
