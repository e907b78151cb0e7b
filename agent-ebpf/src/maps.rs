//! Every map, in one room, with why its size is its size; and the few accesses that all programs
//! share.

use core::{arch::asm, ffi::c_void, ptr};

use agent_ebpf::{
    Absence, Budget, CHOICES, GROUPS, Latest, Offsets, POINT, PORT_WORDS, Process, RING_BYTES,
    Stream, StreamKey, Thread, calls,
    control::{self, STOP},
    counter,
};
use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, generated},
    macros::map,
    maps::{Array, CgroupArray, HashMap, LruHashMap, RingBuf},
};

/// The reader maps these arrays into its own memory and makes no `bpf()` call at all (5.5).
const BPF_F_MMAPABLE: u32 = 1 << 10;

#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// One row per CPU, so that CPUs don't share cache lines. A per-CPU array can't be mapped. User space
/// sets the number of rows to the number of possible CPUs before it loads.
#[map]
pub static COUNTERS: Array<[u64; counter::ROW]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A row per CPU, as above: what each point costs those who call it is estimated from these.
#[map]
pub static CALLS: Array<[u64; calls::SLOTS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static CONTROL: Array<[u64; control::COUNT]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Threads that ever made a TLS call and still live. Preallocated: a uprobe must not allocate. About
/// 450 bytes each; 8,192 threads in TLS calls is far above what one machine's services run.
#[map]
pub static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(8192, 0);

/// Never LRU: an evicted entry would make a stream begin again without anybody noticing.
#[map]
pub static STREAMS: HashMap<StreamKey, Stream> = HashMap::with_max_entries(65536, 0);

#[map]
pub static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(32768, 0);

/// Processes whose calls passed by unseen: those that a changeable filter turns away. One without a place here
/// comes back unnoticed, hence as many as PROCESSES.
#[map]
pub static ABSENCES: HashMap<u32, Absence> = HashMap::with_max_entries(32768, 0);

/// What processes put into the upper half of the ring. An evicted one begins again, which costs others
/// little.
#[map]
pub static BUDGETS: LruHashMap<u32, Budget> = LruHashMap::with_max_entries(1024, 0);

/// Who called last; see `budget.rs`.
#[map]
pub static LATEST: Array<Latest> = Array::with_max_entries(1, 0);

/// Sockets whose two ends were announced, and whether anybody wants to know more of them
/// ([`agent_ebpf::socket`]). An evicted one is announced again.
#[map]
pub static SOCKETS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16384, 0);

/// Cookie and ports of sockets by their address, where the kernel gives them no cookie (below 5.12).
#[map]
pub static SOCKET_IDS: LruHashMap<u64, [u64; 2]> = LruHashMap::with_max_entries(16384, 0);

/// Ports whose connections are plaintext. User space fills it before anybody is wanted.
#[map]
pub static PORTS: Array<[u64; PORT_WORDS]> = Array::with_max_entries(1, 0);

/// Sockets with such a port that speak TLS all the same. An evicted one is looked at again.
#[map]
pub static ENCRYPTED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// The filter's members; see `filter.rs`.
#[map]
pub static UIDS: HashMap<u32, u8> = HashMap::with_max_entries(CHOICES, 0);
#[map]
pub static COMMS: HashMap<[u64; 2], u8> = HashMap::with_max_entries(CHOICES, 0);
#[map]
pub static CGROUPS: CgroupArray = CgroupArray::with_max_entries(GROUPS, 0);

/// Stays all zero: where new threads come from, because one doesn't fit on the stack.
#[map]
static NO_THREAD: Array<Thread> = Array::with_max_entries(1, 0);

/// Written by user space before the programs are loaded.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    task_tgid: 0,
    task_group_leader: 0,
    task_comm: 0,
    task_thread_pid: 0,
    pid_level: 0,
    pid_numbers: 0,
    task_mm: 0,
    mm_start_stack: 0,
    sock_family: 0,
    sock_num: 0,
    sock_dport: 0,
    sock_rcv_saddr: 0,
    sock_daddr: 0,
    sock_v6_rcv_saddr: 0,
    sock_v6_daddr: 0,
    sock_protocol: 0,
    sock_cookie: 0,
    sock_max_ack_backlog: 0,
    sock_bind_hash: 0,
    bucket_fastreuse: 0,
    sock_ulp: 0,
    tcp_bytes_acked: 0,
    tcp_snd_una: 0,
    tcp_write_seq: 0,
    task_stack: 0,
    tcp_copied_seq: 0,
    tcp_rcv_nxt: 0,
    tcp_bytes_received: 0,
    sock_state: 0,
    task_files: 0,
    files_fdt: 0,
    fdtable_max_fds: 0,
    fdtable_fd: 0,
    file_private_data: 0,
    socket_file: 0,
    socket_sk: 0,
    vma_file: 0,
    file_inode: 0,
    inode_sb: 0,
    inode_ino: 0,
    inode_mapping: 0,
    super_dev: 0,
    mapping_i_mmap: 0,
    task_cgroups: 0,
    css_set_default: 0,
    css_set_controller: 0,
    css_cgroup: 0,
    cgroup_node: 0,
    node_id: 0,
    node_name: 0,
    node_parent: 0,
};

/// Bytes of the ring, as user space made it.
#[unsafe(no_mangle)]
static RING_SIZE: u32 = RING_BYTES;

pub fn ring_size() -> u64 {
    // SAFETY: a static of this type; volatile, else the compiler takes the number above.
    u64::from(unsafe { ptr::read_volatile(&raw const RING_SIZE) })
}

/// An offset of a kernel structure's member; read as volatile, else the compiler takes the zeros above.
macro_rules! offset {
    ($member:ident) => {
        $crate::maps::offset_at(core::mem::offset_of!(agent_ebpf::Offsets, $member))
    };
}
pub(crate) use offset;

/// The u32 at this byte of [`OFFSETS`].
#[inline(always)]
pub fn offset_at(byte: usize) -> u64 {
    // SAFETY: inside a static of u32, at one of its fields.
    u64::from(unsafe { ptr::read_volatile((&raw const OFFSETS).cast::<u32>().byte_add(byte)) })
}

/// A field of a map value, read again each time: a value kept in a register across a helper call would
/// be spilled to the stack.
macro_rules! get {
    ($p:expr, $($field:tt)+) => {
        core::ptr::read_volatile(&raw const (*$p).$($field)+)
    };
}
pub(crate) use get;

#[inline(always)]
pub fn control(word: usize) -> u64 {
    match CONTROL.get_ptr(0) {
        // SAFETY: `word` < control::COUNT; the reader changes the word at any time, hence volatile.
        Some(words) => unsafe { ptr::read_volatile(words.cast::<u64>().add(word)) },
        None => 0,
    }
}

#[inline(always)]
pub fn stopped() -> bool {
    control(STOP) != 0
}

/// Adds to a counter of this CPU. By `lock`: a uprobe program can be preempted by another one on the
/// same CPU (6.0+), and a plain add would lose counts.
#[inline(always)]
pub fn count(index: usize, by: u64) {
    // SAFETY: no arguments, no memory.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(row) = COUNTERS.get_ptr_mut(cpu) else {
        return;
    };
    // SAFETY: `index` < counter::ROW.
    unsafe { add(row.cast::<u64>().add(index), by) };
}

/// Counts a trap at the point with this cookie: also one of a call that is turned away, which costs its program nearly
/// as much.
#[inline(always)]
pub fn count_call(cookie: u64) {
    // SAFETY: no arguments, no memory.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(row) = CALLS.get_ptr_mut(cpu) else {
        return;
    };
    // SAFETY: a slot is below calls::SLOTS.
    unsafe { add(row.cast::<u64>().add(calls::slot(cookie >> POINT)), 1) };
}

/// BPF_XADD without fetch, which 5.10 knows.
///
/// # Safety
/// `to` points into a map's value.
#[inline(always)]
unsafe fn add(to: *mut u64, by: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) to, in(reg) by, options(nostack)) };
}

/// Hides a value from LLVM, so that it can't split a check from the use: the verifier of 5.10 knows
/// nothing about a copy of a checked register. An empty `asm!` would leave two line infos at one
/// instruction, which 5.10 refuses.
#[inline(always)]
pub fn opaque(mut value: u64) -> u64 {
    // SAFETY: a move of a register onto itself.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// The same pointer again, for LLVM another one: the address of a field that it computes once and keeps
/// costs a stack slot, computing it again costs an instruction.
#[inline(always)]
pub fn hide<T>(mut pointer: *mut T) -> *mut T {
    // SAFETY: as above.
    unsafe { asm!("{0} = {0}", inout(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// A lookup by a key that is part of another map's value, or of a larger stack slot.
///
/// # Safety
/// `map` is one of the maps above and `key` points to a key of it.
#[inline(always)]
pub unsafe fn lookup<T>(map: *const c_void, key: *const c_void) -> *mut T {
    // SAFETY: the caller's promise.
    unsafe { generated::bpf_map_lookup_elem(map.cast_mut(), key).cast() }
}

/// # Safety
/// As [`lookup`]; `value` points to a value of it.
#[inline(always)]
pub unsafe fn insert(map: *const c_void, key: *const c_void, value: *const c_void) -> bool {
    // SAFETY: the caller's promise.
    unsafe { generated::bpf_map_update_elem(map.cast_mut(), key, value, 0) == 0 }
}

/// # Safety
/// As [`lookup`].
#[inline(always)]
pub unsafe fn remove(map: *const c_void, key: *const c_void) {
    // SAFETY: the caller's promise.
    unsafe { generated::bpf_map_delete_elem(map.cast_mut(), key) };
}

pub fn address<T>(map: &'static T) -> *const c_void {
    core::ptr::from_ref(map).cast()
}

/// The budget of this process, a new one all zero.
///
/// # Safety
/// `tgid` points to a key of BUDGETS.
#[inline(always)]
pub unsafe fn budget_of(tgid: *const c_void) -> *mut Budget {
    // SAFETY: the caller's promise; a thread's zeros are more than a budget's.
    unsafe {
        let found = lookup(address(&BUDGETS), tgid);
        if !ptr::eq(found, ptr::null::<Budget>()) {
            return found;
        }
        let Some(zero) = NO_THREAD.get_ptr(0) else {
            return ptr::null_mut();
        };
        insert(address(&BUDGETS), tgid, zero.cast());
        lookup(address(&BUDGETS), tgid)
    }
}

/// Makes the entry of a thread, all zero. None if there is no room.
#[inline(always)]
pub fn new_thread(id: &u64) -> Option<*mut Thread> {
    let zero = NO_THREAD.get_ptr(0)?;
    // SAFETY: a key and a value of THREADS.
    if !unsafe { insert(address(&THREADS), ptr::from_ref(id).cast(), zero.cast()) } {
        return None;
    }
    THREADS.get_ptr_mut(id)
}
