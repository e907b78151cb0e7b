//! The built kernel programs, instruction by instruction: what the compiler must not have made of
//! them, whatever the source says. A part that needs root asks the verifier itself.
//!
//! [`scan`] follows the values of registers and stack slots along every path to a fixed point, so a
//! copy of a pointer, or one that was spilled and loaded again, is still known for what it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::CStr,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use aya::{Btf, Ebpf, EbpfLoader, maps::Map};
use aya_obj::btf::BtfKind;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind, SymbolKind,
};
use vortex_agent::probe::{Loaded, OBJECT, check_all};

/// A larger stack becomes a per-CPU area without a guard on x86-64 (6.13+).
const STACK_MAX: i32 = 48;
/// What the kernel allows.
const STACK_LIMIT: i32 = 512;
/// The last helper of 5.10: `bpf_redirect_peer`.
const LAST_HELPER: i32 = 155;
/// Helpers that may wait for a page: the ring is delivered in order, so one that never comes would
/// stop everybody's capture.
const SLEEPING: [(i32, &str); 4] = [
    (148, "copy_from_user"),
    (161, "ima_inode_hash"),
    (191, "copy_from_user_task"),
    (193, "ima_file_hash"),
];
const MAP_LOOKUP: i32 = 1;
/// Helpers that write through their first argument.
const WRITING: [i32; 8] = [4, 16, 45, 112, 113, 114, 115, 148];

/// The maps whose values are only ever added to.
const COUNTING: [&str; 2] = ["COUNTERS", "CALLS"];

const PROGRAMS: [(&str, &str); 63] = [
    ("begun_perf", "uprobe"),
    ("call_session", "uprobe.multi"),
    ("cleared_perf", "uprobe"),
    ("control_perf", "uprobe"),
    ("created_cookie", "uretprobe"),
    ("created_multi", "uretprobe.multi"),
    ("created_perf", "uretprobe"),
    ("created_session", "uprobe.multi"),
    ("decrypt_cookie", "uprobe"),
    ("decrypt_multi", "uprobe.multi"),
    ("decrypt_perf", "uprobe"),
    ("decrypt_session", "uprobe.multi"),
    ("decrypted_multi", "uretprobe.multi"),
    ("decrypted_perf", "uretprobe"),
    ("encrypt_cookie", "uprobe"),
    ("encrypt_multi", "uprobe.multi"),
    ("encrypt_perf", "uprobe"),
    ("entry_cookie", "uprobe"),
    ("entry_flush", "uprobe"),
    ("entry_handshake", "uprobe"),
    ("entry_multi", "uprobe.multi"),
    ("entry_read", "uprobe"),
    ("entry_read_fourth", "uprobe"),
    ("entry_read_peekable", "uprobe"),
    ("entry_sendfile", "uprobe"),
    ("entry_write", "uprobe"),
    ("entry_write_fifth", "uprobe"),
    ("entry_write_fourth", "uprobe"),
    ("event_cookie", "uprobe"),
    ("event_multi", "uprobe.multi"),
    ("file_identity", ASKED),
    ("file_is_mapped", ASKED),
    ("group_exec", "raw_tp/sched_process_exec"),
    ("group_fork", "raw_tp/sched_process_fork"),
    ("hello", "tp_btf/sock_send_length"),
    ("hello_tcp", "fexit/tcp_sendmsg"),
    ("mapping_identity", ITERATOR),
    ("passed_cookie", "uprobe"),
    ("passed_multi", "uprobe.multi"),
    ("passed_read", "uprobe"),
    ("passed_write", "uprobe"),
    ("plain_receive", "tp_btf/sock_recv_length"),
    ("plain_receive_event", "tracepoint/sock/sock_recv_length"),
    ("plain_send", "tp_btf/sock_send_length"),
    ("plain_send_event", "tracepoint/sock/sock_send_length"),
    ("plain_tcp_receive", "fexit/tcp_recvmsg"),
    ("plain_tcp_receive_old", "fexit/tcp_recvmsg"),
    ("plain_tcp_send", "fexit/tcp_sendmsg"),
    ("plain_tcp_send_old", "fexit/tcp_sendmsg"),
    ("process_exec", "raw_tp/sched_process_exec"),
    ("process_exit", "raw_tp/sched_process_exit"),
    ("process_fork", "raw_tp/sched_process_fork"),
    ("process_ids", ITERATOR),
    ("return_multi", "uretprobe.multi"),
    ("return_perf", "uretprobe"),
    ("rewired_perf", "uprobe"),
    ("socket_closed", "tp_btf/tcp_destroy_sock"),
    ("socket_receive", "tp_btf/sock_recv_length"),
    ("socket_send", "tp_btf/sock_send_length"),
    ("tcp_receive", "fexit/tcp_recvmsg"),
    ("tcp_receive_old", "fexit/tcp_recvmsg"),
    ("tcp_send", "fexit/tcp_sendmsg"),
    ("tcp_send_old", "fexit/tcp_sendmsg"),
];

/// Programs that the kernel's own code runs into: the limit of the stack is not theirs.
fn is_tracing(section: &str) -> bool {
    let kinds = ["tp_btf/", "fexit/", "tracepoint/"];
    kinds.iter().any(|kind| section.starts_with(kind))
}

/// Never attached: the privileged half runs them to ask the kernel something.
const ASKED: &str = "raw_tp/sys_enter";
/// The same, about other processes.
const ITERATOR: &str = "iter/task";

/// Opcodes, as far as one is looked for as a whole.
mod op {
    pub const LOAD_IMM64: u8 = 0x18;
    pub const ADD_IMM: u8 = 0x07;
    pub const SUB_IMM: u8 = 0x17;
    pub const MOV: u8 = 0xbf;
    pub const CALL: u8 = 0x85;
    pub const CALL_REGISTER: u8 = 0x8d;
    pub const EXIT: u8 = 0x95;
    pub const JUMP: u8 = 0x05;
    pub const JUMP_LONG: u8 = 0x06;
    pub const ATOMIC_U32: u8 = 0xc3;
    pub const ATOMIC_U64: u8 = 0xdb;
    pub const STORE_U64: u8 = 0x7b;
}

/// Instruction classes: the low three bits of an opcode.
mod class {
    pub const LD: u8 = 0;
    pub const LDX: u8 = 1;
    pub const ST: u8 = 2;
    pub const STX: u8 = 3;
    pub const ALU32: u8 = 4;
    pub const JMP: u8 = 5;
    pub const JMP32: u8 = 6;
    pub const ALU64: u8 = 7;
}

const MODE_AND_CLASS: u8 = 0xe7;
const ATOMIC: u8 = 0xc3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    op: u8,
    dst: usize,
    src: usize,
    off: i16,
    imm: i32,
}

impl Instruction {
    const SIZE: usize = 8;

    fn parse(bytes: &[u8]) -> Instruction {
        let [op, registers, off0, off1, imm @ ..] = bytes else {
            panic!("an instruction is eight bytes")
        };
        Instruction {
            op: *op,
            dst: usize::from(registers & 15),
            src: usize::from(registers >> 4),
            off: i16::from_le_bytes([*off0, *off1]),
            imm: i32::from_le_bytes(imm.try_into().expect("an instruction is eight bytes")),
        }
    }

    fn bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.op;
        bytes[1] = (self.src << 4 | self.dst) as u8;
        bytes[2..4].copy_from_slice(&self.off.to_le_bytes());
        bytes[4..].copy_from_slice(&self.imm.to_le_bytes());
        bytes
    }

    fn class(self) -> u8 {
        self.op & 7
    }

    fn is_atomic(self) -> bool {
        self.op & MODE_AND_CLASS == ATOMIC
    }

    /// Eight bytes by `BPF_MEM`.
    fn is_word(self) -> bool {
        self.op & 0xf8 == 0x78
    }

    /// A subprogram, an address in a register, or a function of the kernel (5.13).
    fn is_foreign_call(self) -> bool {
        self.op == op::CALL_REGISTER || self.op == op::CALL && self.src != 0
    }
}

/// What a 64-bit load of an address refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reference {
    symbol: String,
    section: String,
    /// In the section.
    address: u64,
}

#[derive(Clone, Debug)]
struct Program {
    name: String,
    section: String,
    /// Of its first instruction in the file.
    at: usize,
    code: Vec<Instruction>,
    references: BTreeMap<usize, Reference>,
}

impl Program {
    /// For `bpf_find_vma` (5.17).
    fn has_callback(&self) -> bool {
        matches!(self.name.as_str(), "file_identity" | "mapping_identity")
    }

    /// Its kind of program did not exist on 5.10, or only where newer helpers do.
    fn is_newer(&self) -> bool {
        self.section.ends_with(".multi")
            || self.section.starts_with("tp_btf/")
            || self.name.ends_with("_cookie")
            || self.has_callback()
    }
}

/// Every program, and what is wrong with the object as a whole.
fn parse(bytes: &[u8]) -> (Vec<Program>, Vec<String>) {
    let file = object::File::parse(bytes).expect("an ELF file");
    let mut wrong = Vec::new();
    let license = file
        .section_by_name("license")
        .map(|section| section.data());
    if !matches!(license, Some(Ok(b"Dual MIT/GPL\0"))) {
        wrong.push(format!("the license is {license:?}"));
    }
    let mut programs = Vec::new();
    for section in file.sections() {
        let name = section.name().expect("a name");
        // Functions in `.text` are no programs; they don't get into the kernel unless one calls them.
        if section.kind() != SectionKind::Text || name == ".text" {
            continue;
        }
        let data = section.data().expect("its bytes");
        let (start, _) = section.file_range().expect("it is in the file");
        let mut references = BTreeMap::new();
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                panic!("{name}+{offset:#x}: a relocation without a symbol")
            };
            let symbol = file.symbol_by_index(index).expect("the symbol");
            let inside = symbol
                .section_index()
                .and_then(|index| file.section_by_index(index).ok());
            let at = offset as usize;
            let reference = Reference {
                symbol: symbol.name().expect("a name").to_owned(),
                section: inside
                    .and_then(|s| s.name().ok())
                    .unwrap_or_default()
                    .to_owned(),
                address: symbol.address() + Instruction::parse(&data[at..at + 8]).imm as u64,
            };
            references.insert(at, reference);
        }
        let mut covered = 0;
        for symbol in file.symbols() {
            if symbol.kind() != SymbolKind::Text || symbol.section_index() != Some(section.index())
            {
                continue;
            }
            let (at, size) = (symbol.address() as usize, symbol.size() as usize);
            covered += size;
            programs.push(Program {
                name: symbol.name().expect("a name").to_owned(),
                section: name.to_owned(),
                at: start as usize + at,
                code: data[at..at + size]
                    .chunks(Instruction::SIZE)
                    .map(Instruction::parse)
                    .collect(),
                references: references
                    .range(at..at + size)
                    .map(|(offset, reference)| {
                        ((offset - at) / Instruction::SIZE, reference.clone())
                    })
                    .collect(),
            });
        }
        if covered != data.len() {
            wrong.push(format!(
                "{name}: {covered} of {} bytes are programs",
                data.len()
            ));
        }
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<_> = programs
        .iter()
        .map(|program| (program.name.as_str(), program.section.as_str()))
        .collect();
    if names != PROGRAMS {
        wrong.push(format!("the programs are {names:?}"));
    }
    (programs, wrong)
}

/// What a register or a stack slot may hold; the union over all paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Value {
    /// The map of counters.
    counters: bool,
    /// A pointer into a value of it.
    counter: bool,
    /// A pointer into the stack: the lowest offset from its top.
    stack: Option<i32>,
}

impl Value {
    const NOTHING: Value = Value {
        counters: false,
        counter: false,
        stack: None,
    };

    fn or(self, other: Value) -> Value {
        Value {
            counters: self.counters | other.counters,
            counter: self.counter | other.counter,
            stack: match (self.stack, other.stack) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }
}

const REGISTERS: usize = 11;
const FRAME: usize = 10;
const SLOTS: usize = STACK_LIMIT as usize / 8;

#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    registers: [Value; REGISTERS],
    slots: [Value; SLOTS],
}

impl State {
    fn or(&self, other: &State) -> State {
        let mut all = *self;
        for (mine, its) in all.registers.iter_mut().zip(other.registers) {
            *mine = mine.or(its);
        }
        for (mine, its) in all.slots.iter_mut().zip(other.slots) {
            *mine = mine.or(its);
        }
        all
    }
}

/// The slot that holds the byte at this offset from the top of the stack.
fn slot(offset: i32) -> Option<usize> {
    (-STACK_LIMIT..0)
        .contains(&offset)
        .then(|| ((-offset - 1) / 8) as usize)
}

struct Scan {
    /// Bytes of stack.
    depth: i32,
    /// By instruction.
    faults: BTreeSet<(usize, String)>,
}

/// Looks at every instruction by itself, then at every path.
fn scan(program: &Program) -> Scan {
    let mut scan = Scan {
        depth: 0,
        faults: BTreeSet::new(),
    };
    let mut second_half = false;
    for (at, instruction) in program.code.iter().enumerate() {
        if std::mem::take(&mut second_half) {
            continue;
        }
        second_half = instruction.op == op::LOAD_IMM64;
        if let Some(fault) = fault(program, *instruction) {
            scan.faults.insert((at, fault));
        }
    }
    let mut start = State {
        registers: [Value::NOTHING; REGISTERS],
        slots: [Value::NOTHING; SLOTS],
    };
    start.registers[FRAME].stack = Some(0);
    let mut states: HashMap<usize, State> = HashMap::from([(0, start)]);
    let mut todo = vec![0];
    while let Some(at) = todo.pop() {
        let mut state = states[&at];
        let next = scan.step(program, at, &mut state);
        for next in next {
            let joined = match states.get(&next) {
                Some(known) => known.or(&state),
                None => state,
            };
            if states.get(&next) != Some(&joined) {
                states.insert(next, joined);
                todo.push(next);
            }
        }
    }
    if scan.depth > STACK_MAX {
        let fault = format!("{} bytes of stack, {STACK_MAX} are allowed", scan.depth);
        scan.faults.insert((0, fault));
    }
    scan
}

/// What is wrong with an instruction, whatever comes before it.
fn fault(program: &Program, instruction: Instruction) -> Option<String> {
    let Instruction { op, imm, .. } = instruction;
    if instruction.is_atomic() && (imm != 0 || op != op::ATOMIC_U32 && op != op::ATOMIC_U64) {
        return Some(format!("atomic {imm:#x}: 5.10 knows `lock +=` only"));
    }
    if instruction.is_foreign_call() {
        return Some("a call of a subprogram or kernel function".to_owned());
    }
    if op != op::CALL {
        return None;
    }
    if let Some((_, name)) = SLEEPING.iter().find(|(id, _)| *id == imm) {
        return Some(format!("the helper {name} sleeps"));
    }
    if !program.is_newer() && !(1..=LAST_HELPER).contains(&imm) {
        return Some(format!("5.10 has no helper {imm}"));
    }
    None
}

impl Scan {
    fn touch(&mut self, offset: i32) {
        self.depth = self.depth.max(-offset);
    }

    /// Changes the state as the instruction does. Returns what may come next.
    fn step(&mut self, program: &Program, at: usize, state: &mut State) -> Vec<usize> {
        let instruction = program.code[at];
        let Instruction {
            op,
            dst,
            src,
            off,
            imm,
        } = instruction;
        let registers = &mut state.registers;
        let target = |by: i64| (at as i64 + 1 + by) as usize;
        let (to, from) = (registers[dst], registers[src]);
        match instruction.class() {
            class::LD => {
                registers[dst] = Value {
                    counters: program
                        .references
                        .get(&at)
                        .is_some_and(|r| COUNTING.contains(&r.symbol.as_str())),
                    ..Value::NOTHING
                };
                return vec![target(i64::from(op == op::LOAD_IMM64))];
            }
            class::LDX => {
                let address = from.stack.map(|offset| offset + i32::from(off));
                if let Some(address) = address {
                    self.touch(address);
                }
                registers[dst] = match address.and_then(slot) {
                    Some(slot) if instruction.is_word() => state.slots[slot],
                    _ => Value::NOTHING,
                };
            }
            class::ST | class::STX => {
                if to.counter && op != op::ATOMIC_U64 {
                    self.faults
                        .insert((at, "another store to a counter than `lock +=`".to_owned()));
                }
                if let Some(offset) = to.stack {
                    let address = offset + i32::from(off);
                    self.touch(address);
                    if let Some(slot) = slot(address) {
                        let word = instruction.class() == class::STX && instruction.is_word();
                        let stored = if word { from } else { Value::NOTHING };
                        // Only the frame pointer itself is known to point to one place.
                        let old = if dst == FRAME {
                            Value::NOTHING
                        } else {
                            state.slots[slot]
                        };
                        state.slots[slot] = stored.or(old);
                    }
                }
            }
            class::ALU64 if op == op::MOV && off == 0 => registers[dst] = from,
            class::ALU64 if op == op::ADD_IMM || op == op::SUB_IMM => {
                let by = if op == op::ADD_IMM {
                    imm
                } else {
                    imm.saturating_neg()
                };
                if let Some(offset) = to.stack {
                    let moved = offset.saturating_add(by).clamp(-STACK_LIMIT, STACK_LIMIT);
                    self.touch(moved);
                    registers[dst].stack = Some(moved);
                }
            }
            // A register is added or taken away; anything else makes no pointer.
            class::ALU64 if matches!(op, 0x0f | 0x1f) => {
                registers[dst] = to.or(from);
                if registers[dst].stack.is_some() {
                    self.touch(-STACK_LIMIT);
                }
            }
            class::ALU32 | class::ALU64 => registers[dst] = Value::NOTHING,
            class::JMP | class::JMP32 => {
                return match op {
                    op::EXIT => vec![],
                    op::JUMP => vec![target(off.into())],
                    op::JUMP_LONG => vec![target(imm.into())],
                    op::CALL | op::CALL_REGISTER => {
                        self.call(at, instruction, registers);
                        vec![at + 1]
                    }
                    _ => vec![at + 1, target(off.into())],
                };
            }
            _ => unreachable!("a class has three bits"),
        }
        vec![at + 1]
    }

    fn call(&mut self, at: usize, call: Instruction, registers: &mut [Value; REGISTERS]) {
        let helper = (!call.is_foreign_call()).then_some(call.imm);
        if registers[1].counter && helper.is_some_and(|helper| WRITING.contains(&helper)) {
            self.faults
                .insert((at, "a helper writes to a counter".to_owned()));
        }
        if registers[1].counters && helper != Some(MAP_LOOKUP) {
            self.faults
                .insert((at, "a helper has the map of counters".to_owned()));
        }
        let counter = registers[1].counters && helper == Some(MAP_LOOKUP);
        registers[..=5].fill(Value::NOTHING);
        registers[0].counter = counter;
    }
}

/// Everything that is wrong, a line each.
fn judge(bytes: &[u8]) -> Vec<String> {
    let (programs, mut wrong) = parse(bytes);
    for program in &programs {
        for (at, fault) in scan(program).faults {
            wrong.push(format!("{} at {at}: {fault}", program.name));
        }
    }
    wrong
}

#[test]
fn built_programs_are_sound() {
    let wrong = judge(OBJECT);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (programs, _) = parse(OBJECT);
    for program in &programs {
        let Scan { depth, .. } = scan(program);
        let instructions = program.code.len();
        println!(
            "{}: {depth} bytes of stack, {instructions} instructions",
            program.name
        );
    }
    // The check of stores says something only if there are counters to be found.
    let counting = programs
        .iter()
        .filter(|program| {
            let mut references = program.references.values();
            references.any(|r| COUNTING.contains(&r.symbol.as_str()))
        })
        .count();
    assert!(counting >= 9, "{counting} programs count");
}

/// Not where they were built: the same sources give the same object in any directory.
#[test]
fn built_programs_name_no_directory() {
    let names = |path: &str| {
        OBJECT
            .windows(path.len())
            .any(|bytes| bytes == path.as_bytes())
    };
    assert!(names("agent-ebpf/src/"), "of sources nothing is named");
    let package = env!("CARGO_MANIFEST_DIR");
    let checkout = package
        .strip_suffix("/agent")
        .expect("the package's directory");
    assert!(!names(checkout), "the checkout's directory");
    for variable in ["CARGO_HOME", "HOME"] {
        let Some(home) = std::env::var(variable).ok().filter(|home| home.len() > 1) else {
            continue;
        };
        assert!(!names(&home), "{variable}");
    }
}

/// The object with one instruction changed: the first of `program` that `which` accepts.
fn doctor(
    program: &str,
    which: impl Fn(Instruction) -> bool,
    change: impl Fn(&mut Instruction),
) -> Vec<u8> {
    let (programs, _) = parse(OBJECT);
    let program = programs.iter().find(|p| p.name == program).expect(program);
    let at = program
        .code
        .iter()
        .position(|i| which(*i))
        .expect("an instruction to change");
    let mut instruction = program.code[at];
    change(&mut instruction);
    let mut bytes = OBJECT.to_vec();
    let place = program.at + at * Instruction::SIZE;
    bytes[place..place + Instruction::SIZE].copy_from_slice(&instruction.bytes());
    bytes
}

#[track_caller]
fn assert_refused(what: &str, bytes: &[u8], expected: &str) {
    let wrong = judge(bytes);
    assert!(
        wrong.iter().any(|line| line.contains(expected)),
        "{what}: {wrong:?}"
    );
}

#[test]
fn doctored_objects_are_refused() {
    let call = |helper| move |i: Instruction| i.op == op::CALL && i.imm == helper;
    let lock = |i: Instruction| i.op == op::ATOMIC_U64;
    let stack = |i: Instruction| i.dst == FRAME && i.class() == class::STX;
    for (program, section) in PROGRAMS {
        if is_tracing(section) || [ASKED, ITERATOR].contains(&section) {
            continue;
        }
        let bytes = doctor(program, stack, |i| i.off = -56);
        assert_refused(program, &bytes, "56 bytes of stack");
        let bytes = doctor(program, call(14), |i| i.imm = 148);
        assert_refused(program, &bytes, "copy_from_user sleeps");
        let bytes = doctor(program, call(14), |i| i.src = 1);
        assert_refused(program, &bytes, "a call of a subprogram");
        let bytes = doctor(program, call(14), |i| i.src = 2);
        assert_refused(program, &bytes, "a call of a subprogram");
        if matches!(
            program,
            "process_fork" | "group_exec" | "group_fork" | "control_multi" | "control_perf"
        ) {
            continue;
        }
        let bytes = doctor(program, lock, |i| i.op = op::STORE_U64);
        assert_refused(program, &bytes, "another store to a counter than `lock +=`");
        let bytes = doctor(program, lock, |i| i.imm = 1);
        assert_refused(program, &bytes, "atomic 0x1");
        let bytes = doctor(program, lock, |i| i.op = op::ATOMIC_U32 | 0x10);
        assert_refused(program, &bytes, "atomic 0x0");
    }
    for (program, section) in PROGRAMS {
        if [ASKED, ITERATOR].contains(&section) {
            continue;
        }
        let helper = if program == "socket_closed" {
            MAP_LOOKUP
        } else {
            14
        };
        let bytes = doctor(program, call(helper), |i| i.imm = 174);
        let newer = section.ends_with(".multi")
            || section.starts_with("tp_btf/")
            || program.ends_with("_cookie");
        assert_eq!(
            judge(&bytes).is_empty(),
            newer,
            "bpf_get_attach_cookie in {program}"
        );
    }
    let bytes = doctor("entry_read", call(14), |i| i.imm = LAST_HELPER + 1);
    assert_refused("the first helper of 5.11", &bytes, "no helper 156");

    let replace = |from: &[u8], to: &[u8]| {
        let mut bytes = OBJECT.to_vec();
        let mut found = 0;
        for at in 0..bytes.len() - from.len() {
            if bytes[at..].starts_with(from) {
                bytes[at..at + to.len()].copy_from_slice(to);
                found += 1;
            }
        }
        assert!(found > 0, "{from:?} is not in the object");
        bytes
    };
    let bytes = replace(b"Dual MIT/GPL\0", b"Dual MIT/BSD\0");
    assert_refused("another license", &bytes, "the license is");
    let bytes = replace(b"\0return_perf\0", b"\0return_pork\0");
    assert_refused("another name", &bytes, "the programs are");
}

/// A made-up program, in assembler's order: opcode, destination, source, offset, immediate. It gets
/// the map of counters where it loads an address with the immediate 1, another map where it is 2.
fn made_up(code: &[(u8, usize, usize, i16, i32)]) -> Program {
    let mut program = Program {
        name: "made_up".to_owned(),
        section: "uprobe".to_owned(),
        at: 0,
        code: Vec::new(),
        references: BTreeMap::new(),
    };
    for &(op, dst, src, off, imm) in code {
        let at = program.code.len();
        let instruction = Instruction {
            op,
            dst,
            src,
            off,
            imm,
        };
        assert_eq!(Instruction::parse(&instruction.bytes()), instruction);
        program.code.push(instruction);
        if op == op::LOAD_IMM64 {
            let symbol = ["", "COUNTERS", "STREAMS"][imm as usize].to_owned();
            let section = "maps".to_owned();
            program.references.insert(
                at,
                Reference {
                    symbol,
                    section,
                    address: 0,
                },
            );
            program.code.push(Instruction {
                op: 0,
                dst: 0,
                src: 0,
                off: 0,
                imm: 0,
            });
        }
    }
    program
}

#[test]
fn values_are_followed() {
    use op::{ADD_IMM, ATOMIC_U64, CALL, EXIT, JUMP, LOAD_IMM64, MOV, STORE_U64, SUB_IMM};
    const LOAD_U64: u8 = 0x79;
    const STORE_IMM_U64: u8 = 0x7a;
    const STORE_U8: u8 = 0x73;
    const ADD: u8 = 0x0f;
    const MOV_IMM: u8 = 0xb7;
    const JUMP_EQUAL: u8 = 0x15;
    const END: (u8, usize, usize, i16, i32) = (EXIT, 0, 0, 0, 0);
    let lookup = |map| vec![(LOAD_IMM64, 1, 0, 0, map), (CALL, 0, 0, 0, MAP_LOOKUP)];
    let after = |map, rest: &[(u8, usize, usize, i16, i32)]| {
        let mut code = lookup(map);
        code.extend(rest);
        code.push(END);
        scan(&made_up(&code))
    };
    let stored = |scan: Scan| {
        scan.faults
            .iter()
            .any(|(_, fault)| fault.contains("to a counter"))
    };

    assert!(stored(after(1, &[(STORE_U64, 0, 2, 8, 0)])));
    assert!(stored(after(1, &[(STORE_U8, 0, 2, 8, 0)])));
    assert!(stored(after(1, &[(STORE_IMM_U64, 0, 0, 8, 1)])));
    assert!(stored(after(
        1,
        &[
            (MOV, 6, 0, 0, 0),
            (CALL, 0, 0, 0, 14),
            (STORE_U64, 6, 0, 0, 0)
        ]
    )));
    assert!(stored(after(
        1,
        &[(ADD_IMM, 0, 0, 0, 16), (STORE_U64, 0, 2, 0, 0)]
    )));
    assert!(stored(after(
        1,
        &[
            (MOV_IMM, 2, 0, 0, 8),
            (ADD, 2, 0, 0, 0),
            (STORE_U64, 2, 3, 0, 0)
        ]
    )));
    assert!(
        stored(after(1, &[(MOV, 1, 0, 0, 0), (CALL, 0, 0, 0, 112)])),
        "a helper writes"
    );
    let spilled = [
        (STORE_U64, FRAME, 0, -8, 0),
        (CALL, 0, 0, 0, 14),
        (LOAD_U64, 3, FRAME, -8, 0),
        (STORE_U64, 3, 0, 0, 0),
    ];
    assert!(stored(after(1, &spilled)));
    // On one of two paths only, behind a jump over an exit.
    let joined = [
        (JUMP_EQUAL, 0, 0, 2, 0),
        (MOV, 6, 0, 0, 0),
        (JUMP, 0, 0, 1, 0),
        END,
        (STORE_U64, 6, 2, 0, 0),
    ];
    assert!(stored(after(1, &joined)));
    // In a loop: the store comes before the copy.
    let looped = [
        (STORE_U64, 6, 2, 0, 0),
        (MOV, 6, 0, 0, 0),
        (JUMP_EQUAL, 2, 0, -3, 0),
    ];
    assert!(stored(after(1, &looped)));

    assert!(stored(after(1, &[(op::ATOMIC_U32, 0, 2, 8, 0)])));
    let update = scan(&made_up(&[
        (LOAD_IMM64, 1, 0, 0, 1),
        (CALL, 0, 0, 0, 2),
        END,
    ]));
    assert!(
        update
            .faults
            .iter()
            .any(|(_, fault)| fault.contains("has the map"))
    );

    assert!(!stored(after(1, &[(ATOMIC_U64, 0, 2, 8, 0)])));
    assert!(!stored(after(2, &[(STORE_U64, 0, 2, 8, 0)])), "another map");
    assert!(
        !stored(after(1, &[(MOV_IMM, 0, 0, 0, 0), (STORE_U64, 0, 2, 8, 0)])),
        "overwritten"
    );
    assert!(
        !stored(after(1, &[(CALL, 0, 0, 0, 14), (STORE_U64, 0, 2, 8, 0)])),
        "another result"
    );
    assert!(
        !stored(after(1, &[(LOAD_U64, 0, 0, 0, 0), (STORE_U64, 0, 2, 0, 0)])),
        "its content"
    );
    let slot_used_again = [
        (STORE_U64, FRAME, 0, -8, 0),
        (STORE_U64, FRAME, 2, -8, 0),
        (LOAD_U64, 3, FRAME, -8, 0),
        (STORE_U64, 3, 0, 0, 0),
    ];
    assert!(!stored(after(1, &slot_used_again)));

    let depth = |rest: &[(u8, usize, usize, i16, i32)]| after(2, rest).depth;
    assert_eq!(depth(&[]), 0);
    assert_eq!(depth(&[(STORE_U64, FRAME, 2, -48, 0)]), 48);
    assert_eq!(depth(&[(LOAD_U64, 2, FRAME, -24, 0)]), 24);
    assert_eq!(depth(&[(MOV, 2, FRAME, 0, 0), (ADD_IMM, 2, 0, 0, -16)]), 16);
    assert_eq!(depth(&[(MOV, 2, FRAME, 0, 0), (SUB_IMM, 2, 0, 0, 64)]), 64);
    let through = [
        (MOV, 2, FRAME, 0, 0),
        (ADD_IMM, 2, 0, 0, -16),
        (STORE_U64, 2, 3, -40, 0),
    ];
    assert_eq!(depth(&through), 56);
    assert_eq!(
        depth(&[(MOV, 2, FRAME, 0, 0), (ADD, 2, 0, 0, 0)]),
        STACK_LIMIT,
        "anywhere"
    );
    let deeper_each_time = [
        (MOV, 2, FRAME, 0, 0),
        (ADD_IMM, 2, 0, 0, -8),
        (JUMP_EQUAL, 0, 0, -2, 0),
    ];
    assert_eq!(depth(&deeper_each_time), STACK_LIMIT);
    assert!(after(2, &[(STORE_U64, FRAME, 2, -48, 0)]).faults.is_empty());
    assert!(!after(2, &[(STORE_U64, FRAME, 2, -56, 0)]).faults.is_empty());
}

/// A test that can't run here says so, or fails where that is not allowed.
fn skip(reason: &str) {
    let forbidden = std::env::var_os("VORTEX_NO_SKIP").is_some_and(|value| value == "1");
    assert!(!forbidden, "SKIP {reason}");
    println!("SKIP {reason}");
}

/// The start of what `BPF_PROG_LOAD` takes.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    btf: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_btf_id: u32,
}

impl LoadAttributes {
    fn of(program: &Program) -> LoadAttributes {
        const KPROBE: u32 = 2;
        const TRACEPOINT: u32 = 5;
        const RAW_TRACEPOINT: u32 = 17;
        const TRACING: u32 = 26;
        const RAW_TP: u32 = 23;
        const ITER: u32 = 28;
        const UPROBE_MULTI: u32 = 48;
        const UPROBE_SESSION: u32 = 57;
        let section = program.section.as_str();
        let (kind, attach_type) = match section.split('/').next() {
            Some("uprobe" | "uretprobe") => (KPROBE, 0),
            Some("uprobe.multi") if program.name.ends_with("_session") => (KPROBE, UPROBE_SESSION),
            Some("uprobe.multi" | "uretprobe.multi") => (KPROBE, UPROBE_MULTI),
            Some("tracepoint") => (TRACEPOINT, 0),
            Some("raw_tp") => (RAW_TRACEPOINT, 0),
            Some("tp_btf") => (TRACING, RAW_TP),
            Some("iter") => (TRACING, ITER),
            _ => panic!("{section}: a program of an unexpected type"),
        };
        let hook = match section.split_once('/') {
            Some(("tp_btf", tracepoint)) => {
                Some((format!("btf_trace_{tracepoint}"), BtfKind::Typedef))
            }
            Some(("iter", what)) => Some((format!("bpf_iter_{what}"), BtfKind::Func)),
            _ => None,
        };
        let attach_btf_id = hook.map_or(0, |(name, kind)| {
            let btf = Btf::from_sys_fs().expect("it was there for the agent's own loading");
            btf.id_by_type_name_kind(&name, kind).expect(&name)
        });
        LoadAttributes {
            kind,
            attach_type,
            attach_btf_id,
            ..LoadAttributes::default()
        }
    }
}

fn map_descriptor(kernel: &Ebpf, name: &str) -> RawFd {
    match kernel.map(name) {
        Some(
            Map::Array(map)
            | Map::CgroupArray(map)
            | Map::HashMap(map)
            | Map::LruHashMap(map)
            | Map::RingBuf(map),
        ) => map.fd().as_fd().as_raw_fd(),
        _ => panic!("{name} is no map of the object"),
    }
}

/// The code with the descriptors of the maps in it.
fn relocated(program: &Program, kernel: &Ebpf) -> Vec<[u8; Instruction::SIZE]> {
    const MAP_FD: usize = 1;
    const MAP_VALUE: usize = 2;
    let mut code = program.code.clone();
    for (at, reference) in &program.references {
        if reference.section == "maps" {
            code[*at].src = MAP_FD;
            code[*at].imm = map_descriptor(kernel, &reference.symbol);
        } else {
            code[*at].src = MAP_VALUE;
            code[*at].imm = map_descriptor(kernel, &reference.section);
            code[at + 1].imm = reference.address as i32;
        }
    }
    code.into_iter().map(Instruction::bytes).collect()
}

/// Loads the program and returns what the verifier says about it.
fn verifier_says(program: &Program, kernel: &Ebpf) -> Result<String, String> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const STATISTICS: u32 = 4;
    let code = relocated(program, kernel);
    let mut log = vec![0_u8; 1 << 20];
    let attributes = LoadAttributes {
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: STATISTICS,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        ..LoadAttributes::of(program)
    };
    // SAFETY: everything that the attributes point to outlives the call, with the sizes they say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    let error = std::io::Error::last_os_error();
    let text = CStr::from_bytes_until_nul(&log).expect("the kernel ends its text");
    let text = text.to_string_lossy().into_owned();
    if result < 0 {
        return Err(format!("{error}\n{text}"));
    }
    // SAFETY: a new descriptor, ours alone.
    drop(unsafe { OwnedFd::from_raw_fd(result as RawFd) });
    Ok(text)
}

/// `stack depth 40`, or `40+8` with subprograms; from 7.2 with more words behind it.
fn stack_depth(text: &str) -> Option<i32> {
    let depths = text
        .lines()
        .find_map(|line| line.strip_prefix("stack depth "))?;
    let (depths, _) = depths.split_once(' ').unwrap_or((depths, ""));
    depths
        .split('+')
        .map(|depth| depth.trim().parse::<i32>().ok())
        .sum()
}

#[test]
fn verifier_counts_the_same_stack() {
    // SAFETY: it has no arguments and can't fail.
    if unsafe { libc::geteuid() } != 0 {
        return skip("verifier_counts_the_same_stack: needs root");
    }
    let loaded = match check_all() {
        Ok(loaded) => BTreeMap::from_iter(loaded),
        Err(error) => return skip(&format!("verifier_counts_the_same_stack: {error:#}")),
    };
    let kernel = EbpfLoader::new()
        .load(OBJECT)
        .expect("check_all has just done it");
    let (programs, _) = parse(OBJECT);
    let mut asked = 0;
    for program in &programs {
        let name = &program.name;
        match &loaded[name] {
            Loaded::Yes(_) => {}
            // Where another pair sees sockets: no uprobe program, and loaded in the virtual machines.
            Loaded::NotHere(_) if program.section.starts_with("fexit/") => continue,
            Loaded::NotHere(why) => {
                skip(&format!("{name}: {why}"));
                continue;
            }
            Loaded::No(error) => panic!("{name}: {error}"),
        }
        // Its callback is another function, which this test doesn't link. No task preempts another in it:
        // only the half runs it, one at a time.
        if program.has_callback() {
            continue;
        }
        let text =
            verifier_says(program, &kernel).unwrap_or_else(|error| panic!("{name}: {error}"));
        let depth = stack_depth(&text).unwrap_or_else(|| panic!("{name}: no depth in {text}"));
        let ours = scan(program).depth;
        println!("{name}: stack depth {depth} for the verifier, {ours} for the scanner");
        assert!(depth <= STACK_MAX, "{name}: {text}");
        // The verifier counts whole slots, and leaves out what it never walks.
        assert!(
            depth <= (ours + 7) / 8 * 8,
            "{name}: the scanner missed something: {ours}\n{text}"
        );
        asked += 1;
    }
    assert!(asked > 0, "no program was loaded");

    // The words are understood: the same question about a deeper stack.
    let mut deeper = programs
        .into_iter()
        .find(|p| p.name == "process_exit")
        .expect("it is there");
    let store = Instruction {
        op: 0x7a,
        dst: FRAME,
        src: 0,
        off: -56,
        imm: 0,
    };
    deeper.code.insert(0, store);
    deeper.references = deeper
        .references
        .into_iter()
        .map(|(at, r)| (at + 1, r))
        .collect();
    let text = verifier_says(&deeper, &kernel).expect("no jump crosses its first instruction");
    assert_eq!(stack_depth(&text), Some(56));
}
