//! `vortex-agent daemon`: a run of the whole machine as a service, and `vortex-agent health`, which asks one.
//!
//! What makes it a service is in [`Service`]: the doors behind which it is asked, the way to its manager, and who reads
//! its configuration again. All of it is opened before the lock-in, and the door first: of two daemons the second one
//! must not get as far as to empty the first one's output.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    alive::{self, AskError, Door, State, Status},
    cli::{Daemon, Health},
    clock::{since_boot, to_wall},
    complain::complain,
    config::{Config, ConfigError, DAEMON_USER, Settings},
    confine::{Identity, NOBODY},
    coverage::Counts,
    map,
    notify::Notifier,
    obstacle::Obstacle,
    reader::Reader,
    record::{Ledger, WallTime},
    run::{self, FAILED},
    user::User,
};

/// The whole command; returns the exit status.
pub fn daemon(arguments: &Daemon) -> ExitCode {
    let path = &arguments.config;
    let read = Settings::text(path).and_then(|text| {
        let config = Config::try_from(Settings::parse(&text, path)?)?;
        let identity = identity(config.daemon.user.as_deref())?;
        Ok((text, config, identity))
    });
    let (text, config, identity) = match read {
        Ok(read) => read,
        Err(error) => {
            complain(&error);
            return Obstacle::Configuration.status().into();
        }
    };
    match Service::open(&config, identity, path, &text) {
        Ok(service) => run::serve(&config, service),
        Err(error) => {
            complain(format!("{error:#}"));
            FAILED.into()
        }
    }
}

/// Whom the pipeline becomes. A daemon has no CMD to signal.
fn identity(name: Option<&str>) -> Result<Identity, ConfigError> {
    let find = |name: &str| {
        User::named(name).map_err(|error| ConfigError::User {
            name: name.to_owned(),
            error,
        })
    };
    let user = match name {
        Some(name) => Some(find(name)?.ok_or_else(|| ConfigError::NoDaemonUser(name.to_owned()))?),
        None => find(DAEMON_USER)?,
    };
    Ok(user.map_or_else(
        || Identity {
            signals_as: NOBODY,
            ..Identity::default()
        },
        |user| Identity {
            uid: user.uid,
            gid: user.gid,
            signals_as: user.uid,
        },
    ))
}

/// What a daemon has that a run has not.
#[derive(Debug)]
pub struct Service {
    pub door: Door,
    /// For those who ask for the map.
    pub map_door: map::door::Door,
    pub notifier: Notifier,
    pub identity: Identity,
    pub reader: Reader,
    /// Of the configuration.
    pub path: PathBuf,
    state: State,
    since: String,
}

impl Service {
    fn open(config: &Config, identity: Identity, path: &Path, text: &str) -> Result<Service> {
        let door = Door::open(&config.daemon.socket, identity.uid)?;
        let map_door = map::door::Door::open(&config.daemon.socket, identity.uid)?;
        let reader =
            Reader::start(path, text).context("start who reads the configuration again")?;
        let notifier = Notifier::connect().context("connect to the service manager")?;
        let since = alive::written(WallTime(since_boot().wrapping_add(to_wall())));
        Ok(Service {
            door,
            map_door,
            notifier,
            identity,
            reader,
            path: path.to_owned(),
            state: State::Starting,
            since,
        })
    }

    /// Probes are in, and the ring is read.
    pub fn ready(&mut self, what: &str) {
        self.state = State::Ready;
        self.notifier.ready(what);
    }

    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// The settings are to be read again, and what they say is to follow.
    pub fn reload(&self) {
        self.notifier.reloading();
        if self.reader.ask().is_err() {
            complain("the settings can't be read again; restart the daemon for them");
            self.again_ready();
        }
    }

    /// A reload is over, whatever became of it.
    pub fn again_ready(&self) {
        if self.is_ready() {
            self.notifier.ready("watching");
        }
    }

    pub fn stopping(&mut self) {
        self.state = State::Stopping;
        self.notifier.stopping();
    }

    /// Answers everybody who asks.
    pub fn answer(&self, coverage: Counts, ledger: &Ledger) {
        self.door.answer(|| Status {
            state: self.state,
            since: self.since.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            coverage,
            bytes: ledger.into(),
        });
    }
}

/// The whole command; returns the exit status.
pub fn health(arguments: &Health) -> ExitCode {
    let socket = arguments.socket.display();
    match alive::ask(&arguments.socket, PATIENCE) {
        Ok(status) => {
            println!("{}", serde_json::to_string(&status).unwrap_or_default());
            if arguments.live || status.state == State::Ready {
                return ExitCode::SUCCESS;
            }
            complain(format!("the daemon at {socket} is not ready"));
        }
        Err(AskError::Nobody) => {
            complain(format!("no daemon is running: nobody answers at {socket}"))
        }
        Err(error) => complain(format!("ask the daemon at {socket}: {error}")),
    }
    FAILED.into()
}

/// Its line looks at the door many times a second.
const PATIENCE: Duration = Duration::from_secs(2);

/// Says if a daemon watches the machine that a run is about to watch. That is no error: each has its own probes and
/// its own output.
pub fn mention_another(config: &Config) {
    const AT_ONCE: Duration = Duration::from_millis(200);
    if let Ok(Status { pid, .. }) = alive::ask(&config.daemon.socket, AT_ONCE) {
        complain(format!(
            "a daemon (process {pid}) watches this machine already: what both see is written by both"
        ));
    }
}
