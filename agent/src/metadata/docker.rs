//! Docker's API: HTTP over a socket. Podman speaks it, too.

use std::{collections::HashMap, io, path::PathBuf};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::handshake,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, sync::Semaphore};

use super::{
    Container, Pod,
    body::{ANSWER_MAX, Body},
    kept, name,
    recent::Made,
};

/// A runtime. Each question has a connection: they are rare, and one that hangs holds no other.
pub struct Runtime {
    path: PathBuf,
    connections: Semaphore,
}

const CONNECTIONS: usize = 8;

impl Runtime {
    pub fn new(path: PathBuf) -> Runtime {
        let connections = Semaphore::new(CONNECTIONS);
        Runtime { path, connections }
    }

    /// The container of this id.
    pub async fn find(&self, id: &str) -> io::Result<Option<Container>> {
        let _turn = self.connections.acquire().await.map_err(io::Error::other)?;
        let response = self.get(&format!("/containers/{id}/json")).await?;
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

    /// Containers as they are made.
    pub async fn events(&self) -> io::Result<Events> {
        let response = self.get(EVENTS).await?;
        match response.status() {
            StatusCode::OK => Ok(Events(Body::new(response.into_body()))),
            status => Err(io::Error::other(format!("answered with {status}"))),
        }
    }

    async fn get(&self, path: &str) -> io::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.path).await?;
        let shaken = handshake(TokioIo::new(stream)).await;
        let (mut sender, driven) = shaken.map_err(io::Error::other)?;
        tokio::spawn(driven);
        let request = Request::get(path)
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let response = sender.send_request(request).await;
        response.map_err(io::Error::other)
    }
}

/// `filters={"type":["container"],"event":["create"]}`: before a process runs in it.
const EVENTS: &str =
    "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22create%22%5D%7D";

/// Events as they come: a JSON object in each line.
pub struct Events(Body);

impl Events {
    /// The next container that is made. `None`: the runtime has ended.
    pub async fn next(&mut self) -> io::Result<Option<Made>> {
        loop {
            while let Some(end) = self.0.read.iter().position(|byte| *byte == b'\n') {
                let line = self.0.read.split_to(end + 1);
                // What is none of ours is nothing to stumble over.
                if let Ok(event) = serde_json::from_slice::<Event>(&line)
                    && let Some(made) = event.tell()
                {
                    return Ok(Some(made));
                }
            }
            if !self.0.more().await? {
                return Ok(None);
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(rename = "Type")]
    of: String,
    action: String,
    actor: Actor,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes", default)]
    attributes: HashMap<String, String>,
}

impl Event {
    fn tell(self) -> Option<Made> {
        if self.of != "container" || self.action != "create" {
            return None;
        }
        let Actor { id, mut attributes } = self.actor;
        // Name, image and labels, side by side; podman has two more (`pkg/domain/entities/events.go`).
        let called = attributes.remove("name").unwrap_or_default();
        let image = attributes.remove("image").unwrap_or_default();
        for other in ["containerExitCode", "podId"] {
            attributes.remove(other);
        }
        let container = Container {
            name: name(called),
            image: name(image),
            pod: Pod::of_labels(&attributes),
            labels: kept(attributes),
        };
        Some(Made {
            id,
            container: Some(container),
        })
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
    #[test]
    fn what_is_told_when_one_is_made() {
        let text = r#"{"status":"create","id":"c0ffee","from":"nginx:1","Type":"container","Action":"create",
            "Actor":{"ID":"c0ffee","Attributes":{"image":"nginx:1","name":"web","a":"b",
            "containerExitCode":"0","podId":""}},
            "scope":"local","time":1,"timeNano":1}"#;
        let tell = |text: &str| serde_json::from_str::<Event>(text).unwrap().tell();
        let made = tell(text).unwrap();
        let container = made.container.unwrap();
        assert_eq!(made.id, "c0ffee");
        assert_eq!(container.name.as_deref(), Some("web"));
        assert_eq!(container.image.as_deref(), Some("nginx:1"));
        assert_eq!(
            container.labels.into_iter().collect::<Vec<_>>(),
            [("a".into(), "b".into())]
        );
        let bare = r#"{"Type":"container","Action":"create","Actor":{"ID":"c0ffee"}}"#;
        assert_eq!(tell(bare).unwrap().container, Some(Container::default()));
        for other in [("\"container\"", "\"image\""), ("\"create\"", "\"die\"")] {
            assert_eq!(tell(&bare.replace(other.0, other.1)), None);
        }
    }
}
