//! Which server a handle wants to talk to: the name that goes into its handshake.

use core::ffi::c_void;

use agent_ebpf::{Direction, Head, NAME_MAX, Name, kind};
use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, generated},
    macros::uprobe,
    programs::ProbeContext,
};

use crate::{
    emit::{NO_WAKEUP, find_birth, reserve_spare},
    filter::{Admission, admit},
    maps::{get, stopped},
};

/// `SSL_CTRL_SET_TLSEXT_HOSTNAME`: what the macro `SSL_set_tlsext_host_name(handle, name)` calls
/// `SSL_ctrl` with. All versions and relatives.
const SET_HOST_NAME: i32 = 55;

#[uprobe]
pub fn control_perf(ctx: ProbeContext) -> u32 {
    named(&ctx)
}

#[inline(always)]
pub fn named(ctx: &ProbeContext) -> u32 {
    if ctx.arg::<i32>(1) != Some(SET_HOST_NAME) || stopped() {
        return 0;
    }
    let id = bpf_get_current_pid_tgid();
    let Admission::Wanted(thread) = admit(&id) else {
        return 0;
    };
    // SAFETY: the program's context, and a map value; `record` is a reservation of this size, and nothing
    // of it leaves that was not written.
    unsafe {
        (*thread).key.handle = ctx.arg(0).unwrap_or(0);
        (*thread).key.born = get!(thread, born);
        (*thread).key.direction = Direction::Received as u32;
        find_birth(thread);
        let record: *mut Name = reserve_spare(size_of::<Name>() as u64 + NAME_MAX).cast();
        if record.is_null() {
            return 0;
        }
        let text: *mut c_void = record.add(1).cast();
        let from = ctx.arg::<u64>(3).unwrap_or(0) as *const c_void;
        // The zero is counted, too; 1 is no name, below that no memory.
        let length = generated::bpf_probe_read_user_str(text, NAME_MAX as u32, from);
        if length <= 1 {
            generated::bpf_ringbuf_discard(record.cast(), NO_WAKEUP);
            return 0;
        }
        (*record).head = Head {
            kind: kind::NAME,
            direction: Direction::Sent as u16,
            len: length as u32 - 1,
            time: bpf_ktime_get_boot_ns(),
        };
        (*record).pid_tgid = get!(thread, pid_tgid);
        (*record).born = get!(thread, handle_born);
        (*record).handle = get!(thread, key.handle);
        generated::bpf_ringbuf_submit(record.cast(), NO_WAKEUP);
    }
    0
}
