//! Connections that the agent makes itself, to its collectors. Its own end is never looked at; where a collector is on
//! this machine, the other end is a process like any. What it reads there are our records, and a record of that would
//! be the next one to be sent, and so on.

use std::{collections::VecDeque, net::SocketAddr};

use crate::record::Connection;

/// Of a collector that is away there are many, one after the other. Only the latest live.
const MOST: usize = 256;

/// Both ends of each, as the other end has them.
#[derive(Debug, Default)]
pub struct Ours(VecDeque<(SocketAddr, SocketAddr)>);

impl Ours {
    pub fn made(&mut self, local: SocketAddr, peer: SocketAddr) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back((canonical(peer), canonical(local)));
    }

    /// Is it the other end of one of ours?
    pub fn hold(&self, connection: &Connection) -> bool {
        // Asked of each record, and mostly there are none.
        if self.0.is_empty() {
            return false;
        }
        let (Some(local), Some(peer)) = (connection.local, connection.peer) else {
            return false;
        };
        let ends = (canonical(local), canonical(peer));
        self.0.contains(&ends)
    }
}

/// A socket for both versions has the addresses of the older one in another form.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
