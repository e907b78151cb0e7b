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

use crate::maps::{offset, stopped};

/// The groups of each process that was made, or became another program, of late: in version 2, and in a hierarchy of
/// version 1.
#[map]
pub static GROUPS_OF: LruHashMap<u32, [GroupId; 2]> = LruHashMap::with_max_entries(8192, 0);

/// What groups are called. Once for all who are in one: 1.5 KiB each.
#[map]
pub static GROUPS: LruHashMap<GroupId, Group> = LruHashMap::with_max_entries(1024, 0);

const NOWHERE: GroupId = GroupId {
    address: 0,
    number: 0,
};

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
    let id = read(child + offset!(task_tgid)) as u32;
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
    let set = read(task + offset!(task_cgroups));
    // A runtime need not join all hierarchies.
    let mut groups = [meet(read(set + offset!(css_set_default))), NOWHERE];
    let controller = offset!(css_set_controller);
    if controller != u64::from(NO_CONTROLLER) {
        groups[1] = meet(read(read(set + controller) + offset!(css_cgroup)));
    }
    let _ = GROUPS_OF.insert(process, &groups, 0);
}

#[inline(always)]
fn meet(group: u64) -> GroupId {
    let node = read(group + offset!(cgroup_node));
    // The address alone would be that of another group some day.
    let id = GroupId {
        address: group,
        number: read(node + offset!(node_id)),
    };
    if GROUPS.get_ptr(&id).is_none() {
        describe(&id, node);
    }
    id
}

#[inline(always)]
fn describe(id: &GroupId, mut node: u64) {
    let Some(nothing) = NO_GROUP.get_ptr(0) else {
        return;
    };
    // SAFETY: a map value.
    if GROUPS.insert(id, unsafe { &*nothing }, 0).is_err() {
        return;
    }
    let Some(group) = GROUPS.get_ptr_mut(id) else {
        return;
    };
    let mut levels = 1;
    for level in 0..GROUPS_DEEP {
        let parent = read(node + offset!(node_parent));
        if parent == 0 {
            break;
        }
        let name = read(node + offset!(node_name));
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
        (*group).is_cut = u32::from(read(node + offset!(node_parent)) != 0);
        (&raw mut (*group).levels).write_volatile(levels);
    }
}

#[inline(always)]
fn read(address: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: eight bytes; the helper fails on a wrong address and leaves zero.
    unsafe {
        generated::bpf_probe_read_kernel((&raw mut value).cast(), 8, address as *const c_void);
    }
    value
}
