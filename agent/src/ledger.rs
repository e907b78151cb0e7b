//! Where every byte and every call went. The kernel counts what it saw, the pipeline what it delivered.

use agent_ebpf::{cause, counter, unmatched};

use crate::record::{Bytes, Calls, Ledger, Lost, Unmatched};

/// What user space did with the bytes that reached it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Given to the protocol stage.
    pub delivered: u64,
    /// Turned away by a filter of user space.
    pub filtered: u64,
    /// Of connections that a limit left out.
    pub over_limit: u64,
    /// Of what is no TLS function, as its first calls showed.
    pub withdrawn: u64,
    /// Missing without the kernel saying so.
    pub unknown: u64,
}

/// The whole ledger. `kernel` gives the sum of one counter over all CPUs. What is neither lost nor
/// delivered yet is in flight: 0 after the last record.
pub fn ledger(kernel: impl Fn(usize) -> u64, tally: Tally) -> Ledger {
    let lost = |cause: u16| kernel(counter::LOST + usize::from(cause));
    let unmatched = |cause: usize| kernel(counter::UNMATCHED + cause);
    let lost_bytes = Lost {
        ring_full: lost(cause::RING_FULL),
        copy_fault: lost(cause::COPY_FAULT),
        map_full: lost(cause::MAP_FULL),
        over_budget: lost(cause::OVER_BUDGET),
        sendfile: lost(cause::SENDFILE),
        no_buffer: lost(cause::NO_BUFFER),
        withdrawn: tally.withdrawn,
        unknown: tally.unknown,
    };
    let over_limit = lost(cause::CALL_TOO_LONG) + tally.over_limit;
    let unmatched = Unmatched {
        abandoned: unmatched(unmatched::ABANDONED),
        too_deep: unmatched(unmatched::TOO_DEEP),
        map_full: unmatched(unmatched::MAP_FULL),
        exited: unmatched(unmatched::EXITED),
        other_stack: unmatched(unmatched::OTHER_STACK),
    };
    let returns = kernel(counter::RETURNS);
    // The totals last: what comes in meanwhile is in flight, never negative.
    let (seen, entries) = (kernel(counter::SEEN), kernel(counter::ENTRIES));
    let placed = over_limit + tally.filtered + tally.delivered + lost_bytes.sum();
    let ended = returns + unmatched.sum();
    Ledger {
        bytes: Bytes {
            seen,
            filtered: tally.filtered,
            over_limit,
            lost: lost_bytes,
            delivered: tally.delivered,
            in_flight: seen.saturating_sub(placed),
        },
        calls: Calls {
            entries,
            returns,
            in_flight: entries.saturating_sub(ended),
            filtered: kernel(counter::FILTERED),
            unmatched,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_identities_hold_by_field() {
        // Each counter has a value of its own, so that none can stand for another.
        let ledger = ledger(
            |index| match index {
                counter::SEEN => 1 << 40,
                counter::ENTRIES => 1 << 41,
                index => 1 << index,
            },
            Tally {
                delivered: 7,
                filtered: 11,
                over_limit: 19,
                withdrawn: 17,
                unknown: 13,
            },
        );
        let bytes = &ledger.bytes;
        assert_eq!(
            bytes.seen,
            bytes.filtered
                + bytes.over_limit
                + bytes.lost.ring_full
                + bytes.lost.copy_fault
                + bytes.lost.map_full
                + bytes.lost.over_budget
                + bytes.lost.sendfile
                + bytes.lost.no_buffer
                + bytes.lost.withdrawn
                + bytes.lost.unknown
                + bytes.delivered
                + bytes.in_flight
        );
        assert_eq!(
            (bytes.lost.ring_full, bytes.lost.copy_fault),
            (1 << 24, 1 << 25)
        );
        assert_eq!(
            (bytes.lost.map_full, bytes.over_limit),
            (1 << 26, (1 << 27) + 19)
        );
        assert_eq!(
            (bytes.lost.over_budget, bytes.lost.sendfile),
            (1 << 28, 1 << 29)
        );
        assert_eq!(bytes.lost.no_buffer, 1 << 30);
        let calls = &ledger.calls;
        let unmatched = &calls.unmatched;
        assert_eq!(
            calls.entries,
            calls.returns
                + calls.in_flight
                + unmatched.abandoned
                + unmatched.too_deep
                + unmatched.map_full
                + unmatched.exited
                + unmatched.other_stack
        );
        assert_eq!((calls.returns, calls.filtered), (1 << 9, 1 << 10));
        assert_eq!((unmatched.abandoned, unmatched.exited), (1 << 12, 1 << 15));
        assert_eq!(unmatched.other_stack, 1 << 16);
    }
}
