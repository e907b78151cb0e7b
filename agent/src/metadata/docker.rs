//! Docker's API: HTTP over a socket. Podman speaks it, too.

use std::{collections::HashMap, io, path::PathBuf};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1::handshake};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, sync::Semaphore};

use super::{Container, Pod, kept, name};

/// A runtime. Each question has a connection: they are rare, and one that hangs holds no other.
pub struct Runtime {
    path: PathBuf,
    connections: Semaphore,
}

const CONNECTIONS: usize = 8;
/// The largest answer that is read.
const ANSWER_MAX: usize = 4 << 20;

impl Runtime {
    pub fn new(path: PathBuf) -> Runtime {
        let connections = Semaphore::new(CONNECTIONS);
        Runtime { path, connections }
    }

    /// The container of this id.
    pub async fn find(&self, id: &str) -> io::Result<Option<Container>> {
        let _turn = self.connections.acquire().await.map_err(io::Error::other)?;
        let stream = UnixStream::connect(&self.path).await?;
        let shaken = handshake(TokioIo::new(stream)).await;
        let (mut sender, driven) = shaken.map_err(io::Error::other)?;
        tokio::spawn(driven);
        let request = Request::get(format!("/containers/{id}/json"))
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(io::Error::other(format!("answered with {status}"))),
        }
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect();
        let body = body.await.map_err(io::Error::other)?.to_bytes();
        let found: Inspected = serde_json::from_slice(&body)?;
        Ok((found.id == id).then(|| found.tell()))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    name: String,
    config: Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    image: String,
    /// `null` for none.
    labels: Option<HashMap<String, String>>,
}

impl Inspected {
    fn tell(self) -> Container {
        let labels = self.config.labels.unwrap_or_default();
        // A slash stands before it: names were paths once.
        let called = self.name.trim_start_matches('/').to_owned();
        Container {
            name: name(called),
            image: name(self.config.image),
            pod: Pod::of_labels(&labels),
            labels: kept(labels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_container() {
        let text = r#"{"Id":"c0ffee","Created":"x","Name":"/web","Image":"sha256:12",
            "Config":{"Hostname":"h","Image":"nginx:1","Labels":{"a":"b"}}}"#;
        let told = serde_json::from_str::<Inspected>(text).unwrap().tell();
        assert_eq!(told.name.as_deref(), Some("web"));
        assert_eq!(told.image.as_deref(), Some("nginx:1"));
        assert_eq!(told.labels["a"], "b");
        assert_eq!(told.pod, None);
        let bare = r#"{"Id":"c0ffee","Config":{"Labels":null}}"#;
        let told = serde_json::from_str::<Inspected>(bare).unwrap().tell();
        assert_eq!(told, Container::default());
    }
}
