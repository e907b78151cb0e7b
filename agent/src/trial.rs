//! Are the first captures of a file what TLS functions give? Whoever was found without a name, or named by
//! somebody, may be the wrong function: its first calls decide whether it is believed.
//!
//! One call acquits for good, several have to agree to condemn, and what is suspicious is held back until then. The
//! signs are such that no TLS function can give them:
//!
//! - *A send or a receive.* The socket moved just as many bytes as the call says that it carried, and these are TLS
//!   records. Encryption adds five bytes to each record at the least, so a TLS function moves more, or others.
//!   Both must be so: a library that adds nothing is none of TLS, but may be what somebody wants to see, and TLS
//!   in TLS is plaintext that consists of records. Kernel TLS takes plaintext of the same size; the kernel side
//!   tells nothing of its sockets.
//! - *No number of bytes.* The call returned more than its buffer holds: a checksum, an address.
//!
//! Libraries that work in memory are not judged: they are believed after a while. Pure, and all of it is bounded.

use std::collections::{BTreeMap, HashMap, HashSet};

use agent_ebpf::{Direction, RECORD_MAX};

use crate::{
    backlog::Piece,
    event::{HandleId, StreamId},
    half::FileId,
};

/// Signs that condemn. One could be a bug of ours.
const SIGNS: u32 = 3;
/// Calls that say nothing, until a file is believed.
const SILENT: u32 = 16;
/// Threads of which a call is remembered.
const THREADS_MAX: usize = 1024;

const SENDS: &str = "withdrawn: its calls carry TLS records, just as many bytes as the socket \
                     moves: it sends or receives what is encrypted already";
const COUNTS: &str =
    "withdrawn: its calls return more than their buffers hold: that is no number of bytes";

/// What becomes of a call's bytes.
#[derive(Debug)]
pub enum Verdict {
    /// They are shown, behind those that were held.
    Believed(Vec<Piece>),
    /// They have to wait.
    Suspicious,
    /// The functions are others, and why. What was held is not shown.
    Condemned(&'static str, Vec<Piece>),
}

/// All files that are, or were, on trial.
#[derive(Debug, Default)]
pub struct Trials {
    open: BTreeMap<FileId, Trial>,
    condemned: HashSet<FileId>,
    /// What sockets moved inside calls, by thread.
    carried: HashMap<u32, Carried>,
}

#[derive(Debug, Default)]
struct Trial {
    sends: u32,
    senseless: u32,
    silent: u32,
    held: Vec<Piece>,
    /// Where the next TLS record of a stream begins, if it consists of them.
    records: HashMap<StreamId, u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    file: FileId,
    handle: u64,
    received: u64,
    sent: u64,
}

impl Trials {
    pub fn open(&mut self, file: FileId) {
        self.open.insert(file, Trial::default());
    }

    /// Must the kernel side tell what sockets move inside calls?
    pub fn is_any_open(&self) -> bool {
        !self.open.is_empty()
    }

    pub fn is_open(&self, file: FileId) -> bool {
        self.open.contains_key(&file)
    }

    pub fn is_condemned(&self, file: FileId) -> bool {
        self.condemned.contains(&file)
    }

    /// A socket moved bytes inside an open call of this handle.
    pub fn carried(&mut self, file: FileId, tid: u32, handle: u64, way: Direction, length: u64) {
        if self.carried.len() >= THREADS_MAX || self.open.is_empty() {
            self.carried.clear();
        }
        if !self.open.contains_key(&file) {
            return;
        }
        let carried = self.carried.entry(tid).or_default();
        if (carried.file, carried.handle) != (file, handle) {
            *carried = Carried {
                file,
                handle,
                ..Carried::default()
            };
        }
        match way {
            Direction::Received => carried.received += length,
            Direction::Sent => carried.sent += length,
        }
    }

    /// A call through a file that is on trial returned these bytes.
    pub fn data(
        &mut self,
        file: FileId,
        stream: StreamId,
        tid: u32,
        offset: u64,
        bytes: &[u8],
    ) -> Verdict {
        let carried = self.carried.remove(&tid);
        let carried = carried.filter(|it| (it.file, it.handle) == (file, stream.handle.handle));
        let Some(trial) = self.open.get_mut(&file) else {
            return Verdict::Believed(Vec::new());
        };
        // How long a call was that makes several records is not known here.
        let carried = carried.filter(|_| (bytes.len() as u64) < RECORD_MAX);
        let Some(Carried { received, sent, .. }) = carried else {
            trial.silent += 1;
            return match (trial.silent < SILENT, trial.sends) {
                (false, _) => self.believe(file),
                (true, 0) => Verdict::Believed(Vec::new()),
                (true, _) => Verdict::Suspicious,
            };
        };
        let (same, other) = match stream.direction {
            Direction::Received => (received, sent),
            Direction::Sent => (sent, received),
        };
        if (same, other) != (bytes.len() as u64, 0) || !trial.are_records(stream, offset, bytes) {
            return self.believe(file);
        }
        trial.sends += 1;
        match trial.sends < SIGNS {
            true => Verdict::Suspicious,
            false => self.condemn(file, SENDS),
        }
    }

    /// A call through the file returned no number of bytes.
    pub fn senseless(&mut self, file: FileId) -> Option<Verdict> {
        let trial = self.open.get_mut(&file)?;
        trial.senseless += 1;
        (trial.senseless >= SIGNS).then(|| self.condemn(file, COUNTS))
    }

    pub fn hold(&mut self, file: FileId, piece: Piece) {
        if let Some(trial) = self.open.get_mut(&file) {
            trial.held.push(piece);
        }
    }

    /// What is held of a connection that ends: nothing speaks for it any more.
    pub fn take(&mut self, id: HandleId) -> Vec<Piece> {
        let trials = self.open.values_mut();
        let pieces = trials.flat_map(|trial| {
            trial.records.retain(|stream, _| stream.handle != id);
            trial.held.extract_if(.., |piece| piece.stream.handle == id)
        });
        pieces.collect()
    }

    /// The same of all.
    pub fn take_all(&mut self) -> Vec<Piece> {
        let trials = self.open.values_mut();
        trials
            .flat_map(|trial| std::mem::take(&mut trial.held))
            .collect()
    }

    /// The file is no more. What is held of it: a connection may go on through the same file, placed again.
    pub fn forget(&mut self, file: FileId) -> Vec<Piece> {
        self.condemned.remove(&file);
        self.open.remove(&file).unwrap_or_default().held
    }

    fn believe(&mut self, file: FileId) -> Verdict {
        let trial = self.open.remove(&file).unwrap_or_default();
        Verdict::Believed(trial.held)
    }

    fn condemn(&mut self, file: FileId, why: &'static str) -> Verdict {
        self.condemned.insert(file);
        let trial = self.open.remove(&file).unwrap_or_default();
        Verdict::Condemned(why, trial.held)
    }
}

impl Trial {
    /// Do the records of the stream go on in these bytes? A head must be whole: who is in doubt is believed.
    fn are_records(&mut self, stream: StreamId, offset: u64, bytes: &[u8]) -> bool {
        const LENGTH_MAX: u16 = (1 << 14) + 2048;
        let next = self.records.entry(stream).or_insert(offset);
        while *next < offset + bytes.len() as u64 {
            let head = next
                .checked_sub(offset)
                .and_then(|at| bytes.get(at as usize..))
                .and_then(|rest| rest.first_chunk());
            let Some(&[20..=23, 3, 0..=4, high, low]) = head else {
                return false;
            };
            let length = u16::from_be_bytes([high, low]);
            if length > LENGTH_MAX {
                return false;
            }
            *next += 5 + u64::from(length);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backlog::What, plaintext::Plaintext};

    const FILE: FileId = 7;

    fn stream(direction: Direction) -> StreamId {
        let handle = HandleId {
            pid: 1,
            born: 2,
            handle: 3,
        };
        StreamId { handle, direction }
    }

    fn record(length: usize) -> Vec<u8> {
        let mut record = vec![23, 3, 3, (length >> 8) as u8, length as u8];
        record.resize(5 + length, 0xaa);
        record
    }

    /// Calls in a row of one stream: what the socket moved, and the bytes. How many were believed at once, and what
    /// became of the file.
    fn calls(direction: Direction, calls: &[(u64, Vec<u8>)]) -> (usize, Trials) {
        let mut trials = Trials::default();
        trials.open(FILE);
        let (mut offset, mut believed) = (0, 0);
        for (moved, bytes) in calls {
            if *moved != 0 {
                trials.carried(FILE, 9, 3, direction, *moved);
            }
            match trials.data(FILE, stream(direction), 9, offset, bytes) {
                Verdict::Believed(held) => believed += 1 + held.len(),
                Verdict::Suspicious => {
                    let piece = Piece {
                        stream: stream(direction),
                        offset,
                        content: What::Bytes(Plaintext::new(bytes).keep()),
                        tid: 9,
                        point: 0,
                        time: 0,
                    };
                    trials.hold(FILE, piece);
                }
                Verdict::Condemned(why, held) => {
                    assert!(why.contains("encrypted already"), "{why}");
                    assert_eq!(held.len(), SIGNS as usize - 1);
                    break;
                }
            }
            offset += bytes.len() as u64;
        }
        (believed, trials)
    }

    #[test]
    fn who_sends_records_is_condemned() {
        let send = |length: usize| (5 + length as u64, record(length));
        let (believed, trials) = calls(Direction::Sent, &[send(512), send(1), send(90)]);
        assert_eq!((believed, trials.is_condemned(FILE)), (0, true));
        assert!(!trials.is_any_open());
        // A library reads the head by itself.
        let heads = [record(80), record(40)].concat();
        let pieces = [&heads[..5], &heads[5..85], &heads[85..90]];
        let reads = pieces.map(|piece| (piece.len() as u64, piece.to_vec()));
        let (believed, trials) = calls(Direction::Received, &reads);
        assert_eq!((believed, trials.is_condemned(FILE)), (0, true));
    }

    /// What right functions give, and may look strange.
    #[test]
    fn who_may_be_right_is_believed() {
        let sent = |moved: u64, bytes: &[u8]| (moved, bytes.to_vec());
        let tunnel = record(300);
        for (what, pieces) in [
            ("TLS", vec![sent(122, &[7; 100])]),
            (
                "TLS in TLS",
                vec![sent(327, &tunnel), sent(327, &tunnel), sent(327, &tunnel)],
            ),
            ("a library that adds nothing", vec![sent(100, &[7; 100]); 3]),
            (
                "one coincidence",
                vec![sent(305, &tunnel), sent(327, &tunnel)],
            ),
            (
                "two coincidences",
                vec![sent(305, &tunnel), sent(305, &tunnel), sent(327, &tunnel)],
            ),
            ("kernel TLS, memory", vec![sent(0, &tunnel); 30]),
            (
                "a long call",
                vec![sent(RECORD_MAX, &vec![7; RECORD_MAX as usize]); 30],
            ),
            (
                "half a head",
                vec![sent(4, &tunnel[..4]), sent(301, &tunnel[4..])],
            ),
        ] {
            let (believed, trials) = calls(Direction::Sent, &pieces);
            assert_eq!(
                (believed, trials.is_condemned(FILE)),
                (pieces.len(), false),
                "{what}"
            );
            assert!(!trials.is_open(FILE), "{what}");
        }
    }

    #[test]
    fn a_call_that_moves_both_ways_is_no_send() {
        let mut trials = Trials::default();
        trials.open(FILE);
        trials.carried(FILE, 9, 3, Direction::Sent, 105);
        trials.carried(FILE, 9, 3, Direction::Received, 1);
        let verdict = trials.data(FILE, stream(Direction::Sent), 9, 0, &record(100));
        assert!(matches!(verdict, Verdict::Believed(_)), "{verdict:?}");
    }

    #[test]
    fn who_counts_no_bytes_is_condemned() {
        let mut trials = Trials::default();
        assert!(trials.senseless(FILE).is_none());
        trials.open(FILE);
        assert!(trials.senseless(FILE).is_none() && trials.senseless(FILE).is_none());
        let verdict = trials.senseless(FILE);
        assert!(matches!(verdict, Some(Verdict::Condemned(COUNTS, held)) if held.is_empty()));
        assert!(trials.is_condemned(FILE) && trials.senseless(FILE).is_none());
    }
}
