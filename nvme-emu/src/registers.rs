//! The controller's properties (Base 3.1.3): what a read returns and what a write asks for. Pure state; the
//! home worker carries out what is asked (see `home`).

use nvme_spec::registers::{
    ACQ, AQA, ASQ, Aqa, CAP, CC, CRTO, CSTS, Cap, Cc, CommandSetSelected, ControllerPowerScope, Crto, Csts,
    INTMC, INTMS, NSSR, NSSR_MAGIC, ShutdownNotification, ShutdownStatus, VS, Vs,
};

use crate::doorbells::DSTRD;

/// CAP.MPSMAX: memory pages up to 64 KiB.
const MPS_MAX: u8 = 4;

/// CAP.TO in units of 500 ms: resets wait for I/O that a device still holds.
const TIMEOUT: u8 = 60;

/// What a register write asks the controller to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// CC changed: the home worker looks.
    pub(crate) configuration: bool,
    /// CC.EN was cleared.
    pub(crate) disabled: bool,
    /// The interrupt mask changed.
    pub(crate) interrupt_mask: bool,
    /// NSSR: every controller of the subsystem resets.
    pub(crate) subsystem_reset: bool,
}

/// The settings that a controller runs with from CC.EN = 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Enabled {
    pub(crate) cc: Cc,
    pub(crate) aqa: Aqa,
    pub(crate) asq: u64,
    pub(crate) acq: u64,
    /// [`Registers::resets`] when it was enabled.
    pub(crate) resets: u64,
}

/// The registers of one controller.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    cap: Cap,
    cc: Cc,
    csts: Csts,
    intms: u32,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    /// How often CC.EN was cleared or the controller was reset otherwise. Even a quick toggle is seen.
    resets: u64,
}

impl Registers {
    pub(crate) fn new(queue_entries: u32) -> Self {
        let cap = Cap::new()
            .with_mqes_z((queue_entries - 1).min(0xFFFF) as u16)
            .with_cqr(true)
            .with_to(TIMEOUT)
            .with_dstrd(DSTRD)
            .with_nssrs(true)
            .with_css_nvm(true)
            .with_cps(ControllerPowerScope::CONTROLLER)
            .with_mpsmax(MPS_MAX)
            .with_crwms(true);
        Self { cap, cc: Cc::new(), csts: Csts::new(), intms: 0, aqa: Aqa::new(), asq: 0, acq: 0, resets: 0 }
    }

    fn read_dword(&self, offset: u64) -> u32 {
        let half = |value: u64, base: u64| if offset == base { value as u32 } else { (value >> 32) as u32 };
        match offset {
            CAP | 0x04 => half(self.cap.into_bits(), CAP),
            VS => Vs::V2_0.into_bits(),
            INTMS | INTMC => self.intms,
            CC => self.cc.into_bits(),
            CSTS => self.csts.into_bits(),
            AQA => self.aqa.into_bits(),
            ASQ | 0x2C => half(self.asq, ASQ),
            ACQ | 0x34 => half(self.acq, ACQ),
            CRTO => Crto::new().with_crwmt(u16::from(TIMEOUT)).into_bits(),
            _ => 0,
        }
    }

    /// Reads any bytes below the doorbells.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.wrapping_add(i as u64);
            *byte = self.read_dword(at & !3).to_le_bytes()[(at & 3) as usize];
        }
    }

    /// Writes any bytes below the doorbells: each dword touched is written once, with the bytes not given
    /// kept (or zero where writing ones acts).
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Effects {
        let mut effects = Effects::default();
        let end = offset.saturating_add(data.len() as u64);
        let mut dword = offset & !3;
        while dword < end {
            let keeps = !matches!(dword, INTMS | INTMC | CSTS | NSSR);
            let mut bytes = if keeps { self.read_dword(dword).to_le_bytes() } else { [0; 4] };
            for (i, byte) in bytes.iter_mut().enumerate() {
                if let Some(given) =
                    (dword + i as u64).checked_sub(offset).and_then(|at| data.get(at as usize))
                {
                    *byte = *given;
                }
            }
            self.write_dword(dword, u32::from_le_bytes(bytes), &mut effects);
            dword += 4;
        }
        effects
    }

    fn write_dword(&mut self, offset: u64, value: u32, effects: &mut Effects) {
        let low = |old: u64| (old & !0xFFFF_FFFF) | u64::from(value & 0xFFFF_F000);
        let high = |old: u64| (old & 0xFFFF_FFFF) | u64::from(value) << 32;
        // The admin queue's place is fixed while the controller is enabled (Base 3.1.3.8 to 3.1.3.10).
        let fixed = self.cc.en();
        match offset {
            INTMS => {
                self.intms |= value;
                effects.interrupt_mask = true;
            }
            INTMC => {
                self.intms &= !value;
                effects.interrupt_mask = true;
            }
            CC => {
                let new = Cc::from_bits(value);
                if self.cc.en() && !new.en() {
                    self.resets += 1;
                    effects.disabled = true;
                    // A controller that never came up is down at once; the host may not wait to enable it.
                    if !self.csts.rdy() {
                        self.csts.set_cfs(false);
                    }
                }
                // Whoever takes a shutdown that is complete back can ask for another one.
                if new.shn() == ShutdownNotification::NONE && self.csts.shst() == ShutdownStatus::COMPLETE {
                    self.csts.set_shst(ShutdownStatus::NORMAL);
                }
                self.cc = new;
                effects.configuration = true;
            }
            CSTS if Csts::from_bits(value).nssro() => self.csts.set_nssro(false),
            NSSR if value == NSSR_MAGIC => effects.subsystem_reset = true,
            AQA if !fixed => self.aqa = Aqa::from_bits(value & 0x0FFF_0FFF),
            ASQ if !fixed => self.asq = low(self.asq),
            0x2C if !fixed => self.asq = high(self.asq),
            ACQ if !fixed => self.acq = low(self.acq),
            0x34 if !fixed => self.acq = high(self.acq),
            _ => {}
        }
    }

    /// The interrupt mask of INTMS.
    pub(crate) fn interrupt_mask(&self) -> u32 {
        self.intms
    }

    /// What the host wants: the settings if CC.EN is set and the controller has not failed.
    pub(crate) fn wanted(&self) -> Option<Enabled> {
        let wanted =
            Enabled { cc: self.cc, aqa: self.aqa, asq: self.asq, acq: self.acq, resets: self.resets };
        (self.cc.en() && !self.csts.cfs()).then_some(wanted)
    }

    /// How often the controller was reset.
    pub(crate) fn resets(&self) -> u64 {
        self.resets
    }

    /// Whether CC.SHN asks for a shutdown that was not begun.
    pub(crate) fn shutdown_wanted(&self) -> bool {
        self.cc.shn() != ShutdownNotification::NONE && self.csts.shst() == ShutdownStatus::NORMAL
    }

    /// Whether the host's settings can be run with: its memory page size, command set and arbitration.
    pub(crate) fn check(wanted: &Enabled) -> Result<(), &'static str> {
        if wanted.cc.mps() > MPS_MAX {
            return Err("CC.MPS is beyond CAP.MPSMAX");
        }
        if wanted.cc.css() != CommandSetSelected::NVM {
            return Err("CC.CSS is not the NVM command set");
        }
        if wanted.cc.ams().into_bits() != 0 {
            return Err("CC.AMS is not round robin");
        }
        if wanted.aqa.asqs_z() == 0 || wanted.aqa.acqs_z() == 0 {
            return Err("AQA has a queue of less than two entries");
        }
        let page_mask = (4096u64 << wanted.cc.mps()) - 1;
        if (wanted.asq | wanted.acq) & page_mask != 0 {
            return Err("ASQ or ACQ is not aligned to the memory page size");
        }
        Ok(())
    }

    /// The controller is up.
    pub(crate) fn set_ready(&mut self) {
        self.csts.set_rdy(true);
        self.csts.set_shst(ShutdownStatus::NORMAL);
    }

    /// The controller cannot go on; only a reset helps.
    pub(crate) fn set_fatal(&mut self) {
        self.csts.set_cfs(true);
    }

    /// The controller is down after CC.EN was cleared.
    pub(crate) fn set_stopped(&mut self) {
        let nssro = self.csts.nssro();
        self.csts = Csts::new().with_nssro(nssro);
        self.intms = 0;
    }

    /// CC.EN = 0 clears a fatal state even if the controller never came up.
    pub(crate) fn set_stopped_if_disabled(&mut self) {
        if !self.cc.en() && !self.csts.rdy() {
            let shst = self.csts.shst();
            self.set_stopped();
            self.csts.set_shst(shst);
        }
    }

    /// A shutdown began.
    pub(crate) fn begin_shutdown(&mut self) {
        self.csts.set_shst(ShutdownStatus::OCCURRING);
    }

    /// A shutdown is over, unless a reset overtook it: complete if everything is durable, else it ends in a
    /// fatal status, the only one there is for it.
    pub(crate) fn finish_shutdown(&mut self, is_durable: bool) {
        if self.csts.shst() == ShutdownStatus::OCCURRING {
            if is_durable {
                self.csts.set_shst(ShutdownStatus::COMPLETE);
            } else {
                self.csts.set_cfs(true);
            }
        }
    }

    /// Everything as after power on; the home worker sees a reset. CSTS.RDY stays until that is done.
    pub(crate) fn power_on(&mut self) {
        self.cc = Cc::new();
        self.aqa = Aqa::new();
        self.asq = 0;
        self.acq = 0;
        self.intms = 0;
        self.csts.set_shst(ShutdownStatus::NORMAL);
        self.csts.set_nssro(false);
        self.resets += 1;
    }

    /// CC, of which some fields may change while the controller is enabled.
    pub(crate) fn cc(&self) -> Cc {
        self.cc
    }

    /// As [`Self::power_on`], by NSSR: CSTS.NSSRO tells the host.
    pub(crate) fn subsystem_reset(&mut self) {
        self.power_on();
        self.csts.set_nssro(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(registers: &Registers, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        registers.read(offset, &mut data);
        data
    }

    #[test]
    fn capabilities_in_any_width() {
        let registers = Registers::new(1024);
        let cap = u64::from_le_bytes(read(&registers, CAP));
        assert_eq!(Cap::from_bits(cap).mqes_z(), 1023);
        assert_eq!(Cap::from_bits(cap).dstrd(), 4);
        assert_eq!(u32::from_le_bytes(read(&registers, 4)), (cap >> 32) as u32);
        assert_eq!(read::<1>(&registers, 1)[0], (cap >> 8) as u8);
        assert_eq!(u32::from_le_bytes(read(&registers, VS)), 0x0002_0000);
    }

    #[test]
    fn admin_queue_addresses_in_four_and_eight_bytes() {
        let mut registers = Registers::new(1024);
        registers.write(ASQ, &0x1_2345_6000u64.to_le_bytes());
        registers.write(ACQ, &0x2345_6000u32.to_le_bytes());
        registers.write(ACQ + 4, &1u32.to_le_bytes());
        registers.write(AQA, &0x001F_001Fu32.to_le_bytes());
        registers.write(CC, &0x0046_0001u32.to_le_bytes());
        let wanted = registers.wanted().unwrap();
        assert_eq!((wanted.asq, wanted.acq), (0x1_2345_6000, 0x1_2345_6000));
        assert!(Registers::check(&wanted).is_ok());
        registers.write(ASQ, &0u64.to_le_bytes());
        assert_eq!(registers.wanted().unwrap().asq, 0x1_2345_6000, "fixed while enabled");
    }

    #[test]
    fn bytes_of_cc_keep_their_neighbours() {
        let mut registers = Registers::new(1024);
        assert!(registers.write(CC + 2, &[0x46, 0]).configuration);
        registers.write(CC, &[1]);
        assert_eq!(registers.wanted().unwrap().cc.into_bits(), 0x0046_0001);
    }

    #[test]
    fn a_quick_toggle_is_a_reset() {
        let mut registers = Registers::new(1024);
        registers.write(CC, &1u32.to_le_bytes());
        let first = registers.wanted().unwrap().resets;
        registers.write(CC, &0u32.to_le_bytes());
        registers.write(CC, &1u32.to_le_bytes());
        assert_ne!(registers.wanted().unwrap().resets, first);
    }

    #[test]
    fn a_wide_write_has_all_its_effects() {
        let mut registers = Registers::new(1024);
        let effects = registers.write(INTMC, &[0; 8]);
        assert!(effects.interrupt_mask && effects.configuration);
    }

    #[test]
    fn a_failed_start_is_forgotten_at_once() {
        let mut registers = Registers::new(1024);
        registers.write(CC, &1u32.to_le_bytes());
        registers.set_fatal();
        assert!(registers.wanted().is_none());
        registers.write(CC, &0u32.to_le_bytes());
        registers.write(CC, &1u32.to_le_bytes());
        assert!(registers.wanted().is_some());
    }

    #[test]
    fn settings_that_cannot_be_run_with() {
        let base = Enabled {
            cc: Cc::from_bits(0x0046_0001),
            aqa: Aqa::from_bits(0x001F_001F),
            asq: 0x1000,
            acq: 0x2000,
            resets: 0,
        };
        assert!(Registers::check(&base).is_ok());
        for bad in [
            Enabled { cc: base.cc.with_mps(5), ..base },
            Enabled { cc: base.cc.with_css(CommandSetSelected::ALL), ..base },
            Enabled { cc: Cc::from_bits(base.cc.into_bits() | 1 << 11), ..base },
            Enabled { aqa: Aqa::from_bits(0x001F_0000), ..base },
            Enabled { asq: 0x1008, ..base },
            Enabled { cc: base.cc.with_mps(1), asq: 0x1000, ..base },
        ] {
            assert!(Registers::check(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn subsystem_reset_needs_the_word() {
        let mut registers = Registers::new(1024);
        assert_eq!(registers.write(NSSR, &1u32.to_le_bytes()), Effects::default());
        assert!(registers.write(NSSR, &NSSR_MAGIC.to_le_bytes()).subsystem_reset);
        registers.subsystem_reset();
        assert!(Csts::from_bits(u32::from_le_bytes(read(&registers, CSTS))).nssro());
        registers.write(CSTS, &0x10u32.to_le_bytes());
        assert!(!Csts::from_bits(u32::from_le_bytes(read(&registers, CSTS))).nssro());
    }

    #[test]
    fn a_shutdown_can_be_asked_for_again_and_is_forgotten_at_power_on() {
        let mut registers = Registers::new(1024);
        let mut shut_down = |shn: u32| {
            registers.write(CC, &(shn << 14 | 1).to_le_bytes());
            let wanted = registers.shutdown_wanted();
            if wanted {
                registers.begin_shutdown();
                registers.finish_shutdown(true);
            }
            wanted
        };
        assert!(shut_down(1) && !shut_down(1));
        assert!(!shut_down(0) && shut_down(1));
        registers.subsystem_reset();
        assert!(registers.csts.nssro() && registers.csts.shst() == ShutdownStatus::NORMAL);
        registers.power_on();
        assert!(!registers.csts.nssro());
    }

    #[test]
    fn writes_of_any_size_and_place_are_harmless() {
        let mut registers = Registers::new(2);
        for len in [1usize, 2, 3, 5, 7, 8, 64, 4096] {
            for offset in 0..4096u64 {
                registers.write(offset, &vec![0xA5; len]);
                registers.read(offset, &mut vec![0; len]);
            }
        }
    }
}
