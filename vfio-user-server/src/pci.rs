//! The configuration space of the function, and the MSI-X table.
//!
//! Capabilities: power management (PCI PM 1.2), PCI Express endpoint with FLR (PCIe 7.5.3), MSI-X (7.7.2) or MSI,
//! device serial number (7.9.3). VMMs emulate most of this towards the guest and program interrupts with
//! SET_IRQS, so the MSI-X table and the enable bits are kept but steer nothing.

pub mod msix;

use crate::function::{FunctionInfo, Reset};
use msix::MsixLayout;

/// Bytes of the configuration space.
pub const CONFIG_SIZE: usize = 4096;
/// The BAR that holds the MSI-X table and the pending bits.
pub const MSIX_BAR: u8 = 4;

/// Command register (PCI 3.0 section 6.2.2).
const COMMAND: usize = 0x04;
const COMMAND_MASTER: u8 = 1 << 2;
/// Second byte.
const COMMAND_INTX_DISABLE: u8 = 1 << 2;
const STATUS: usize = 0x06;
const STATUS_INTX: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BARS: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT: usize = 0x3c;

const PM: usize = 0x40;
const PMCSR: usize = PM + 4;
const EXPRESS: usize = 0x48;
/// Device Control; bit 15 starts an FLR (PCIe 7.5.3.4).
const DEVICE_CONTROL: usize = EXPRESS + 8;
const MSIX: usize = 0x90;
const SERIAL: usize = 0x100;

/// Power states of PMCSR bits 1:0.
const D3_HOT: u8 = 3;

/// The configuration space.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    power_on: Box<[u8; CONFIG_SIZE]>,
    /// Bits a write may change.
    writable: Box<[u8; CONFIG_SIZE]>,
}

impl ConfigSpace {
    /// As after power-on.
    pub fn new(info: &FunctionInfo) -> Self {
        let mut space = Builder { bytes: Box::new([0; CONFIG_SIZE]), writable: Box::new([0; CONFIG_SIZE]) };
        space.header(info);
        space.power_management();
        space.express();
        if info.msi {
            space.msi(info.msix_vectors);
        } else {
            space.msix(MsixLayout::new(info.msix_vectors));
        }
        space.serial_number(info.serial_number);
        Self { power_on: space.bytes.clone(), bytes: space.bytes, writable: space.writable }
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.power_on[..]);
    }

    /// Reads; `offset + data.len()` must be in range, or the data stay as they are. `intx` is the level of
    /// the pin.
    pub fn read(&self, offset: usize, data: &mut [u8], intx: bool) {
        let Some(from) = offset.checked_add(data.len()).and_then(|end| self.bytes.get(offset..end)) else {
            return;
        };
        data.copy_from_slice(from);
        if intx && let Some(status) = STATUS.checked_sub(offset).and_then(|at| data.get_mut(at)) {
            *status |= STATUS_INTX;
        }
    }

    /// Writes what is writable; out of range is nothing. Returns the reset that the write asks for, which
    /// the caller carries out (and calls [`Self::reset`]).
    #[must_use]
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Option<Reset> {
        let end = offset.checked_add(data.len()).filter(|&end| end <= CONFIG_SIZE)?;
        let power = self.power_state();
        for (at, &new) in (offset..end).zip(data) {
            let mask = self.writable[at];
            // PCI PM 3.2.4: a state that is not supported is ignored.
            if at == PMCSR && !matches!(new & 3, 0 | D3_HOT) {
                continue;
            }
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
        let flr = (DEVICE_CONTROL + 1).checked_sub(offset).and_then(|at| data.get(at));
        if flr.is_some_and(|byte| byte & 0x80 != 0) {
            return Some(Reset::FunctionLevel);
        }
        (power == D3_HOT && self.power_state() != D3_HOT).then_some(Reset::PowerState)
    }

    fn power_state(&self) -> u8 {
        self.bytes[PMCSR] & 3
    }

    /// Whether the function is in D3hot, where it decodes only configuration accesses.
    pub fn is_asleep(&self) -> bool {
        self.power_state() == D3_HOT
    }

    /// Whether the function may reach guest memory.
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_MASTER != 0 && !self.is_asleep()
    }

    /// Whether the INTx pin is switched off.
    pub fn intx_disabled(&self) -> bool {
        self.bytes[COMMAND + 1] & COMMAND_INTX_DISABLE != 0
    }
}

struct Builder {
    bytes: Box<[u8; CONFIG_SIZE]>,
    writable: Box<[u8; CONFIG_SIZE]>,
}

impl Builder {
    fn set<const N: usize>(&mut self, at: usize, value: [u8; N]) {
        self.bytes[at..at + N].copy_from_slice(&value);
    }

    fn allow<const N: usize>(&mut self, at: usize, mask: [u8; N]) {
        self.writable[at..at + N].copy_from_slice(&mask);
    }

    fn header(&mut self, info: &FunctionInfo) {
        self.set(0x00, info.vendor_id.to_le_bytes());
        self.set(0x02, info.device_id.to_le_bytes());
        // Memory space, bus master, parity error response, SERR#, interrupt disable.
        self.allow(COMMAND, 0x0546u16.to_le_bytes());
        self.set(STATUS, [STATUS_CAPABILITIES]);
        self.set(0x08, [info.revision]);
        let [_, class, subclass, interface] = info.class_code.to_be_bytes();
        self.set(0x09, [interface, subclass, class]);
        self.allow(0x0c, [0xff]);
        for bar in &info.bars {
            self.bar(bar.index, bar.size);
        }
        if !info.msi {
            self.bar(MSIX_BAR, MsixLayout::new(info.msix_vectors).bar_size);
        }
        self.set(0x2c, info.subsystem_vendor_id.to_le_bytes());
        self.set(0x2e, info.subsystem_id.to_le_bytes());
        self.set(CAPABILITIES, [PM as u8]);
        self.allow(INTERRUPT, [0xff]);
        self.set(INTERRUPT + 1, [u8::from(info.intx)]);
    }

    /// A 64-bit memory BAR, not prefetchable. The low bits of the address read as zero, which is how
    /// software learns the size (PCI 3.0 section 6.2.5.1).
    fn bar(&mut self, index: u8, size: u64) {
        let at = BARS + 4 * usize::from(index.min(4));
        self.set(at, 0x4u64.to_le_bytes());
        self.allow(at, (!(size.max(16) - 1)).to_le_bytes());
    }

    fn power_management(&mut self) {
        // Version 3, D0 and D3hot only, no PME#.
        self.set(PM, [0x01, EXPRESS as u8, 0x03, 0x00]);
        // Without No_Soft_Reset: leaving D3hot is a reset.
        self.allow(PMCSR, [0x03]);
    }

    fn express(&mut self) {
        // Version 2, endpoint.
        self.set(EXPRESS, [0x10, MSIX as u8, 0x02, 0x00]);
        // Device capabilities: 128-byte payloads, role-based error reporting, FLR.
        self.set(EXPRESS + 0x04, 0x1000_8000u32.to_le_bytes());
        // Device control: as after power-on, relaxed ordering, no snoop, 512-byte read requests.
        self.set(DEVICE_CONTROL, 0x2810u16.to_le_bytes());
        self.allow(DEVICE_CONTROL, 0x78ffu16.to_le_bytes());
        // Link: 8 GT/s, 4 lanes, ASPM optionality compliance; slot clock. No clock power management.
        self.set(EXPRESS + 0x0c, 0x0040_0043u32.to_le_bytes());
        self.allow(EXPRESS + 0x10, 0x00cbu16.to_le_bytes());
        self.set(EXPRESS + 0x12, 0x1043u16.to_le_bytes());
        // Device capabilities 2 and control 2: completion timeout can be switched off.
        self.set(EXPRESS + 0x24, 0x0000_0010u32.to_le_bytes());
        self.allow(EXPRESS + 0x28, 0x0010u16.to_le_bytes());
        // Link capabilities 2: 2.5, 5 and 8 GT/s; control 2: target speed.
        self.set(EXPRESS + 0x2c, 0x0000_000eu32.to_le_bytes());
        self.set(EXPRESS + 0x30, 0x0003u16.to_le_bytes());
        self.allow(EXPRESS + 0x30, 0x000fu16.to_le_bytes());
    }

    fn msix(&mut self, layout: MsixLayout) {
        self.set(MSIX, [0x11, 0x00]);
        self.set(MSIX + 2, (layout.vectors.max(1) - 1).to_le_bytes());
        // Enable and function mask.
        self.allow(MSIX + 3, [0xc0]);
        self.set(MSIX + 4, u32::from(MSIX_BAR).to_le_bytes());
        self.set(MSIX + 8, (layout.pending_offset as u32 | u32::from(MSIX_BAR)).to_le_bytes());
    }

    /// MSI (PCI 3.0 section 6.8.1) with 64-bit addresses, in MSI-X's place.
    fn msi(&mut self, vectors: u16) {
        let log2 = vectors.max(1).ilog2().min(5) as u8;
        self.set(MSIX, [0x05, 0x00, 0x80 | log2 << 1, 0x00]);
        // Enable and multiple message enable; address and data.
        self.allow(MSIX + 2, [0x71]);
        self.allow(MSIX + 4, 0xffff_ffff_ffff_fffcu64.to_le_bytes());
        self.allow(MSIX + 12, [0xff, 0xff]);
    }

    fn serial_number(&mut self, number: u64) {
        // Extended capability 0003h, version 1, the last one.
        self.set(SERIAL, 0x0001_0003u32.to_le_bytes());
        self.set(SERIAL + 4, number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
