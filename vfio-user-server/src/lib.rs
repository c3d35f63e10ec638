//! A vfio-user server: the protocol, and the PCI function behind it. Knows nothing of NVMe.
//!
//! The user implements [`PciFunction`], makes a [`Host`] (the function's view of its VMM: guest memory and
//! interrupts) and runs [`serve()`] on a [`Listener`].
//!
//! What it leaves out: DMA by messages (DMA_READ, DMA_WRITE), ioeventfds, the twin socket, migration.

mod closer;
pub mod dma;
pub mod frame;
pub mod function;
pub mod host;
pub mod irq;
pub mod listener;
pub mod pci;
pub mod ratelimit;
pub mod serve;
pub mod session;
mod sigbus;
mod socket;
pub mod version;
mod watchdog;
pub mod wire;

pub use dma::{Access, DmaFault, DmaSpace, DmaTable, Hint, MapError, MapFlags, Mapped, RegionMask, Retired};
pub use function::{Bar, FunctionInfo, MappableArea, PciFunction, Quiesced, Reset};
pub use host::Host;
pub use irq::{Interrupts, IrqError};
pub use listener::Listener;
pub use serve::serve;
