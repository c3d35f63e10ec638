//! [`Owner`]: the right to write to a volume, which one client at a time has.
//!
//! A lock of the header's object (Ceph's `lock` class) that is renewed and else expires tells who is alive. The header's
//! `owner` tells who had the volume last and did not give it back: he is blocklisted by whoever takes it next, before that one
//! looks at any data. So even a client that was only asleep never writes late.

use std::ffi::c_int;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libc::timeval;

use super::header::{Header, ReadError, object};
use super::{VolumeSpec, explain};
use crate::cluster::{Pool, denied};
use crate::error::{OpenError, OpenErrorKind as Kind};
use crate::ffi::{Errno, LOCK_MAY_RENEW, LOCK_MUST_RENEW, check, names, text};

/// The lock's name.
const LOCK: &str = "quarry";
/// How long it holds without a renewal: so long the volume of a client that was killed is held.
const EXPIRES: Duration = Duration::from_secs(12);
/// How often it is renewed.
pub(super) const RENEWED: Duration = Duration::from_secs(4);
/// What taking it may take longer than other things.
pub(super) const PATIENCE: Duration = Duration::from_secs(2 * EXPIRES.as_secs());

/// See the module.
pub(super) struct Owner {
    pool: Arc<Pool>,
    volume: String,
    cookie: String,
    /// As the header has it: an address, and the cookie.
    name: String,
}

/// How a renewal went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    Done,
    /// Another client has the volume, or this one is blocklisted.
    Lost,
    /// The cluster did not say.
    Unknown(Errno),
}

impl Owner {
    /// Takes the volume; waits for the lock of a client that died to expire. With the header as it is then.
    pub(super) fn take(pool: &Arc<Pool>, spec: &VolumeSpec) -> Result<(Self, Header), OpenError> {
        let mut random = [0u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(|error| {
            OpenError::new(Kind::Other, format!("no random number: {error}"), "look at the system's log")
        })?;
        let cookie = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut owner = Self { pool: pool.clone(), volume: spec.name.clone(), cookie, name: String::new() };
        let start = Instant::now();
        let mut told = false;
        loop {
            match owner.lock(0) {
                Ok(()) => break,
                Err(Errno(libc::EBUSY)) if start.elapsed() < EXPIRES + RENEWED => {
                    if !std::mem::replace(&mut told, true) {
                        let holder = owner.holder().map_or_else(String::new, |holder| holder.address);
                        tracing::warn!(
                            volume = spec.to_string(),
                            holder,
                            "another client has the volume; waiting for its lock to expire, in case it is dead"
                        );
                    }
                    std::thread::sleep(Duration::from_millis(250));
                }
                Err(Errno(libc::EBUSY)) => {
                    let holder = owner.holder().map_or_else(
                        || "another client".to_owned(),
                        |holder| format!("{} ({})", holder.address, holder.client),
                    );
                    return Err(OpenError::new(
                        Kind::InUse,
                        format!("{holder} has the volume {spec} open for writing"),
                        "end that client first, or open the volume with read_only = true",
                    ));
                }
                Err(errno) => return Err(owner.refused(spec, errno)),
            }
        }
        match owner.enter(spec) {
            Ok(header) => Ok((owner, header)),
            Err(error) => {
                let _ = owner.unlock();
                Err(error)
            }
        }
    }

    /// The lock is this client's: puts its name into the header, and locks out whoever was there before.
    fn enter(&mut self, spec: &VolumeSpec) -> Result<Header, OpenError> {
        let holder = self.holder().filter(|holder| holder.cookie == self.cookie);
        let holder = holder.ok_or_else(|| {
            OpenError::new(Kind::InUse, format!("the lock of {spec} was taken away"), "try again")
        })?;
        self.name = format!("{} {}", holder.address, self.cookie);
        loop {
            let mut header =
                Header::read(&self.pool, &self.volume).map_err(|error| explain(&self.pool, spec, error))?;
            if !header.owner.is_empty() {
                self.lock_out(spec, &header.owner)?;
            }
            match header.update(&self.pool, &self.volume, |header| header.owner.clone_from(&self.name)) {
                Ok(()) => return Ok(header),
                Err(Errno(libc::ECANCELED)) => {}
                Err(errno) => return Err(self.refused(spec, errno)),
            }
        }
    }

    /// Nothing that this client still has on the way, or sends later, will be carried out once this has returned and a newer
    /// operation has come to an object.
    fn lock_out(&self, spec: &VolumeSpec, before: &str) -> Result<(), OpenError> {
        let address = before.split(' ').next().unwrap_or_default();
        tracing::warn!(
            volume = spec.to_string(),
            address,
            "its last owner did not give it back: blocklisting that client"
        );
        let (rados, cluster) = (self.pool.rados(), self.pool.cluster().handle());
        let mut bytes = text(address).into_bytes_with_nul();
        // SAFETY: connected; the text lives until the call ends, and may be changed by it.
        check(unsafe { (rados.rados_blocklist_add)(cluster, bytes.as_mut_ptr().cast(), 0) })
            // SAFETY: connected.
            .and_then(|_| check(unsafe { (rados.rados_wait_for_latest_osdmap)(cluster) }))
            .map_err(|errno| match errno {
                Errno(libc::EPERM | libc::EACCES) => denied(self.pool.cluster(), &spec.pool, "the blocklist"),
                _ => OpenError::new(
                    Kind::Other,
                    format!("the last owner of {spec}, {address}, cannot be blocklisted: {errno}"),
                    format!("do it yourself: ceph osd blocklist add {address}"),
                ),
            })?;
        Ok(())
    }

    fn refused(&self, spec: &VolumeSpec, errno: Errno) -> OpenError {
        explain(&self.pool, spec, ReadError::Errno(errno))
    }

    fn lock(&self, flags: u8) -> Result<(), Errno> {
        let [object, lock, cookie] = [object(&self.volume).as_str(), LOCK, &self.cookie].map(text);
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
        let [object, lock, cookie] = [object(&self.volume).as_str(), LOCK, &self.cookie].map(text);
        // SAFETY: as above.
        let unlocked = unsafe {
            let rados = self.pool.rados();
            (rados.rados_unlock)(self.pool.handle(), object.as_ptr(), lock.as_ptr(), cookie.as_ptr())
        };
        check(unlocked).map(drop)
    }

    fn holder(&self) -> Option<Holder> {
        holder(&self.pool, &self.volume)
    }

    /// Says that this client is alive. Waits for the cluster.
    pub(super) fn renew(&self) -> Renewal {
        match self.lock(LOCK_MUST_RENEW) {
            Ok(()) => Renewal::Done,
            // It has expired while the cluster did not answer. Nobody may have wanted it.
            Err(Errno(libc::ENOENT)) => match self.lock(LOCK_MAY_RENEW) {
                Ok(()) => match Header::read(&self.pool, &self.volume) {
                    Ok(header) if header.owner == self.name => Renewal::Done,
                    Ok(_) => {
                        let _ = self.unlock();
                        Renewal::Lost
                    }
                    Err(ReadError::Errno(errno)) => Renewal::Unknown(errno),
                    Err(ReadError::Malformed(_)) => Renewal::Lost,
                },
                Err(Errno(libc::EBUSY) | Errno::BLOCKLISTED) => Renewal::Lost,
                Err(errno) => Renewal::Unknown(errno),
            },
            Err(Errno(libc::EBUSY) | Errno::BLOCKLISTED) => Renewal::Lost,
            Err(errno) => Renewal::Unknown(errno),
        }
    }

    /// Gives the volume back. Nothing may be on the way any more.
    pub(super) fn give_back(&self) -> Result<(), Errno> {
        loop {
            let mut header = match Header::read(&self.pool, &self.volume) {
                Ok(header) => header,
                Err(ReadError::Errno(errno)) => return Err(errno),
                Err(ReadError::Malformed(_)) => break,
            };
            if header.owner != self.name {
                break; // it is another's
            }
            match header.update(&self.pool, &self.volume, |header| header.owner.clear()) {
                Ok(()) => break,
                Err(Errno(libc::ECANCELED)) => {}
                Err(errno) => return Err(errno),
            }
        }
        match self.unlock() {
            Err(Errno(libc::ENOENT)) => Ok(()), // expired
            other => other,
        }
    }
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
