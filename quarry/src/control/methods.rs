//! What can be asked of a server: each method with its parameters.

use std::sync::Arc;
use std::time::Duration;

use nvme_emu::{Limits, MoveError, Subsystem};
use serde_json::{Map, Value, json};

use super::params::Params;
use super::rpc::{self, Failure, Request};
use super::{Control, Controlled, limits};
use crate::config::model::Mode;
use crate::config::reader::expected;
use crate::reactor::ReactorThread;

const METHODS: [&str; 7] =
    ["status", "reactor.set_mode", "queue.move", "limits.get", "limits.set", "opal.status", "opal.psid"];

/// How long an answer waits for a queue to be moved. The move itself goes on.
const MOVE: Duration = Duration::from_secs(10);

/// What has limits.
enum Limited<'c> {
    Controller(&'c Controlled),
    Namespace(&'c Arc<Subsystem>, u32),
}

impl Control {
    /// The answer to a line, with its end; none to a notification.
    pub async fn answer(&self, line: &[u8]) -> Option<Vec<u8>> {
        match rpc::parse(line) {
            Err((id, failure)) => Some(rpc::answer(id, Err(failure))),
            Ok(Request { id, method, params }) => {
                let result = self.call(&method, params).await;
                id.map(|id| rpc::answer(id, result))
            }
        }
    }

    async fn call(&self, method: &str, params: Map<String, Value>) -> Result<Value, Failure> {
        let params = Params::new(params);
        match method {
            "status" => params.finish().map(|()| self.status()),
            "reactor.set_mode" => self.set_mode(params),
            "queue.move" => self.move_queue(params).await,
            "limits.get" => self.get_limits(params),
            "limits.set" => self.set_limits(params),
            "opal.status" => self.drive_status(params).await,
            "opal.psid" => self.drive_psid(params).await,
            _ => {
                let help = expected(method, METHODS.into_iter());
                Err(Failure::new(Failure::METHOD, format!("there is no such method: {help}")))
            }
        }
    }

    fn set_mode(&self, mut params: Params) -> Result<Value, Failure> {
        let name = params.name("reactor", "\"reactor-0\"")?;
        let mode = params.text("mode", "\"adaptive\"")?;
        params.finish()?;
        let Some((_, mode)) = Mode::NAMES.into_iter().find(|(name, _)| *name == mode) else {
            let help = expected(&mode, Mode::NAMES.into_iter().map(|(name, _)| name));
            return Err(Failure::params(format!("there is no such mode: {help}")));
        };
        let (number, reactor) = self.reactor(&name)?;
        let mapped = |controller: &&Controlled| {
            controller.workers.contains(&number) && controller.function.has_mapped_doorbells()
        };
        if mode == Mode::Interrupt
            && let Some(controller) = self.controllers.iter().find(mapped)
        {
            return Err(Failure::refused(format!(
                "the controller `{}` has mapped doorbells on {}, and a store into one wakes nobody; configure it with \
                 doorbells = \"trapped\", or use the mode `adaptive`",
                controller.name,
                reactor.name()
            )));
        }
        reactor.set_mode(mode);
        tracing::info!(reactor = reactor.name(), mode = mode.name(), "mode changed by the control socket");
        Ok(json!({ "reactor": reactor.name(), "mode": mode.name() }))
    }

    async fn move_queue(&self, mut params: Params) -> Result<Value, Failure> {
        let name = params.text("controller", "\"vm\"")?;
        let cqid: u16 = params.number("cqid", "1")?;
        let reactor = params.name("reactor", "\"reactor-0\"")?;
        params.finish()?;
        let controller = self.controller_named(&name)?;
        let (number, reactor) = self.reactor(&reactor)?;
        let Some(worker) = controller.workers.iter().position(|&on| on == number) else {
            return Err(Failure::refused(format!(
                "the controller `{name}` is not on {}; move to one of its own ({}), or add {number} to its `reactors` \
                 in the configuration",
                reactor.name(),
                self.names_of(controller)
            )));
        };
        let moved = tokio::time::timeout(MOVE, controller.function.move_queue(cqid, worker)).await;
        match moved {
            Ok(Ok(())) => {
                tracing::info!(
                    controller = name,
                    cqid,
                    reactor = reactor.name(),
                    "queue moved by the control socket"
                );
                Ok(json!({ "controller": name, "cqid": cqid, "reactor": reactor.name() }))
            }
            Ok(Err(error)) => Err(Failure::refused(format!("{error}{}", remedy(error)))),
            Err(_) => Err(Failure::refused(
                "the queue is still being moved: what is in flight on it does not end; look at `status` later",
            )),
        }
    }

    fn get_limits(&self, mut params: Params) -> Result<Value, Failure> {
        let limited = self.limited(&mut params)?;
        params.finish()?;
        Ok(limits::show(&limited.limits()?))
    }

    fn set_limits(&self, mut params: Params) -> Result<Value, Failure> {
        let limited = self.limited(&mut params)?;
        let new = limits::change(limited.limits()?, &mut params);
        // A key that is unknown says more than that no other one is there.
        params.finish()?;
        let new = new?;
        let shown = limits::show(&new);
        match limited {
            Limited::Controller(controller) => {
                controller.function.set_limits(new);
                tracing::info!(controller = controller.name, limits = %shown, "limits set by the control socket");
            }
            Limited::Namespace(subsystem, nsid) => {
                subsystem.set_limits(nsid, new).map_err(|error| Failure::refused(error.to_string()))?;
                tracing::info!(nqn = subsystem.nqn(), nsid, limits = %shown, "limits set by the control socket");
            }
        }
        Ok(shown)
    }

    /// `controller`, or `nsid` of a `controller` or a `subsystem`.
    fn limited(&self, params: &mut Params) -> Result<Limited<'_>, Failure> {
        let subsystem = if params.has("subsystem") {
            let name = params.text("subsystem", "\"disks\"")?;
            if params.take("controller").is_some() {
                return Err(Failure::params("`controller` and `subsystem` are both given; keep one of them"));
            }
            let found = self.controllers.iter().find(|controller| subsystem_of(controller) == Some(&name));
            let missing = || {
                let help = expected(&name, self.controllers.iter().filter_map(subsystem_of));
                Failure::params(format!("no controller belongs to a subsystem `{name}`: {help}"))
            };
            found.ok_or_else(missing)?.function.subsystem()
        } else {
            let controller = self.controller_named(&params.text("controller", "\"vm\"")?)?;
            if !params.has("nsid") {
                let _ = params.take("nsid");
                return Ok(Limited::Controller(controller));
            }
            controller.function.subsystem()
        };
        let nsid = params.number("nsid", "1")?;
        let all = subsystem.nsids();
        if !all.contains(&nsid) {
            let all: Vec<String> = all.iter().map(u32::to_string).collect();
            return Err(Failure::params(format!(
                "there is no namespace {nsid}; there are: {}",
                if all.is_empty() { "none".to_owned() } else { all.join(", ") }
            )));
        }
        Ok(Limited::Namespace(subsystem, nsid))
    }

    /// A reactor by its name or number.
    fn reactor(&self, name: &str) -> Result<(usize, &ReactorThread), Failure> {
        let is = |(number, reactor): &(usize, &ReactorThread)| {
            reactor.name() == name || name.parse() == Ok(*number)
        };
        self.reactors.iter().enumerate().find(is).ok_or_else(|| {
            let help = expected(name, self.reactors.iter().map(ReactorThread::name));
            Failure::params(format!("there is no reactor `{name}`: {help}"))
        })
    }

    fn controller_named(&self, name: &str) -> Result<&Controlled, Failure> {
        self.controllers.iter().find(|controller| controller.name == name).ok_or_else(|| {
            let help = expected(name, self.controllers.iter().map(|controller| controller.name.as_str()));
            Failure::params(format!("there is no controller `{name}`: {help}"))
        })
    }

    fn names_of(&self, controller: &Controlled) -> String {
        let names = controller.workers.iter().filter_map(|&number| self.reactors.get(number));
        names.map(ReactorThread::name).collect::<Vec<_>>().join(", ")
    }
}

impl Limited<'_> {
    fn limits(&self) -> Result<Limits, Failure> {
        match self {
            Self::Controller(controller) => Ok(controller.function.limits()),
            Self::Namespace(subsystem, nsid) => {
                subsystem.limits(*nsid).map_err(|error| Failure::refused(error.to_string()))
            }
        }
    }
}

fn subsystem_of(controller: &Controlled) -> Option<&str> {
    controller.subsystem.as_deref()
}

fn remedy(error: MoveError) -> &'static str {
    match error {
        MoveError::NoSuchQueue => "; `status` lists those that the guest has made",
        MoveError::NoSuchWorker => "; `status` lists the reactors of the controller",
        MoveError::Busy => "",
        MoveError::NotEnabled => "; wait until the guest's driver has started it",
    }
}

#[cfg(test)]
mod tests;
