//! Processes' ids where the agent is in a pid namespace of its own: `/proc`, perf events and signals know a
//! process by its id in there, these programs by the one in the initial namespace.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_get_current_task, generated},
    macros::map,
    maps::{Array, HashMap},
};

use crate::{kernel::word, maps::offset};

/// From a process' id in the agent's namespace to the initial one: of those that user space asks for, which
/// it enters with 0, and of the children of watched ones. Where it is needed user space makes it as large as
/// the map of processes.
#[map]
pub static IDS: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// How many namespaces are around the agent's. 0: it is the initial one, or nobody has asked yet.
#[map]
pub static LEVEL: Array<u32> = Array::with_max_entries(1, 0);

/// `sizeof(struct upid)`: the id, which comes first, and its namespace (5.10 to 7.2).
const UPID: u64 = 16;

/// Fills in what user space has entered. It is the agent that iterates, over all tasks of its namespace.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn process_ids(ctx: *mut c_void) -> i32 {
    // SAFETY: `struct bpf_iter__task`: where to write, and the task, which is null at the end.
    let task = unsafe { ctx.cast::<u64>().add(1).read() };
    let Some(level) = LEVEL.get_ptr_mut(0) else {
        return 0;
    };
    if task == 0 {
        return 0;
    }
    // SAFETY: a map value; no arguments.
    unsafe {
        *level = read(word(bpf_get_current_task() + offset!(task_thread_pid)) + offset!(pid_level))
    };
    // SAFETY: a map value.
    let here = id_at(task, unsafe { *level });
    if let Some(id) = IDS.get_ptr_mut(&here) {
        // SAFETY: a map value.
        unsafe { *id = read(task + offset!(task_tgid)) };
    }
    0
}

/// Remembers the ids of a new process that is watched.
#[inline(always)]
pub fn note(task: u64, id: &u32) {
    let Some(level) = LEVEL.get_ptr(0) else {
        return;
    };
    // SAFETY: a map value.
    let level = unsafe { *level };
    if level != 0 {
        let _ = IDS.insert(&id_at(task, level), id, 0);
    }
}

/// A task's id in the namespace that so many others are around. Who is watched is in the agent's or below:
/// nobody gets out of one.
#[inline(always)]
fn id_at(task: u64, level: u32) -> u32 {
    let pid = word(task + offset!(task_thread_pid));
    read(pid + offset!(pid_numbers) + u64::from(level) * UPID)
}

#[inline(always)]
fn read(address: u64) -> u32 {
    let mut value = 0u32;
    // SAFETY: four bytes; the helper fails on a wrong address and leaves zero.
    unsafe {
        generated::bpf_probe_read_kernel((&raw mut value).cast(), 4, address as *const c_void);
    }
    value
}
