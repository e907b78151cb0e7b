//! Which control groups a process is in, by their names and those of the groups above: noted while the process lives. One
//! that ends at once is gone before anybody has asked /proc, and its groups with it.

use core::ffi::c_void;

use agent_ebpf::{GROUP_NAME, GROUPS_DEEP, Group, GroupId, NO_CONTROLLER};
use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, generated},
    macros::{map, raw_tracepoint},
    maps::{Array, LruHashMap},
    programs::RawTracePointContext,
};

use crate::{
    kernel::word,
    maps::{address, insert, lookup, offset, stopped},
};

/// The groups of each process that was made, or became another program, of late: in version 2, and in a hierarchy of
/// version 1.
#[map]
pub static GROUPS_OF: LruHashMap<u32, [GroupId; 2]> = LruHashMap::with_max_entries(8192, 0);

/// What groups are called. Once for all who are in one: 1.5 KiB each.
#[map]
pub static GROUP_NAMES: LruHashMap<GroupId, Group> = LruHashMap::with_max_entries(1024, 0);

/// Stays all zero: where new groups come from, because one doesn't fit on the stack.
#[map]
static NO_GROUP: Array<Group> = Array::with_max_entries(1, 0);

/// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`, 5.10 to 7.2. The child is in its group, whichever
/// way it got there (`CLONE_INTO_CGROUP`).
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn group_fork(ctx: RawTracePointContext) -> i32 {
    if stopped() {
        return 0;
    }
    let child: u64 = ctx.arg(1);
    // The upper half is of what stands behind it.
    let id = word(child + offset!(task_tgid)) as u32;
    // A thread is no new process.
    if id != (bpf_get_current_pid_tgid() >> 32) as u32 {
        note(child, &id);
    }
    0
}

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, 5.10 to 7.2. A runtime makes a process,
/// moves it into the container's group and lets it become the container's program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn group_exec(_ctx: RawTracePointContext) -> i32 {
    if stopped() {
        return 0;
    }
    let id = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: no arguments.
    note(unsafe { bpf_get_current_task() }, &id);
    0
}

#[inline(always)]
fn note(task: u64, process: &u32) {
    let Some(nothing) = NO_GROUP.get_ptr(0) else {
        return;
    };
    // SAFETY: the map above; its values are no larger than what is zero here.
    if !unsafe {
        insert(
            address(&GROUPS_OF),
            (&raw const *process).cast(),
            nothing.cast(),
        )
    } {
        return;
    }
    let Some(groups) = GROUPS_OF.get_ptr_mut(process) else {
        return;
    };
    let groups = groups.cast::<GroupId>();
    let set = word(task + offset!(task_cgroups));
    // SAFETY: a map value of two ids.
    unsafe { meet(groups, word(set + offset!(css_set_default))) };
    // A runtime need not join all hierarchies.
    let controller = offset!(css_set_controller);
    if controller != u64::from(NO_CONTROLLER) {
        let group = word(word(set + controller) + offset!(css_cgroup));
        // SAFETY: as above.
        unsafe { meet(groups.add(1), group) };
    }
}

/// # Safety
/// `id` points into a map's value.
#[inline(always)]
unsafe fn meet(id: *mut GroupId, group: u64) {
    let node = word(group + offset!(cgroup_node));
    // The address alone would be that of another group some day.
    // SAFETY: the caller's promise; a key of the map.
    let known = unsafe {
        (&raw mut (*id).address).write_volatile(group);
        (&raw mut (*id).number).write_volatile(word(node + offset!(node_id)));
        lookup::<Group>(address(&GROUP_NAMES), id.cast())
    };
    if known.is_null() {
        // SAFETY: the caller's promise.
        unsafe { describe(id, node) };
    }
}

/// # Safety
/// As [`meet`].
#[inline(always)]
unsafe fn describe(id: *mut GroupId, mut node: u64) {
    let Some(nothing) = NO_GROUP.get_ptr(0) else {
        return;
    };
    // SAFETY: a key and a value of the map.
    let group = unsafe {
        if !insert(address(&GROUP_NAMES), id.cast(), nothing.cast()) {
            return;
        }
        lookup::<Group>(address(&GROUP_NAMES), id.cast())
    };
    if group.is_null() {
        return;
    }
    let mut levels = 1;
    for level in 0..GROUPS_DEEP {
        let parent = word(node + offset!(node_parent));
        if parent == 0 {
            break;
        }
        let name = word(node + offset!(node_name));
        // SAFETY: a map value, and a name of it; the helper fails on a wrong address and leaves zeros.
        unsafe {
            let to = (&raw mut (*group).names[level]).cast();
            generated::bpf_probe_read_kernel_str(to, GROUP_NAME as u32, name as *const c_void);
        }
        levels += 1;
        node = parent;
    }
    // SAFETY: a map value. Last: until then it says nothing.
    unsafe {
        (*group).is_cut = u32::from(word(node + offset!(node_parent)) != 0);
        (&raw mut (*group).levels).write_volatile(levels);
    }
}
