//! Offsets of the structures, byte by byte as the specification's figures give them, and bits of the bit fields.
//! Sizes are asserted at compile time next to each type.

use core::mem::{align_of, offset_of};

use nvme_spec::admin::SecurityCdw10;
use nvme_spec::command::{CommandFlags, DataPointer, Fuse, Psdt};
use nvme_spec::event::AsyncEvent;
use nvme_spec::features::{FeatureId, NumberOfQueues, SetFeaturesCdw10, Timestamp, TimestampOrigin};
use nvme_spec::identify::*;
use nvme_spec::log::optional::*;
use nvme_spec::log::*;
use nvme_spec::nvm::{DsmCdw11, DsmContextAttributes, DsmRange, IoCdw12};
use nvme_spec::queue::{CreateCqCdw11, CreateQueueCdw10, CreateSqCdw11, QueuePriority};
use nvme_spec::registers::*;
use nvme_spec::sgl::{SglDescriptor, SglType};
use nvme_spec::{AdminOpcode, Command, Completion, CompletionStatus, NvmOpcode, Status, doorbell_buffer};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Asserts the offset of each field named.
macro_rules! offsets {
    ($ty:ty { $($field:ident: $offset:literal),* $(,)? }) => {
        $(assert_eq!(offset_of!($ty, $field), $offset, concat!(stringify!($ty), ".", stringify!($field)));)*
        assert_eq!(align_of::<$ty>(), 1, stringify!($ty));
    };
}

#[test]
fn queue_entries() {
    offsets!(Command {
        opcode: 0,
        flags: 1,
        cid: 2,
        nsid: 4,
        cdw2: 8,
        cdw3: 12,
        mptr: 16,
        dptr: 24,
        cdw10: 40,
        cdw11: 44,
        cdw12: 48,
        cdw13: 52,
        cdw14: 56,
        cdw15: 60,
    });
    offsets!(Completion { dw0: 0, dw1: 4, sqhd: 8, sqid: 10, cid: 12, status: 14 });
    offsets!(SglDescriptor { address: 0, length: 8, identifier: 15 });
}

#[test]
fn identify_controller() {
    offsets!(IdentifyController {
        vid: 0,
        ssvid: 2,
        sn: 4,
        mn: 24,
        fr: 64,
        rab: 72,
        ieee: 73,
        cmic: 76,
        mdts: 77,
        cntlid: 78,
        ver: 80,
        rtd3r: 84,
        rtd3e: 88,
        oaes: 92,
        ctratt: 96,
        rrls: 100,
        cntrltype: 111,
        fguid: 112,
        crdt1: 128,
        crdt2: 130,
        crdt3: 132,
        nvmsr: 253,
        vwci: 254,
        mec: 255,
        oacs: 256,
        acl_z: 258,
        aerl_z: 259,
        frmw: 260,
        lpa: 261,
        elpe_z: 262,
        npss_z: 263,
        avscc: 264,
        apsta: 265,
        wctemp: 266,
        cctemp: 268,
        mtfa: 270,
        hmpre: 272,
        hmmin: 276,
        tnvmcap: 280,
        unvmcap: 296,
        rpmbs: 312,
        edstt: 316,
        dsto: 318,
        fwug: 319,
        kas: 320,
        hctma: 322,
        mntmt: 324,
        mxtmt: 326,
        sanicap: 328,
        hmminds: 332,
        hmmaxd: 336,
        nsetidmax: 338,
        endgidmax: 340,
        anatt: 342,
        anacap: 343,
        anagrpmax: 344,
        nanagrpid: 348,
        pels: 352,
        domain_id: 356,
        megcap: 368,
        sqes: 512,
        cqes: 513,
        maxcmd: 514,
        nn: 516,
        oncs: 520,
        fuses: 522,
        fna: 524,
        vwc: 525,
        awun_z: 526,
        awupf_z: 528,
        icsvscc: 530,
        nwpc: 531,
        acwu_z: 532,
        ocfs: 534,
        sgls: 536,
        mnan: 540,
        maxdna: 544,
        maxcna: 560,
        subnqn: 768,
        fabrics: 1792,
        psd: 2048,
        vendor: 3072,
    });
    offsets!(FabricsAttributes { ioccsz: 0, iorcsz: 4, icdoff: 8, fcatt: 10, msdbd: 11, ofcs: 12 });
    offsets!(PowerState {
        mp: 0,
        flags: 3,
        enlat: 4,
        exlat: 8,
        rrt: 12,
        rrl: 13,
        rwt: 14,
        rwl: 15,
        idlp: 16,
        ips: 18,
        actp: 20,
        active: 22,
    });
}

#[test]
fn identify_namespace() {
    offsets!(IdentifyNamespace {
        nsze: 0,
        ncap: 8,
        nuse: 16,
        nsfeat: 24,
        nlbaf_z: 25,
        flbas: 26,
        mc: 27,
        dpc: 28,
        dps: 29,
        nmic: 30,
        rescap: 31,
        fpi: 32,
        dlfeat: 33,
        nawun_z: 34,
        nawupf_z: 36,
        nacwu_z: 38,
        nabsn_z: 40,
        nabo: 42,
        nabspf_z: 44,
        noiob: 46,
        nvmcap: 48,
        npwg_z: 64,
        npwa_z: 66,
        npdg_z: 68,
        npda_z: 70,
        nows_z: 72,
        mssrl: 74,
        mcl: 76,
        msrc_z: 80,
        anagrpid: 92,
        nsattr: 99,
        nvmsetid: 100,
        endgid: 102,
        nguid: 104,
        eui64: 120,
        lbaf: 128,
        vendor: 384,
    });
    offsets!(IdentifyNamespaceIndependent {
        nsfeat: 0,
        nmic: 1,
        rescap: 2,
        fpi: 3,
        anagrpid: 4,
        nsattr: 8,
        nvmsetid: 10,
        endgid: 12,
        nstat: 14,
    });
    offsets!(IdentifyNvmController { vsl: 0, wzsl: 1, wusl: 2, dmrl: 3, dmrsl: 4, dmsl: 8 });
    offsets!(IdentifyNvmNamespace { lbstm: 0, pic: 8, elbaf: 12 });
    offsets!(ControllerList { count: 0, cntlids: 2 });
}

#[test]
fn logs() {
    offsets!(ErrorInformationEntry {
        error_count: 0,
        sqid: 8,
        cid: 10,
        status: 12,
        parameter_error_location: 14,
        lba: 16,
        nsid: 24,
        vendor_specific_information: 28,
        trtype: 29,
        command_specific: 32,
        transport_specific: 40,
    });
    offsets!(SmartLog {
        critical_warning: 0,
        composite_temperature: 1,
        available_spare: 3,
        available_spare_threshold: 4,
        percentage_used: 5,
        endurance_group_critical_warning_summary: 6,
        data_units_read: 32,
        data_units_written: 48,
        host_read_commands: 64,
        host_write_commands: 80,
        controller_busy_time: 96,
        power_cycles: 112,
        power_on_hours: 128,
        unsafe_shutdowns: 144,
        media_errors: 160,
        error_log_entries: 176,
        warning_composite_temperature_time: 192,
        critical_composite_temperature_time: 196,
        temperature_sensors: 200,
        thermal_1_transitions: 216,
        thermal_2_transitions: 220,
        thermal_1_seconds: 224,
        thermal_2_seconds: 228,
    });
    offsets!(FirmwareSlotLog { afi: 0, frs: 8 });
    offsets!(CommandsSupportedAndEffects { acs: 0, iocs: 1024 });
    offsets!(SanitizeStatusLog { sprog: 0, sstat: 2, scdw10: 4, overwrite_seconds: 8 });
    offsets!(DeviceSelfTestLog { current_operation: 0, current_completion: 1, results: 4 });
    offsets!(AnaGroupDescriptor { group: 0, nsids: 4, change_count: 8, state: 16 });
    offsets!(ReservationNotificationLog { count: 0, kind: 8, available: 9, nsid: 12 });
}

#[test]
fn a_command_reads_back() {
    let mut bytes = [0u8; 64];
    bytes[0] = 0x02;
    bytes[1] = 0b0100_0001;
    bytes[2..4].copy_from_slice(&[0x34, 0x12]);
    bytes[4] = 7;
    bytes[24..40].copy_from_slice(SglDescriptor::data_block(0x1122_3344_5566_7788, 0x1000).as_bytes());
    bytes[40..48].copy_from_slice(&0x0102_0304_0506_0708u64.to_le_bytes());
    bytes[48..52].copy_from_slice(&0xC000_0007u32.to_le_bytes());
    let command = Command::read_from_bytes(&bytes).unwrap();
    assert_eq!(command.nvm_opcode(), NvmOpcode::READ);
    assert_eq!((command.fuse(), command.psdt()), (Fuse::FIRST, Psdt::SGL_METADATA_BUFFER));
    assert_eq!((command.cid(), command.nsid()), (0x1234, 7));
    assert_eq!(command.slba(), 0x0102_0304_0506_0708);
    let cdw12 = IoCdw12::from_bits(command.cdw12());
    assert_eq!((cdw12.blocks(), cdw12.fua(), cdw12.lr(), cdw12.deac()), (8, true, true, false));
    let sgl = command.sgl1();
    assert_eq!(sgl.identifier.kind(), SglType::DATA_BLOCK);
    assert_eq!((sgl.address.get(), sgl.length.get()), (0x1122_3344_5566_7788, 0x1000));
    assert_eq!(DataPointer::from_sgl(sgl), command.dptr);
    assert_eq!(SglDescriptor::last_segment(0, 16).as_bytes()[15], 0x30);
    assert_eq!(SglDescriptor::bit_bucket(1).as_bytes()[15], 0x10);
}

#[test]
fn reserved_bits_survive() {
    assert_eq!(CommandFlags::from_bits(0b0011_1100).reserved(), 0b1111);
    assert_eq!(Cc::from_bits(0xFFFF_FFFF).into_bits(), 0xFFFF_FFFF);
    assert_eq!(SetFeaturesCdw10::from_bits(0x8000_00FE).fid(), FeatureId(0xFE));
}

#[test]
fn status_field() {
    let status = Status::LBA_OUT_OF_RANGE.with_dnr().with_more().with_crd(2);
    assert_eq!(status.into_bits(), 0x0080 | 2 << 11 | 1 << 13 | 1 << 14);
    assert_eq!((status.crd(), status.more(), status.dnr()), (2, true, true));
    assert!(status.is(Status::LBA_OUT_OF_RANGE) && !status.is_success() && Status::SUCCESS.is_success());
    assert_eq!(status.code(), Status::LBA_OUT_OF_RANGE);
    assert_eq!(Status::INVALID_QUEUE_IDENTIFIER.into_bits(), 0x101);
    assert_eq!(Status::COMPARE_FAILURE.into_bits(), 0x285);
    assert_eq!(Status::COMMAND_ABORTED_BY_HOST.into_bits(), 0x371);
    assert_eq!(format!("{status:?}"), "LBA_OUT_OF_RANGE +CRD2 +M +DNR");
    assert_eq!(Status::INVALID_FIELD_IN_COMMAND.to_string(), "Invalid Field in Command");
    assert_eq!(Status::from_bits(0x7AB).name(), None);
    assert_eq!(format!("{:?}", Status::from_bits(0x7AB)), "Status(VENDOR, 0xab)");

    let word = CompletionStatus::new().with_phase(true).with_status(status);
    assert_eq!(word.into_bits().get(), status.into_bits() << 1 | 1);
    assert_eq!(word.as_bytes(), (status.into_bits() << 1 | 1).to_le_bytes());
    assert_eq!((word.phase(), word.status()), (true, status));
}

#[test]
fn every_status_has_a_name_of_its_own() {
    for (index, status) in Status::NAMED.iter().enumerate() {
        assert!(status.name().is_some() && status.text().is_some());
        assert!(!Status::NAMED[..index].contains(status), "{status:?} twice");
        assert_eq!(Status::new(status.sct(), status.sc()), *status);
    }
}

#[test]
fn open_enums() {
    assert_eq!(format!("{:?} {:?}", AdminOpcode::IDENTIFY, AdminOpcode(0xC1)), "IDENTIFY AdminOpcode(0xc1)");
    assert_eq!(AdminOpcode::from_bits(0x3F).name(), None);
    assert_eq!(format!("{:?}", CommandSetSelected::ALL), "ALL");
}

#[test]
fn registers() {
    let cap = Cap::new()
        .with_mqes_z(1023)
        .with_cqr(true)
        .with_to(0x20)
        .with_dstrd(4)
        .with_nssrs(true)
        .with_css_nvm(true)
        .with_mpsmin(0)
        .with_mpsmax(4)
        .with_crwms(true);
    assert_eq!(
        cap.into_bits(),
        1 << 59 | 4 << 52 | 1 << 37 | 1 << 36 | 4 << 32 | 0x20 << 24 | 1 << 16 | 1023
    );
    assert_eq!(Cap::new().with_css_none(true).with_css_iocs(true).into_bits(), 0b11 << 43);
    assert_eq!(Cap::new().with_crims(true).with_bps(true).into_bits(), 1 << 60 | 1 << 45);
    assert_eq!(Cap::new().with_cmbs(true).with_pmrs(true).with_nsss(true).into_bits(), 0b111 << 56);

    let cc = Cc::from_bits(0x0046_0001 | 1 << 14 | 7 << 4);
    assert!(cc.en() && !cc.crime());
    assert_eq!((cc.iosqes(), cc.iocqes(), cc.mps()), (6, 4, 0));
    assert_eq!((cc.shn(), cc.css()), (ShutdownNotification::NORMAL, CommandSetSelected::ADMIN_ONLY));
    let csts = Csts::new().with_rdy(true).with_shst(ShutdownStatus::COMPLETE).with_nssro(true);
    assert_eq!(csts.into_bits(), 0b1_1001);
    assert_eq!(Aqa::new().with_asqs_z(0x0FF).with_acqs_z(0xFFF).into_bits(), 0x0FFF_00FF);
    assert_eq!((Vs::V2_0.mjr(), Vs::V2_0.mnr(), Vs::V2_0.ter()), (2, 0, 0));
    assert_eq!((Vs::V1_4.mjr(), Vs::V1_4.mnr()), (1, 4));
    assert_eq!(NSSR_MAGIC.to_be_bytes(), *b"NVMe");
    assert_eq!(NSSD_NORMAL.to_be_bytes(), *b"Nrml");
    assert_eq!(NSSD_ABRUPT.to_be_bytes(), *b"Abpt");
}

#[test]
fn doorbells() {
    assert_eq!(doorbell_offset(0, false, 0), 0x1000);
    assert_eq!(doorbell_offset(0, true, 0), 0x1004);
    assert_eq!(doorbell_offset(3, true, 4), 0x1000 + 7 * 64);
    assert_eq!(doorbell_offset(u16::MAX, true, 15), 0x1000 + 131071 * (4 << 15));
    assert_eq!(doorbell_buffer::entry_offset(3, false, 0), 24);
    assert_eq!(doorbell_buffer::max_qid(4096, 0), 511);
    assert_eq!(doorbell_buffer::max_qid(4096, 4), 31);
    assert_eq!(doorbell_buffer::max_qid(4096, 15), 0);
    // From 4 to 6 passes 4 and 5, and neither 3 nor 6; the same over the wrap.
    assert!(doorbell_buffer::passes_event(4, 6, 4) && doorbell_buffer::passes_event(5, 6, 4));
    assert!(!doorbell_buffer::passes_event(3, 6, 4) && !doorbell_buffer::passes_event(6, 6, 4));
    assert!(doorbell_buffer::passes_event(0xFFFF, 1, 0xFFFE));
}

#[test]
fn dwords() {
    let queue = CreateQueueCdw10::from_bits(0x03FF_0005);
    assert_eq!((queue.qid(), queue.qsize_z()), (5, 1023));
    let cq = CreateCqCdw11::from_bits(0x0007_0003);
    assert_eq!((cq.pc(), cq.ien(), cq.iv()), (true, true, 7));
    let sq = CreateSqCdw11::from_bits(0x0009_0005);
    assert_eq!((sq.pc(), sq.qprio(), sq.cqid()), (true, QueuePriority::MEDIUM, 9));
    assert_eq!(NumberOfQueues::new().with_nsq_z(127).with_ncq_z(63).into_bits(), 0x003F_007F);
    let security = SecurityCdw10::from_bits(0x0110_0407);
    assert_eq!((security.secp(), security.spsp(), security.nssf()), (1, 0x1004, 7));
    assert!(DsmCdw11::from_bits(4).ad());
    let identify = IdentifyCdw10::from_bits(0xFFFF_0013);
    assert_eq!((identify.cns(), identify.cntid()), (Cns::CONTROLLER_LIST, 0xFFFF));
    assert_eq!(IdentifyCdw11::from_bits(0x0200_0000).csi(), CommandSet::ZONED_NAMESPACE);
}

#[test]
fn get_log_page() {
    let mut command = Command {
        cdw10: (0x007F_0002u32 | 1 << 15 | 0x55 << 8).into(),
        cdw11: 0x0003_0001u32.into(),
        cdw12: 0x200u32.into(),
        cdw13: 1u32.into(),
        cdw14: (1u32 << 23 | 5).into(),
        ..Command::default()
    };
    let get = GetLogPage::from_command(&command);
    assert_eq!((get.lid, get.lsp, get.rae), (LogPageId::SMART_HEALTH, 0x55, true));
    assert_eq!((get.bytes, get.lsi, get.offset), ((0x1_007F + 1) * 4, 3, 0x1_0000_0200));
    assert_eq!((get.offset_is_index, get.uuid_index), (true, 5));
    command.cdw10 = u32::MAX.into();
    command.cdw11 = u32::MAX.into();
    assert_eq!(GetLogPage::from_command(&command).bytes, 1 << 34);
}

#[test]
fn identify_bits() {
    assert_eq!(Oacs::new().with_security(true).with_lockdown(true).as_bytes(), [0x01, 0x04]);
    assert_eq!(Oacs::new().with_doorbell_buffer_config(true).into_bits().get(), 1 << 8);
    assert_eq!(Oncs::new().with_dataset_management(true).with_copy(true).into_bits().get(), 1 << 2 | 1 << 8);
    assert_eq!(Oaes::new().with_namespace_attribute_notices(true).into_bits().get(), 1 << 8);
    assert_eq!(Oaes::new().with_firmware_activation_notices(true).into_bits().get(), 1 << 9);
    assert_eq!(
        Oaes::new().with_ana_change_notices(true).with_discovery_log_notices(true).into_bits().get(),
        1 << 11 | 1 << 31
    );
    assert_eq!(Oaes::new().with_zone_descriptor_changed_notices(true).into_bits().get(), 1 << 27);
    assert_eq!(Ctratt::new().with_extended_lba_formats(true).into_bits().get(), 1 << 15);
    assert_eq!(Frmw::new().with_slot_1_read_only(true).with_slots(1).into_bits(), 0b11);
    assert_eq!(
        Vwc::new().with_present(true).with_flush_broadcast(FlushBroadcast::SUPPORTED).into_bits(),
        0b111
    );
    let sgls = Sgls::new().with_support(SglSupport::BYTE_ALIGNED).with_bit_bucket(true).with_transport(true);
    assert_eq!(sgls.into_bits().get(), 1 | 1 << 16 | 1 << 21);
    assert_eq!(SaniCap::new().with_no_deallocate_inhibited(true).into_bits().get(), 1 << 29);
    assert_eq!(LbaFormat::new().with_ms(8).with_lbads(12).as_bytes(), [8, 0, 12, 0]);
    assert_eq!(ExtendedLbaFormat::new().with_pif(ProtectionFormat::GUARD_64).into_bits().get(), 2 << 7);
    assert_eq!((QueueEntrySize::SQ.min(), QueueEntrySize::CQ.max()), (6, 4));
    assert_eq!(
        DlFeat::new().with_read_behavior(DeallocatedRead::ZEROES).with_write_zeroes_deac(true).into_bits(),
        0b1001
    );

    let mut namespace = IdentifyNamespace::new_zeroed();
    namespace.lbaf[3] = LbaFormat::new().with_lbads(9);
    // Sixteen formats or fewer: the upper bits of FLBAS do not count.
    namespace.flbas = Flbas::new().with_index_low(3).with_index_high(1);
    assert_eq!(namespace.current_format().unwrap().lbads(), 9);
    namespace.nlbaf_z = 63;
    assert_eq!(namespace.current_format().unwrap().lbads(), 0);
}

#[test]
fn data_bits() {
    let effects =
        CommandEffects::new().with_csupp(true).with_lbcc(true).with_scope(Scope::new().with_namespace(true));
    assert_eq!(effects.into_bits().get(), 0b11 | 1 << 20);
    assert_eq!(CommandEffects::new().with_cse(SubmissionExecution::ONE_AT_ALL).into_bits().get(), 2 << 16);
    assert_eq!(CommandEffects::new().with_uuid_selection(true).into_bits().get(), 1 << 19);
    let effects =
        FeatureEffects::new().with_uuid_selection(true).with_scope(Scope::new().with_controller(true));
    assert_eq!(effects.into_bits().get(), 1 << 19 | 1 << 21);
    let time = Timestamp::new().with_milliseconds(0x0605_0403_0201).with_origin(TimestampOrigin::SET_BY_HOST);
    assert_eq!(time.as_bytes(), [1, 2, 3, 4, 5, 6, 0b10, 0]);
    let attributes = DsmContextAttributes::new().with_sequential_read(true).with_access_size(1);
    let range = DsmRange { attributes, nlb: 8.into(), slba: 0x100.into() };
    assert_eq!(range.as_bytes(), [0, 1, 0, 1, 8, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn events() {
    assert_eq!(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.into_bits(), 0x0004_0002);
    assert_eq!(AsyncEvent::INVALID_DOORBELL_WRITE_VALUE.into_bits(), 0x0001_0100);
    assert_eq!(AsyncEvent::SANITIZE_OPERATION_COMPLETED.into_bits(), 0x0081_0106);
    assert_eq!(AsyncEvent::from_bits(0x0002_0101).name(), Some("TEMPERATURE_THRESHOLD"));
}
