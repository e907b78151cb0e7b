//! Which calls are wanted. Runs before anything is copied or kept.
//!
//! A process that is turned away goes on with its connections, and may come back: nobody knows how many bytes
//! passed by meanwhile. So it is remembered as absent, and each of its handles begins again when it is back.

use core::{ffi::c_void, ptr};

use agent_ebpf::{
    Absence, GROUPS, MEMBER, OURS, Process, Thread, WANTED, control, counter, filter, unmatched,
};
use aya_ebpf::helpers::{
    bpf_get_current_task, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns, generated,
};

use crate::maps::{
    ABSENCES, CGROUPS, COMMS, PROCESSES, THREADS, UIDS, address, control, count, get, insert,
    lookup, new_thread, offset, opaque,
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
    let active = control(control::FILTER);
    // The upper half of the id is the thread group: no second stack slot for the key.
    // SAFETY: eight bytes; little endian, as all targets of this crate are.
    let tgid: *const c_void = unsafe { ptr::from_ref(id).cast::<u8>().add(4) }.cast();
    if let Some(thread) = THREADS.get_ptr_mut(id) {
        // A process that was asked for by its id is wanted as long as it lives, so its threads need not ask
        // again. Its user, name and groups can change.
        if active & filter::CHANGEABLE == 0 {
            return Admission::Wanted(thread);
        }
        if is_member(active, tgid) && changeable_pass(active) {
            come_back(thread, tgid);
            return Admission::Wanted(thread);
        }
        // A call without a place among the thread's others: what was inferred of those holds no longer.
        // SAFETY: a map value.
        unsafe { (*thread).sequence = get!(thread, sequence) + 1 };
        go_away(tgid);
        return Admission::Filtered;
    }
    // SAFETY: a key of PROCESSES.
    let mut process: *mut Process = unsafe { lookup(address(&PROCESSES), tgid) };
    // SAFETY: checked for null, a map value lives on until the program ends.
    let flags = if process.is_null() {
        0
    } else {
        unsafe { (*process).flags }
    };
    if flags & (filter::PROCESS & active | OURS) != filter::PROCESS & active {
        return Admission::Filtered;
    }
    if flags & filter::MEMBER & active != filter::MEMBER & active || !changeable_pass(active) {
        go_away(tgid);
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
    come_back(thread, tgid);
    Admission::Wanted(thread)
}

/// The same for a call that may carry plaintext: one that is turned away is counted.
#[inline(always)]
pub fn admit_call(id: &u64) -> Option<*mut Thread> {
    match admit(id) {
        Admission::Wanted(thread) => Some(thread),
        Admission::Filtered => {
            count(counter::FILTERED, 1);
            None
        }
        Admission::Full => {
            count(counter::ENTRIES, 1);
            count(counter::UNMATCHED + unmatched::MAP_FULL, 1);
            None
        }
    }
}

/// Would a call of the current process be wanted? Nothing is remembered of it.
#[inline(always)]
pub fn is_wanted(id: &u64) -> bool {
    let active = control(control::FILTER);
    // SAFETY: as in `admit`.
    let tgid: *const c_void = unsafe { ptr::from_ref(id).cast::<u8>().add(4) }.cast();
    // SAFETY: a key of PROCESSES; what is found is checked for null.
    let flags = unsafe {
        let process: *const Process = lookup(address(&PROCESSES), tgid);
        if process.is_null() {
            0
        } else {
            (*process).flags
        }
    };
    let asked = (filter::PROCESS | filter::MEMBER) & active;
    flags & (asked | OURS) == asked && changeable_pass(active)
}

/// A call of the process passes by.
#[inline(always)]
fn go_away(tgid: *const c_void) {
    // SAFETY: a key and a value of ABSENCES; what is found is checked for null.
    unsafe {
        let absence: *mut Absence = lookup(address(&ABSENCES), tgid);
        if absence.is_null() {
            let new = Absence {
                is_away: 1,
                back: 0,
            };
            insert(address(&ABSENCES), tgid, (&raw const new).cast());
        } else if get!(absence, is_away) == 0 {
            (*absence).is_away = 1;
        }
    }
}

/// A call of the process is wanted, perhaps again. No longer away first: who is turned away in between is away
/// after `back`.
#[inline(always)]
fn come_back(thread: *mut Thread, tgid: *const c_void) {
    // SAFETY: a map value, and a key of ABSENCES; what is found is checked for null.
    unsafe {
        let absence: *mut Absence = lookup(address(&ABSENCES), tgid);
        if absence.is_null() {
            return;
        }
        if get!(absence, is_away) != 0 {
            ptr::write_volatile(&raw mut (*absence).is_away, 0);
            ptr::write_volatile(&raw mut (*absence).back, bpf_ktime_get_boot_ns());
        }
        (*thread).back = get!(absence, back);
    }
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
    while index < GROUPS {
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
