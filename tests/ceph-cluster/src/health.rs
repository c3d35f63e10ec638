//! What state the cluster is in.
//!
//! Without a manager nobody gathers the PGs' states, and `ceph -s` and `ceph pg dump` have none to tell. Their primaries know
//! them, and tell over their admin sockets. So what is known: the monitor's map has every OSD up; every OSD has that map
//! or a newer one; and one OSD, which only a primary does, says of each PG that it is active and clean.

use crate::cluster::Cluster;
use crate::run;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Recovery of little data, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(180);

/// Of `ceph osd dump`.
#[derive(Deserialize)]
struct Map {
    epoch: u64,
    osds: Vec<Osd>,
    pools: Vec<Pool>,
}

#[derive(Deserialize)]
struct Osd {
    osd: u32,
    up: u32,
}

#[derive(Deserialize)]
struct Pool {
    pool: u64,
    pg_num: u32,
}

impl Cluster {
    /// Waits until all OSDs are up and all PGs active and clean: nothing is degraded, nothing is being recovered.
    pub fn wait_healthy(&self) -> Result<()> {
        let mut reason = String::new();
        let healthy = run::wait_for("a healthy cluster", PATIENCE, || {
            reason = self.unhealthy().unwrap_or_else(|e| Some(format!("{e:#}"))).unwrap_or_default();
            Ok(reason.is_empty().then_some(()))
        });
        healthy.with_context(|| reason)
    }

    /// Waits until the monitor has marked this OSD down: clients turn to others from now on.
    pub fn wait_down(&self, id: u32) -> Result<()> {
        run::wait_for(&format!("osd.{id} to be marked down"), PATIENCE, || {
            Ok((!self.osds_up()?.contains(&id)).then_some(()))
        })
    }

    /// The OSDs that are up, as the monitor sees it.
    pub fn osds_up(&self) -> Result<Vec<u32>> {
        Ok(self.map()?.osds.iter().filter(|osd| osd.up == 1).map(|osd| osd.osd).collect())
    }

    fn map(&self) -> Result<Map> {
        let dump = self.ok("ceph", ["osd", "dump", "--format", "json"])?;
        serde_json::from_str(&dump).context("ceph osd dump")
    }

    /// What is not as it should be, if anything.
    fn unhealthy(&self) -> Result<Option<String>> {
        let map = self.map()?;
        if let Some(down) = map.osds.iter().find(|osd| osd.up != 1) {
            return Ok(Some(format!("osd.{} is down", down.osd)));
        }
        for osd in &self.osds {
            let newest = osd.ask(&json!({ "prefix": "status" }))?["newest_map"].as_u64().unwrap_or_default();
            ensure!(newest >= map.epoch, "{} has the map of epoch {newest}, not {}", osd.name(), map.epoch);
        }
        let pgs =
            map.pools.iter().flat_map(|pool| (0..pool.pg_num).map(|pg| format!("{}.{pg:x}", pool.pool)));
        for pg in pgs {
            let states: Vec<String> = self.osds.iter().filter_map(|osd| pg_state(osd, &pg)).collect();
            let is = |wanted| states.iter().any(|state| state.split('+').any(|word| word == wanted));
            if states.len() != 1 || !is("active") || !is("clean") {
                return Ok(Some(format!("PG {pg} is {states:?}")));
            }
        }
        Ok(None)
    }
}

/// The state of a PG whose primary this is. Others answer with an error, which is no JSON.
fn pg_state(osd: &crate::Daemon, pg: &str) -> Option<String> {
    let answer: Value = osd.ask(&json!({ "prefix": "query", "pgid": pg })).ok()?;
    Some(answer["state"].as_str()?.to_owned())
}
