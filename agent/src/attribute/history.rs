//! Sizes of what was written, read, sent and received lately, and whether they agree.

use std::collections::VecDeque;

/// How many of a kind are remembered.
const LENGTH: usize = 48;
/// What encryption adds to each record: TLS 1.3, 1.2 with AES-GCM, 1.2 with ChaCha20.
const OVERHEADS: [u64; 3] = [22, 29, 21];
/// Plaintext of one record.
const RECORD: u64 = 16384;
/// The end of a TLS 1.3 client's handshake: the encrypted `Finished` with a hash of 32 or 48 bytes (RFC 8446 section
/// 4.4.4), after a `change_cipher_spec` of 6 bytes or without. BoringSSL keeps it for the first write and sends both
/// together.
const FINISHED: [u64; 4] = [58, 64, 74, 80];
const TLS_1_3: u64 = OVERHEADS[0];

/// The last of its kind, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    runs: VecDeque<Run>,
    /// There were others before these.
    has_forgotten: bool,
}

/// Events of a kind that nothing to compare them with came between.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Number of the first event.
    event: u64,
    count: u64,
    bytes: u64,
}

impl History {
    pub fn push(&mut self, event: u64, bytes: u64) {
        if self.runs.len() == LENGTH {
            self.runs.pop_front();
            self.has_forgotten = true;
        }
        let count = 1;
        self.runs.push_back(Run {
            event,
            count,
            bytes,
        });
    }

    /// Another one like the last, if that is no older than `limit`: one receive may hold hundreds of records, each read
    /// by itself.
    pub fn push_since(&mut self, limit: u64, event: u64, bytes: u64) {
        match self.runs.back_mut().filter(|run| run.event > limit) {
            Some(run) => {
                run.count += 1;
                run.bytes = run.bytes.saturating_add(bytes);
            }
            None => self.push(event, bytes),
        }
    }

    /// More of the last event.
    pub fn extend(&mut self, bytes: u64) {
        if let Some(run) = self.runs.back_mut() {
            run.bytes = run.bytes.saturating_add(bytes);
        }
    }

    pub fn clear(&mut self) {
        self.runs.clear();
        self.has_forgotten = true;
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Event and bytes, from the newest to the oldest.
    fn back(&self) -> impl Iterator<Item = (u64, u64)> {
        self.runs.iter().rev().map(|run| (run.event, run.bytes))
    }

    /// Number and sum of those after an event.
    fn since(&self, event: u64) -> (u64, u64) {
        let runs = self.runs.iter().rev().take_while(|run| run.event > event);
        runs.fold((0, 0), |(count, sum), run| {
            (count + run.count, run.bytes.saturating_add(sum))
        })
    }
}

fn candidates(known: Option<u64>) -> impl Iterator<Item = u64> {
    let others = if known.is_some() { &[][..] } else { &OVERHEADS };
    known.into_iter().chain(others.iter().copied())
}

/// Do the writes, from some one on, make just what was sent since? By which overhead of a record?
///
/// Sums, so that partial sends and writes that leave together only delay an agreement. The first write of all may have
/// left behind the end of the handshake.
pub fn fits_sends(writes: &History, sent: &History, known: Option<u64>) -> Option<u64> {
    if writes.is_empty() || sent.is_empty() {
        return None;
    }
    candidates(known).find(|overhead| {
        let mut sends = sent.back().peekable();
        let (mut written, mut left) = (0_u64, 0_u64);
        let summed = writes.back().any(|(event, bytes)| {
            written = written.saturating_add(bytes + overhead * bytes.div_ceil(RECORD));
            while let Some((_, bytes)) = sends.next_if(|(at, _)| *at > event) {
                left = left.saturating_add(bytes);
            }
            written == left
        });
        let may_finish = *overhead == TLS_1_3 && !writes.has_forgotten;
        let more = left.saturating_sub(written);
        summed || may_finish && FINISHED.contains(&more)
    })
}

/// Do the reads since some receive make just what was received since? By which overhead of a record?
pub fn fits_receives(reads: &History, received: &History, known: Option<u64>) -> Option<u64> {
    let mut arrived = 0_u64;
    for (event, bytes) in received.back() {
        arrived = arrived.saturating_add(bytes);
        let (count, read) = reads.since(event);
        let Some(added) = arrived.checked_sub(read).filter(|added| *added > 0) else {
            continue;
        };
        if count == 0 {
            continue;
        }
        let fits = candidates(known).find(|overhead| {
            let records = added / overhead;
            added % overhead == 0 && (read.div_ceil(RECORD)..=count).contains(&records)
        });
        if fits.is_some() {
            return fits;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(events: &[(u64, u64)]) -> History {
        let mut history = History::default();
        events
            .iter()
            .for_each(|(event, bytes)| history.push(*event, *bytes));
        history
    }

    #[test]
    fn sends_agree_with_the_writes_before_them() {
        let writes = history(&[(1, 100), (2, 50)]);
        assert_eq!(fits_sends(&writes, &history(&[(3, 194)]), None), Some(22));
        // Partial sends agree at the last of them.
        assert_eq!(fits_sends(&writes, &history(&[(3, 94)]), None), None);
        assert_eq!(
            fits_sends(&writes, &history(&[(3, 94), (4, 100)]), None),
            Some(22)
        );
        // Only the last write left.
        assert_eq!(fits_sends(&writes, &history(&[(3, 79)]), None), Some(29));
        assert_eq!(fits_sends(&writes, &history(&[(3, 79)]), Some(22)), None);
        // With the end of the handshake, if these are the first there were.
        assert_eq!(
            fits_sends(&writes, &history(&[(3, 194 + 80)]), None),
            Some(22)
        );
        assert_eq!(fits_sends(&writes, &history(&[(3, 194 + 81)]), None), None);
        assert_eq!(
            fits_sends(&writes, &history(&[(3, 208 + 80)]), Some(29)),
            None
        );
        let mut later = writes.clone();
        later.clear();
        later.push(1, 100);
        later.push(2, 50);
        assert_eq!(fits_sends(&later, &history(&[(3, 194)]), None), Some(22));
        assert_eq!(fits_sends(&later, &history(&[(3, 194 + 80)]), None), None);
        // Sent before it was written.
        assert_eq!(
            fits_sends(&history(&[(5, 100)]), &history(&[(3, 122)]), None),
            None
        );
        // 16385 bytes are two records.
        let large = history(&[(1, 16385)]);
        assert_eq!(
            fits_sends(&large, &history(&[(2, 16385 + 44)]), None),
            Some(22)
        );
        assert_eq!(fits_sends(&large, &history(&[(2, 16385 + 22)]), None), None);
    }

    #[test]
    fn receives_agree_with_the_reads_behind_them() {
        let received = history(&[(1, 122), (3, 16000)]);
        let reads = history(&[(2, 100)]);
        assert_eq!(fits_receives(&reads, &history(&[(1, 122)]), None), Some(22));
        assert_eq!(fits_receives(&reads, &received, None), None);
        // Two records that came together, read one by one.
        let reads = history(&[(2, 100), (3, 50)]);
        assert_eq!(fits_receives(&reads, &history(&[(1, 194)]), None), Some(22));
        // What came before (a session ticket) is left out.
        let received = history(&[(1, 999), (2, 122)]);
        assert_eq!(
            fits_receives(&history(&[(3, 100)]), &received, None),
            Some(22)
        );
        // More records than reads.
        assert_eq!(
            fits_receives(&history(&[(3, 100)]), &history(&[(1, 144)]), None),
            None
        );
    }

    #[test]
    fn only_the_last_are_kept() {
        let events: Vec<_> = (1..100).map(|event| (event, 1)).collect();
        assert_eq!(history(&events).since(0), (LENGTH as u64, LENGTH as u64));
    }
}
