//! [`Owner`]: the right to write to a volume, which one client at a time has.
//!
//! A lock of the header's object (Ceph's `lock` class) that is renewed and else expires tells who is alive. The header's
//! `owner` tells who had the volume last and did not give it back: he is blocklisted by whoever takes it next, before that one
//! looks at any data. So even a client that was only asleep never writes late.

use std::ffi::c_int;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libc::timeval;

use super::header::{Header, OWNER, ReadError, object, sweep};
use super::ours::{self, Relation};
use super::{VolumeSpec, explain};
use crate::cluster::{Pool, denied};
use crate::error::{OpenError, OpenErrorKind as Kind};
use crate::ffi::{Errno, LOCK_MAY_RENEW, LOCK_MUST_RENEW, check, names, text};
use crate::patience::let_end;

/// The lock's name.
const LOCK: &str = "quarry";
/// How long it holds without a renewal: so long the volume of a client that was killed is held. Longer than what the monitors
/// need to see that an OSD is down (`osd_heartbeat_grace`, 20 s), which no owner is to lose a volume for.
const EXPIRES: Duration = Duration::from_secs(30);
/// How often it is renewed.
pub(super) const RENEWED: Duration = Duration::from_secs(8);
/// What taking it may take longer than other things.
pub(super) const PATIENCE: Duration = Duration::from_secs(2 * EXPIRES.as_secs());
/// How long a client is locked out, in seconds: longer than any sleeps. Ceph's own default is an hour, which a suspended
/// machine outlives.
const LOCKED_OUT: u32 = 10 * 365 * 24 * 3600;

/// What a volume is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To write to it.
    Open,
    /// To change its size. By force: even if its last owner did not give it back.
    Resize { force: bool },
    /// To remove it.
    Remove { force: bool },
}

impl Purpose {
    /// Whether an owner that does not give it back is waited for, and locked out.
    fn takes_over(self) -> bool {
        matches!(self, Self::Open | Self::Resize { force: true } | Self::Remove { force: true })
    }
}

/// See the module.
pub(super) struct Owner {
    pool: Arc<Pool>,
    spec: VolumeSpec,
    cookie: String,
    /// As the header has it: an address, and the cookie.
    name: String,
    lost: AtomicBool,
}

/// How a renewal went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// With the header as it is.
    Done(Header),
    /// Another client has the volume, or this one is blocklisted.
    Lost,
    /// The cluster did not say.
    Unknown(Errno),
}

/// An [`Owner`], which gives the volume back when this is dropped. Nothing may be on the way any more then.
pub(super) struct Held(Arc<Owner>);

impl Held {
    pub(super) fn share(&self) -> Arc<Owner> {
        self.0.clone()
    }
}

impl Deref for Held {
    type Target = Owner;

    fn deref(&self) -> &Owner {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let owner = self.0.clone();
        ours::leave(&owner.name);
        let timeout = owner.pool.cluster().options().timeout;
        let_end(&format!("giving back {}", owner.spec), timeout, move || match owner.give_back() {
            Ok(()) => {}
            Err(_) if owner.lost.load(Ordering::Relaxed) => {} // it is another's
            Err(errno) => {
                let volume = owner.spec.to_string();
                tracing::warn!(volume, %errno, "not given back: the next one blocklists this client");
            }
        });
    }
}

impl Owner {
    /// Takes the volume. With the header as it is then.
    pub(super) fn take(
        pool: &Arc<Pool>,
        spec: &VolumeSpec,
        purpose: Purpose,
    ) -> Result<(Held, Header), OpenError> {
        let mut random = [0u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(|error| {
            OpenError::new(Kind::Other, format!("no random number: {error}"), "look at the system's log")
        })?;
        let cookie = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (name, lost) = (String::new(), AtomicBool::new(false));
        let mut owner = Self { pool: pool.clone(), spec: spec.clone(), cookie, name, lost };
        // First of all: the lock would make an object that is not there.
        owner.look(purpose)?;
        owner.wait_for_lock(purpose)?;
        let Some(holder) = owner.holder().filter(|holder| holder.cookie == owner.cookie) else {
            let _ = owner.unlock();
            return Err(owner.in_use("another client", "try again"));
        };
        owner.name = format!("{} {}", holder.address, owner.cookie);
        ours::begin(pool.cluster(), &owner.name);
        let held = Held(Arc::new(owner));
        let header = held.enter(purpose)?;
        Ok((held, header))
    }

    /// Gets the lock; waits for that of a client that died to expire.
    fn wait_for_lock(&self, purpose: Purpose) -> Result<(), OpenError> {
        let start = Instant::now();
        let mut told = false;
        loop {
            match self.lock(&self.cookie, 0) {
                Ok(()) => return Ok(()),
                Err(Errno(libc::EBUSY)) => {}
                Err(errno) => return Err(self.refused(errno)),
            }
            let holder = self.holder();
            if let Some(holder) = &holder {
                // What this connection has left behind is its own to unlock.
                let name = format!("{} {}", holder.address, holder.cookie);
                if ours::relation(self.pool.cluster(), &name) == Relation::Left
                    && self.unlock_of(&holder.cookie).is_ok()
                {
                    continue;
                }
            }
            if !purpose.takes_over() || start.elapsed() > EXPIRES + RENEWED {
                let who = holder.map_or_else(
                    || "another client".to_owned(),
                    |holder| format!("{} ({})", holder.address, holder.client),
                );
                return Err(self.in_use(
                    &who,
                    match purpose {
                        Purpose::Open => "end that client first, or open the volume with read_only = true",
                        _ => "end that client first; if it is dead already, take the volume from it: --force",
                    },
                ));
            }
            if !std::mem::replace(&mut told, true) {
                let holder = holder.map_or_else(String::new, |holder| holder.address);
                tracing::warn!(
                    volume = self.spec.to_string(),
                    holder,
                    "another client has the volume; waiting for its lock to expire, in case it is dead"
                );
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// The lock is this client's: puts its name into the header, and locks out whoever was there before.
    fn enter(&self, purpose: Purpose) -> Result<Header, OpenError> {
        loop {
            let mut header = self.look(purpose)?;
            // Whoever has the lock after that time has seen this one's name in the header, or makes the update fail.
            self.must_renew()?;
            if !header.owner.is_empty() {
                self.lock_out(&header.owner)?;
                self.must_renew()?;
            }
            let before = std::mem::take(&mut header.owner);
            let entered =
                header.update(&self.pool, &self.spec.name, |header| header.owner = self.name.clone());
            match entered {
                Ok(()) => {
                    ours::end(&before);
                    return Ok(header);
                }
                Err(Errno(libc::ECANCELED)) => {}
                Err(errno) => return Err(self.refused(errno)),
            }
        }
    }

    /// Reads the header, and tells whether the volume can be taken for that as far as it says.
    fn look(&self, purpose: Purpose) -> Result<Header, OpenError> {
        let header = Header::read(&self.pool, &self.spec.name).map_err(|error| {
            if matches!(error, ReadError::Errno(Errno(libc::ENOENT))) {
                let _ = sweep(&self.pool, &self.spec.name);
            }
            explain(&self.pool, &self.spec, error)
        })?;
        if !matches!(purpose, Purpose::Remove { .. }) {
            super::check_there(&self.spec, &header)?;
        }
        let owner = &header.owner;
        if !owner.is_empty()
            && !purpose.takes_over()
            && ours::relation(self.pool.cluster(), owner) != Relation::Left
        {
            let who = ours::address(owner);
            return Err(OpenError::new(
                Kind::InUse,
                format!("{who} has the volume {} open for writing, or did not give it back", self.spec),
                format!("end that client first; if {who} is dead already, take the volume from it: --force"),
            ));
        }
        Ok(header)
    }

    /// Nothing that this client still has on the way, or sends later, will be carried out once this has returned and a newer
    /// operation has come to an object.
    fn lock_out(&self, before: &str) -> Result<(), OpenError> {
        let spec = &self.spec;
        let address = ours::address(before);
        if !is_client(address) {
            let why = ReadError::Malformed("its owner is no address of a client");
            let mut error = explain(&self.pool, spec, why);
            let namespace = if spec.namespace.is_empty() { "" } else { " -N " };
            error.remedy = format!(
                "if nobody has it open: rados -p {}{namespace}{} setxattr {} {OWNER} ''",
                spec.pool,
                spec.namespace,
                object(&spec.name)
            );
            return Err(error);
        }
        match ours::relation(self.pool.cluster(), before) {
            Relation::None => {}
            // Its operations are over, and this connection keeps the order.
            Relation::Left => return Ok(()),
            Relation::Open => {
                return Err(self.in_use("this very process", "serve it once, or with read_only = true"));
            }
            Relation::Living => {
                return Err(OpenError::new(
                    Kind::InUse,
                    format!(
                        "{spec} was not given back by {address}, a connection of this very process, which other disks use"
                    ),
                    "start Quarry anew: it cannot be locked out without them",
                ));
            }
        }
        tracing::warn!(
            volume = spec.to_string(),
            address,
            "its last owner did not give it back: blocklisting that client"
        );
        let (rados, cluster) = (self.pool.rados(), self.pool.cluster().handle());
        let mut bytes = text(address).into_bytes_with_nul();
        // SAFETY: connected; the text lives until the call ends, and may be changed by it.
        check(unsafe { (rados.rados_blocklist_add)(cluster, bytes.as_mut_ptr().cast(), LOCKED_OUT) })
            // SAFETY: connected.
            .and_then(|_| check(unsafe { (rados.rados_wait_for_latest_osdmap)(cluster) }))
            .map_err(|errno| match errno {
                Errno(libc::EPERM | libc::EACCES) => denied(self.pool.cluster(), &spec.pool, "the blocklist"),
                _ => OpenError::new(
                    Kind::Other,
                    format!("the last owner of {spec}, {address}, cannot be blocklisted: {errno}"),
                    format!("do it yourself: ceph osd blocklist add {address} {LOCKED_OUT}"),
                ),
            })?;
        Ok(())
    }

    fn must_renew(&self) -> Result<(), OpenError> {
        self.lock(&self.cookie, LOCK_MUST_RENEW).map_err(|errno| match errno {
            Errno(libc::ENOENT | libc::EBUSY) => self.in_use("another client", "try again"),
            errno => self.refused(errno),
        })
    }

    fn in_use(&self, who: &str, remedy: &str) -> OpenError {
        let message = format!("{who} has the volume {} open for writing", self.spec);
        OpenError::new(Kind::InUse, message, remedy)
    }

    fn refused(&self, errno: Errno) -> OpenError {
        explain(&self.pool, &self.spec, ReadError::Errno(errno))
    }

    fn lock(&self, cookie: &str, flags: u8) -> Result<(), Errno> {
        let [object, lock, cookie] = [object(&self.spec.name).as_str(), LOCK, cookie].map(text);
        let description = text(&description());
        let mut duration = timeval { tv_sec: EXPIRES.as_secs() as _, tv_usec: 0 };
        // SAFETY: the pool is open, the texts and the time live until the call ends.
        let locked = unsafe {
            let (object, lock, cookie) = (object.as_ptr(), lock.as_ptr(), cookie.as_ptr());
            let rados = self.pool.rados();
            (rados.rados_lock_exclusive)(
                self.pool.handle(),
                object,
                lock,
                cookie,
                description.as_ptr(),
                &mut duration,
                flags,
            )
        };
        match check(locked) {
            // It holds it already.
            Err(Errno(libc::EEXIST)) if flags == 0 => Ok(()),
            other => other.map(drop),
        }
    }

    fn unlock(&self) -> Result<(), Errno> {
        self.unlock_of(&self.cookie)
    }

    fn unlock_of(&self, cookie: &str) -> Result<(), Errno> {
        let [object, lock, cookie] = [object(&self.spec.name).as_str(), LOCK, cookie].map(text);
        // SAFETY: as above.
        let unlocked = unsafe {
            let rados = self.pool.rados();
            (rados.rados_unlock)(self.pool.handle(), object.as_ptr(), lock.as_ptr(), cookie.as_ptr())
        };
        check(unlocked).map(drop)
    }

    fn holder(&self) -> Option<Holder> {
        holder(&self.pool, &self.spec.name)
    }

    /// Says that this client is alive. Waits for the cluster.
    pub(super) fn renew(&self) -> Renewal {
        let renewal = match self.lock(&self.cookie, LOCK_MUST_RENEW) {
            Ok(()) => self.still(),
            // It has expired while the cluster did not answer. If nobody has wanted the volume, it is taken again; whoever
            // comes between the looks has put his name into the header.
            Err(Errno(libc::ENOENT | libc::EBUSY)) => match self.still() {
                Renewal::Done(_) => match self.lock(&self.cookie, LOCK_MAY_RENEW) {
                    Ok(()) => self.still(),
                    Err(Errno::BLOCKLISTED) => Renewal::Lost,
                    // EBUSY: somebody is at it, and locks this client out, or gives up.
                    Err(errno) => Renewal::Unknown(errno),
                },
                other => other,
            },
            Err(Errno::BLOCKLISTED) => Renewal::Lost,
            Err(errno) => Renewal::Unknown(errno),
        };
        if renewal == Renewal::Lost {
            self.lost.store(true, Ordering::Relaxed);
        }
        renewal
    }

    /// Whether the header still names this client. If not, its lock is of no use.
    fn still(&self) -> Renewal {
        match Header::read(&self.pool, &self.spec.name) {
            Ok(header) if header.owner == self.name => Renewal::Done(header),
            Err(ReadError::Errno(Errno(libc::ENOENT))) => {
                let _ = sweep(&self.pool, &self.spec.name);
                Renewal::Lost
            }
            Ok(_) | Err(ReadError::Malformed(_)) => {
                let _ = self.unlock();
                Renewal::Lost
            }
            Err(ReadError::Errno(Errno::BLOCKLISTED)) => Renewal::Lost,
            Err(ReadError::Errno(errno)) => Renewal::Unknown(errno),
        }
    }

    /// Makes the header what `change` makes of it, while the volume is this client's: else EBUSY.
    pub(super) fn change(&self, header: &mut Header, change: impl Fn(&mut Header)) -> Result<(), Errno> {
        loop {
            match header.update(&self.pool, &self.spec.name, &change) {
                // It may be made larger meanwhile by whoever wants to.
                Err(Errno(libc::ECANCELED)) => match self.still() {
                    Renewal::Done(now) => *header = now,
                    Renewal::Lost => return Err(Errno(libc::EBUSY)),
                    Renewal::Unknown(errno) => return Err(errno),
                },
                other => return other,
            }
        }
    }

    /// Removes the header, while the volume is this client's.
    pub(super) fn remove_header(&self) -> Result<(), Errno> {
        let removed = self.pool.operate(&object(&self.spec.name), |op| {
            op.compare_attribute(OWNER, &self.name);
            op.remove();
        });
        removed.map_err(|errno| if errno == Errno(libc::ECANCELED) { Errno(libc::EBUSY) } else { errno })
    }

    /// Gives the volume back. Nothing may be on the way any more.
    pub(super) fn give_back(&self) -> Result<(), Errno> {
        loop {
            let mut header = match Header::read(&self.pool, &self.spec.name) {
                Ok(header) => header,
                Err(ReadError::Errno(Errno(libc::ENOENT)) | ReadError::Malformed(_)) => break,
                Err(ReadError::Errno(errno)) => return Err(errno),
            };
            if header.owner != self.name {
                break; // it is another's, or given back
            }
            match header.update(&self.pool, &self.spec.name, |header| header.owner.clear()) {
                Ok(()) => break,
                Err(Errno(libc::ECANCELED)) => {}
                Err(errno) => return Err(errno),
            }
        }
        ours::end(&self.name);
        match self.unlock() {
            Err(Errno(libc::ENOENT)) => Ok(()), // expired
            other => other,
        }
    }
}

/// Whether that is one client's address, as Ceph prints it, and no whole machine's: `1.2.3.4:0/567`, `v1:[::1]:0/567`.
fn is_client(address: &str) -> bool {
    ours::bare(address).rsplit_once('/').is_some_and(|(socket, nonce)| {
        socket.parse::<SocketAddr>().is_ok()
            && nonce.bytes().all(|byte| byte.is_ascii_digit())
            && nonce.parse::<u32>().is_ok_and(|nonce| nonce != 0)
    })
}

/// Who holds the lock of a volume now.
pub(super) struct Holder {
    /// As Ceph names it.
    pub(super) client: String,
    cookie: String,
    /// As the blocklist takes it.
    pub(super) address: String,
}

pub(super) fn holder(pool: &Pool, volume: &str) -> Option<Holder> {
    let [object, lock] = [object(volume).as_str(), LOCK].map(text);
    let (mut exclusive, mut lengths): (c_int, _) = (0, [1024usize; 4]);
    let mut buffers = [[0u8; 1024]; 4];
    let [tag, clients, cookies, addresses] = buffers.each_mut().map(|buffer| buffer.as_mut_ptr().cast());
    let [tag_len, clients_len, cookies_len, addresses_len] = lengths.each_mut();
    // SAFETY: the pool is open; each buffer has the length that is told.
    let found = unsafe {
        (pool.rados().rados_list_lockers)(
            pool.handle(),
            object.as_ptr(),
            lock.as_ptr(),
            &mut exclusive,
            tag,
            tag_len,
            clients,
            clients_len,
            cookies,
            cookies_len,
            addresses,
            addresses_len,
        )
    };
    if found < 1 {
        return None;
    }
    let first = |buffer: &[u8; 1024]| names(buffer).into_iter().next();
    Some(Holder { client: first(&buffers[1])?, cookie: first(&buffers[2])?, address: first(&buffers[3])? })
}

/// What others see of this client.
fn description() -> String {
    let host = rustix::system::uname();
    format!("quarry on {} (process {})", host.nodename().to_string_lossy(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_clients_are_locked_out() {
        for good in
            ["1.2.3.4:0/123", "v1:1.2.3.4:6800/1", "v2:1.2.3.4:0/4294967295", "[::1]:0/1", "v2:[fe80::1]:0/9"]
        {
            assert!(is_client(good), "{good}");
        }
        for bad in [
            "",
            "1.2.3.4",
            "1.2.3.4:0",
            "1.2.3.4:0/0",
            "1.2.3.4/5",
            "1.2.3.0/24",
            "::1:0/1",
            "1.2.3.4:0/+1",
            "1.2.3.4:0/x",
            "any:1.2.3.4:0/1",
            "1.2.3.4:0/4294967296",
            "host:0/1",
        ] {
            assert!(!is_client(bad), "{bad}");
        }
    }
}
