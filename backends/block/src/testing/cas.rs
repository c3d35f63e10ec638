//! [`CasDevice`]: a small disk in memory that compares and writes in one step, and whose size changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    Abilities, Channel, Device, Error, ErrorKind, Info, Io, Listener, Listeners, Op, Reactor, Submission,
};

/// A disk in memory with [`Op::CompareAndWrite`], which can be made larger and smaller while it is used. One lock
/// makes every operation on it atomic.
pub struct CasDevice {
    shared: Arc<Shared>,
}

struct Shared {
    /// Geometry but for `blocks`: that is what there are bytes for.
    info: Info,
    bytes: Mutex<Vec<u8>>,
    listeners: Listeners,
}

impl CasDevice {
    /// A disk of `blocks` blocks of `block_size` bytes, of which 8 can be compared and written at once.
    pub fn new(block_size: u32, blocks: u64) -> Self {
        let mut info = Info::new(block_size, blocks);
        info.abilities = Abilities::WRITE | Abilities::WRITE_ZEROES | Abilities::COMPARE_AND_WRITE;
        info.compare_and_write_blocks = 8;
        let bytes = Mutex::new(vec![0; info.size() as usize]);
        Self { shared: Arc::new(Shared { info, bytes, listeners: Listeners::default() }) }
    }

    /// Changes the size, as somebody else does who resizes a volume; then calls the listeners. What is new is zeroes.
    pub fn set_blocks(&self, blocks: u64) {
        self.set_blocks_untold(blocks);
        self.shared.listeners.call();
    }

    /// The same for the moment before the listeners hear of it.
    pub fn set_blocks_untold(&self, blocks: u64) {
        let size = blocks as usize * self.shared.info.block_size as usize;
        self.shared.lock().resize(size, 0);
    }

    /// Calls the listeners though nothing has changed.
    pub fn call_listeners(&self) {
        self.shared.listeners.call();
    }
}

impl Device for CasDevice {
    fn info(&self) -> Info {
        self.shared.info(&self.shared.lock())
    }

    fn on_change(&self, listener: Listener) {
        self.shared.listeners.add(listener);
    }

    fn channel(&self, _: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(CasChannel(self.shared.clone())))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn info(&self, bytes: &[u8]) -> Info {
        Info { blocks: bytes.len() as u64 / u64::from(self.info.block_size), ..self.info.clone() }
    }

    fn run(&self, io: &Io) -> Result<(), Error> {
        let mut bytes = self.lock();
        io.check(&self.info(&bytes))?;
        if io.op == Op::Flush {
            return Ok(());
        }
        let block_size = self.info.block_size as usize;
        let range = &mut bytes[io.lba as usize * block_size..][..io.blocks as usize * block_size];
        match io.op {
            Op::Read => {
                io.scatter(0, range);
            }
            Op::Write => {
                io.gather(0, range);
            }
            Op::WriteZeroes => range.fill(0),
            Op::CompareAndWrite => {
                let mut expected = vec![0; range.len()];
                io.gather(0, &mut expected);
                if range != expected {
                    return Err(ErrorKind::CompareMismatch.into());
                }
                io.gather(range.len(), range);
            }
            _ => return Err(ErrorKind::Unsupported.into()),
        }
        Ok(())
    }
}

struct CasChannel(Arc<Shared>);

impl Channel for CasChannel {
    fn submit(&self, io: Io) -> Submission {
        let result = self.0.run(&io);
        Submission::Done(io.complete(result))
    }
}
