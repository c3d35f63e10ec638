//! Security commands: their way to the device's security and back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use block::security::{SecurityCommand, SecurityError, SecurityEvent, SecurityReply, SecurityTransfer};
use block::{Channel, Device, Error, Info, Reactor, Security};
use block_memory::MemoryDevice;
use nvme_emu::{ControllerConfig, Limits, NamespaceConfig};
use nvme_spec::identify::IdentifyController;
use nvme_spec::log::CommandsSupportedAndEffects;
use nvme_spec::opcode::AdminOpcode;
use nvme_spec::registers::CC;
use nvme_spec::status::Status;
use vfio_user_server::{PciFunction, Reset};
use zerocopy::FromBytes;

use crate::rig::{Build, DATA, MEMORY, PAGE, Rig, admin};

mod events;

/// Writes down what it hears and answers when it is told to.
#[derive(Default)]
struct Tper {
    heard: Mutex<Vec<Heard>>,
    unanswered: Mutex<VecDeque<SecurityReply>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    Command(SecurityCommand),
    Event(SecurityEvent),
}

impl Security for Tper {
    fn submit(&self, command: SecurityCommand, reply: SecurityReply) {
        self.heard.lock().unwrap().push(Heard::Command(command));
        self.unanswered.lock().unwrap().push_back(reply);
    }

    fn event(&self, event: SecurityEvent) {
        self.heard.lock().unwrap().push(Heard::Event(event));
    }
}

impl Tper {
    /// What it has heard since the last call.
    fn heard(&self) -> Vec<Heard> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    fn take_reply(&self) -> SecurityReply {
        self.unanswered.lock().unwrap().pop_front().expect("a command")
    }

    /// Answers the oldest command.
    fn answer(&self, outcome: Result<Vec<u8>, SecurityError>) {
        self.take_reply()(outcome);
    }
}

/// A disk that is a security subsystem.
struct Encrypting(MemoryDevice, Arc<Tper>);

impl Device for Encrypting {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn security(&self) -> Option<Arc<dyn Security>> {
        Some(self.1.clone())
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        self.0.channel(reactor)
    }
}

fn memory_disk() -> MemoryDevice {
    MemoryDevice::new(1 << 20).unwrap()
}

fn rig_with(config: ControllerConfig) -> (Rig, Arc<Tper>) {
    let tper = Arc::new(Tper::default());
    (Rig::new(vec![Arc::new(Encrypting(memory_disk(), tper.clone()))], config), tper)
}

fn rig() -> (Rig, Arc<Tper>) {
    rig_with(ControllerConfig::default())
}

/// Protocol 01h, ComID 1004h.
const CDW10: u32 = 0x0110_0400;

fn send(len: u32) -> Build {
    admin(AdminOpcode::SECURITY_SEND, 0).prp(DATA, DATA + PAGE).dwords(CDW10, len)
}

fn receive(len: u32) -> Build {
    admin(AdminOpcode::SECURITY_RECEIVE, 0).prp(DATA, DATA + PAGE).dwords(CDW10, len)
}

fn sent(data: &[u8]) -> Heard {
    let transfer = SecurityTransfer::Send(data.to_vec());
    Heard::Command(SecurityCommand { protocol: 1, specific: 0x1004, transfer })
}

fn asked(len: u32) -> Heard {
    let transfer = SecurityTransfer::Receive(len);
    Heard::Command(SecurityCommand { protocol: 1, specific: 0x1004, transfer })
}

/// Turns until the security has a command.
#[track_caller]
fn until_submitted(rig: &mut Rig, tper: &Tper) {
    rig.until(|_| (!tper.unanswered.lock().unwrap().is_empty()).then_some(()));
}

/// Runs a command that the security gets, and answers it.
#[track_caller]
fn run(rig: &mut Rig, tper: &Tper, command: Build, outcome: Result<Vec<u8>, SecurityError>) -> Status {
    let cid = rig.submit(0, command);
    until_submitted(rig, tper);
    tper.answer(outcome);
    let completion = rig.wait(0);
    assert_eq!((completion.cid.get(), completion.dw0.get()), (cid, 0));
    completion.status()
}

#[track_caller]
fn finish(rig: &mut Rig, mut work: vfio_user_server::Quiesced) {
    rig.until(|_| work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready().then_some(()));
}

#[track_caller]
fn reset(rig: &mut Rig, kind: Reset) {
    let down = rig.controller.reset(kind);
    finish(rig, down);
}

fn namespace(device: Arc<dyn Device>) -> NamespaceConfig {
    NamespaceConfig { nsid: None, device, uuid: [8; 16], read_only: false, limits: Limits::default() }
}

/// OACS bit 0, and the effects of Security Send and Receive.
fn announced(rig: &mut Rig) -> (bool, [bool; 2]) {
    let identify = admin(AdminOpcode::IDENTIFY, 0).prp(DATA, 0).dwords(1, 0);
    assert_eq!(rig.admin(identify).0, Status::SUCCESS);
    let oacs = rig.read_struct::<IdentifyController>(DATA).oacs.security();
    let log = admin(AdminOpcode::GET_LOG_PAGE, u32::MAX).prp(DATA, 0).dwords(1023 << 16 | 5, 0);
    assert_eq!(rig.admin(log).0, Status::SUCCESS);
    let page = CommandsSupportedAndEffects::read_from_bytes(&rig.read_memory(DATA, 4096)).unwrap();
    (oacs, [0x81, 0x82].map(|opcode| page.acs[opcode].csupp()))
}

#[test]
fn only_a_disk_that_encrypts_has_security_commands() {
    let mut plain = Rig::new(vec![Arc::new(memory_disk())], ControllerConfig::default());
    assert_eq!(announced(&mut plain), (false, [false; 2]));
    for command in [send(0), receive(512)] {
        assert_eq!(plain.admin(command).0, Status::INVALID_COMMAND_OPCODE);
    }
    let (mut rig, tper) = rig();
    assert_eq!(announced(&mut rig), (true, [true; 2]));
    rig.subsystem.remove_namespace(1).unwrap();
    assert_eq!(tper.heard(), [Heard::Event(SecurityEvent::Detached)], "it was pulled out");
    assert_eq!(announced(&mut rig), (false, [false; 2]));
    assert_eq!(rig.admin(receive(512)).0, Status::INVALID_COMMAND_OPCODE);
    // Another one takes its place.
    let tper = Arc::new(Tper::default());
    rig.subsystem.add_namespace(namespace(Arc::new(Encrypting(memory_disk(), tper.clone())))).unwrap();
    assert_eq!(announced(&mut rig), (true, [true; 2]));
    assert_eq!(run(&mut rig, &tper, receive(512), Ok(vec![])), Status::SUCCESS);
}

#[test]
fn a_disk_that_encrypts_is_a_whole_subsystem() {
    let text = "a self-encrypting disk is a whole NVM subsystem: give it a controller of its own";
    let encrypting = || Arc::new(Encrypting(memory_disk(), Arc::default()));
    let (rig, _tper) = rig();
    let add = |rig: &Rig, device: Arc<dyn Device>| rig.subsystem.add_namespace(namespace(device));
    for second in [encrypting() as Arc<dyn Device>, Arc::new(memory_disk())] {
        assert_eq!(add(&rig, second).unwrap_err().to_string(), text);
    }
    let plain = Rig::new(vec![Arc::new(memory_disk())], ControllerConfig::default());
    assert_eq!(add(&plain, encrypting()).unwrap_err().to_string(), text);
    assert_eq!(plain.subsystem.nsids(), [1]);
    // It may take the place of the others.
    plain.subsystem.remove_namespace(1).unwrap();
    assert_eq!(add(&plain, encrypting()).unwrap(), 1);
    rig.subsystem.remove_namespace(1).unwrap();
    for nsid in [1, 2] {
        assert_eq!(add(&rig, Arc::new(memory_disk())).unwrap(), nsid);
    }
}

#[test]
fn what_is_sent_is_copied_once() {
    let (mut rig, tper) = rig();
    let data: Vec<u8> = (0..6000u32).map(|i| i as u8).collect();
    rig.write_memory(DATA, &data);
    let cid = rig.submit(0, send(6000));
    until_submitted(&mut rig, &tper);
    rig.write_memory(DATA, &[0xEE; 6000]);
    rig.turns(20);
    assert!(rig.completion(0).is_none(), "it is not answered yet");
    assert!(!rig.workers[0].needs_turns(), "the reactor may sleep");
    assert_eq!(tper.heard(), [sent(&data)]);
    let reply = tper.take_reply();
    std::thread::spawn(move || reply(Ok(vec![]))).join().unwrap();
    let completion = rig.wait(0);
    assert_eq!((completion.cid.get(), completion.status()), (cid, Status::SUCCESS));
    // Nothing is sent, from nowhere.
    let nothing = send(0).prp(u64::MAX, 1);
    assert_eq!(run(&mut rig, &tper, nothing, Ok(vec![])), Status::SUCCESS);
    assert_eq!(tper.heard(), [sent(&[])]);
    // An odd length and an offset.
    assert_eq!(run(&mut rig, &tper, send(3).prp(DATA + 4092, 0), Ok(vec![])), Status::SUCCESS);
    assert_eq!(tper.heard(), [sent(&[0xEE; 3])]);
}

#[test]
fn what_is_received_is_filled_with_zeroes() {
    let (mut rig, tper) = rig();
    rig.write_memory(DATA, &[0xEE; 3 * PAGE as usize]);
    // Across a page boundary.
    let discovery: Vec<u8> = (1..181).collect();
    let command = receive(2048).prp(DATA + 4000, DATA + PAGE);
    assert_eq!(run(&mut rig, &tper, command, Ok(discovery.clone())), Status::SUCCESS);
    assert_eq!(tper.heard(), [asked(2048)]);
    let mut expected = vec![0xEE; 3 * PAGE as usize];
    expected[4000..4180].copy_from_slice(&discovery);
    expected[4180..6048].fill(0);
    assert_eq!(rig.read_memory(DATA, expected.len()), expected);
    // All that was asked for, more than that, and nothing at all.
    for (len, answer) in [(300, 300), (301, 999), (512, 0)] {
        assert_eq!(run(&mut rig, &tper, receive(len), Ok(vec![7; answer])), Status::SUCCESS);
        expected[..len as usize].fill(0);
        expected[..answer.min(len as usize)].fill(7);
        assert_eq!(rig.read_memory(DATA, expected.len()), expected);
    }
    assert_eq!(run(&mut rig, &tper, receive(0).prp(3, 3), Ok(vec![])), Status::SUCCESS);
    assert_eq!(rig.read_memory(DATA, expected.len()), expected);
    assert_eq!(tper.heard(), [asked(300), asked(301), asked(512), asked(0)]);
}

#[test]
fn refusals_have_their_status_and_move_no_data() {
    let (mut rig, tper) = rig();
    rig.write_memory(DATA, &[0xEE; 512]);
    for (error, status) in [
        (SecurityError::InvalidField, Status::INVALID_FIELD_IN_COMMAND.with_dnr()),
        (SecurityError::Sequence, Status::COMMAND_SEQUENCE_ERROR),
        (SecurityError::Internal, Status::INTERNAL_ERROR),
    ] {
        for command in [send(512), receive(512)] {
            assert_eq!(run(&mut rig, &tper, command, Err(error)), status);
        }
    }
    // Nobody answers.
    for command in [send(512), receive(512)] {
        let cid = rig.submit(0, command);
        until_submitted(&mut rig, &tper);
        drop(tper.take_reply());
        let completion = rig.wait(0);
        assert_eq!((completion.cid.get(), completion.status()), (cid, Status::INTERNAL_ERROR));
    }
    assert_eq!(rig.read_memory(DATA, 512), [0xEE; 512]);
}

#[test]
fn bad_commands_do_not_reach_the_security() {
    let (mut rig, tper) = rig_with(ControllerConfig { max_transfer: 8192, ..ControllerConfig::default() });
    for (command, status) in [
        (send(8193), Status::INVALID_FIELD_IN_COMMAND),
        (receive(8196), Status::INVALID_FIELD_IN_COMMAND),
        (receive(u32::MAX), Status::INVALID_FIELD_IN_COMMAND),
        (send(512).fuse(1), Status::INVALID_FIELD_IN_COMMAND),
        (send(512).prp(DATA + 1, 0), Status::PRP_OFFSET_INVALID),
        (receive(8192).prp(DATA, DATA + 8), Status::PRP_OFFSET_INVALID),
        (send(512).prp(MEMORY, 0), Status::DATA_TRANSFER_ERROR),
        (receive(512).prp(MEMORY, 0), Status::DATA_TRANSFER_ERROR),
    ] {
        let cid = rig.submit(0, command);
        let completion = rig.wait(0);
        assert_eq!((completion.cid.get(), completion.status()), (cid, status.with_dnr()));
    }
    let on = |nsid: u32, mut command: Build| {
        command.0.nsid = nsid.into();
        command
    };
    for (nsid, status) in
        [(2, Status::INVALID_FIELD_IN_COMMAND), (0xFFFF_FFFE, Status::INVALID_NAMESPACE_OR_FORMAT)]
    {
        assert_eq!(rig.admin(on(nsid, send(8))).0, status);
        assert_eq!(rig.admin(on(nsid, receive(8))).0, status);
    }
    assert_eq!(tper.heard(), []);
    for nsid in [0, 1, u32::MAX] {
        assert_eq!(run(&mut rig, &tper, on(nsid, receive(8192)), Ok(vec![])), Status::SUCCESS);
    }
}

#[test]
fn an_answer_goes_to_where_the_memory_is_by_then() {
    let (mut rig, tper) = rig();
    rig.map(MEMORY, PAGE, 2 << 20);
    rig.turn();
    let started = |rig: &mut Rig| {
        rig.submit(0, receive(64).prp(MEMORY, 0));
        until_submitted(rig, &tper);
        let _ = rig.host.dma.unmap(MEMORY, PAGE).unwrap();
        let retired = rig.controller.retire_memory(Instant::now() + Duration::from_secs(50));
        finish(rig, retired);
    };
    started(&mut rig);
    rig.map(MEMORY, PAGE, 3 << 20);
    tper.answer(Ok(vec![5; 64]));
    assert_eq!(rig.wait(0).status(), Status::SUCCESS);
    assert_eq!(rig.read_memory(3 << 20, 64), [5; 64]);
    assert_eq!(rig.read_memory(2 << 20, 64), [0; 64]);
    started(&mut rig);
    tper.answer(Ok(vec![6; 64]));
    assert_eq!(rig.wait(0).status(), Status::DATA_TRANSFER_ERROR.with_dnr());
    assert_eq!(rig.read_memory(3 << 20, 64), [5; 64]);
}

#[test]
fn an_answer_waits_for_bus_mastering() {
    let (mut rig, tper) = rig();
    rig.submit(0, receive(64));
    until_submitted(&mut rig, &tper);
    rig.host.set_bus_master(false);
    tper.answer(Ok(vec![5; 64]));
    rig.turns(20);
    assert_eq!(rig.read_memory(DATA, 64), [0; 64]);
    rig.host.set_bus_master(true);
    assert_eq!(rig.wait(0).status(), Status::SUCCESS);
    assert_eq!(rig.read_memory(DATA, 64), [5; 64]);
}

#[test]
fn a_reactor_that_sleeps_hears_of_an_answer() {
    let (mut rig, tper) = rig();
    rig.submit(0, send(8));
    until_submitted(&mut rig, &tper);
    rig.turns(20);
    let start = Instant::now();
    let hour = Duration::from_secs(3600);
    rig.reactor.park(Duration::ZERO);
    std::thread::scope(|scope| {
        scope.spawn(|| tper.answer(Ok(vec![])));
        rig.reactor.park(hour);
    });
    assert!(start.elapsed() < hour, "nobody woke it");
    rig.turn();
    assert_eq!(
        rig.completion(0).expect("answered in the turn that it was woken for").status(),
        Status::SUCCESS
    );
}

/// Answers at once, on the thread that asks.
struct Quick;

impl Security for Quick {
    fn submit(&self, _: SecurityCommand, reply: SecurityReply) {
        reply(Ok(vec![9]));
    }

    fn event(&self, _: SecurityEvent) {}
}

struct QuickDisk(MemoryDevice);

impl Device for QuickDisk {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn security(&self) -> Option<Arc<dyn Security>> {
        Some(Arc::new(Quick))
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        self.0.channel(reactor)
    }
}

#[test]
fn an_answer_may_come_before_the_question_returns() {
    let mut rig = Rig::new(vec![Arc::new(QuickDisk(memory_disk()))], ControllerConfig::default());
    for round in 0..100u64 {
        let at = DATA + round * 4;
        assert_eq!(rig.admin(receive(4).prp(at, 0)).0, Status::SUCCESS);
        assert_eq!(rig.read_memory(at, 4), [9, 0, 0, 0]);
    }
    let cids: Vec<u16> = (0..20).map(|_| rig.submit(0, send(4))).collect();
    let done: Vec<u16> = (0..20).map(|_| rig.wait(0).cid.get()).collect();
    assert_eq!(done, cids);
}

#[test]
fn commands_beyond_eight_wait_and_let_others_pass() {
    let (mut rig, tper) = rig();
    let cids: Vec<u16> = (0..12).map(|_| rig.submit(0, send(0))).collect();
    rig.turns(20);
    assert_eq!(tper.heard().len(), 8);
    assert!(announced(&mut rig).0, "other admin commands pass");
    let abort = |cid: u16| admin(AdminOpcode::ABORT, 0).dwords(u32::from(cid) << 16, 0);
    assert_eq!(rig.admin(abort(cids[0])), (Status::SUCCESS, 1), "not aborted");
    assert_eq!(rig.admin(abort(cids[11])), (Status::SUCCESS, 1));
    for (done, &cid) in cids.iter().enumerate() {
        rig.turns(3);
        let under_way = tper.unanswered.lock().unwrap().len();
        assert_eq!(under_way, 8.min(cids.len() - done));
        tper.answer(Ok(vec![]));
        assert_eq!(rig.wait(0).cid.get(), cid);
    }
    assert_eq!(tper.heard().len(), 4);
}

#[test]
fn a_reset_forgets_commands_and_their_answers() {
    let (mut rig, tper) = rig();
    rig.write_memory(DATA, &[0xEE; 512]);
    (0..8).for_each(|_| _ = rig.submit(0, receive(512)));
    until_submitted(&mut rig, &tper);
    rig.turns(5);
    tper.answer(Ok(vec![1; 512])); // not seen before the reset
    rig.write_register(CC, 0x0046_0000);
    rig.until(|rig| (!rig.csts().rdy()).then_some(()));
    tper.answer(Ok(vec![2; 512]));
    rig.enable();
    tper.answer(Ok(vec![3; 512]));
    tper.answer(Err(SecurityError::Internal));
    rig.turns(20);
    assert!(rig.completion(0).is_none());
    assert_eq!(rig.read_memory(DATA, 512), [0xEE; 512]);
    assert_eq!(tper.heard().split_off(8), [Heard::Event(SecurityEvent::ControllerReset)]);
    // Four are with the security yet: as many as a host that does not reset may have.
    (0..8).for_each(|_| _ = rig.submit(0, send(0)));
    rig.turns(20);
    assert_eq!(tper.heard().len(), 4);
    for _ in 0..4 {
        tper.answer(Ok(vec![4; 512]));
    }
    rig.turns(20);
    assert!(rig.completion(0).is_none());
    for _ in 0..8 {
        tper.answer(Ok(vec![]));
        rig.wait(0);
    }
    // A reset while commands wait for their turn.
    (0..20).for_each(|_| _ = rig.submit(0, send(0)));
    rig.turns(20);
    reset(&mut rig, Reset::Device);
    (0..8).for_each(|_| tper.answer(Ok(vec![])));
    rig.enable();
    tper.heard();
    rig.turns(20);
    assert_eq!(tper.heard(), [], "commands of the time before");
    assert_eq!(run(&mut rig, &tper, receive(512), Ok(vec![6; 512])), Status::SUCCESS);
    assert_eq!(rig.read_memory(DATA, 512), [6; 512]);
}

#[test]
fn a_late_answer_finds_nobody() {
    let (mut rig, tper) = rig();
    rig.submit(0, receive(512));
    until_submitted(&mut rig, &tper);
    let subsystem = Arc::downgrade(&rig.subsystem);
    drop(rig);
    assert!(subsystem.upgrade().is_none(), "an answer that is awaited keeps the subsystem");
    tper.answer(Ok(vec![1; 512]));
}
