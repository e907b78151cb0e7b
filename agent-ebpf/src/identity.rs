//! Which file a mapping really is, and whether anybody maps it: asked by the privileged half through
//! `BPF_PROG_TEST_RUN`, attached nowhere.
//!
//! `fstat` and the numbers of a mapping can't say it: on overlayfs they are the overlay's, on btrfs a
//! snapshot's and its original's are equal. Probes sit on the kernel's inode, so that is what is asked.

use core::{ffi::c_void, ptr};

use agent_ebpf::FileIdentity;
use aya_ebpf::{
    bindings::task_struct,
    helpers::generated,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};

use crate::{kernel::word, maps::offset};

/// `-EBUSY` of `bpf_find_vma`: somebody changes the mappings, or is about to. A program does not wait.
const BUSY: i64 = -16;

/// The answers: what a program returns, aya's macro drops.
#[map]
pub static IDENTITY: Array<FileIdentity> = Array::with_max_entries(1, 0);

/// Argument: an address in the asking process. Needs `bpf_find_vma` (5.17).
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn file_identity(ctx: RawTracePointContext) -> i32 {
    let address: u64 = ctx.arg(0);
    let Some(answer) = IDENTITY.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a map value, and the task that runs.
    unsafe {
        (*answer).inode = 0;
        let task = generated::bpf_get_current_task_btf();
        find(task, address, answer);
    }
    0
}

/// The same for another process, whose thread the half asks to iterate over: no helper finds a task by its id.
/// The address is in the answer's place.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn mapping_identity(ctx: *mut c_void) -> i32 {
    let Some(answer) = IDENTITY.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: `struct bpf_iter__task`: where to write, and the task, which is null at the end; a map value.
    unsafe {
        let task = ctx.cast::<*mut task_struct>().add(1).read();
        if task.is_null() {
            return 0;
        }
        let address = (*answer).address;
        find(task, address, answer);
    }
    0
}

/// # Safety
/// A task, and a map value.
#[inline(always)]
unsafe fn find(task: *mut task_struct, address: u64, answer: *mut FileIdentity) {
    // SAFETY: the caller's promise; the callback has the kernel's signature.
    unsafe {
        let found =
            generated::bpf_find_vma(task, address, visit as *mut c_void, ptr::null_mut(), 0);
        (*answer).is_busy = u64::from(found == BUSY);
    }
}

/// `task`, `vma`, and nothing: the answer is looked up again, a map value can't be a context.
#[inline(never)]
extern "C" fn visit(_task: *const c_void, vma: *const c_void, _context: *const c_void) -> i64 {
    let Some(answer) = IDENTITY.get_ptr_mut(0) else {
        return 0;
    };
    let file = word(vma as u64 + offset!(vma_file));
    if file == 0 {
        return 0;
    }
    let inode = word(file + offset!(file_inode));
    let superblock = word(inode + offset!(inode_sb));
    // SAFETY: a map value.
    unsafe {
        (*answer).inode = inode;
        (*answer).number = word(inode + offset!(inode_ino));
        // `dev_t` has 32 bits: major << 20 | minor.
        (*answer).device = word(superblock + offset!(super_dev)) & 0xffff_ffff;
    }
    0
}

/// Argument: an inode that a link of ours keeps alive. Does anybody map it? Mappings of every kind count,
/// so it is late at worst.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn file_is_mapped(ctx: RawTracePointContext) -> i32 {
    let inode: u64 = ctx.arg(0);
    let mapping = word(inode + offset!(inode_mapping));
    // `struct rb_root_cached` begins with the root.
    let root = word(mapping + offset!(mapping_i_mmap));
    if let Some(answer) = IDENTITY.get_ptr_mut(0) {
        // SAFETY: a map value.
        unsafe { (*answer).mappings = root };
    }
    0
}
