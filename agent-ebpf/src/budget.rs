//! One process that floods the ring must not starve the others: the upper half of the ring is shared out.
//!
//! The lower half is anybody's. Above it, while more than one process calls, each may add an eighth of the
//! ring per window of time; what a process sends beyond that is lost first. A process alone is never cut.

use agent_ebpf::Thread;
use aya_ebpf::{
    bindings::BPF_RB_AVAIL_DATA,
    helpers::{bpf_ktime_get_boot_ns, generated},
};

use crate::maps::{LATEST, RING, address, budget_of, get, hide, opaque, ring_size};

/// A caller that nobody else followed for so long is alone.
const ALONE: u64 = 2_000_000_000;
/// Processes that take turns note it this often: the word is one for all CPUs.
const TURN: u64 = 100_000_000;
/// Windows of 134 ms.
const WINDOW_BITS: u64 = 27;
/// Bytes of a thread between two looks at the ring's level: small calls don't pay for one each.
const UNCHECKED: u64 = 64 << 10;

/// Notes who calls.
#[inline(always)]
pub fn note(thread: *mut Thread) {
    let Some(latest) = LATEST.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: map values. Several CPUs may write at once: either is true.
    unsafe {
        let tgid = u64::from(get!(thread, key.tgid));
        if get!(latest, tgid) == tgid {
            return;
        }
        if get!(latest, tgid) == 0 {
            (*latest).tgid = tgid;
            return;
        }
        let now = bpf_ktime_get_boot_ns();
        if now - get!(latest, since) > TURN {
            (*latest).tgid = tgid;
            (*latest).since = now;
        }
    }
}

/// Is this call of `call.position` bytes beyond its process' share? Counts it if not.
#[inline(always)]
pub fn is_over(thread: *mut Thread) -> bool {
    // SAFETY: a ring buffer map, and map values.
    unsafe {
        let unchecked = get!(thread, unchecked) + get!(thread, call.position);
        (*thread).unchecked = unchecked;
        if unchecked < UNCHECKED {
            return false;
        }
        let ring = address(&RING).cast_mut();
        let filled = generated::bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA));
        let Some(latest) = LATEST.get_ptr(0) else {
            return false;
        };
        let now = bpf_ktime_get_boot_ns();
        if filled < ring_size() / 2 || now - get!(latest, since) > ALONE {
            (*thread).unchecked = opaque(0);
            return false;
        }
        let budget = budget_of((&raw const (*hide(thread)).key.tgid).cast());
        if budget.is_null() {
            return false;
        }
        // Racing threads of the process lose a little of what they used: a budget, not a ledger.
        if get!(budget, window) != now >> WINDOW_BITS {
            (*budget).window = now >> WINDOW_BITS;
            (*budget).used = 0;
        }
        let used = get!(budget, used) + get!(thread, unchecked);
        if used > ring_size() / 8 {
            // Not more than this, so that the next call is looked at, too, and may pass in a later window.
            (*thread).unchecked = UNCHECKED;
            return true;
        }
        (*budget).used = used;
        (*thread).unchecked = opaque(0);
        false
    }
}
