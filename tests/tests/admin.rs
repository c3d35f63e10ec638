//! Admin commands: Identify, features, log pages, Abort, asynchronous events, and the rules of namespace identifiers.

use std::time::Duration;

use nvme_driver::admin::{
    abort, admin, async_event_request, get_features, get_log_page, identify, set_features,
};
use nvme_driver::{Controller, Data, PAGE, Prps, Sgl, io};
use nvme_spec::command::Fuse;
use nvme_spec::event::AsyncEvent;
use nvme_spec::{AdminOpcode, Command, NSID_BROADCAST, Status};
use quarry_tests::data::{buffer, check_works, run};
use quarry_tests::{PATIENCE, Server, io_queues, status};

fn setup() -> (Server, Controller) {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    (server, controller)
}

fn identify_status(controller: &Controller, cns: u8, nsid: u32, csi: u8) -> Status {
    let (_memory, prps) = buffer(controller, PAGE);
    status(controller.admin(identify(cns, nsid, 0, csi, prps.data())))
}

#[test]
fn identify_controller_says_what_it_is() {
    let (server, controller) = setup();
    let data = controller.identify(1, 0).unwrap();
    let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&data[range]).into_owned();
    let dword = |at: usize| u32::from_le_bytes(*data[at..].first_chunk().unwrap());
    let serial = text(4..24);
    assert!(
        !serial.trim().is_empty() && serial.bytes().all(|byte| (0x20..0x7F).contains(&byte)),
        "{serial:?}"
    );
    assert_eq!(text(24..64).trim_end(), "Quarry NVMe Disk");
    assert_eq!(data[77], 8, "MDTS: 1 MiB");
    assert_eq!(dword(80), 0x0002_0000, "VER is that of the register");
    assert_eq!(data[111], 1, "CNTRLTYPE: an I/O controller");
    assert_eq!(data[512..514], [0x66, 0x44], "SQES and CQES");
    assert!(dword(516) >= 1, "NN");
    let oncs = dword(520) as u16;
    assert_eq!(oncs & 0b1100, 0b1100, "ONCS: Dataset Management and Write Zeroes");
    assert_eq!(dword(536) & 3, 2, "SGLS: SGLs with dword granularity");
    let nqn = text(768..1024);
    assert!(nqn.starts_with("nqn.") && nqn.ends_with('\0'), "{nqn:?}");
    // The reserved bytes stay zero, and everything is the same the next time.
    assert!(data[1024..1792].iter().all(|&byte| byte == 0));
    assert!(data == controller.identify(1, 0).unwrap());
    server.stop();
}

#[test]
fn identify_every_structure() {
    let (server, controller) = setup();
    for (cns, nsid, csi) in
        [(0, 1, 0), (1, 0, 0), (2, 0, 0), (3, 1, 0), (5, 1, 0), (6, 0, 0), (7, 0, 0), (8, 1, 0)]
    {
        assert_eq!(identify_status(&controller, cns, nsid, csi), Status::SUCCESS, "CNS {cns:#x}");
    }
    for cns in [0x04, 0x0F, 0x60, 0xC0, 0xFF] {
        let got = identify_status(&controller, cns, 1, 0);
        assert!(
            got.is(Status::INVALID_FIELD_IN_COMMAND) || got.is_success() && cns == 4,
            "CNS {cns:#x}: {got:?}"
        );
    }
    // Namespace identifiers: 0 and all of them are invalid, the inactive one reads as zeroes.
    assert_eq!(identify_status(&controller, 0, 0, 0), Status::INVALID_NAMESPACE_OR_FORMAT);
    assert_eq!(identify_status(&controller, 0, 0xFFFF_FFFE, 0), Status::INVALID_NAMESPACE_OR_FORMAT);
    assert_eq!(identify_status(&controller, 3, 0, 0), Status::INVALID_NAMESPACE_OR_FORMAT);
    let data = controller.identify(1, 0).unwrap();
    let nn = u32::from_le_bytes(*data[516..].first_chunk().unwrap());
    if nn > 1 {
        assert!(controller.identify(0, 2).unwrap().iter().all(|&byte| byte == 0), "an inactive namespace");
    }
    assert_eq!(controller.active_namespaces().unwrap(), [1]);
    let after = controller.identify(2, 1).unwrap();
    assert!(after.iter().all(|&byte| byte == 0), "no active namespace beyond 1");
    for nsid in [0xFFFF_FFFE, NSID_BROADCAST] {
        assert_eq!(identify_status(&controller, 2, nsid, 0), Status::INVALID_NAMESPACE_OR_FORMAT);
    }
    // Descriptors: at least one, of a known type and length, never all zero, and the list ends.
    let list = controller.identify(3, 1).unwrap();
    let (mut at, mut kinds) = (0, Vec::new());
    while list[at + 1] != 0 {
        let (kind, len) = (list[at], usize::from(list[at + 1]));
        assert_eq!(len, [0, 8, 16, 16, 1][usize::from(kind)], "descriptor type {kind}");
        kinds.push(kind);
        at += 4 + len;
    }
    assert!(kinds.contains(&3), "a UUID: {kinds:?}");
    server.stop();
}

#[test]
fn identify_data_pointers() {
    let (server, controller) = setup();
    let expected = controller.identify(1, 0).unwrap();
    let (memory, _) = buffer(&controller, 3 * PAGE);
    // Across two pages, with any dword offset.
    for offset in [4, 2048, 4092] {
        memory.fill(0xEE);
        let prps = Prps::new(controller.arena(), memory.iova() + offset as u64, PAGE).unwrap();
        assert_eq!(status(controller.admin(identify(1, 0, 0, 0, prps.data()))), Status::SUCCESS);
        assert!(memory.to_vec(offset, PAGE) == expected);
        assert!(memory.to_vec(offset + PAGE, PAGE).iter().all(|&byte| byte == 0xEE), "not beyond");
    }
    let send = |data| status(controller.admin(identify(1, 0, 0, 0, data)));
    assert_eq!(send(Data::Prp(memory.iova() + 1, 0)), Status::PRP_OFFSET_INVALID);
    assert_eq!(send(Data::Prp(memory.iova() + 8, memory.iova() + 8)), Status::PRP_OFFSET_INVALID);
    assert_eq!(send(Data::Prp(0xDEAD_0000_0000, 0)), Status::DATA_TRANSFER_ERROR);
    assert_eq!(
        send(Sgl::block(memory.iova(), PAGE)),
        Status::INVALID_FIELD_IN_COMMAND,
        "admin commands use PRPs"
    );
    server.stop();
}

#[test]
fn opcodes_and_fused_commands() {
    let (server, controller) = setup();
    // Security Send and Receive among them: this disk encrypts nothing, as OACS says.
    for opcode in [0x03, 0x07, 0x0B, 0x7F, 0x81, 0x82, 0xC0, 0xFF] {
        let got = status(controller.admin(admin(AdminOpcode(opcode), Data::None)));
        assert_eq!(got, Status::INVALID_COMMAND_OPCODE, "admin opcode {opcode:#x}");
    }
    for fuse in [Fuse::FIRST, Fuse::SECOND] {
        let mut command = identify(1, 0, 0, 0, buffer(&controller, PAGE).1.data());
        command.flags.set_fuse(fuse);
        assert_eq!(status(controller.admin(command)), Status::INVALID_FIELD_IN_COMMAND);
    }
    assert_eq!(controller.identify(1, 0).unwrap()[256] & 1, 0);
    let mut queues = io_queues(&controller);
    for opcode in [0x03, 0x7F, 0xFF] {
        let command = Command { opcode, nsid: 1.into(), ..Command::default() };
        assert_eq!(
            run(&controller, &mut queues, command),
            Status::INVALID_COMMAND_OPCODE,
            "I/O opcode {opcode:#x}"
        );
    }
    server.stop();
}

#[test]
fn features_have_values_defaults_and_abilities() {
    let (server, controller) = setup();
    let data = controller.identify(1, 0).unwrap();
    let select_supported = u16::from_le_bytes([data[520], data[521]]) & 1 << 4 != 0;
    let get = |fid, select| controller.admin(get_features(fid, select, 1, 0, Data::None)).unwrap();
    // A disk in memory has no volatile write cache, and so no such feature either.
    let has_cache = data[525] & 1 == 1;
    let cache_feature = get(0x06, 0).status().code();
    assert_eq!(cache_feature, if has_cache { Status::SUCCESS } else { Status::INVALID_FIELD_IN_COMMAND });
    for fid in [0x01, 0x02, 0x04, 0x05, 0x07, 0x08, 0x09, 0x0A, 0x0B] {
        let current = get(fid, 0);
        assert_eq!(current.status().code(), Status::SUCCESS, "feature {fid:#x}");
        if select_supported {
            let default = get(fid, 1);
            assert_eq!(default.status().code(), Status::SUCCESS, "default of feature {fid:#x}");
            assert_eq!(default.dw0, current.dw0, "feature {fid:#x} begins with its default");
            assert_eq!(get(fid, 3).status().code(), Status::SUCCESS, "abilities of feature {fid:#x}");
        }
    }
    for fid in [0x00, 0x70, 0xC0, 0xFF] {
        assert_eq!(get(fid, 0).status().code(), Status::INVALID_FIELD_IN_COMMAND, "feature {fid:#x}");
        let set = controller.admin(set_features(fid, false, 0, 0, Data::None));
        assert_eq!(status(set), Status::INVALID_FIELD_IN_COMMAND, "feature {fid:#x}");
    }
    // What is set is what one gets, and a reset brings the defaults back.
    for (fid, value) in [(0x01, 0x0102_0304), (0x08, 0x0205), (0x0B, 0x0100)] {
        let default = controller.feature(fid).unwrap();
        controller.set_feature(fid, value).unwrap();
        assert_eq!(controller.feature(fid).unwrap(), value, "feature {fid:#x}");
        controller.enable().unwrap();
        assert_eq!(controller.feature(fid).unwrap(), default, "feature {fid:#x} after a reset");
    }
    let saved = status(controller.admin(set_features(0x01, true, 0, 7, Data::None)));
    assert!(
        saved.is(Status::FEATURE_IDENTIFIER_NOT_SAVEABLE) || saved.is(Status::INVALID_FIELD_IN_COMMAND),
        "{saved:?}"
    );
    server.stop();
}

#[test]
fn log_pages_and_their_offsets() {
    let (server, controller) = setup();
    for (lid, len) in [(0, 1024), (1, 64), (2, 512), (3, 512), (4, 4096), (5, 4096)] {
        let whole = controller.log_page(lid, NSID_BROADCAST, 0, len).unwrap();
        let tail = controller.log_page(lid, NSID_BROADCAST, (len / 2) as u64, len / 2).unwrap();
        if lid != 2 {
            assert!(whole[len / 2..] == tail, "log page {lid} from its middle");
        }
        let short = controller.log_page(lid, NSID_BROADCAST, 0, 4).unwrap();
        assert!(lid == 2 || whole[..4] == short, "the first dword of log page {lid}");
    }
    let supported = controller.log_page(0, 0, 0, 1024).unwrap();
    for lid in [1, 2, 3] {
        assert_eq!(supported[lid * 4] & 1, 1, "log page {lid} is listed");
    }
    let (_memory, prps) = buffer(&controller, PAGE);
    let send = |lid, offset, dwords| {
        status(controller.admin(get_log_page(lid, NSID_BROADCAST, offset, dwords, prps.data())))
    };
    assert_eq!(send(0x7F, 0, 16), Status::INVALID_LOG_PAGE);
    assert_eq!(send(0xFF, 0, 16), Status::INVALID_LOG_PAGE);
    assert_eq!(send(2, 1 << 32, 16), Status::INVALID_FIELD_IN_COMMAND, "an offset beyond the page");
    assert_eq!(send(3, 513 * 4, 1), Status::INVALID_FIELD_IN_COMMAND, "an offset beyond the page");
    assert_eq!(send(2, 2, 16), Status::INVALID_FIELD_IN_COMMAND, "an offset of half a dword");
    // FFFFFFFFh dwords: 16 GiB that nobody has room for.
    let huge = send(2, 0, 0);
    assert!(!huge.is_success(), "{huge:?}");
    server.stop();
}

#[test]
fn smart_log_counts() {
    let (server, controller) = setup();
    let mut queues = io_queues(&controller);
    let counter = |log: &[u8], at: usize| u64::from_le_bytes(*log[at..].first_chunk().unwrap());
    let before = controller.log_page(2, NSID_BROADCAST, 0, 512).unwrap();
    let (_memory, prps) = buffer(&controller, 1 << 20);
    for index in 0..10 {
        assert_eq!(
            run(&controller, &mut queues, io::write(1, index * 2048, 2048, prps.data())),
            Status::SUCCESS
        );
        assert_eq!(
            run(&controller, &mut queues, io::read(1, index * 2048, 2048, prps.data())),
            Status::SUCCESS
        );
    }
    let after = controller.log_page(2, NSID_BROADCAST, 0, 512).unwrap();
    assert_eq!(counter(&after, 64) - counter(&before, 64), 10, "host read commands");
    assert_eq!(counter(&after, 80) - counter(&before, 80), 10, "host write commands");
    // Data units are thousands of 512 bytes: 10 MiB are 20.48 of them.
    assert!((20..=21).contains(&(counter(&after, 32) - counter(&before, 32))), "data units read");
    assert!((20..=21).contains(&(counter(&after, 48) - counter(&before, 48))), "data units written");
    server.stop();
}

#[test]
fn abort_finds_what_is_there() {
    let server = Server::config(
        r#"
        [devices.disk]
        type = "memory"
        size = "64M"
        [devices.stuck]
        type = "fault"
        on = "disk"
        rules = [{ action = "hold", operations = ["read"], blocks = [1000, 1100] }]
        [controllers.vm]
        socket = "vm.sock"
        namespaces = [{ device = "stuck" }]
        "#,
        &["vm.sock"],
    );
    let controller = server.controller();
    let mut queues = io_queues(&controller);
    assert!(!controller.abort(1, 77).unwrap(), "an unknown command");
    let unknown_queue = controller.admin(abort(50, 1)).unwrap();
    assert!(
        unknown_queue.status().is(Status::INVALID_FIELD_IN_COMMAND) || unknown_queue.dw0.get() & 1 == 1,
        "an unknown queue: {unknown_queue:?}"
    );
    let (memory, _) = buffer(&controller, PAGE);
    let held = queues.submit(io::read(1, 1000, 1, Data::Prp(memory.iova(), 0))).unwrap();
    check_works(&controller, &mut queues, 0, 1);
    assert!(controller.abort(1, held).unwrap(), "a held command can be aborted");
    let completion = queues.wait(held, controller.timeout()).unwrap();
    assert_eq!(completion.status().code(), Status::COMMAND_ABORT_REQUESTED);
    assert!(!controller.abort(1, held).unwrap(), "it is over");
    // An event request is a command too.
    let aer = controller.request_event().unwrap();
    assert!(controller.abort(0, aer).unwrap());
    assert!(controller.with_admin(|admin| admin.peek(aer)).unwrap(), "it ends before the Abort does");
    let completion = controller.with_admin(|admin| admin.wait(aer, PATIENCE)).unwrap();
    assert_eq!(completion.status().code(), Status::COMMAND_ABORT_REQUESTED);
    server.stop();
}

#[test]
fn event_requests_are_limited_and_events_are_kept() {
    let (server, controller) = setup();
    let limit = usize::from(controller.identify(1, 0).unwrap()[259]) + 1;
    let requests: Vec<u16> = (0..limit).map(|_| controller.request_event().unwrap()).collect();
    let beyond = status(controller.admin(async_event_request()));
    assert_eq!(beyond, Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED);
    // One event takes one request; its type is then silent until its log page is read.
    let doorbell = controller.doorbells().by_message().of(60, false);
    doorbell.ring(1).unwrap();
    let event = controller.with_admin(|admin| admin.wait_any(PATIENCE)).unwrap();
    assert_eq!(event.cid.get(), requests[0], "the oldest request is answered first");
    assert_eq!(AsyncEvent::from_bits(event.dw0.get()), AsyncEvent::WRITE_TO_INVALID_DOORBELL_REGISTER);
    doorbell.ring(2).unwrap();
    let again = controller.with_admin(|admin| admin.wait_any(Duration::from_millis(200)));
    assert!(again.is_err(), "masked until the log page was read: {again:?}");
    let log = controller.log_page(1, NSID_BROADCAST, 0, 64).unwrap();
    assert_ne!(u64::from_le_bytes(*log.first_chunk().unwrap()), 0, "the error log tells about it");
    let event = controller.with_admin(|admin| admin.wait_any(PATIENCE)).unwrap();
    assert_eq!(event.cid.get(), requests[1], "the second event waited");
    server.stop();
}

/// An identifier up to NN could be a namespace: it is inactive. All others are invalid (Base 3.2.1.4).
fn refusal(nsid: u32) -> Status {
    if nsid == 2 { Status::INVALID_FIELD_IN_COMMAND } else { Status::INVALID_NAMESPACE_OR_FORMAT }
}

#[test]
fn namespace_identifiers_are_checked() {
    let (server, controller) = setup();
    let mut queues = io_queues(&controller);
    let (_memory, prps) = buffer(&controller, PAGE);
    for nsid in [0, 2, 0xFFFF_FFFE, NSID_BROADCAST] {
        for command in [
            io::read(nsid, 0, 1, prps.data()),
            io::write(nsid, 0, 1, prps.data()),
            io::write_zeroes(nsid, 0, 1),
            io::deallocate(nsid, 1, prps.data()),
        ] {
            let got = run(&controller, &mut queues, command);
            assert_eq!(got, refusal(nsid), "{:?} of namespace {nsid:#x}", command.nvm_opcode());
        }
    }
    for nsid in [0, 2] {
        assert_eq!(run(&controller, &mut queues, io::flush(nsid)), refusal(nsid));
    }
    // Whether Flush takes all namespaces is told by Identify Controller, VWC bits 2:1.
    let vwc = controller.identify(1, 0).unwrap()[525];
    let all = run(&controller, &mut queues, io::flush(NSID_BROADCAST));
    match vwc >> 1 & 3 {
        3 => assert_eq!(all, Status::SUCCESS),
        _ => assert_eq!(all, Status::INVALID_NAMESPACE_OR_FORMAT),
    }
    server.stop();
}
