//! What connections without a name have said so far: it waits a little, because the name is often found by
//! what comes next. Bounded in time, bytes and number; in order.

use std::collections::HashMap;

use crate::{
    event::{HandleId, StreamId},
    plaintext::Kept,
    record::Cause,
};

/// How long a piece waits, in nanoseconds; and how long if something speaks for a name and something else
/// against it: connections that began in step are told apart by their next few requests.
const PATIENCE: u64 = 250_000_000;
const PATIENCE_CONTESTED: u64 = 2_000_000_000;
/// What waits in all connections together, at most.
const BYTES_MAX: usize = 4 << 20;
const PIECES_MAX: usize = 4096;

/// One event of a stream.
#[derive(Debug)]
pub struct Piece {
    pub stream: StreamId,
    pub offset: u64,
    pub content: What,
    pub tid: u32,
    pub point: u64,
    pub time: u64,
}

#[derive(Debug)]
pub enum What {
    Bytes(Kept),
    Gap(u64, Cause),
}

impl Piece {
    /// Position behind it.
    pub fn end(&self) -> u64 {
        let length = match &self.content {
            What::Bytes(bytes) => bytes.plaintext().len() as u64,
            What::Gap(length, _) => *length,
        };
        self.offset.saturating_add(length)
    }

    fn bytes(&self) -> usize {
        match &self.content {
            What::Bytes(bytes) => bytes.plaintext().len(),
            What::Gap(..) => 0,
        }
    }
}

#[derive(Debug, Default)]
pub struct Backlog {
    waiting: HashMap<HandleId, Vec<Piece>>,
    bytes: usize,
    pieces: usize,
}

impl Backlog {
    /// Does anything of this connection wait?
    pub fn has(&self, id: &HandleId) -> bool {
        self.waiting.contains_key(id)
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// False if there is no room for more: what waits of this connection should go.
    pub fn push(&mut self, piece: Piece) -> bool {
        self.bytes += piece.bytes();
        self.pieces += 1;
        let id = piece.stream.handle;
        self.waiting.entry(id).or_default().push(piece);
        self.bytes <= BYTES_MAX && self.pieces <= PIECES_MAX
    }

    /// What waits of a connection, in the order it came.
    pub fn take(&mut self, id: &HandleId) -> Vec<Piece> {
        let pieces = self.waiting.remove(id).unwrap_or_default();
        self.bytes -= pieces.iter().map(Piece::bytes).sum::<usize>();
        self.pieces -= pieces.len();
        pieces
    }

    /// Whose first piece has waited long enough, and since when.
    pub fn overdue(
        &self,
        now: u64,
        is_contested: impl Fn(&HandleId) -> bool,
    ) -> Vec<(u64, HandleId)> {
        let mut overdue = self.since(now.saturating_sub(PATIENCE));
        let limit = now.saturating_sub(PATIENCE_CONTESTED);
        overdue.retain(|(first, id)| *first < limit || !is_contested(id));
        overdue
    }

    /// Everybody.
    pub fn all(&self) -> Vec<HandleId> {
        let all = self.since(u64::MAX).into_iter();
        all.map(|(_, id)| id).collect()
    }

    /// Whose first piece came before `limit`, in the order of these pieces.
    fn since(&self, limit: u64) -> Vec<(u64, HandleId)> {
        let firsts = self.waiting.iter().filter_map(|(id, pieces)| {
            let first = pieces.first()?.time;
            (first < limit).then_some((first, id.handle, *id))
        });
        let mut firsts: Vec<_> = firsts.collect();
        firsts.sort_unstable();
        let firsts = firsts.into_iter();
        firsts.map(|(first, _, id)| (first, id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use agent_ebpf::Direction;

    use super::*;
    use crate::plaintext::Plaintext;

    fn piece(handle: u64, time: u64, bytes: usize) -> Piece {
        let handle = HandleId {
            pid: 1,
            born: 0,
            handle,
        };
        let stream = StreamId {
            handle,
            direction: Direction::Sent,
        };
        Piece {
            stream,
            offset: 0,
            content: What::Bytes(Plaintext::new(&vec![0; bytes]).keep()),
            tid: 1,
            point: 0,
            time,
        }
    }

    #[test]
    fn pieces_wait_in_order_and_no_longer_than_the_first_may() {
        let mut backlog = Backlog::default();
        for time in [5, 6, 7] {
            assert!(backlog.push(piece(1, time, 1)));
        }
        backlog.push(piece(2, 8, 1));
        let overdue = |now, contested| backlog.overdue(now, |_| contested).len();
        assert_eq!([5, 6].map(|now| overdue(now + PATIENCE, false)), [0, 1]);
        assert_eq!(overdue(6 + PATIENCE, true), 0);
        assert_eq!(
            [5, 6].map(|now| overdue(now + PATIENCE_CONTESTED, true)),
            [0, 1]
        );
        let due = backlog.overdue(6 + PATIENCE, |_| false);
        assert_eq!(due[0].0, 5);
        let times: Vec<u64> = backlog
            .take(&due[0].1)
            .iter()
            .map(|piece| piece.time)
            .collect();
        assert_eq!(times, [5, 6, 7]);
        assert!(!backlog.has(&due[0].1) && backlog.all().len() == 1);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut backlog = Backlog::default();
        assert!(backlog.push(piece(1, 0, BYTES_MAX)));
        assert!(!backlog.push(piece(2, 0, 1)));
        let first = backlog.all()[0];
        backlog.take(&first);
        let second = backlog.all()[0];
        backlog.take(&second);
        assert!(backlog.is_empty() && backlog.bytes == 0 && backlog.pieces == 0);
        for _ in 0..PIECES_MAX {
            assert!(backlog.push(piece(1, 0, 0)));
        }
        assert!(!backlog.push(piece(1, 0, 0)));
    }
}
