//! Which calls are wanted. Runs before anything is copied or kept.

use core::{ffi::c_void, ptr};

use agent_ebpf::{MEMBER, OURS, Process, Thread, WANTED, control, filter, unmatched};
use aya_ebpf::helpers::{
    bpf_get_current_task, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns, generated,
};

use crate::maps::{
    CGROUPS, COMMS, PROCESSES, THREADS, UIDS, address, control, insert, lookup, new_thread, offset,
    opaque,
};

const _: () = assert!(filter::PROCESS == WANTED && filter::MEMBER == MEMBER);

/// What becomes of a call.
pub enum Admission {
    Wanted(*mut Thread),
    /// The filter turned it away.
    Filtered,
    /// Wanted, but there is no room for its thread or process.
    Full,
}

/// The calling thread's entry, made at its first wanted call.
#[inline(always)]
pub fn admit(id: &u64) -> Admission {
    const CHANGEABLE: u64 = filter::MEMBER | filter::UID | filter::COMM | filter::CGROUP;
    let active = control(control::FILTER);
    // The upper half of the id is the thread group: no second stack slot for the key.
    // SAFETY: eight bytes; little endian, as all targets of this crate are.
    let tgid: *const c_void = unsafe { ptr::from_ref(id).cast::<u8>().add(4) }.cast();
    if let Some(thread) = THREADS.get_ptr_mut(id) {
        // A process that was asked for by its id is wanted as long as it lives, so its threads need not ask
        // again. Its user, name and groups can change.
        let passes = active & CHANGEABLE == 0 || is_member(active, tgid) && changeable_pass(active);
        return if passes {
            Admission::Wanted(thread)
        } else {
            Admission::Filtered
        };
    }
    // SAFETY: a key of PROCESSES.
    let mut process: *mut Process = unsafe { lookup(address(&PROCESSES), tgid) };
    let needed = active & (filter::PROCESS | filter::MEMBER);
    if process.is_null() {
        if needed != 0 {
            return Admission::Filtered;
        }
    // SAFETY: checked for null, a map value lives on until the program ends.
    } else if unsafe { (*process).flags } & (needed | OURS) != needed {
        return Admission::Filtered;
    }
    if !changeable_pass(active) {
        return Admission::Filtered;
    }
    if process.is_null() {
        // SAFETY: no arguments.
        let born = unsafe { bpf_ktime_get_boot_ns() };
        let new = Process { born, flags: 0 };
        // SAFETY: a key and a value of PROCESSES. Another thread may be first: the lookup decides.
        process = unsafe {
            insert(address(&PROCESSES), tgid, (&raw const new).cast());
            lookup(address(&PROCESSES), tgid)
        };
        if process.is_null() {
            return Admission::Full;
        }
    }
    let Some(thread) = new_thread(id) else {
        return Admission::Full;
    };
    // SAFETY: both are values of maps, checked.
    unsafe {
        (*thread).pid_tgid = *id;
        (*thread).key.tgid = (*id >> 32) as u32;
        (*thread).born = (*process).born;
    }
    Admission::Wanted(thread)
}

/// User space finds out who is in the groups, and takes those out who have left.
#[inline(always)]
fn is_member(active: u64, tgid: *const c_void) -> bool {
    if active & filter::MEMBER == 0 {
        return true;
    }
    // SAFETY: a key of PROCESSES; what is found is checked for null.
    unsafe {
        let process: *const Process = lookup(address(&PROCESSES), tgid);
        !process.is_null() && (*process).flags & MEMBER != 0
    }
}

/// The filters by what a process can change about itself.
#[inline(always)]
fn changeable_pass(active: u64) -> bool {
    if active & filter::UID != 0 {
        let uid = bpf_get_current_uid_gid() as u32;
        if UIDS.get_ptr(&uid).is_none() {
            return false;
        }
    }
    if active & filter::COMM != 0 && !leader_comm_passes() {
        return false;
    }
    if active & filter::CGROUP != 0 && !cgroup_passes() {
        return false;
    }
    true
}

/// The leader's name, not the thread's: thread pools name their threads.
#[inline(always)]
fn leader_comm_passes() -> bool {
    // Where the kernel's memory may not be read, no program that could try is loaded.
    if offset!(task_group_leader) == 0 {
        return false;
    }
    let mut comm = [0u64, opaque(0)]; // one array of zeros would be a call of `memset`
    // SAFETY: kernel memory is read by the helper, which fails on a wrong address; `comm` is 16 bytes
    // (TASK_COMM_LEN).
    unsafe {
        let task = bpf_get_current_task();
        // The pointer to the leader goes through `comm`, so that there is one stack slot only.
        let leader: *mut u64 = &raw mut comm[0];
        let from = (task + offset!(task_group_leader)) as *const c_void;
        if generated::bpf_probe_read_kernel(leader.cast(), 8, from) != 0 {
            return false;
        }
        let from = (ptr::read_volatile(leader) + offset!(task_comm)) as *const c_void;
        ptr::write_volatile(leader, 0);
        // Only to its end: older kernels (5.10) leave there what was in a longer name before.
        if generated::bpf_probe_read_kernel_str((&raw mut comm).cast(), 16, from) < 0 {
            return false;
        }
    }
    COMMS.get_ptr(&comm).is_some()
}

#[inline(always)]
fn cgroup_passes() -> bool {
    let mut index = 0;
    while index < 8 {
        // SAFETY: a cgroup array; an empty slot is an error, not 1.
        let under = unsafe {
            generated::bpf_current_task_under_cgroup(address(&CGROUPS).cast_mut(), index)
        };
        if under == 1 {
            return true;
        }
        index += 1;
    }
    false
}

/// What [`Admission::Full`] is counted as.
pub const FULL: usize = unmatched::MAP_FULL;
