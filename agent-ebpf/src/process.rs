//! Fork, exec and exit: whose child is wanted too, and when an address stops meaning what it meant.

use core::ffi::c_void;

use agent_ebpf::{Absence, MEMBER, OURS, Process, WANTED, control, counter, filter, unmatched};
use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, generated},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};

use crate::{
    maps::{ABSENCES, PROCESSES, THREADS, control, count, get, offset, stopped},
    namespace,
};

/// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`, 5.10 to 7.2. The current task is
/// the parent.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    if stopped() {
        return 0;
    }
    let child: u64 = ctx.arg(1);
    let mut tgid = 0u32;
    // SAFETY: the helper fails on a wrong address; `tgid` is four bytes.
    let read = unsafe {
        let from = (child + offset!(task_tgid)) as *const c_void;
        generated::bpf_probe_read_kernel((&raw mut tgid).cast(), 4, from)
    };
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    // A thread is no new process.
    if read != 0 || tgid == parent {
        return 0;
    }
    // Its parent's handles are its own, with their holes.
    if ABSENCES.get_ptr(&parent).is_some() {
        let _ = ABSENCES.insert(
            &tgid,
            &Absence {
                is_away: 1,
                back: 0,
            },
            0,
        );
    } else {
        // Whoever had this id before is dead.
        let _ = ABSENCES.remove(&tgid);
    }
    let inherited = match control(control::FILTER) & filter::FOLLOW {
        0 => MEMBER | OURS,
        _ => MEMBER | WANTED | OURS,
    };
    let flags = match PROCESSES.get_ptr(&parent) {
        // SAFETY: a map value.
        Some(parent) => (unsafe { (*parent).flags }) & inherited,
        None => 0,
    };
    if flags != 0 {
        // SAFETY: no arguments.
        let born = unsafe { bpf_ktime_get_boot_ns() };
        let _ = PROCESSES.insert(&tgid, &Process { born, flags }, 0);
        namespace::note(child, &tgid);
    } else {
        let _ = PROCESSES.remove(&tgid);
    }
    0
}

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, 5.10 to 7.2. The
/// process keeps its id and start time, but every address in it means something else now.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    if stopped() {
        return 0;
    }
    let mut id = bpf_get_current_pid_tgid();
    forget_thread(&id);
    if let Some(process) = PROCESSES.get_ptr_mut(&((id >> 32) as u32)) {
        // SAFETY: a map value; no arguments.
        unsafe { (*process).born = bpf_ktime_get_boot_ns() };
    }
    // It had no handle yet while it was away.
    let _ = ABSENCES.remove(&((id >> 32) as u32));
    // A thread that was not the leader took over the leader's id.
    let old: u32 = ctx.arg(1);
    id = id & !0xffff_ffff | u64::from(old);
    forget_thread(&id);
    0
}

/// `TP_PROTO(struct task_struct *p)`, with one more argument since 6.16. For each thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_ctx: RawTracePointContext) -> i32 {
    if stopped() {
        return 0;
    }
    forget_thread(&bpf_get_current_pid_tgid());
    0
}

#[inline(always)]
fn forget_thread(id: &u64) {
    let Some(thread) = THREADS.get_ptr_mut(id) else {
        return;
    };
    // SAFETY: a map value.
    let open = unsafe { get!(thread, depth) };
    if open != 0 {
        count(counter::UNMATCHED + unmatched::EXITED, open);
    }
    let _ = THREADS.remove(id);
}
