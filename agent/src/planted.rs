//! Mistakes for the fuzz targets to find, one for each decoder: a target is worth something only as long as it finds
//! its own (`cargo xtask fuzz --planted`). They are in no build but that, which has them all; there the environment
//! chooses one.

/// Where it is, and what is wrong there. The target that must find it has the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The end of a head is looked for behind what came before only.
    Http1,
    /// A table is believed behind a hole that may hide a block.
    Http2,
    /// An entry of the table counts as a byte more than it takes.
    Hpack,
    /// The mask begins anew with each call.
    Websocket,
    /// A line's end that two calls share counts twice.
    Sse,
    /// A hole in a message is not taken off what is left of it.
    Grpc,
    /// What a full buffer had no room for is forgotten.
    Content,
    /// Half a character is forgotten where a call ends behind it.
    Json,
    /// Behind a hole a prelude is looked for at every twelfth byte only.
    Eventstream,
    /// What is cut ends as if it were whole.
    Charset,
    /// Of pieces of an answer that come in one call the last one is heard.
    Llm,
    /// An answer is that of the first request that waits, whatever its id is.
    Mcp,
    /// Behind a change of protocol positions count from the call's beginning.
    Protocol,
    /// Bytes that come twice are shown twice.
    Pipeline,
}

#[cfg(not(feature = "planted-decoders"))]
impl Mistake {
    pub const fn is_planted(self) -> bool {
        false
    }
}

#[cfg(feature = "planted-decoders")]
impl Mistake {
    const ALL: [Mistake; 14] = [
        Mistake::Http1,
        Mistake::Http2,
        Mistake::Hpack,
        Mistake::Websocket,
        Mistake::Sse,
        Mistake::Grpc,
        Mistake::Content,
        Mistake::Json,
        Mistake::Eventstream,
        Mistake::Charset,
        Mistake::Llm,
        Mistake::Mcp,
        Mistake::Protocol,
        Mistake::Pipeline,
    ];

    pub fn is_planted(self) -> bool {
        static CHOSEN: std::sync::OnceLock<Option<Mistake>> = std::sync::OnceLock::new();
        let choose = || {
            let name = std::env::var("VORTEX_PLANTED").ok()?;
            let mut all = Mistake::ALL.into_iter();
            all.find(|mistake| format!("{mistake:?}").eq_ignore_ascii_case(&name))
        };
        *CHOSEN.get_or_init(choose) == Some(self)
    }
}
