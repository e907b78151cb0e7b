//! What tests that talk to the line need: settings without anything, a library, and bytes as the kernel side copies them.

use std::collections::BTreeSet;

use agent_ebpf::{Data, Direction, Head, Place, Shape, cookie, kind};
use vortex_agent::{
    detect,
    llm::price::Prices,
    locate::{Found, Instruction, Point},
    metadata::Names,
    pipeline::Wanted,
    protocol::exchange::Bounds,
    redact::{Key, Policy},
};
use zerocopy::IntoBytes as _;

/// Nobody is left out, and nothing is told.
pub fn wanted() -> Wanted {
    Wanted {
        emit: BTreeSet::new(),
        undecoded: false,
        live: false,
        bounds: Bounds::default(),
        content: Policy::Redacted,
        exes: Vec::new(),
        uids: Vec::new(),
        comms: Vec::new(),
        names: Names::default(),
        policy: None,
        prices: Prices::default(),
        findings: detect::Settings::default(),
        key: 1,
        secret_key: Key::new([3; 32]),
    }
}

/// A library with one function for each direction: point 1 receives, point 2 sends.
pub fn libssl() -> Found {
    let point = |function, direction, offset| Point {
        offset,
        function_offset: offset,
        library: "OpenSSL",
        function,
        direction,
        shape: Shape::OutFourth,
        instruction: Instruction::Emulated,
        detail: 0,
        bytes: [0; 16],
    };
    Found {
        library: "OpenSSL",
        version: None,
        points: vec![
            point("ssl_read_internal", Direction::Received, 16),
            point("ssl_write_internal", Direction::Sent, 32),
        ],
        others: Vec::new(),
        partly: None,
        located: "symbols",
        on_trial: false,
    }
}

/// Process and thread of one number.
pub fn both(pid: u32) -> u64 {
    u64::from(pid) << 32 | u64::from(pid)
}

pub fn head(kind: u16, direction: Direction, len: usize, time: u64) -> Head {
    Head {
        kind,
        direction: direction as u16,
        len: len as u32,
        time,
    }
}

/// A record of bytes that went through [`libssl`]: of a process and a handle, at a position of their stream.
pub fn data(
    (pid, handle): (u32, u64),
    direction: Direction,
    offset: u64,
    bytes: &[u8],
    now: u64,
) -> Vec<u8> {
    let point = match direction {
        Direction::Received => 1,
        Direction::Sent => 2,
    };
    let data = Data {
        head: head(kind::DATA, direction, bytes.len(), now),
        pid_tgid: both(pid),
        born: 0,
        handle,
        offset,
        socket: 0,
        place: Place {
            sequence: 0,
            skipped: 0,
        },
        cookie: cookie(point, direction, Shape::OutFourth),
    };
    [data.as_bytes(), bytes].concat()
}
