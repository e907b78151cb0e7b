//! The floor of a capture: the empty pair at our own points, and besides nothing but a copy of the buffer into a
//! ring. What the agent costs above this is its own; what this costs is the machine's.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;
use std::{io, ptr};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::empty::{BPF_TRACE_UPROBE_MULTI, Moment, bpf, link, load_program};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;
/// As the agent has by default.
const RING_BYTES: usize = 8 << 20;
/// The size of each record, as of the agent's for a call of 16 KiB.
const ROOM: i32 = 16 << 10;
/// As often as the agent looks while there is much.
const LOOK: Duration = Duration::from_micros(200);
/// As the agent's reader, which must not wait for its turn.
const NICE: libc::c_int = -10;

/// The probes stand as long as this lives.
pub(super) struct CopyingPairs {
    _links: [OwnedFd; 2],
    state: OwnedFd,
    reader: Option<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
}

impl CopyingPairs {
    pub(super) fn attach(file: &Path, offsets: &[u64], cpu: Option<&str>) -> Result<CopyingPairs> {
        ensure!(cfg!(target_arch = "x86_64"), "its programs are for x86-64");
        let state = create_map(BPF_MAP_TYPE_ARRAY, 4, size_of::<State>() as u32, 1)?;
        let ring = create_map(BPF_MAP_TYPE_RINGBUF, 0, 0, RING_BYTES as u32)?;
        let entry = load_program(&entry(&state), BPF_TRACE_UPROBE_MULTI)?;
        let exit = load_program(&exit(&state, &ring), BPF_TRACE_UPROBE_MULTI)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let reader = {
            let (is_over, ring, cpu) = (
                is_over.clone(),
                Ring::map(&ring)?,
                cpu.and_then(|cpu| cpu.parse().ok()),
            );
            thread::spawn(move || {
                let _ = cpu.map(pin);
                // SAFETY: plain numbers; 0 is this thread. Refused: then as the others.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
                while !is_over.load(Ordering::Relaxed) {
                    ring.skip();
                    sleep(LOOK);
                }
            })
        };
        Ok(CopyingPairs {
            // The return first, so that no entry stays without its own.
            _links: [
                link(&exit, file, offsets, Moment::Return)?,
                link(&entry, file, offsets, Moment::Entry)?,
            ],
            state,
            reader: Some(reader),
            is_over,
        })
    }

    /// Were the calls copied? One that finds the ring full is cheaper.
    pub(super) fn prove(&self) -> Result<()> {
        let State { full, copied, .. } = lookup(&self.state)?;
        ensure!(copied > 0, "nothing was copied");
        ensure!(
            full * 100 <= copied,
            "the ring was full at {full} of {} calls",
            full + copied
        );
        Ok(())
    }
}

impl Drop for CopyingPairs {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Keeps this thread on a CPU: not the load's.
fn pin(cpu: usize) {
    // SAFETY: a set of plain bits, zeroed, and `cpu` is one that it has room for, or none is set; 0 is this
    // thread.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

/// The open call, for there is one at a time; and what came of all.
#[repr(C)]
#[derive(Default)]
struct State {
    buffer: u64,
    length: u64,
    full: u64,
    copied: u64,
}

const BUFFER: i16 = 0;
const LENGTH: i16 = 8;
const FULL: i16 = 16;
const COPIED: i16 = 24;

/// Offsets in `struct pt_regs`: the second and third argument, the result.
const RSI: i16 = 104;
const RDX: i16 = 96;
const RAX: i16 = 80;

const LOAD: u8 = 0x79;
const STORE: u8 = 0x7b;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const ADD: u8 = 0x07;
const IF_EQUAL: u8 = 0x15;
const IF_ABOVE: u8 = 0x25;
const GO: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOOKUP: i32 = 1;
const PROBE_READ_USER: i32 = 112;
const RESERVE: i32 = 131;
const SUBMIT: i32 = 132;
const NO_WAKEUP: i32 = 1;

const fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (number as u32 as u64) << 32
}

/// `to = map`, which takes two.
fn map(to: u8, map: &OwnedFd) -> [u64; 2] {
    const PSEUDO_MAP_FD: u8 = 1;
    [instruction(0x18, to, PSEUDO_MAP_FD, 0, map.as_raw_fd()), 0]
}

/// `r0 = &state`, or the program ends, which has `rest` more instructions.
fn find(state: &OwnedFd, rest: i16) -> Vec<u64> {
    let [map, map_rest] = map(1, state);
    vec![
        instruction(0x62, 10, 0, -4, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD, 2, 0, 0, -4),
        map,
        map_rest,
        instruction(CALL, 0, 0, 0, LOOKUP),
        instruction(IF_EQUAL, 0, 0, rest, 0),
    ]
}

fn end() -> [u64; 2] {
    [instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]
}

/// Notes what the call will move.
fn entry(state: &OwnedFd) -> Vec<u64> {
    let mut code = vec![
        instruction(LOAD, 6, 1, RSI, 0),
        instruction(LOAD, 7, 1, RDX, 0),
    ];
    code.extend(find(state, 2));
    code.push(instruction(STORE, 0, 6, BUFFER, 0));
    code.push(instruction(STORE, 0, 7, LENGTH, 0));
    code.extend(end());
    code
}

/// Copies it, if the call has moved anything.
fn exit(state: &OwnedFd, ring: &OwnedFd) -> Vec<u64> {
    let add_one = |field| {
        [
            instruction(LOAD, 1, 9, field, 0),
            instruction(ADD, 1, 0, 0, 1),
            instruction(STORE, 9, 1, field, 0),
        ]
    };
    let [ring, ring_rest] = map(1, ring);
    let mut work = vec![
        instruction(MOVE, 9, 0, 0, 0),
        instruction(LOAD, 7, 9, BUFFER, 0),
        instruction(LOAD, 8, 9, LENGTH, 0),
        // To the end.
        instruction(IF_ABOVE, 8, 0, 21, ROOM),
        ring,
        ring_rest,
        instruction(SET, 2, 0, 0, ROOM),
        instruction(SET, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, RESERVE),
        instruction(IF_EQUAL, 0, 0, 12, 0),
        instruction(MOVE, 6, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 8, 0, 0),
        instruction(MOVE, 3, 7, 0, 0),
        instruction(CALL, 0, 0, 0, PROBE_READ_USER),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(SET, 2, 0, 0, NO_WAKEUP),
        instruction(CALL, 0, 0, 0, SUBMIT),
    ];
    work.extend(add_one(COPIED));
    work.push(instruction(GO, 0, 0, 3, 0));
    work.extend(add_one(FULL));
    let length = work.len() as i16;
    let mut code = vec![instruction(LOAD, 6, 1, RAX, 0)];
    // Errors are huge, as unsigned numbers; and 0 is none.
    code.push(instruction(IF_ABOVE, 6, 0, 1 + 7 + length, ROOM));
    code.push(instruction(IF_EQUAL, 6, 0, 7 + length, 0));
    code.extend(find(state, length));
    code.extend(work);
    code.extend(end());
    code
}

fn create_map(kind: u32, key: u32, value: u32, entries: u32) -> Result<OwnedFd> {
    #[repr(C)]
    struct Create([u32; 4]);
    let request = Create([kind, key, value, entries]);
    // SAFETY: plain numbers.
    unsafe { bpf(BPF_MAP_CREATE, &request) }.context("creating a map")
}

fn lookup(state: &OwnedFd) -> Result<State> {
    #[repr(C)]
    struct Lookup {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
    }
    let (key, mut value) = (0_u32, State::default());
    let request = Lookup {
        map: state.as_raw_fd() as u32,
        padding: 0,
        key: &raw const key as u64,
        value: &raw mut value as u64,
    };
    // SAFETY: both are as long as the map says, and outlive the call. The command makes no descriptor.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_ELEM,
            &raw const request,
            size_of::<Lookup>(),
        )
    };
    ensure!(done == 0, io::Error::last_os_error());
    Ok(value)
}

/// Both positions of a ring; its records are never looked at.
struct Ring {
    consumer: *mut libc::c_void,
    producer: *mut libc::c_void,
    page: usize,
}

// SAFETY: both words are shared memory, and only touched as atomics.
unsafe impl Send for Ring {}

impl Ring {
    fn map(ring: &OwnedFd) -> Result<Ring> {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let map = |protection, offset: usize| {
            // SAFETY: a new mapping of one page, which the ring has there.
            let at = unsafe {
                libc::mmap(
                    ptr::null_mut(),
                    page,
                    protection,
                    libc::MAP_SHARED,
                    ring.as_raw_fd(),
                    offset as libc::off_t,
                )
            };
            match at == libc::MAP_FAILED {
                true => Err(anyhow!("mapping a ring: {}", io::Error::last_os_error())),
                false => Ok(at),
            }
        };
        Ok(Ring {
            consumer: map(libc::PROT_READ | libc::PROT_WRITE, 0)?,
            producer: map(libc::PROT_READ, page)?,
            page,
        })
    }

    fn skip(&self) {
        // SAFETY: the first word of each page, as long as they are mapped.
        let (consumer, producer) = unsafe {
            (
                AtomicU64::from_ptr(self.consumer.cast()),
                AtomicU64::from_ptr(self.producer.cast()),
            )
        };
        consumer.store(producer.load(Ordering::Acquire), Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, and nobody has their addresses any more.
        unsafe {
            libc::munmap(self.consumer, self.page);
            libc::munmap(self.producer, self.page);
        }
    }
}
