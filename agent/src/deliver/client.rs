//! One connection to a collector: TCP, TLS if it is asked for, HTTP/1.1 or HTTP/2. Made when it is needed, kept as long
//! as it works, one request at a time.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::{
    settings::{Endpoint, Protocol},
    wire::Ends,
};

/// More than any answer to an export.
const ANSWER_MAX: usize = 1 << 20;

pub struct Client {
    endpoint: Endpoint,
    tls: Option<Tls>,
    protocol: Protocol,
    timeout: Duration,
    connection: Option<Connection>,
    made: Made,
}

/// Who is told of each connection before anything goes over it.
pub type Made = mpsc::Sender<Told>;
/// A connection, and who waits until it is told.
pub type Told = (Ends, oneshot::Sender<()>);

struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A response with everything that came with it.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: Bytes,
}

/// Which roots are trusted: those of a file, or the system's.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read the certificates in {path}: {why}")]
    File { path: String, why: String },
    #[error("{0} has no certificate in it")]
    Empty(String),
    #[error("this system has no root certificates: install ca-certificates, or name a `ca-file`")]
    NoRoots,
    #[error("TLS: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
    #[error("endpoint: {0:?} is no name that a certificate could have")]
    Name(String),
}

impl Client {
    /// Reads certificates, so before the lock-in.
    pub fn new(
        endpoint: &Endpoint,
        protocol: Protocol,
        ca_file: Option<&Path>,
        timeout: Duration,
        made: &Made,
    ) -> Result<Client, TlsError> {
        let tls = endpoint
            .has_tls
            .then(|| Tls::new(endpoint, protocol, ca_file));
        Ok(Client {
            endpoint: endpoint.clone(),
            tls: tls.transpose()?,
            protocol,
            timeout,
            connection: None,
            made: made.clone(),
        })
    }

    /// Sends one request and waits for the whole answer. The error says what went wrong at this collector.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let place = format!("{host} port {port}");
        match timeout(self.timeout, self.exchange(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => {
                self.connection = None;
                Err(format!("{place}: {why}"))
            }
            Err(_) => {
                self.connection = None;
                Err(format!("{place}: no answer in {:?}", self.timeout))
            }
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let said = |error: hyper::Error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.connection = Some(self.connect().await?);
        }
        let Some(connection) = &mut self.connection else {
            return Err("no connection".to_owned());
        };
        let response = connection.send(request).await.map_err(said)?;
        read(response)
            .await
            .map_err(said)?
            .ok_or_else(|| "its answer is too long".to_owned())
    }

    async fn connect(&self) -> Result<Connection, String> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let addresses = lookup_host((host.as_str(), *port)).await;
        let addresses: Vec<SocketAddr> = addresses
            .map_err(|error| format!("no address: {error}"))?
            .collect();
        let stream = reach(&addresses).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        if let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) {
            let (told, is_told) = oneshot::channel();
            // Nobody is there at the end only.
            let _ = self.made.send(((local, peer), told)).await;
            let _ = is_told.await;
        }
        let Some(tls) = &self.tls else {
            return self.speak(stream).await;
        };
        let stream = tls.connector.connect(tls.name.clone(), stream).await;
        self.speak(stream.map_err(|error| format!("TLS: {error}"))?)
            .await
    }

    async fn speak(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Connection, String> {
        let stream = TokioIo::new(stream);
        match self.protocol {
            Protocol::Http => {
                let made = http1::handshake(stream).await;
                let (sender, connection) = made.map_err(|error| error.to_string())?;
                // Its error is also the request's.
                tokio::spawn(connection);
                Ok(Connection::Http1(sender))
            }
            Protocol::Grpc => {
                let made = http2::handshake(TokioExecutor::new(), stream).await;
                let (sender, connection) = made.map_err(|error| error.to_string())?;
                tokio::spawn(connection);
                Ok(Connection::Http2(sender))
            }
        }
    }
}

/// The first that answers.
async fn reach(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(why) => error = why,
        }
    }
    Err(error)
}

impl Connection {
    fn is_closed(&self) -> bool {
        match self {
            Connection::Http1(sender) => sender.is_closed(),
            Connection::Http2(sender) => sender.is_closed(),
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Connection::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Connection::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// `None`: it is longer than an answer is.
async fn read(response: Response<Incoming>) -> hyper::Result<Option<Answer>> {
    let (head, mut from) = response.into_parts();
    let mut body = BytesMut::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = from.frame().await {
        match frame?.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(other) => trailers.extend(other.into_trailers().unwrap_or_default()),
        }
        if body.len() > ANSWER_MAX {
            return Ok(None);
        }
    }
    Ok(Some(Answer {
        status: head.status,
        headers: head.headers,
        trailers,
        body: body.freeze(),
    }))
}

impl Tls {
    fn new(
        endpoint: &Endpoint,
        protocol: Protocol,
        ca_file: Option<&Path>,
    ) -> Result<Tls, TlsError> {
        let name = ServerName::try_from(endpoint.host.clone());
        let name = name.map_err(|_| TlsError::Name(endpoint.host.clone()))?;
        let roots = match ca_file {
            Some(path) => roots_of(path)?,
            None => system_roots()?,
        };
        let provider = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = match protocol {
            Protocol::Grpc => vec![b"h2".to_vec()],
            Protocol::Http => vec![b"http/1.1".to_vec()],
        };
        Ok(Tls {
            connector: TlsConnector::from(Arc::new(config)),
            name,
        })
    }
}

fn roots_of(path: &Path) -> Result<RootCertStore, TlsError> {
    let failed = |why: String| TlsError::File {
        path: path.display().to_string(),
        why,
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path);
    for certificate in certificates.map_err(|error| failed(error.to_string()))? {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Empty(path.display().to_string()));
    }
    Ok(roots)
}

/// One that can't be read is not trusted: that is all.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    Ok(roots)
}
