//! A vfio-user server: the protocol, and the PCI function behind it. Knows nothing of NVMe.
//!
//! The user implements [`PciFunction`], makes a [`Host`] (the function's view of its VMM: guest memory and
//! interrupts) and runs `serve` on a listener.

pub mod dma;
pub mod function;
pub mod host;
pub mod irq;
pub mod sigbus;

pub use dma::{Access, DmaFault, DmaSpace, DmaTable, Hint, MapError, MapFlags, RegionMask, Retired};
pub use function::{Bar, FunctionInfo, MappableArea, PciFunction, Quiesced, Reset};
pub use host::Host;
pub use irq::{Interrupts, IrqError};
