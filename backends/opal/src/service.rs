//! [`Service`]: the thread on which a drive's TPer runs. It may block: PINs take their time, and each change is durable before
//! its answer. A cluster below that does not answer holds up this drive's commands alone.

use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use block::security::{SecurityCommand, SecurityError, SecurityEvent, SecurityReply, SecurityTransfer};
use block::{Channel, Device, Reactor, Security};
use zeroize::Zeroizing;

use crate::crypto::seal;
use crate::crypto::xts::XtsKey;
use crate::layer;
use crate::layout::Layout;
use crate::media::{BlockIo, ByteTable, LoadError, Loaded, Store};
use crate::secret::Secret;
use crate::status::OpalStatus;
use crate::tper::credential::LocalKeys;
use crate::tper::state::State;
use crate::tper::{Area, Medium, MediumError, Reset, Tper};
use crate::{OpalOptions, OpenError};

/// What the thread is asked to do.
enum Job {
    Command(SecurityCommand, SecurityReply),
    Event(SecurityEvent),
    Resize(Layout),
    Look(Box<dyn FnOnce(&Tper) + Send>),
    End,
}

/// A drive's thread.
pub struct Service {
    jobs: Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Service {
    /// Starts the thread of the drive on `device`; its state is loaded, or made on a blank device, when this returns.
    pub fn start(
        device: Arc<dyn Device>,
        device_key: Secret<32>,
        options: OpalOptions,
        layout: Layout,
        shared: Arc<layer::Shared>,
    ) -> Result<Arc<Self>, OpenError> {
        let (jobs, received) = channel();
        let (ready, started) = channel();
        let thread = std::thread::Builder::new().name("opal".to_owned()).spawn(move || {
            match begin(&*device, &device_key, &options, &layout) {
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
                Ok(tper) => {
                    drop(device_key);
                    shared.publish(tper.map());
                    let _ = ready.send(Ok(()));
                    serve(tper, &received, &shared, &options);
                }
            }
        });
        let thread = thread.map_err(OpenError::Thread)?;
        match started.recv() {
            Ok(result) => result?,
            Err(_) => return Err(OpenError::Died),
        }
        Ok(Arc::new(Self { jobs, thread: Mutex::new(Some(thread)) }))
    }

    /// The drive has another size.
    pub fn resize(&self, layout: Layout) {
        let _ = self.jobs.send(Job::Resize(layout));
    }

    /// Looks at the TPer, after what was submitted before.
    pub fn look<T: Send + 'static>(&self, look: impl FnOnce(&Tper) -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = channel();
        let job = Job::Look(Box::new(move |tper| {
            let _ = answer.send(look(tper));
        }));
        self.jobs.send(job).ok()?;
        answered.recv().ok()
    }

    /// What can be shown of the drive.
    pub fn status(&self) -> Option<OpalStatus> {
        self.look(OpalStatus::of)
    }

    /// Ends the thread when it has done what was submitted, and waits for that. What comes later is refused.
    pub fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = self.jobs.send(Job::End);
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("an Opal disk's thread has panicked");
        }
    }
}

impl Security for Service {
    fn submit(&self, command: SecurityCommand, reply: SecurityReply) {
        if let Err(failed) = self.jobs.send(Job::Command(command, reply))
            && let Job::Command(_, reply) = failed.0
        {
            reply(Err(SecurityError::Internal));
        }
    }

    fn event(&self, event: SecurityEvent) {
        let _ = self.jobs.send(Job::Event(event));
    }
}

/// Loads the state, or makes it.
fn begin(
    device: &dyn Device,
    device_key: &Secret<32>,
    options: &OpalOptions,
    layout: &Layout,
) -> Result<Tper, OpenError> {
    let info = device.info();
    let reactor = Reactor::new(8).map_err(OpenError::Thread)?;
    let channel: Rc<dyn Channel> = device.channel(&reactor).map_err(LoadError::Io)?.into();
    let mut store = Store::new(reactor.clone(), channel.clone(), info.block_size);
    let (local, state) = match store.load(device_key) {
        Ok(Loaded { uuid, payload }) => {
            let state = decode(&payload).ok_or(OpenError::State)?;
            (LocalKeys::derive(device_key, &uuid), state)
        }
        Err(LoadError::Blank) => {
            let mut uuid = [0; 16];
            seal::random(&mut uuid).map_err(|_| OpenError::Random)?;
            let local = LocalKeys::derive(device_key, &uuid);
            let state = Tper::factory(&local).map_err(|_| OpenError::Random)?;
            let payload = encode(&state).ok_or(OpenError::State)?;
            store.format(device_key, uuid, &payload)?;
            tracing::info!("made a new Opal disk: everything is unlocked, `quarry opal psid` shows its PSID");
            (local, state)
        }
        Err(error) => return Err(error.into()),
    };
    let io = BlockIo::new(reactor, channel, info.block_size, info.abilities);
    let medium = Box::new(OnDisk { store, io });
    Tper::start(state, local, medium, layout, options.cost).map_err(|_| OpenError::Start)
}

fn serve(mut tper: Tper, jobs: &Receiver<Job>, shared: &layer::Shared, options: &OpalOptions) {
    while let Ok(job) = jobs.recv() {
        let before = tper.revision();
        match job {
            Job::Command(command, reply) => {
                let SecurityCommand { protocol, specific, transfer } = command;
                let result = match transfer {
                    SecurityTransfer::Send(data) => {
                        let data = Zeroizing::new(data); // there may be a PIN in it
                        tper.send(protocol, specific, &data, Instant::now()).map(|()| Vec::new())
                    }
                    SecurityTransfer::Receive(len) => tper.receive(protocol, specific, len),
                };
                // Before the answer: who has heard that something is locked finds it so.
                if tper.revision() != before {
                    shared.publish(tper.map());
                }
                reply(result);
            }
            Job::Event(event) => {
                let reset = match event {
                    SecurityEvent::ControllerReset => Reset::Controller { hardware: false },
                    SecurityEvent::FunctionReset if options.lock_on_reset => Reset::PowerCycle,
                    SecurityEvent::FunctionReset => Reset::Controller { hardware: true },
                    SecurityEvent::Detached => Reset::PowerCycle,
                };
                if tper.reset(reset).is_err() {
                    tracing::error!(?event, "the disk is locked, but its state could not be stored");
                }
                if tper.revision() != before {
                    shared.publish(tper.map());
                }
            }
            Job::Resize(layout) => tper.resize(&layout),
            Job::Look(look) => look(&tper),
            Job::End => return,
        }
    }
}

/// Versions of what is stored, by its first byte.
const STATE_VERSION: u8 = 1;

/// The state as it is stored.
pub(crate) fn encode(state: &State) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = vec![STATE_VERSION];
    bytes.extend(postcard::to_allocvec(state).ok()?);
    Some(Zeroizing::new(bytes))
}

/// The state that was stored, if it is one.
pub(crate) fn decode(bytes: &[u8]) -> Option<State> {
    let (version, bytes) = bytes.split_first()?;
    let state: State = (*version == STATE_VERSION).then(|| postcard::from_bytes(bytes).ok()).flatten()?;
    state.is_sound().then_some(state)
}

/// The medium of a drive: the device below.
struct OnDisk {
    store: Store,
    io: BlockIo,
}

impl OnDisk {
    fn table(&self, area: Area) -> ByteTable {
        let block_size = self.io.block_size() as u32;
        match area {
            Area::Mbr => ByteTable::mbr(block_size),
            Area::DataStore => ByteTable::data_store(block_size),
        }
    }
}

fn logged(result: Result<(), block::Error>) -> Result<(), MediumError> {
    result.map_err(|error| {
        tracing::error!(%error, "an Opal disk's state cannot be stored or read");
        MediumError
    })
}

impl Medium for OnDisk {
    fn commit(&mut self, state: &State, destroys: bool) -> Result<(), MediumError> {
        let payload = encode(state).ok_or(MediumError)?;
        logged(self.store.write(&payload, destroys))
    }

    fn read(&mut self, area: Area, key: &XtsKey, offset: u64, bytes: &mut [u8]) -> Result<(), MediumError> {
        logged(self.table(area).read(&self.io, key, offset, bytes))
    }

    fn write(&mut self, area: Area, key: &XtsKey, offset: u64, bytes: &[u8]) -> Result<(), MediumError> {
        logged(self.table(area).write(&self.io, key, offset, bytes))
    }

    fn wipe(&mut self) -> Result<(), MediumError> {
        logged(self.table(Area::Mbr).wipe(&self.io))?;
        logged(self.table(Area::DataStore).wipe(&self.io))
    }
}
